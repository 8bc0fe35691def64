"""Deaths: of workers, over and over, over one object; of the whole run, taken up again with an equal report."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flows.cluster import pool
from flows.jobs import Job, run_jobs
from flows.prefect_server import PrefectServer
from tasks.night.runs import Night, finished_shards, store_of
from tasks.night.shards import Step

pytestmark = pytest.mark.server

STEP_MODULE = """
    import os, time
    import pyarrow as pa

    def each(night, item, fetched):
        if item["key"] == "poison":
            os._exit(9)
        time.sleep(item.get("seconds", 0))
        return {"key": item["key"], "pid": os.getpid()}

    def gather(night, shard, results):
        return pa.Table.from_pylist(results)

    def killed_row(night, item, why):
        return {"key": item["key"], "pid": -1}
"""


@pytest.fixture
def step(tmp_path, monkeypatch):
    """A step of a module that workers can import."""
    (tmp_path / "made_up_step.py").write_text(textwrap.dedent(STEP_MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    return Step("made-up", "made_up_step", "each", fetch=None)


@pytest.fixture
def night(tmp_path):
    return Night("20260101T000000Z-0000", str(tmp_path / "source"), str(tmp_path / "dest"))


def test_one_poisonous_object_costs_itself_alone(step, night):
    jobs = [Job(str(n), [{"key": f"{n}{k}"} for k in range(3)]) for n in range(4)]
    jobs[2].items[1]["key"] = "poison"
    with pool(1, device="cpu") as workers:
        rows = {job.shard: table.to_pylist() for job, (table, _) in run_jobs(workers, step, night, jobs)}
    assert [row["key"] for row in rows["2"]] == ["20", "poison", "22"]
    assert [row["pid"] > 0 for row in rows["2"]] == [True, False, True]
    assert all(row["pid"] > 0 for shard in "013" for row in rows[shard])
    assert finished_shards(store_of(night.dest), night, "made-up") == set("0123")


def test_a_killed_worker_costs_its_shards_in_flight(step, night):
    jobs = [Job(str(n), [{"key": str(n), "seconds": 0.3}]) for n in range(12)]
    killed, seen = set(), {}
    with pool(2, device="cpu") as workers:
        for job, (table, _) in run_jobs(workers, step, night, jobs):
            seen[job.shard] = table["pid"][0].as_py()
            if len(killed) < 2 and len(seen) % 3 == 0 and seen[job.shard] not in killed:
                killed.add(seen[job.shard])
                os.kill(seen[job.shard], signal.SIGKILL)
    assert len(killed) == 2 and set(seen) == {job.shard for job in jobs}
    assert len(set(seen.values())) >= 3, "workers were restarted"


def test_a_worker_that_dask_gave_up_is_started_anew(step, night):
    """As it does with one whose restart failed; it was the only one."""
    jobs = [Job(str(n), [{"key": str(n)}]) for n in range(3)]
    with pool(1, device="cpu") as workers:
        cluster = workers.client.cluster
        ((name, nanny),) = cluster.workers.items()
        cluster.sync(nanny.close)
        del cluster.workers[name]
        assert {job.shard for job, _ in run_jobs(workers, step, night, jobs)} == set("012")


def test_limits_in_flight(step, night):
    jobs = [Job(str(n), [{"key": str(n), "seconds": 0.05}], memory=100) for n in range(10)]
    with pool(2, device="cpu") as workers:
        workers.memory, most = 250, []
        assert len(list(run_jobs(workers, step, night, jobs, watch=most.append))) == 10
        assert max(most) == 2
        workers.memory, most = 1 << 30, []
        assert len(list(run_jobs(workers, step, night, jobs, watch=most.append))) == 10
        assert max(most) == 4
        workers.memory = 50  # one that is too large for all still goes, alone
        assert len(list(run_jobs(workers, step, night, jobs[:2]))) == 2
        allowed = iter([True, True, True, False])
        done = list(run_jobs(workers, step, night, jobs, may_start=lambda: next(allowed, False)))
        assert len(done) <= 3


def test_the_prefect_server_dies_with_us(tmp_path):
    code = "import sys, time; from flows.prefect_server import PrefectServer; s = PrefectServer(); s.start(); "
    code += "print(s.own.process.pid, flush=True); time.sleep(60)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("PREFECT_API_URL", None)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    server = int(parent.stdout.readline())
    time.sleep(0.5)  # most often the server has asked to be killed by now; where not, it must notice
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(600):
        if not Path(f"/proc/{server}").exists() or "Z" in Path(f"/proc/{server}/stat").read_text().rsplit(")")[-1][:3]:
            return
        time.sleep(0.1)
    os.kill(server, signal.SIGKILL)
    raise AssertionError("the server outlived its parent")


def test_a_second_server_takes_another_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with PrefectServer() as one, PrefectServer() as other:
        assert one.own.home != other.own.home and one.own.port != other.own.port
    assert one.own.process.poll() is not None and other.own.process.poll() is not None


@pytest.mark.slow
def test_killed_runs_end_like_undisturbed_ones(prefect_url, tmp_path):
    """Two random kills; `tests/bench/bench_kills.py` does twenty, with servers of the runs' own."""
    bench = Path(__file__).parents[1] / "bench" / "bench_kills.py"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PREFECT_API_URL": prefect_url}
    options = ["--kills", "2", "--pictures", "16", "--shard-size", "4", "--seed", "7"]
    done = subprocess.run([sys.executable, str(bench), *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 killed runs" in done.stdout
