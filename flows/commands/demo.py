"""`nightpress demo`: a bucket of real photographs on an S3 server of our own, and two nights over it.

The bucket and the server are flows/demo.py's; the nights are those of `nightpress run`, command line and all.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from flows.console import WorkFailed, WrongUsage, say
from tasks.report.words import size


def register(subparsers) -> None:
    command = subparsers.add_parser(
        "demo",
        help="the whole job on a small bucket of photographs, nothing needed",
        description="Start an S3 server on the loopback interface, fill a bucket with photographs (and copies, noise, "
        "odd and broken files), compress it, show the report; then a second night over the unchanged bucket. Nothing "
        "leaves the machine; the report's page stays.",
        epilog="Example: nightpress demo --out ~/nightpress-demo",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="for the report's page (default: a temporary folder)")
    command.add_argument("--target", default="ssimulacra2=80", metavar="METRIC=V", help="default ssimulacra2=80")
    command.add_argument("--workers", metavar="N", help="default: one a core")
    command.add_argument(
        "--endpoint", metavar="URL", help="another S3 server instead (credentials from the environment, e.g. radosgw)"
    )
    command.set_defaults(handler=demo)


def demo(args: argparse.Namespace) -> int:
    from flows.demo import fill, surprises
    from flows.embedded_s3 import DEST_BUCKET, SOURCE_BUCKET, embedded_s3, make_buckets
    from flows.goals import Target
    from tasks.machine import environment
    from tasks.stores.open import open_store

    try:
        Target.parse(args.target)
    except ValueError as error:
        raise WrongUsage(f"--target: {error}") from None
    out = page_folder(args.out)
    source, dest = f"s3://{SOURCE_BUCKET}", f"s3://{DEST_BUCKET}"
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        if args.endpoint:
            stack.enter_context(environment({"AWS_ENDPOINT_URL": args.endpoint}, without=("AWS_ENDPOINT_URL_S3",)))
            make_buckets()
            say(f"demo: S3 server {args.endpoint}")
        else:
            say(f"demo: S3 server {stack.enter_context(embedded_s3())} (moto, gone when this ends)")
        planted = fill(open_store(source))
        kinds = Counter(item.kind for item in planted.values())
        total = sum(len(item.data) for item in planted.values())
        say(
            f"demo: {source}: {len(planted)} objects, {size(total)}: " + ", ".join(f"{n} {k}" for k, n in kinds.items())
        )
        options = ["--target", args.target, "--denoise", "auto", *(["--workers", args.workers] if args.workers else [])]
        first = a_night([source, dest, *options])
        page, rows = outcome(open_store(dest), out)
        say("\ndemo: the second night, over the unchanged bucket")
        with contextlib.redirect_stdout(None):
            second = a_night([source, dest, *options])
    print(f"\nFirst night {first:.0f} s, second night {second:.1f} s, all in all {time.monotonic() - begun:.0f} s.")
    found = surprises(planted, rows)
    print(f"{len(planted) - len(found)} of {len(planted)} objects ended as they were planted.")
    print("".join(f"  {line}\n" for line in found), end="")
    print(f"Report: {page}")
    return 0


def a_night(arguments: list[str]) -> float:
    """`nightpress run` in this process; its seconds. Raises WorkFailed where it fails."""
    from flows.commands import run

    begun = time.monotonic()
    parser = argparse.ArgumentParser()
    run.register(parser.add_subparsers())
    args = parser.parse_args(["run", *arguments])
    code = args.handler(args)
    if code:
        raise WorkFailed(f"the night ended with exit code {code}; what went wrong stands above")
    return time.monotonic() - begun


def page_folder(wanted: Path | None) -> Path:
    """The folder for report.html, made. Raises WrongUsage where it can't be."""
    folder = wanted.expanduser() if wanted else Path(tempfile.gettempdir()) / f"nightpress-demo-{os.getuid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"--out {folder}: {error.strerror}; name a folder that can be written") from None
    return folder.resolve()


def outcome(dest, folder: Path) -> tuple[Path, list[dict]]:
    """The newest run's report.html, copied out of DEST, and the rows of its table."""
    from tasks.night.catalog import read_report
    from tasks.night.runs import find_run

    manifest = find_run(dest)
    page = folder / "report.html"
    page.write_bytes(dest.read(f"runs/{manifest['run_id']}/report.html"))
    return page, read_report(dest, manifest).to_pylist()
