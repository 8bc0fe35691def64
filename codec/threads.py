"""How the codec uses several cores: pieces of the work side by side, each with one of torch's threads to itself.

Within `team` torch works in the calling thread alone, and `each` hands pieces to as many threads as torch had. That
scales better than the operations within one piece, between which lies much that torch does in one thread, and its idle
threads do not take the cores from the others.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

LARGEST_TEAM = 16
_local = threading.local()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which torch works alone."""
    pool = ThreadPoolExecutor(threads, "npi-pool")
    mine, ready = torch.get_num_threads(), threading.Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # the first call in a thread sets what others have chosen, and would do so later
        torch.set_num_threads(1)
        ready.wait()

    for one in [pool.submit(begin) for _ in range(threads)]:
        one.result()
    torch.set_num_threads(mine)  # the threads' setting is also what threads begun later start from
    return pool


@contextlib.contextmanager
def team() -> Iterator[None]:
    """Gives `each` the threads that torch has in this thread, and torch one. Within another team: nothing."""
    threads = torch.get_num_threads()
    if threads == 1:  # as it is in a team, and in the pool
        yield
        return
    _local.threads = min(threads, LARGEST_TEAM)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _local.threads = 1
        torch.set_num_threads(threads)


def team_size() -> int:
    """How many threads `each` has here."""
    return getattr(_local, "threads", 1)


def each(function: Callable, items: list) -> list:
    """[function(item)], by the team, the calling thread among it; an error is raised when all have stopped. Inside
    `function` each thread works alone."""
    members = team_size()
    if members == 1 or len(items) < 2:
        return [function(item) for item in items]
    inference, results, errors = torch.is_inference_mode_enabled(), [None] * len(items), []
    left = iter(range(len(items)))  # next() on it is one step for the interpreter: no two threads get the same

    def work() -> None:
        with torch.inference_mode(inference):
            for i in left:
                if errors:
                    return
                try:
                    results[i] = function(items[i])
                except BaseException as error:
                    errors.append(error)

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
    if errors:
        raise errors[0]
    return results
