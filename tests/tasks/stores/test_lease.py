"""The lease: one holder, refusal in words, taking over after a crash, noticing a loss."""

import json
import subprocess
import sys
import threading
import time

import pytest

from tasks.stores import lease as lease_module
from tasks.stores.base import Unavailable
from tasks.stores.lease import KEY, Lease, LeaseHeld, LeaseLost
from tasks.stores.s3 import S3Store


@pytest.fixture
def quick(monkeypatch):
    """Terms short enough for a test, long enough for a busy machine (S3's clock counts whole seconds)."""
    monkeypatch.setattr(lease_module, "TERM", 10.0)
    monkeypatch.setattr(lease_module, "RENEWAL", 0.5)
    monkeypatch.setattr(lease_module, "SETTLING", 0.3)


def crash(store, owner="crashed", alive=True):
    """A lease that nobody renews; `alive`: by a process of another machine, which nobody here can look up."""
    lease = Lease(store, owner)
    content = json.loads(lease._content()) | ({"process": None} if alive else {"process": "other", "pid": 1})
    store.write(KEY, json.dumps(content).encode())


def test_second_run_is_refused_with_the_holders_name(stores, quick):
    _, dest = stores
    with Lease(dest, "run-1") as first:
        with pytest.raises(LeaseHeld, match=r"run run-1 on host .*process \d+.* is working on .*Wait"):
            Lease(dest, "run-2").acquire()
        first.check()
    assert not list(dest.list())
    with Lease(dest, "run-2") as second:
        second.check()


def test_crashed_holder_is_waited_for_and_replaced(stores, quick, monkeypatch):
    _, dest = stores
    crash(dest)
    ages, waits = [1.0, lease_module.TERM - 0.5, lease_module.TERM + 0.5], []
    monkeypatch.setattr(dest, "age", lambda key: ages.pop(0))
    with Lease(dest, "next", on_wait=lambda left, holder: waits.append((left, holder["run"]))) as lease:
        lease.check()
        assert json.loads(dest.read(KEY))["run"] == "next"
        ages += [0.0]  # for the look with which it gives the lease back
    assert waits == [(lease_module.TERM - 1.0, "crashed")]


def test_dead_process_of_this_machine_is_not_waited_for(local_stores):
    _, dest = local_stores
    code = "import sys, os; from tasks.stores.lease import Lease; from tasks.stores.open import open_store;"
    code += "Lease(open_store(sys.argv[1]), 'killed').acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, dest.url]).returncode == 9
    waits = []
    with Lease(dest, "next", on_wait=lambda *wait: waits.append(wait)) as lease:
        lease.check()
    assert not waits


def test_one_of_many_gets_it(stores, quick, monkeypatch):
    _, dest = stores
    crash(dest)
    begun, age = threading.Barrier(6, timeout=300), dest.age

    def old_while_crashed(key):
        return 60.0 if json.loads(dest.read(KEY))["run"] == "crashed" else age(key)

    monkeypatch.setattr(dest, "age", old_while_crashed)
    leases, won, refused = [Lease(dest, f"run-{i}") for i in range(6)], [], []

    def enter(lease):
        begun.wait()
        try:
            lease.acquire()
            won.append(lease)
        except LeaseHeld as error:
            refused.append(str(error))

    threads = [threading.Thread(target=enter, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 5
    won[0].check()
    won[0].release()


def test_overwritten_lease_is_lost(local_stores, quick):
    _, dest = local_stores
    with Lease(dest, "mine") as lease:
        crash(dest, "thief")
        assert lease.lost.wait(60)
        with pytest.raises(LeaseLost, match="run mine has lost the lease .* another run has taken it"):
            lease.check()
    assert json.loads(dest.read(KEY))["run"] == "thief"  # not ours to remove


def test_lease_that_cannot_be_renewed_is_lost_in_time(local_stores, quick, monkeypatch):
    _, dest = local_stores
    monkeypatch.setattr(lease_module, "TERM", 1.5)
    with Lease(dest, "mine") as lease:
        hang = threading.Event()

        def unreachable(*_, **__):
            hang.wait(60)
            raise Unavailable("the network is down")

        monkeypatch.setattr(dest, "write", unreachable)
        time.sleep(2.2)
        with pytest.raises(LeaseLost, match="could not be renewed"):  # although the renewal still hangs
            lease.check()
        hang.set()


@pytest.mark.server
def test_store_without_conditional_writes(moto_stores, quick, monkeypatch):
    _, dest = moto_stores
    monkeypatch.setattr(S3Store, "honours_if_match", lambda self: False)
    with Lease(dest, "run-1") as first:
        assert "conditional" in first.warning
        with pytest.raises(LeaseHeld):
            Lease(dest, "run-2").acquire()
        first.check()
        for _ in range(20):  # one write may fall between the holder's look and its renewal
            crash(dest, "thief")
            if first.lost.wait(0.9):
                break
        with pytest.raises(LeaseLost):
            first.check()
