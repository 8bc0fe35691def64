"""`nightpress runs` and `nightpress report`: what the nights under DEST did, from their own records.

Reads manifest.json and report/*.parquet, writes nothing under DEST. What the figures mean stands in
tasks/report/savings.py, the words in tasks/report/summary.py, the page in tasks/report/page.py.
"""

import argparse
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flows.console import WorkFailed, WrongUsage, say

UNREAD = ("sha256", "pixel_sha256", "ahash", "dhash", "phash", "hash_method", "noise_sigma")  # half of the bytes


def register(subparsers) -> None:
    runs = subparsers.add_parser(
        "runs",
        help="the nights so far, a line each",
        epilog="Example: nightpress runs s3://photos-pressed",
    )
    runs.add_argument("dest", metavar="DEST", help="s3://bucket/prefix or a folder that runs were written to")
    runs.add_argument("--json", action="store_true", help="an array of objects instead of a table")
    runs.set_defaults(handler=list_runs)

    report = subparsers.add_parser(
        "report",
        help="the savings of a run in the terminal, or as the HTML page",
        epilog="Example: nightpress report s3://photos-pressed --html savings.html",
    )
    report.add_argument("dest", metavar="DEST", help="s3://bucket/prefix or a folder that a run was written to")
    report.add_argument("--run", metavar="ID", help="a run id as `nightpress runs` prints it (default: the newest)")
    report.add_argument("--html", metavar="FILE", type=Path, help="also write the self-contained page there")
    report.add_argument("--region", metavar="NAME", help="prices of this AWS region (default us-east-1)")
    report.add_argument(
        "--storage-class", metavar="CLASS", help="all originals in this class, such as STANDARD_IA (default: as listed)"
    )
    report.add_argument("--json", action="store_true", help="the figures as one object instead of text")
    report.set_defaults(handler=show_report)


def _store(dest: str):
    from tasks.stores.open import open_store

    try:
        return open_store(dest)
    except ValueError as error:
        raise WrongUsage(str(error)) from error


def list_runs(args: argparse.Namespace) -> int:
    from tasks.night.runs import find_run, read_manifest, run_ids
    from tasks.report import summary, words
    from tasks.report.schema import STATUSES
    from tasks.stores.base import StoreError

    store = _store(args.dest)
    try:
        ids = sorted(run_ids(store))
        if not ids:
            find_run(store)  # says what may be wrong
        with ThreadPoolExecutor(8) as pool:
            manifests = list(pool.map(lambda run: read_manifest(store, run), ids))
    except StoreError as error:
        raise WorkFailed(str(error)) from error
    complete = [manifest for manifest in manifests if manifest]
    if args.json:
        print(json.dumps(complete, indent=1))
    else:
        wide = max([len(manifest["run_id"]) for manifest in complete] + [3])
        head = ("run", "took", "objects", "originals", "stored", *STATUSES)
        widths = (wide, 14, 10, 10, 10, *(len(status) + 2 for status in STATUSES))
        print(
            "".join(f"{name:<{w}}" if name == "run" else f"{name:>{w}}" for name, w in zip(head, widths, strict=True))
        )
        for manifest in complete:
            counts = manifest.get("counts") or {}
            cells = (
                words.readable(manifest["run_id"], wide),
                summary.took(manifest),
                f"{manifest.get('objects', 0):,}",
                words.size(manifest.get("source_bytes", 0)),
                words.size(manifest.get("stored_bytes", 0)),
                *(f"{counts.get(status, 0):,}" for status in STATUSES),
            )
            print(
                "".join(
                    f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))
                )
            )
    unfinished = [run for run, manifest in zip(ids, manifests, strict=True) if not manifest]
    if unfinished:
        say(
            f"{len(unfinished)} not finished, the newest {unfinished[-1]}: the same `nightpress run` again continues it"
        )
    return 0


def _figures(table, manifest: dict, region: str | None, storage_class: str | None) -> dict:
    """All that the summary tells, for scripts."""
    from tasks.report import savings, summary

    totals, bill = savings.totals(table), savings.bill(table, manifest, region=region, storage_class=storage_class)

    def groups(found: list) -> list[dict]:
        return [dataclasses.asdict(group) | {"saved_bytes": group.saved_bytes} for group in found[:1000]]

    return {
        "run_id": manifest["run_id"],
        "source": manifest.get("source"),
        "started": manifest.get("started"),
        "finished": manifest.get("finished"),
        "totals": dataclasses.asdict(totals)
        | {"after_bytes": totals.after_bytes, "saved_bytes": totals.saved_bytes, "saved_share": totals.saved_share},
        "bill": dataclasses.asdict(bill) | {"saved": bill.saved, "payback_days": bill.payback_days},
        "quality": dataclasses.asdict(summary.quality(table)),
        "proofs": [{"holds": holds, "sentence": sentence} for holds, sentence in summary.proofs(table)],
        "by_prefix": groups(savings.by_prefix(table)),
        "by_format": groups(savings.by_format(table)),
        "largest": summary.largest(table, 10),
        "causes": {
            status: [dataclasses.asdict(cause) for cause in summary.causes(table, status)[:100]]
            for status in ("failed", "kept", "skipped")
        },
    }


def show_report(args: argparse.Namespace) -> int:
    from tasks.night.catalog import read_report, with_storage_classes
    from tasks.night.runs import find_run
    from tasks.report import savings, summary
    from tasks.stores.base import StoreError

    store, storage_class = _store(args.dest), args.storage_class
    try:
        manifest = find_run(store, args.run)
        table = with_storage_classes(store, manifest, read_report(store, manifest, lambda name: name not in UNREAD))
        if args.json:
            print(json.dumps(_figures(table, manifest, args.region, storage_class), indent=1))
        else:
            print(summary.text(table, manifest, region=args.region, storage_class=storage_class), end="")
        if args.html:
            page = _page(store, table, manifest, args)
    except savings.UnknownPrice as error:
        raise WrongUsage(f"--region, --storage-class: {error}") from error
    except StoreError as error:
        raise WorkFailed(str(error)) from error
    if args.html:
        try:
            args.html.write_bytes(page)
        except OSError as error:
            raise WorkFailed(f"--html {args.html}: {error.strerror or error}") from error
        say(f"the page is in {args.html}")
    return 0


def _page(store, table, manifest: dict, args: argparse.Namespace) -> bytes:
    """The page as the night wrote it, which has its before-pictures even when the originals are gone; built anew for
    other prices, or where the run has none."""
    from tasks.stores.base import NotFound
    from tasks.stores.open import open_store

    if not (args.region or args.storage_class):
        try:
            return store.read(f"runs/{manifest['run_id']}/report.html")
        except NotFound:
            say("the run has no page of its own; making one")
    from tasks.report import page

    try:
        source = open_store(str(manifest["source"]))
    except (KeyError, ValueError):
        source = None
    return page.build(table, manifest, source, store, region=args.region, storage_class=args.storage_class).encode()
