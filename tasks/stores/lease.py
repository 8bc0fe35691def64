"""One run at a time per DEST: a small object that its holder keeps renewing, and everybody else respects.

Here: taking, renewing, losing and giving back the lease. What a run does when it has lost it (stop, without
a commit) is the night's business: it calls `check()` between its steps and right before it commits.

A lease is live while it was written less than TERM seconds ago, by the store's own clock: the clocks of two
machines need not agree. It is taken and renewed by conditional writes (If-None-Match, If-Match), so two runs
that start at the same moment cannot both hold it. Where the server does not honour these, the holder writes,
waits and reads back: a narrow race stays open, and `warning` says so.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

from tasks.stores.base import AlreadyExists, Changed, NotFound, Store, StoreError

KEY = "catalog/lease.json"
TERM = 20.0  # seconds that a lease lives without being renewed
RENEWAL = 5.0  # seconds between renewals
SETTLING = 2.0  # seconds between writing and reading back where writes are unconditional


class LeaseHeld(Exception):
    """Another run is alive on this DEST; nothing was touched."""


class LeaseLost(Exception):
    """The lease could not be renewed in time or another run has taken it: this run must stop."""


class Lease:
    """`with Lease(dest, owner="20260101T020000Z-ab12") as lease: ... lease.check() ...`

    Entering waits for a predecessor that no longer renews (a crash: at most TERM seconds; not at all where
    the process is known to be dead) and raises LeaseHeld as soon as it is seen to renew. Leaving gives the
    lease back. `on_wait(seconds, holder)` is called once when there is something to wait for.
    """

    def __init__(self, store: Store, owner: str, *, on_wait=None, key: str = KEY):
        self.store, self.owner, self.key, self.on_wait = store, owner, key, on_wait
        self.token = uuid.uuid4().hex
        self.warning: str | None = None
        self.lost = threading.Event()
        self._why = ""
        self._etag = ""
        self._renewed = 0.0  # monotonic, taken before the write that succeeded
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def acquire(self) -> None:
        if not (self.store.honours_conditional_write() and self.store.honours_if_match()):
            self.warning = (
                f"{self.store.url} does not honour conditional writes: two runs started within "
                f"{SETTLING:g} s of each other might not notice each other"
            )
        watched, deadline, losses = None, 0.0, 0
        while True:
            found = self._found()
            if found is None:
                if self._take(None):
                    break
                losses = self._lost_race(losses)
                continue
            etag, holder, age = found
            left = 0.0 if dead(holder) else TERM - age
            if watched and etag != watched:
                raise LeaseHeld(self._refusal(holder))
            if left <= 0:
                if self._take(etag):
                    break
                watched, losses = None, self._lost_race(losses)
                continue
            if not watched:
                watched, deadline = etag, time.monotonic() + left + 1
                if self.on_wait:
                    self.on_wait(left, holder)
            elif time.monotonic() > deadline + TERM:  # a clock that stands still cannot hold us for ever
                raise LeaseHeld(self._refusal(holder))
            time.sleep(min(1.0, left + 0.1))
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def _lost_race(self, losses: int) -> int:
        """Somebody else wrote in between; LeaseHeld where that goes on (a store that never lets us through)."""
        if losses >= 10:
            raise LeaseHeld(f"{self.store.url}: the lease {self.key} can be neither taken nor seen to be held")
        time.sleep(0.2)
        return losses + 1

    def _found(self) -> tuple[str, dict, float] | None:
        """(etag, holder, age in seconds) of the lease that is there."""
        try:
            data, head = self.store.fetch(self.key)
            age = self.store.age(self.key)
        except NotFound:
            return None
        try:
            holder = json.loads(data)
        except ValueError:
            holder = {}
        return head.etag, holder if isinstance(holder, dict) else {}, age

    def _take(self, etag: str | None) -> bool:
        """Write our lease over the one with `etag` (None: over nothing); False if somebody was faster."""
        started = time.monotonic()
        if self.warning:
            self._etag = self.store.write(self.key, self._content(), content_type="application/json")
            time.sleep(SETTLING)
            found = self._found()
            taken = found is not None and found[1].get("token") == self.token
        else:
            try:
                condition = {"if_match": etag} if etag else {"if_absent": True}
                self._etag = self.store.write(self.key, self._content(), content_type="application/json", **condition)
                taken = True
            except (AlreadyExists, Changed, NotFound):
                taken = False
        self._renewed = started
        return taken

    def _content(self) -> bytes:
        now = datetime.now(UTC)
        return json.dumps(
            {
                "run": self.owner,
                "token": self.token,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "process": process_identity(os.getpid()),
                "renewed": now.isoformat(timespec="milliseconds"),
                "until": (now + timedelta(seconds=TERM)).isoformat(timespec="seconds"),
            },
            indent=1,
        ).encode()

    def _refusal(self, holder: dict) -> str:
        return (
            f"run {holder.get('run', '?')} on host {holder.get('host', '?')} (process {holder.get('pid', '?')}) "
            f"is working on {self.store.url}; its lease runs until {holder.get('until', '?')} and is being "
            "renewed. Wait for it to finish, or stop it first"
        )

    def _keep(self) -> None:
        while not self._released.wait(RENEWAL):
            started = time.monotonic()
            try:
                if self.warning:
                    found = self._found()
                    if found is None or found[1].get("token") != self.token:
                        raise Changed("overwritten")
                expected = None if self.warning else self._etag
                self._etag = self.store.write(
                    self.key, self._content(), content_type="application/json", if_match=expected
                )
                self._renewed = started
            except (Changed, NotFound):
                self._lose("another run has taken it")
                return
            except StoreError as error:  # the next turn tries again, until the term is over
                self._why = str(error)
            if time.monotonic() - self._renewed > TERM:
                self._lose(f"it could not be renewed for {TERM:g} s: {self._why}")
                return

    def _lose(self, why: str) -> None:
        self._why = why
        self.lost.set()

    def check(self) -> None:
        """LeaseLost unless the lease is ours now; costs no request. Call it before anything that commits."""
        if not self.lost.is_set() and time.monotonic() - self._renewed > TERM:
            self._lose(f"it could not be renewed for {TERM:g} s. {self._why}".strip())
        if self.lost.is_set():
            raise LeaseLost(f"run {self.owner} has lost the lease of {self.store.url}: {self._why}")

    def release(self) -> None:
        """Stop renewing and give the lease back, if it is still ours."""
        self._released.set()
        if self._thread:
            self._thread.join()
        if self.lost.is_set():
            return
        with contextlib.suppress(StoreError):
            found = self._found()
            if found is not None and found[1].get("token") == self.token:
                self.store.delete(self.key)


def process_identity(pid: int) -> str | None:
    """Names one process of one boot of one machine (and pid namespace): a reused pid is another process."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {pid} {fields[19]}"
    except OSError:
        return None


def dead(holder: dict) -> bool:
    """Whether the holder was a process of this very machine and namespace, and is gone."""
    identity, ours = holder.get("process"), process_identity(os.getpid())
    if not identity or not ours or str(identity).split()[:2] != ours.split()[:2]:
        return False
    return process_identity(int(holder["pid"])) != identity
