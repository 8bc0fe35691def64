"""A real S3 server on the loopback interface: Ceph's radosgw over a memory-only cluster of one node.

    python -m deploy.radosgw start [--root DIR] [--port PORT]     prints the variables that boto3 needs
    python -m deploy.radosgw stop [--root DIR]

For tests, trials and nights without a cloud, not for keeping anything: the objects live in the OSD's memory
and end with it. The programs are Debian's (deploy/install-test-packages: ceph-mon ceph-mgr ceph-osd radosgw).
There is no authentication between the daemons; S3 requests are signed with the key pair below.
Standard library only.
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

PROGRAMS = ("ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")
ACCESS_KEY, SECRET_KEY = "nightpress", "nightpress-loopback-only"
DEFAULT_ROOT = "/tmp/nightpress-radosgw"  # short: unix sockets below it have at most 107 characters
PATIENCE = 120.0  # seconds for each daemon to come up

CONF = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}]
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon service mode = crc
ms bind ipv6 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {root}/run
admin socket = {root}/run/$name.$pid.asok
log file = {root}/log/$name.log
mon cluster log file = {root}/log/cluster.log
crash dir = {root}/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {memory}
osd class load list = *
osd class default list = *
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
[mon.a]
mon data = {root}/mon
[mgr.x]
mgr data = {root}/mgr
mgr initial modules =
[osd.0]
osd data = {root}/osd
[client.rgw.a]
rgw data = {root}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
rgw enable ops log = false
rgw dynamic resharding = false
rgw gc max objs = 4
rgw lc max objs = 4
rgw usage max shards = 1
rgw usage max user shards = 1
"""


class RadosgwError(Exception):
    """The server could not be started; says at which step, and the daemon's own last words."""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


class RadosGateway:
    """The server under `root` (a new temporary folder by default) on `port` (a free one by default).

    A context manager; `url`, `environment` say how to reach it. With `bound` the daemons die with this
    process, however it ends; without, they outlive it and `stop` finds them by their pid files.
    """

    def __init__(self, root: str | None = None, port: int | None = None, *, bound=True, memory=2 << 30):
        self.root = Path(root) if root else Path(tempfile.mkdtemp(prefix="nightpress-rgw-"))
        self.port, self.bound, self.memory = port or free_port(), bound, memory
        self._children: list[subprocess.Popen] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 reads."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __enter__(self) -> "RadosGateway":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        missing = missing_programs()
        if missing:
            raise RadosgwError(f"not installed: {', '.join(missing)}; run deploy/install-test-packages as root")
        if len(str(self.root)) > 60:
            raise RadosgwError(f"{self.root}: the path is too long for unix sockets; choose a shorter --root")
        for folder in ("run", "log", "crash", "mon", "mgr", "osd", "rgw", "pids"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        fsid, mon_port = str(uuid.uuid4()), free_port()
        self.conf.write_text(CONF.format(root=self.root, fsid=fsid, mon=mon_port, port=self.port, memory=self.memory))
        (self.root / "port").write_text(str(self.port))
        monmap = str(self.root / "monmap")
        self._tool(
            "monmaptool", "--create", "--clobber", "--fsid", fsid,
            "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", monmap,
        )  # fmt: skip
        self._tool("ceph-mon", "-c", str(self.conf), "--mkfs", "-i", "a", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        self._wait("the monitor", lambda: self._ceph("status"))
        self._ceph("mon", "enable-msgr2")
        self._daemon("ceph-mgr", "-i", "x")
        osd = str(uuid.uuid4())
        self._ceph("osd", "new", osd)
        self._tool("ceph-osd", "-c", str(self.conf), "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._wait("the OSD", lambda: json.loads(self._ceph("osd", "stat", "-f", "json"))["num_up_osds"] == 1)
        self.add_user("nightpress", ACCESS_KEY, SECRET_KEY)
        self._daemon("radosgw", "-n", "client.rgw.a")
        self._wait("the gateway", self.answers)

    def add_user(self, name: str, access_key: str, secret_key: str) -> None:
        """An S3 user with a key pair, who may make buckets."""
        self._tool(
            "radosgw-admin", "-c", str(self.conf), "-n", "client.rgw.a", "user", "create",
            "--uid", name, "--display-name", name, "--max-buckets", "0",
            "--access-key", access_key, "--secret-key", secret_key,
        )  # fmt: skip

    def stop(self) -> None:
        """End the daemons, gateway first, and remove `root`."""
        pids = []
        for name in ("radosgw", "ceph-osd", "ceph-mgr", "ceph-mon"):
            path = self.root / "pids" / name
            if path.exists() and runs(pid := int(path.read_text()), name):
                # Nothing is to be kept, so nothing needs an orderly shutdown, which takes seconds each.
                os.kill(pid, signal.SIGKILL)
                pids.append((pid, name))
        for process in self._children:
            if self.bound:
                process.wait()
        end = time.monotonic() + 10
        while any(runs(pid, name) for pid, name in pids) and time.monotonic() < end:
            time.sleep(0.05)
        shutil.rmtree(self.root, ignore_errors=True)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=2) as answer:
                return answer.status == 200
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    @property
    def conf(self) -> Path:
        return self.root / "ceph.conf"

    def _ceph(self, *words: str) -> str:
        return self._tool("ceph", "-c", str(self.conf), "--connect-timeout", "30", *words)

    def _tool(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=self.root)
        if done.returncode:
            raise RadosgwError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()[-800:]}")
        return done.stdout

    def _daemon(self, program: str, *words: str) -> None:
        output = open(self.root / "log" / f"{program}.out", "wb")
        process = subprocess.Popen(
            [program, "-c", str(self.conf), *words, "-f"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.root,
            start_new_session=True,
            preexec_fn=die_with_parent if self.bound else None,
        )
        output.close()
        (self.root / "pids" / program).write_text(str(process.pid))
        self._children.append(process)

    def _wait(self, what: str, ready) -> None:
        process = self._children[-1]
        program = process.args[0]
        end, failure = time.monotonic() + PATIENCE, ""
        while time.monotonic() < end:
            if process.poll() is not None:
                break
            try:
                if ready():
                    return
            except RadosgwError as error:
                failure = str(error)
            time.sleep(0.2)
        said = (self.root / "log" / f"{program}.out").read_text(errors="replace")[-800:]
        raise RadosgwError(f"{what} did not come up within {PATIENCE:g} s. {failure} {program} said: {said}")


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def runs(pid: int, program: str) -> bool:
    """Whether `pid` is a live process of that program (and not one that took its number over)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return status not in "ZX" and program in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.radosgw",
        description="Start or stop a throw-away S3 server (Ceph radosgw, objects in memory) on 127.0.0.1.",
        epilog="Example: eval $(python -m deploy.radosgw start) && nightpress run photos s3://pressed",
    )
    parser.add_argument("what", choices=("start", "stop"))
    parser.add_argument("--root", default=DEFAULT_ROOT, help=f"working folder (default {DEFAULT_ROOT})")
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--memory", type=float, default=4.0, help="for the objects, GiB (default 4)")
    args = parser.parse_args()
    gateway = RadosGateway(args.root, args.port, bound=False, memory=int(args.memory * 2**30))
    if args.what == "stop":
        gateway.stop()
        return 0
    if (Path(args.root) / "port").exists():
        print(f"{args.root} is in use; stop that server first, or choose another --root", file=sys.stderr)
        return 1
    try:
        gateway.start()
    except RadosgwError as error:
        gateway.stop()
        print(f"radosgw: {error}", file=sys.stderr)
        return 1
    for name, value in gateway.environment.items():
        print(f"export {name}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
