"""An S3 server (moto's) as a process of its own that dies with us, on a free loopback port, and its two buckets."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from flows.console import WorkFailed
from tasks.machine import environment

SOURCE_BUCKET, DEST_BUCKET = "nightpress-demo", "nightpress-demo-pressed"


# The server's whole life: it goes when the process that started it goes, and keeps nothing on disk but what
# moto spools into temporary files.
SERVER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
import logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
server._thread.join()
"""


# What a person's own AWS set-up has in the environment and neither side of the demo may follow.
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE")


@contextlib.contextmanager
def embedded_s3() -> Iterator[str]:
    """An S3 server on a free loopback port in a process of its own, with both buckets made; gives its URL.

    Inside the block the process's environment (endpoint, made-up credentials, region) points to it, for
    workers started meanwhile too. The server ends with the block, or with the thread that entered it.
    """
    account = {
        "AWS_ACCESS_KEY_ID": "nightpress-demo",
        "AWS_SECRET_ACCESS_KEY": "nightpress-demo",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with tempfile.TemporaryFile("w+") as messages, contextlib.ExitStack() as stack:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            env={name: value for name, value in os.environ.items() if name not in FOREIGN} | account,
            text=True,
        )
        stack.callback(ended, server)
        port = server.stdout.readline().strip()
        if not port:
            server.wait(10)
            messages.seek(0)
            last = (messages.read().strip().splitlines() or ["no message"])[-1]
            raise WorkFailed(
                f"the embedded S3 server (moto) did not start: {last}; pip install 'nightpress[demo]' brings it"
            )
        account["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        with environment(account, without=FOREIGN):
            make_buckets()
            yield account["AWS_ENDPOINT_URL"]


def ended(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


def make_buckets() -> None:
    """Both buckets of the demo, on the server that the environment names."""
    import boto3

    client = boto3.client("s3")
    for name in (SOURCE_BUCKET, DEST_BUCKET):
        client.create_bucket(Bucket=name)
