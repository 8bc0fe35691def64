"""The schedule: what is refused before anything starts, and (slow) a night that really starts on the minute."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from flows.commands import serve
from flows.console import WorkFailed, WrongUsage


def arguments(*words: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    serve.register(top.add_subparsers())
    return top.parse_args(["serve", *words, "s3://photos", "s3://pressed"])


def test_refusals_come_before_any_server():
    for words, message in {
        ("--cron", "0 2 * *"): "--cron '0 2 .*five fields",
        ("--cron", "99 2 * * *"): "Bad minute",
        ("--cron", "0 2 * * *", "--timezone", "Mars/One"): "--timezone 'Mars/One' is no time zone",
        ("--cron", "0 2 * * *", "--fresh"): "--fresh is for a single run",
        ("--cron", "0 2 * * *", "--dry-run"): "--dry-run is for a single run",
        ("--cron", "0 2 * * *", "--name", "a/b"): "--name 'a/b'",
        ("--cron", "0 2 * * *", "--quality", "5", "--budget", "3%"): "--quality and --budget",
    }.items():
        with pytest.raises(WrongUsage, match=message):
            serve.serve(arguments(*words))


def test_a_server_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(WorkFailed, match="http://127.0.0.1:9/api does not answer"):
        serve.serve(arguments("--cron", "0 2 * * *"))


def test_deadlines_are_in_the_schedules_zone():
    assert serve.in_zone({"deadline": "06:30"}, "Asia/Tokyo") == {"deadline": "06:30 Asia/Tokyo"}
    for deadline in ("06:30 UTC", "2027-01-01T06:00"):
        assert serve.in_zone({"deadline": deadline}, "Asia/Tokyo") == {"deadline": deadline}
    assert serve.in_zone({"source": "x"}, "UTC") == {"source": "x"}


def test_next_times_are_in_the_zone():
    times = serve.next_times("30 2 * * *", "Asia/Tokyo")
    assert len(times) == 3 and all(when.endswith("02:30 JST") for when in times)


@pytest.mark.slow
@pytest.mark.server
def test_a_night_starts_on_the_minute(tmp_path):
    """`nightpress serve` with a server of its own, a schedule of every minute, and a run that commits."""
    from flows.demo import bucket
    from tasks.stores.open import open_store

    source, dest = tmp_path / "photos", tmp_path / "pressed"
    store = open_store(str(source))
    small = [item for item in bucket() if item.kind in ("small", "other")]
    for item in small:
        store.write(item.key, item.data)
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", "--cron", "* * * * *", "--workers", "1", "--quality", "40"]
            + [str(source), str(dest)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            manifests: list = []
            for _ in range(500):
                manifests = list(dest.glob("runs/*/manifest.json"))
                if manifests or server.poll() is not None:
                    break
                time.sleep(1)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(120)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        log.seek(0)
        said = log.read()
    assert manifests, said[-3000:]
    assert json.loads(manifests[0].read_text())["objects"] == len(small)
    assert "next runs:" in said and "/nightly at http://127.0.0.1:" in said
