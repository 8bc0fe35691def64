"""Stores for every test that wants one: local folders, moto's mock S3 server, Ceph's real one.

Servers are started once a session, when first asked for, as processes that die with the tests. Whoever uses a
server's fixture marks the test `server`.
"""

import subprocess
import sys
import time
import urllib.request
import uuid

import pytest

from deploy.radosgw import RadosGateway, die_with_parent, free_port, missing_programs
from tasks.stores.open import open_store

AWS_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_PROFILE",
)


@pytest.fixture
def local_stores(tmp_path):
    """(source, dest): two empty local folders as stores."""
    for name in ("source", "dest"):
        (tmp_path / name).mkdir()
    return open_store(str(tmp_path / "source")), open_store(str(tmp_path / "dest"))


@pytest.fixture(scope="session")
def moto():
    """The environment of a running moto server (a mock of S3 in memory, in a process of its own)."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    url = f"http://127.0.0.1:{port}"
    wait_for(url, process)
    yield {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def radosgw():
    """The environment of a running Ceph radosgw, which also knows the user `limited` (limited-secret).

    Skips where its programs are not installed.
    """
    if missing_programs():
        pytest.skip(f"not installed: {', '.join(missing_programs())} (deploy/install-test-packages)")
    with RadosGateway() as gateway:
        gateway.add_user("limited", "limited", "limited-secret")
        yield gateway.environment


@pytest.fixture
def moto_stores(moto, monkeypatch):
    """(source, dest) on the moto server, a new bucket each."""
    return new_buckets(moto, monkeypatch)


@pytest.fixture
def radosgw_stores(radosgw, monkeypatch):
    """(source, dest) on the radosgw, a new bucket each."""
    return new_buckets(radosgw, monkeypatch)


KINDS = [
    "local",
    pytest.param("moto", marks=pytest.mark.server),
    pytest.param("radosgw", marks=pytest.mark.server),
]


@pytest.fixture(params=KINDS)
def stores(request):
    """(source, dest) of each kind in turn."""
    return request.getfixturevalue(f"{request.param}_stores")


def new_buckets(environment, monkeypatch):
    """Point boto3 (and child processes) at a server and make two buckets with a prefix inside each."""
    for name in AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tag = uuid.uuid4().hex[:8]
    pair = [open_store(f"s3://{name}-{tag}/pre fix") for name in ("source", "dest")]
    for store in pair:
        store.client.create_bucket(Bucket=store.bucket)
    return tuple(pair)


def wait_for(url, process, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the server for {url} ended with {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer within {seconds} s")
