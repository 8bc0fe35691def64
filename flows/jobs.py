"""Handing shards to Dask's workers, a bounded number in flight; what happens when a worker dies.

A worker's death costs the shards that it held: Dask gives them to another one. A shard that several workers died over
is done object by object, until the one that kills is known; that one becomes a row. Which shards there are is
stages.py's, the workers cluster.py's.
"""

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flows.cluster import ALLOWED_DEATHS, Pool

PER_WORKER = 2  # shards in flight for each worker: one being worked on, one ready


@dataclass(frozen=True)
class Job:
    """One shard of a stage: its name, its items, and the bytes of memory that it takes at its worst."""

    shard: str
    items: list
    memory: int = 0


def run_jobs(
    pool: Pool,
    step,
    night,
    jobs: Sequence[Job],
    *,
    may_start: Callable[[], bool] = lambda: True,
    watch: Callable[[int], None] = lambda busy: None,
) -> Iterator[tuple[Job, object]]:
    """Do the jobs of a step; yields (job, (table, seconds)) as they finish.

    At most PER_WORKER a worker and Pool.memory bytes are in flight; results are released once they are here.

    may_start() is asked before each job; once it says no, what is in flight is finished and the rest is left.
    It may raise to stop everything. watch(n) is called with the number of jobs in flight at least once a second.
    Whatever a step raises (a broken installation, a lost store) ends the night; deaths of workers do not.
    """
    flight = Flight(pool, step, night, jobs, may_start)
    try:
        while flight.launch():
            watch(len(flight.flying))
            if (landed := flight.land()) is not None:
                yield landed
    finally:
        flight.cancel()


class Flight:
    """The jobs of a step that wait, and those that are with the workers."""

    def __init__(self, pool: Pool, step, night, jobs: Sequence[Job], may_start: Callable[[], bool]):
        self.pool, self.step, self.night, self.may_start = pool, step, night, may_start
        self.waiting, self.flying = deque(jobs), {}
        self.held, self.stopped = 0, False
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self.resources = {"resources": {"GPU": 1}} if pool.gpus and step.network else {}

    def launch(self) -> bool:
        """Send off what there is room for; whether anything is in flight."""
        from tasks.night.shards import run_shard

        while self.waiting and not self.stopped and len(self.flying) < self.pool.width * PER_WORKER:
            job = self.waiting[0]
            if self.flying and self.held + job.memory > self.pool.memory:
                break
            if not self.may_start():
                self.stopped = True
                break
            self.waiting.popleft()
            name = f"{self.step.stage}-{job.shard}-{self.night.run_id}"
            options = {"key": name, "pure": False, **self.resources}
            future = self.pool.client.submit(run_shard, self.step, self.night, job.shard, job.items, **options)
            self.flying[future] = job
            self.held += job.memory
            future.add_done_callback(self._done.put)
        return bool(self.flying)

    def land(self) -> tuple[Job, object] | None:
        """A job that has finished and its outcome; None where none does within a second."""
        from distributed import KilledWorker

        try:
            future = self._done.get(timeout=1.0)
        except queue.Empty:
            self.stopped = not self.may_start() or self.stopped  # a lost lease is noticed while shards take their time
            self.pool.revive()
            return None
        job = self.flying.pop(future)
        self.held -= job.memory
        try:
            result = future.result()
        except KilledWorker:
            future.release()
            result = one_by_one(self.pool, self.step, self.night, job, self.resources)
        future.release()
        return job, result

    def cancel(self) -> None:
        """What is still in flight is not wanted any more."""
        if self.flying:
            with contextlib.suppress(Exception):
                self.pool.client.cancel(list(self.flying), force=True)


def outcome(pool: Pool, future):
    """What a future gives or raises; while it takes its time, workers that were given up are started anew."""
    while True:
        try:
            return future.result(timeout=1.0)
        except TimeoutError:
            if future.done():  # then it is the step's own
                raise
            pool.revive()


def one_by_one(pool: Pool, step, night, job: Job, resources: dict):
    """A shard that workers died over, each object on its own; the ones that kill become `killed_row`s."""
    from distributed import KilledWorker

    from tasks.night.shards import Stopwatch, finish_shard, lose_item, run_items

    results, watch = [], Stopwatch()
    for place, item in enumerate(job.items):
        name = f"{step.stage}-{job.shard}-{place}-{night.run_id}"
        future = pool.client.submit(run_items, step, night, [item], key=name, pure=False, **resources)
        try:
            results += outcome(pool, future)
        except KilledWorker:
            why = f"{ALLOWED_DEATHS + 1} workers died over it (out of memory, or a crash in a decoder)"
            lost = pool.client.submit(lose_item, step, night, item, why, key=f"{name}-lost", pure=False)
            results += outcome(pool, lost)
        future.release()
    future = pool.client.submit(
        finish_shard, step, night, job.shard, results, key=f"{step.stage}-{job.shard}-end-{night.run_id}", pure=False
    )
    table = outcome(pool, future)
    future.release()
    return table, watch.seconds
