"""One long listing by several threads: the key space in ranges that are cut where its keys branch.

Knows pages of keys alone; where they come from is s3.py's.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tasks.stores.base import StoreError

Page = Callable[[str, int], tuple[Sequence[dict], bool]]


def listed_in_ranges(page: Page, prefix: str, threads: int) -> Iterator[list[dict]]:
    """Pages of all entries under `prefix`, listed by several threads, each on a range of the key space.

    `page(after, count)` gives (entries above key `after` in ascending order of code points, more?). There is one
    range at first. A thread that has listed a few pages of its range while another one is idle cuts the rest where its
    keys branch (which costs up to forty requests for one key each). The ranges (after, until] always tile the key
    space, whatever the branching points, so that no key is missed or listed twice.
    """
    listing = RangedListing(page, prefix, threads)
    listing.start()
    try:
        while (item := listing.pages.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        listing.stop()


class RangedListing:
    """The threads of one listing, the ranges that nobody lists yet, and the pages that wait to be taken.

    pages: lists of entries, then None at the end, or the exception that ended it.
    """

    def __init__(self, page: Page, prefix: str, threads: int):
        self.page, self.prefix, self.threads = page, prefix, threads
        self.pages: queue.Queue = queue.Queue(maxsize=2 * threads)
        self._ranges: list[tuple[str, str | None]] = [("", None)]
        self._changed = threading.Condition()
        self._idle, self._stopped = 0, False

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="listing").start()

    def stop(self) -> None:
        self._stopped = True
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        workers = [threading.Thread(target=self._work, daemon=True, name=f"listing-{i}") for i in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self._put(None)

    def _work(self) -> None:
        while (taken := self._next_range()) is not None:
            try:
                self._list(*taken)
            except BaseException as error:
                self._put(error)
                self.stop()
                return

    def _next_range(self) -> tuple[str, str | None] | None:
        """A range to list, once there is one; None where no range is left and nobody who could still split one."""
        with self._changed:
            self._idle += 1
            while not self._ranges and self._idle < self.threads and not self._stopped:
                self._changed.wait()
            if self._stopped or not self._ranges:
                self._changed.notify_all()
                return None
            self._idle -= 1
            return self._ranges.pop(0)

    def _list(self, after: str, until: str | None) -> None:
        """One range; what is left of it is cut while another thread has nothing to do."""
        patience, since_split = 6 if after else 2, 0
        while not self._stopped:
            entries, more = self.page(after, 1000)
            if entries and entries[0]["Key"] <= after:
                raise StoreError(
                    f"the server lists {entries[0]['Key']!r} after {after!r}, not in ascending order; "
                    "such buckets (S3 directory buckets) cannot be listed"
                )
            if until is not None and entries and entries[-1]["Key"] > until:
                entries, more = [entry for entry in entries if entry["Key"] <= until], False
            if entries:
                self._put(entries)
            if not entries or not more:
                return
            after, since_split = entries[-1]["Key"], since_split + 1
            if since_split >= patience and self._idle:
                cuts = branching_points(partial(first_key, self.page, until), self.prefix, after)
                patience, since_split = 6 if cuts else 2 * patience, 0
                if cuts:
                    self._offer([*zip(cuts, [*cuts[1:], until], strict=True)])
                    until = cuts[0]

    def _offer(self, ranges: list[tuple[str, str | None]]) -> None:
        with self._changed:
            self._ranges.extend(ranges)
            self._changed.notify_all()

    def _put(self, item) -> None:
        while not self._stopped:
            with contextlib.suppress(queue.Full):
                return self.pages.put(item, timeout=0.5)


def first_key(page, until: str | None, after: str) -> str | None:
    entries, _ = page(after, 1)
    return entries[0]["Key"] if entries and (until is None or entries[0]["Key"] <= until) else None


def branching_points(first, prefix: str, after: str, most: int = 32) -> list[str]:
    """Strings above `after` that cut the remaining keys where they branch; empty where they do not.

    `first(a)`: the first key above `a`, or None. All keys left share the first i characters of `after` for
    some largest i, found by bisection; from there on, one request a branch.
    """

    def beyond(i: int) -> str | None:
        """The first key that leaves `after` at character i or before."""
        start = successor(after[: i + 1])
        return None if start is None else first(start)

    low, high = len(prefix), len(after)
    while low < high:
        middle = (low + high) // 2
        if beyond(middle) is not None:
            high = middle
        else:
            low = middle + 1
    if low >= len(after):
        return []
    cuts: list[str] = []
    cut = successor(after[: low + 1])
    while cut is not None and len(cuts) < most and (key := first(cut)) is not None:
        cuts.append(cut)
        cut = successor(key[: low + 1])
    return cuts


def successor(text: str) -> str | None:
    """The smallest string above every string that starts with `text`, in order of code points; None: there is none."""
    text = text.rstrip("\U0010ffff")
    if not text:
        return None
    last = ord(text[-1]) + 1
    return text[:-1] + chr(0xE000 if last == 0xD800 else last)
