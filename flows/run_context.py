"""A night under way: its log, its limits, its workers, and how a stage's shards are done on them.

Prefect tasks are coarse, one a stage and chunk of shards; inside them shards go to Dask workers (cluster.py). Which
stage follows which is nightly.py's.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from flows.cluster import Pool, pool
from flows.console import Progress, WorkFailed, say
from flows.jobs import Job, run_jobs
from flows.settings import RunSettings
from tasks.night.runs import Night, finished_shards, read_shards, write_json
from tasks.night.shards import Step
from tasks.stores.base import Store, Unavailable
from tasks.stores.lease import Lease

CHUNK = 256  # shards in one Prefect task: a chunk waits for its last shard, so few and large ones
PROGRESS_EVERY = 2.0  # seconds between updates of Prefect's progress bar


@dataclass
class NightRun:
    """A night under way: what was asked, where, how far."""

    settings: RunSettings
    source: Store
    dest: Store
    night: Night
    lease: Lease
    stack: contextlib.ExitStack
    base: dict | None  # manifest of the state that this night builds on
    fresh: bool
    resumed: bool
    started: str
    deadline: datetime | None
    total: int = 0  # objects of the run
    failed: int = 0
    stages: list[dict] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    workers: Pool | None = None
    late: bool = False
    progress_id: object = None

    def log(self, event: str, **facts) -> None:
        """A line of log.jsonl, and of the flow run's log in Prefect."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.events.append(json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False, default=str))
        if FlowRunContext.get():
            words = " ".join(f"{name}={value}" for name, value in facts.items())
            get_run_logger().info(f"{event} {words}".rstrip())

    def save_log(self) -> None:
        lines = "".join(line + "\n" for line in self.events)
        self.dest.write(f"{self.night.folder}log.jsonl", lines.encode(), content_type="application/x-ndjson")

    def may_start(self) -> bool:
        """Asked before each shard: is there still time, and is DEST still ours? Raises LeaseLost."""
        self.lease.check()
        if self.deadline and not self.late and datetime.now(UTC) >= self.deadline:
            self.late = True
            self.log("deadline", deadline=self.deadline.isoformat())
            say("nightpress: the deadline has come; finishing what is in flight, then committing what is done")
        return not self.late

    def pool(self) -> Pool:
        """The workers, started when they are first needed."""
        if self.workers is None:
            s = self.settings
            self.workers = self.stack.enter_context(pool(s.workers, s.dask, s.device))
            self.log("workers", width=self.workers.width, gpus=self.workers.gpus, memory=self.workers.memory)
        return self.workers

    def count_failures(self, rows: pa.Table) -> None:
        """Raises WorkFailed above --max-failed; one bad picture alone never ends a run."""
        self.failed += pc.sum(pc.equal(rows["status"], "failed")).as_py() or 0
        if self.total > 1 and self.failed * 100 > self.settings.max_failed * self.total:
            reasons = rows.filter(pc.fill_null(pc.equal(rows["status"], "failed"), False))["reason"].to_pylist()
            write_json(self.dest, f"{self.night.folder}work/aborted.json", {"failed": self.failed})
            raise WorkFailed(
                f"{self.failed} of {self.total} objects have failed, more than --max-failed "
                f"{self.settings.max_failed:g} %: nothing was committed. "
                f"The last reason: {reasons[-1]}. If that is as it should be, run again with a higher --max-failed; "
                "what is done is not done again"
            )


def worth_retrying(task, run, task_state) -> bool:
    """Stores and connections come back; wrong usage, too many failures and lost leases do not."""
    try:
        task_state.result()
    except (Unavailable, ConnectionError, TimeoutError):
        return True
    except BaseException:
        return False
    return False


def as_prefect_task(stage: str, label: str, body: Callable):
    """Run `body()` as a Prefect task of its own name, tags and retries; its value."""
    made = task(
        name=stage, task_run_name=label, tags=["nightpress", stage], cache_policy=NO_CACHE, persist_result=False,
        retries=2, retry_delay_seconds=[2, 10], retry_condition_fn=worth_retrying,
    )  # fmt: skip
    return made(body)()


@contextlib.contextmanager
def stage_of(run: NightRun, stage: str, **facts) -> Iterator[dict]:
    """Times a stage; its record goes into the manifest and the log."""
    record = {"stage": stage, **facts}
    before = time.monotonic()
    run.log("stage begins", stage=stage, **facts)
    yield record
    record["seconds"] = round(time.monotonic() - before, 3)
    run.stages.append(record)
    run.log("stage ends", **record)
    run.save_log()


def do_shards(run: NightRun, step: Step, jobs: list[Job]) -> dict[str, pa.Table]:
    """All shards of a stage: those whose file is there are read, the others done; table by shard.

    Shards that the deadline left out are missing.
    """
    tables: dict[str, pa.Table] = {}
    with stage_of(run, step.stage, shards=len(jobs), objects=sum(len(job.items) for job in jobs)) as record:
        there = finished_shards(run.dest, run.night, step.stage) if run.resumed and jobs else set()
        ready = [job.shard for job in jobs if job.shard in there]
        for shard, table in read_shards(run.dest, run.night, step.stage, ready):
            tables[shard] = table
            if "status" in table.column_names:
                run.count_failures(table)
        left = [job for job in jobs if job.shard not in tables]
        record |= {"resumed": len(ready), "busy_seconds": 0.0}
        chunks = [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)]
        with Progress(step.stage, len(jobs)) as shown:
            if ready:
                shown.advance(len(ready), "done before")
            for number, chunk in enumerate(chunks, 1):
                if not run.may_start():
                    break
                label = f"{step.stage} {number} of {len(chunks)}: shards {chunk[0].shard} to {chunk[-1].shard}"
                as_prefect_task(
                    step.stage, label, lambda chunk=chunk: do_chunk(run, step, chunk, tables, shown, record)
                )
        record["done"] = len(tables)
    return tables


def do_chunk(run: NightRun, step: Step, chunk: list[Job], tables: dict, shown: Progress, record: dict) -> None:
    """The part of a stage that one Prefect task covers; a retry does what is not done yet."""
    left = [job for job in chunk if job.shard not in tables]
    bar = create_progress_artifact(0.0, key=f"{step.stage}-progress", description=f"{step.stage}, {len(chunk)} shards")
    told = time.monotonic()
    finished = len(chunk) - len(left)
    for job, result in run_jobs(run.pool(), step, run.night, left, may_start=run.may_start):
        table, seconds = result
        tables[job.shard] = table
        record["busy_seconds"] = round(record["busy_seconds"] + seconds, 3)
        if "status" in table.column_names:
            run.count_failures(table)
        finished += 1
        shown.advance(bytes=sum(item.get("size") or 0 for item in job.items))
        if time.monotonic() - told > PROGRESS_EVERY:
            told = time.monotonic()
            update_progress_artifact(bar, 100.0 * finished / len(chunk))
    update_progress_artifact(bar, 100.0 * finished / len(chunk))
