"""One long listing by several threads: the key space in ranges that are cut where its keys branch.

Knows pages of keys alone; where they come from is s3.py's.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from functools import partial

from tasks.stores.base import StoreError


def listed_in_ranges(page, prefix: str, threads: int) -> Iterator[list[dict]]:
    """Pages of all entries under `prefix`, listed by several threads, each on a range of the key space.

    `page(after, count)` gives (entries above key `after` in ascending order of code points, more?). There is one
    range at first. A thread that has listed a few pages of its range while another one is idle cuts the rest where its
    keys branch (which costs up to forty requests for one key each). The ranges (after, until] always tile the key
    space, whatever the branching points, so that no key is missed or listed twice.
    """
    pages: queue.Queue = queue.Queue(maxsize=2 * threads)
    ranges: list[tuple[str, str | None]] = [("", None)]
    changed = threading.Condition()
    idle, stopped = 0, False

    def put(item) -> None:
        while not stopped:
            with contextlib.suppress(queue.Full):
                return pages.put(item, timeout=0.5)

    def list_range(after: str, until: str | None) -> None:
        patience, since_split = 6 if after else 2, 0
        while not stopped:
            entries, more = page(after, 1000)
            if entries and entries[0]["Key"] <= after:
                raise StoreError(
                    f"the server lists {entries[0]['Key']!r} after {after!r}, not in ascending order; "
                    "such buckets (S3 directory buckets) cannot be listed"
                )
            if until is not None and entries and entries[-1]["Key"] > until:
                entries, more = [entry for entry in entries if entry["Key"] <= until], False
            if entries:
                put(entries)
            if not entries or not more:
                return
            after, since_split = entries[-1]["Key"], since_split + 1
            if since_split >= patience and idle:
                cuts = branching_points(partial(first_key, page, until), prefix, after)
                patience, since_split = 6 if cuts else 2 * patience, 0
                if cuts:
                    with changed:
                        ranges.extend(zip(cuts, [*cuts[1:], until], strict=True))
                        changed.notify_all()
                    until = cuts[0]

    def work() -> None:
        nonlocal idle, stopped
        while True:
            with changed:
                idle += 1
                while not ranges and idle < threads and not stopped:
                    changed.wait()
                if stopped or not ranges:  # no range left and nobody who could still split one
                    changed.notify_all()
                    return
                idle -= 1
                after, until = ranges.pop(0)
            try:
                list_range(after, until)
            except BaseException as error:
                put(error)
                with changed:
                    stopped = True
                    changed.notify_all()
                return

    def run() -> None:
        workers = [threading.Thread(target=work, daemon=True, name=f"listing-{i}") for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        put(None)

    threading.Thread(target=run, daemon=True, name="listing").start()
    try:
        while (item := pages.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped = True
        with changed:
            changed.notify_all()


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
