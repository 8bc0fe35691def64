"""Where the night is computed: Dask's workers, which are handed shards, a bounded number in flight.

Here: starting and stopping local workers, so that nothing of them outlives the night even if it is killed, or finding
those of an external scheduler; what happens when a worker dies. What a shard does stands in tasks/, the order of
stages in nightly.py, Prefect's server in prefect_server.py.

A worker's death costs the shards that it held: Dask gives them to another one. A shard that several workers died over
is done object by object, until the one that kills is known; that one becomes a row.
"""

import contextlib
import glob
import logging
import os
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flows.console import WorkFailed
from tasks.machine import cores, environment

ALLOWED_DEATHS = 3  # worker deaths over one shard (or object) before it counts as the cause
PER_WORKER = 2  # shards in flight for each worker: one being worked on, one ready
MEMORY_SHARE = 0.6  # of the memory that is free at the start, for the pictures in flight
# Bytes up to which glibc keeps freed memory for the next tensor. Dask's own 64 KB gives it back at once, and a third of
# the workers' time then goes into the kernel's zeroing of new pages.
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 1 << 29, "MALLOC_MMAP_THRESHOLD_": 1 << 25}


# --- Dask ---


@dataclass
class Pool:
    """Workers to hand shards to. `width`: how many work at once; `memory`: bytes for the pictures in flight."""

    client: object
    width: int
    memory: int
    gpus: int = 0


def gpu_count(device: str) -> int:
    """NVIDIA GPUs of this machine that may be used; found without loading torch."""
    if device == "cpu":
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(glob.glob("/dev/nvidia[0-9]*"))


@contextlib.contextmanager
def pool(workers: int | None = None, address: str | None = None, device: str = "auto") -> Iterator[Pool]:
    """Local worker processes, one torch thread each, or the workers of a running Dask scheduler at `address`.

    Local: as many as there are cores (or `workers`); where there are GPUs, dask-cuda's cluster if it is
    installed, one process per GPU either way, with the resource GPU=1. Raises WorkFailed.
    """
    import dask
    import psutil
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # deaths are told by us, once, in words
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.worker.daemon": True,
        "distributed.admin.tick.limit": "1h",  # numpy and torch hold the loop at times: nobody needs to know
        **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in KEPT_MEMORY.items()},
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        if address:
            try:
                client = stack.enter_context(Client(address, timeout="30s", set_as_default=False))
            except (OSError, ValueError) as error:
                hint = "start one, or leave --dask out"
                raise WorkFailed(f"no Dask scheduler answers at {address} ({error}); {hint}") from None
            client.wait_for_workers(1, timeout=120)
            found = client.scheduler_info(n_workers=-1)["workers"].values()
            gpus = sum("GPU" in worker["resources"] for worker in found)
            if device == "cuda" and not gpus:
                raise WorkFailed(f"no worker of {address} offers the resource GPU; start them with --resources GPU=1")
            width = sum(worker["nthreads"] for worker in found)
            memory = sum(worker["memory_limit"] or 0 for worker in found) or width * (4 << 30)
            client.register_plugin(worker_plugin(), name="nightpress")
            yield Pool(client, width, int(memory * MEMORY_SHARE), gpus)
            return
        stack.enter_context(environment(threads))
        gpus = gpu_count(device)
        if device == "cuda" and not gpus:
            raise WorkFailed("--device cuda: this machine shows no NVIDIA GPU; leave --device out to use its cores")
        common = {
            "threads_per_worker": 1, "host": "127.0.0.1", "memory_limit": 0, "silence_logs": logging.CRITICAL,
            "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        }  # fmt: skip
        cluster = None
        if gpus:
            with contextlib.suppress(ImportError):
                from dask_cuda import LocalCUDACluster

                cluster = LocalCUDACluster(**(common | {"resources": {"GPU": 1}}))
        if cluster is None:
            resources = {"resources": {"GPU": 1}} if gpus else {}
            count = workers or gpus or cores()
            cluster = started(lambda: LocalCluster(n_workers=count, processes=True, **common, **resources))
        stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        client.register_plugin(worker_plugin(), name="nightpress")
        memory = int(psutil.virtual_memory().available * MEMORY_SHARE)
        yield Pool(client, len(cluster.workers), memory, gpus)


def started(make: Callable, tries: int = 5):
    """The cluster that `make` starts: a worker that dies while it is starting makes distributed give up, so again."""
    for attempt in range(1, tries + 1):
        try:
            return make()
        except RuntimeError as error:
            if attempt == tries:
                raise WorkFailed(f"no Dask workers could be started in {tries} tries: {error}; free memory?") from error


def worker_plugin():
    """Set up once in each worker process, restarted ones included: one torch thread, which GPU is whose.

    Models stay in the process from their first use on (codec.models.get_model keeps them).
    """
    from distributed import WorkerPlugin

    class Setup(WorkerPlugin):
        name = "nightpress"

        def setup(self, worker):
            import warnings

            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            if "GPU" in worker.state.total_resources and "CUDA_VISIBLE_DEVICES" not in os.environ:
                with contextlib.suppress(ValueError, TypeError):
                    os.environ["CUDA_VISIBLE_DEVICES"] = str(int(worker.name))
            for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
                os.environ.setdefault(variable, "1")

    return Setup()


# --- handing out shards ---


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
    from distributed import KilledWorker

    from tasks.night.shards import run_shard

    waiting, flying, held, stopped = deque(jobs), {}, 0, False
    done: queue.SimpleQueue = queue.SimpleQueue()
    resources = {"resources": {"GPU": 1}} if pool.gpus and step.network else {}
    try:
        while waiting or flying:
            while waiting and not stopped and len(flying) < pool.width * PER_WORKER:
                job = waiting[0]
                if flying and held + job.memory > pool.memory:
                    break
                if not may_start():
                    stopped = True
                    break
                waiting.popleft()
                name = f"{step.stage}-{job.shard}-{night.run_id}"
                options = {"key": name, "pure": False, **resources}
                future = pool.client.submit(run_shard, step, night, job.shard, job.items, **options)
                flying[future], held = job, held + job.memory
                future.add_done_callback(done.put)
            if not flying:
                return
            watch(len(flying))
            try:
                future = done.get(timeout=1.0)
            except queue.Empty:
                stopped = not may_start() or stopped  # a lost lease is noticed while shards take their time
                continue
            job = flying.pop(future)
            held -= job.memory
            try:
                result = future.result()
            except KilledWorker as error:
                future.release()
                result = one_by_one(pool, step, night, job, str(error), resources)
            future.release()
            yield job, result
    finally:
        if flying:
            with contextlib.suppress(Exception):
                pool.client.cancel(list(flying), force=True)


def one_by_one(pool: Pool, step, night, job: Job, why: str, resources: dict):
    """A shard that workers died over, each object on its own; the ones that kill become `killed_row`s."""
    from distributed import KilledWorker

    from tasks.night.shards import Stopwatch, finish_shard, lose_item, run_items

    results, watch = [], Stopwatch()
    for place, item in enumerate(job.items):
        name = f"{step.stage}-{job.shard}-{place}-{night.run_id}"
        future = pool.client.submit(run_items, step, night, [item], key=name, pure=False, **resources)
        try:
            results += future.result()
        except KilledWorker:
            why = f"{ALLOWED_DEATHS + 1} workers died over it (out of memory, or a crash in a decoder)"
            lost = pool.client.submit(lose_item, step, night, item, why, key=f"{name}-lost", pure=False)
            results += lost.result()
        future.release()
    future = pool.client.submit(
        finish_shard, step, night, job.shard, results, key=f"{step.stage}-{job.shard}-end-{night.run_id}", pure=False
    )
    table = future.result()
    future.release()
    return table, watch.seconds
