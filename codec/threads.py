"""A small pool for work that leaves the interpreter's lock: the entropy coder's streams, loops compiled by numba.

Torch's own threads are not used inside it; as many as torch may use work here.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_NAME = "npi-pool"


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, _NAME)


def each(function: Callable, items: list) -> list:
    """[function(item)], in threads where torch may use several."""
    threads = min(torch.get_num_threads(), 16)
    nested = threading.current_thread().name.startswith(_NAME)  # waiting for one's own pool could last for ever
    if threads == 1 or len(items) < 2 or nested:
        return [function(item) for item in items]
    return list(_pool(threads, os.getpid()).map(function, items))
