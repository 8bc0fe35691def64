"""One shard of one stage, on whichever machine: read ahead, work object by object, write the outputs, then the marker.

Here: the form of a step and its loop. What is done to an object stands in the step's own module (fingerprint.py,
compress.py, verify_duplicates.py); which shards there are, and what happens when a worker dies over one, in
flows/cluster.py.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module

import pyarrow as pa

from tasks.night.catalog import write_table
from tasks.night.runs import Night, store_of, work_key
from tasks.stores.base import StoreError

AHEAD = 4  # objects being read while one is worked on
AHEAD_BYTES = 256 << 20  # but no more than this waiting in memory


@dataclass(frozen=True)
class Step:
    """A stage of the night: its name, and the names of the functions that do it in a module that workers import.

    The coordinator does not import that module: it may need torch. It holds
    fetch(night, item) -> anything, run ahead in threads; a StoreError it raises is handed to `each` as it is;
    each(night, item, fetched) -> result: one object; never raises for what is wrong with the object;
    gather(night, shard, results) -> table: writes what the shard puts under DEST, returns the stage's rows;
    killed_row(night, item, why) -> result: for an object over which workers keep dying.
    """

    stage: str
    module: str
    each: str
    fetch: str | None = "fetch"
    network: bool = False  # wants a GPU where there are any

    def function(self, name: str) -> Callable:
        return getattr(import_module(self.module), name)


def run_shard(step: Step, night: Night, shard: str, items: list[dict]) -> tuple[pa.Table, float]:
    """Do a shard and write its marker; the rows that the marker holds, and the seconds that it took."""
    watch = Stopwatch()
    return finish_shard(step, night, shard, run_items(step, night, items)), watch.seconds


def run_items(step: Step, night: Night, items: list[dict]) -> list:
    """Results of a shard's objects, in order, nothing written yet."""
    each = step.function(step.each)
    return [each(night, item, fetched) for item, fetched in read_ahead(step, night, items)]


def lose_item(step: Step, night: Night, item: dict, why: str) -> list:
    """What run_items would have given for an object, had workers not died over it."""
    return [step.function("killed_row")(night, item, why)]


def finish_shard(step: Step, night: Night, shard: str, results: list) -> pa.Table:
    """Outputs first, marker last: a shard whose file is there is done."""
    table = step.function("gather")(night, shard, results)
    write_table(store_of(night.dest), work_key(night, step.stage, shard), table)
    return table


def read_ahead(step: Step, night: Night, items: list[dict]) -> Iterator[tuple[dict, object]]:
    """(item, fetched or StoreError) in order; up to AHEAD objects and AHEAD_BYTES are on their way."""
    if step.fetch is None:
        yield from ((item, None) for item in items)
        return

    fetch = step.function(step.fetch)

    def fetched(item: dict):
        try:
            return fetch(night, item)
        except StoreError as error:
            return error

    waiting: deque = deque()
    held, upcoming = 0, iter(items)
    following = next(upcoming, None)
    with ThreadPoolExecutor(AHEAD) as pool:
        while waiting or following is not None:
            while following is not None and len(waiting) < AHEAD:
                size = following.get("size") or 0
                if waiting and held + size > AHEAD_BYTES:
                    break
                waiting.append((following, size, pool.submit(fetched, following)))
                held += size
                following = next(upcoming, None)
            item, size, future = waiting.popleft()
            result = future.result()
            held -= size
            yield item, result


class Stopwatch:
    """Seconds since it was made: `watch.seconds`."""

    def __init__(self):
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started
