"""How the codec uses several cores: pieces of the work side by side, each with one of torch's threads to itself.

Within `team` torch works in the calling thread alone, and `map_threads` hands pieces to as many threads as torch had
(at most LARGEST_TEAM). That scales better than the operations within one piece, between which lies much that torch does
in one thread, and its idle threads do not take the cores from the others.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

LARGEST_TEAM = 64
ALLOCATOR_VARIABLE = "NIGHTPRESS_ALLOCATOR"  # "system": the process's memory is managed as it was
_KEPT = {-1: 1 << 29, -3: 1 << 25}  # mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_local = threading.local()


@functools.cache
def _keep_freed_memory() -> None:
    """Has glibc keep what is freed, up to 512 MB, for the next tensor, in this process from now on.

    By default it gives much of it back at once, and the kernel has to zero new pages for the next picture: a tenth of
    the time at 2 MP, half of it where MALLOC_TRIM_THRESHOLD_ is 65536, as Dask sets it for its workers.
    """
    if os.environ.get(ALLOCATOR_VARIABLE) != "system":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            for parameter, size in _KEPT.items():
                ctypes.CDLL(None).mallopt(parameter, size)


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which torch works alone."""
    pool, ready = ThreadPoolExecutor(threads, "npi-pool"), threading.Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # the first call in a thread sets what others have chosen, and would do so later
        torch.set_num_threads(1)
        ready.wait()

    try:
        for one in [pool.submit(begin) for _ in range(threads)]:
            one.result()
    except RuntimeError:  # no more threads to be had: those that wait go home
        ready.abort()
        pool.shutdown(wait=False)
        raise
    _for_new_threads(team_size())
    return pool


def _for_new_threads(threads: int) -> None:
    """Sets how many threads torch has in threads begun later, which set_num_threads changes beside the caller's own."""
    helper = threading.Thread(target=torch.set_num_threads, args=(threads,))
    helper.start()
    helper.join()


@contextlib.contextmanager
def team(cuda: bool = False) -> Iterator[None]:
    """Gives `map_threads` the threads that torch has in this thread, and torch one; with `cuda`, where pieces are only
    what follows the networks, torch keeps its own. Within another team: nothing."""
    _keep_freed_memory()
    threads = torch.get_num_threads()
    if threads == 1 or team_size() > 1:  # one, as it is in the pool
        yield
        return
    _local.threads = min(threads, LARGEST_TEAM)
    if not cuda:
        torch.set_num_threads(1)
        _for_new_threads(threads)
    try:
        yield
    finally:
        _local.threads = 1
        if not cuda:
            torch.set_num_threads(threads)


def team_size() -> int:
    """How many threads `map_threads` has here."""
    return getattr(_local, "threads", 1)


def map_threads(function: Callable, items: list) -> list:
    """[function(item)], by the team, the calling thread among it. Inside `function` each thread works alone. The error
    of the first item that has one is raised, when all have stopped."""
    members = team_size()
    if members == 1 or len(items) < 2:
        return [function(item) for item in items]
    inference, results = torch.is_inference_mode_enabled(), [None] * len(items)
    errors: dict[int, BaseException] = {}
    left = iter(range(len(items)))  # next() on it is one step for the interpreter: no two threads get the same

    def work() -> None:
        with torch.inference_mode(inference):
            while not errors and (i := next(left, None)) is not None:
                try:
                    results[i] = function(items[i])
                except BaseException as error:
                    errors[i] = error

    pool = _pool(members - 1, os.getpid())
    futures = [pool.submit(work) for _ in range(min(members, len(items)) - 1)]
    _local.threads = 1
    try:
        work()
    finally:
        _local.threads = members
    for future in futures:
        if not future.cancel():  # it may still wait for other callers' work
            future.result()
    try:
        if errors:
            raise errors[min(errors)]
    finally:
        errors.clear()  # else the error would hold this frame, and the frame the error
    return results
