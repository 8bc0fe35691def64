"""Prefect's server for the record of a night: one of our own on the loopback interface, or the one that is given.

Here: starting it, waiting for it, stopping it, so that it does not outlive us even if we are killed. Only the
coordinating process talks to Prefect; Dask's workers (cluster.py) run plain functions and need no server.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from flows.console import WorkFailed
from tasks.machine import cache_folder

SERVER_PATIENCE = 240.0  # seconds until a Prefect server that does not answer counts as broken
GIVEN_PATIENCE = 30.0  # the same for one that somebody else has started


# Prefect reads its settings when it is first imported: set before that.
UNTOLD = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
QUIET = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",  # the night has no deployments to look after
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
}

# Ends with its parent, however that ends: Linux signals it; the check closes the gap before the request.
DIES_WITH_PARENT = """
import ctypes, os, runpy, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != parent:
        os._exit(1)
sys.argv = ["prefect", *sys.argv[2:]]
runpy.run_module("prefect", run_name="__main__", alter_sys=True)
"""


class ServerProcess:
    """`prefect server start` on a free loopback port with its database in `home`; it ends with us, however we end.

    `start` returns at once, `answering` waits. Ctrl-C is for us alone: the server is stopped when its work is done.
    """

    def __init__(self, home: Path, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})):
        self.home, self.arguments = home, arguments
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {**os.environ, **UNTOLD, "PREFECT_UI_API_URL": self.url, **environment}
        self.environment |= {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "none")}
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "ServerProcess":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return str(self.home / "server.log")

    def start(self) -> None:
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DIES_WITH_PARENT, str(os.getpid()), "server", "start"]
                + ["--host", "127.0.0.1", "--port", str(self.port), *self.arguments],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def answering(self) -> str:
        """The API's URL once it answers. Raises WorkFailed."""
        patience = time.monotonic() + SERVER_PATIENCE
        while not answers(self.url):
            if self.process.poll() is not None:
                raise WorkFailed(f"Prefect's server ended with code {self.process.returncode}: {tail(self.log)}")
            if time.monotonic() > patience:
                raise WorkFailed(f"Prefect's server did not answer within {SERVER_PATIENCE:g} s: {tail(self.log)}")
            time.sleep(0.1)
        return self.url

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PrefectServer:
    """A night's Prefect server: the one that PREFECT_API_URL (or the user's profile) names, else one of our own.

    `start` returns at once, `url` waits until it answers. Our own keeps its history in one folder per user
    ($XDG_CACHE_HOME/nightpress/prefect) so that later nights start sooner; while another night uses that, a temporary
    folder serves.
    """

    def __init__(self):
        self.given = given_url()
        self.own: ServerProcess | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "PrefectServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        if not self.given:
            self.own = ServerProcess(self._home(), "--no-ui", environment=QUIET)
            self.own.environment.pop("PREFECT_API_DATABASE_CONNECTION_URL", None)
            self.own.start()

    def _home(self) -> Path:
        folder = cache_folder("prefect")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = self._stack.enter_context(open(folder / "lock", "ab"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder
        except OSError:
            return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nightpress-prefect-")))

    def url(self) -> str:
        """The API's URL once it answers. Raises WorkFailed."""
        if self.own:
            return self.own.answering()
        patience = time.monotonic() + GIVEN_PATIENCE
        while not answers(self.given):
            if time.monotonic() > patience:
                raise WorkFailed(unanswered(self.given))
            time.sleep(0.1)
        return self.given

    def stop(self) -> None:
        if self.own:
            self.own.stop()
        self._stack.close()


def given_url() -> str | None:
    """The API that the environment or the user's active Prefect profile names."""
    return os.environ.get("PREFECT_API_URL") or profile_url()


def unanswered(url: str) -> str:
    return f"PREFECT_API_URL={url} does not answer; start that server, or unset it"


def profile_url() -> str | None:
    """PREFECT_API_URL of the user's active Prefect profile; Prefect is only imported where there is one."""
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    if not (home / "profiles.toml").exists():
        return None
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(path: str, lines: int = 5) -> str:
    """The last lines of a log, for an error message."""
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return " | ".join(line.strip() for line in deque(file, lines))
    return "no log"
