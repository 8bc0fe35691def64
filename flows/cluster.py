"""Where the night is computed: Dask's workers, our own on this machine or those of an external scheduler.

Here: starting and stopping local workers, so that nothing of them outlives the night even if it is killed, finding
others, and what is set up in each. Handing shards to them is jobs.py's, what a shard does stands in tasks/, Prefect's
server in prefect_server.py.
"""

import contextlib
import glob
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flows.console import WorkFailed
from tasks.machine import cores, environment

ALLOWED_DEATHS = 3  # worker deaths over one shard (or object) before it counts as the cause
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MEMORY_SHARE = 0.6  # of the memory that is free at the start, for the pictures in flight
# Bytes up to which glibc keeps freed memory for the next tensor. Dask's own 64 KB gives it back at once, and a third of
# the workers' time then goes into the kernel's zeroing of new pages.
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 1 << 29, "MALLOC_MMAP_THRESHOLD_": 1 << 25}


# --- Dask ---


@dataclass
class Pool:
    """Workers to hand shards to. `width`: how many work at once; `memory`: bytes for the pictures in flight.

    `revive()` starts anew what Dask has given up: a worker whose restart failed or took too long would be missing for
    the rest of the night, and the last one would leave it waiting for ever. It costs nothing where all are there.
    """

    client: object
    width: int
    memory: int
    gpus: int = 0
    revive: Callable[[], None] = lambda: None


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
    import distributed  # noqa: F401  # before the settings: its own defaults come with its import

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # deaths are told by us, once, in words
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.worker.daemon": True,
        "distributed.deploy.lost-worker-timeout": "600s",  # a restart beside other work takes longer than Dask's 15 s
        "distributed.admin.tick.limit": "1h",  # numpy and torch hold the loop at times: nobody needs to know
        **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in KEPT_MEMORY.items()},
    }
    with dask.config.set(settings), external(address, device) if address else local(workers, device) as found:
        found.client.register_plugin(worker_plugin(), name="nightpress")
        yield found


@contextlib.contextmanager
def external(address: str, device: str) -> Iterator[Pool]:
    """The workers of somebody else's scheduler, as they are."""
    from distributed import Client

    with contextlib.ExitStack() as stack:
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
        yield Pool(client, width, int(memory * MEMORY_SHARE), gpus)


@contextlib.contextmanager
def local(workers: int | None, device: str) -> Iterator[Pool]:
    """Worker processes of our own on this machine, which end with us."""
    import psutil
    from distributed import Client

    gpus = gpu_count(device)
    if device == "cuda" and not gpus:
        raise WorkFailed("--device cuda: this machine shows no NVIDIA GPU; leave --device out to use its cores")
    with (
        environment(dict.fromkeys(THREADS, "1")),
        local_cluster(workers or gpus or cores(), gpus) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        memory = int(psutil.virtual_memory().available * MEMORY_SHARE)
        width = len(cluster.workers)
        yield Pool(client, width, memory, gpus, revive=lambda: cluster.scale(width))


def local_cluster(count: int, gpus: int):
    """Dask's cluster of `count` processes; where there are GPUs and dask-cuda, its own."""
    from distributed import LocalCluster

    common = {
        "threads_per_worker": 1, "host": "127.0.0.1", "memory_limit": 0, "silence_logs": logging.CRITICAL,
        "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }  # fmt: skip
    if gpus:
        common["resources"] = {"GPU": 1}
        with contextlib.suppress(ImportError):
            from dask_cuda import LocalCUDACluster

            return LocalCUDACluster(**common)
    return started(lambda: LocalCluster(n_workers=count, processes=True, **common))


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
            for variable in THREADS:
                os.environ.setdefault(variable, "1")

    return Setup()
