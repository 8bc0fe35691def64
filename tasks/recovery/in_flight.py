"""Work on many threads with bounds: so many items submitted, so much memory in flight."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait


class Room:
    """Bounds what is in flight; one item larger than all the room passes alone."""

    def __init__(self, size: int):
        self._size, self._used, self._changed = size, 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self._size)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


def drain(pool: ThreadPoolExecutor, function: Callable, items: Iterable, most: int) -> None:
    """`function(item)` for all items on the pool, at most so many submitted at a time; the first error is raised."""
    pending: set = set()
    for item in items:
        if len(pending) >= most:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        pending.add(pool.submit(function, item))
    for future in pending:
        future.result()
