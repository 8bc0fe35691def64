"""What this machine offers a process: cores, the environment, where what can be fetched or made again is kept."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder(*parts: str) -> Path:
    """A folder of ours below $XDG_CACHE_HOME (by default ~/.cache); not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("nightpress", *parts)


@contextlib.contextmanager
def environment(values: dict[str, str], without: tuple[str, ...] = ()) -> Iterator[None]:
    """os.environ with these values and without those, as child processes started meanwhile inherit it."""
    before = {name: os.environ.get(name) for name in (*values, *without)}
    try:
        for name in without:
            os.environ.pop(name, None)
        os.environ.update(values)
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
