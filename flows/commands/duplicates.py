"""`nightpress dedup`: duplicates on their own; nothing is stored in or taken from SOURCE.

What it does stands in tasks/duplicates/scan.py; here only options, progress and output.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from flows.console import Progress, WorkFailed, WrongUsage, say
from tasks.report.words import size

SHOWN = 20  # groups told one by one where all of them are in a file


def register(subparsers) -> None:
    dedup = subparsers.add_parser(
        "dedup",
        help="find duplicate pictures and show them; deletes nothing",
        epilog="Example: nightpress dedup s3://photos/2024 --out duplicates/",
    )
    dedup.add_argument("source", metavar="SOURCE", help="s3://bucket/prefix or a folder")
    dedup.add_argument("--out", type=Path, help="write groups.parquet and duplicates.html to this folder")
    dedup.add_argument("--kind", choices=("exact", "near"), default="near", help="equal bytes only, or copies too")
    dedup.add_argument("--distance", type=int, default=7, help="pHash bits that a copy may differ in (default 7)")
    dedup.add_argument(
        "--dedup-embedding",
        metavar="copy|classifier|autoencoder|FILE.onnx",
        help="also show altered copies (crops, frames, overlays, turned pictures), proposed by this network",
    )
    dedup.set_defaults(handler=run_dedup)
    add_scan_arguments(dedup)


def add_scan_arguments(command) -> None:
    """Options of every command that reads a whole SOURCE for its pictures."""
    command.add_argument("--threads", type=int, help="objects read at a time (default 4 a core)")
    command.add_argument("--max-pixels", type=int, default=200_000_000, help="larger pictures are left out")
    command.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def embedder_of(option: str, kind: str | None):
    """The network that an option names, None where it is not given."""
    from tasks.duplicates.embeddings.embedder import EmbeddingError, open_embedder

    try:
        return open_embedder(kind) if kind else None
    except EmbeddingError as error:
        raise WrongUsage(f"{option} {error}") from error


def scanned(args: argparse.Namespace, embedder=None):
    """The store and a row per object, with its vector where there is an embedder; progress on stderr."""
    from tasks.duplicates.embeddings.embedder import EmbeddingError
    from tasks.duplicates.scan import scan_store
    from tasks.stores.base import StoreError
    from tasks.stores.open import open_store

    if args.threads is not None and args.threads < 1:
        raise WrongUsage(f"--threads {args.threads}: at least 1")
    try:
        store = open_store(args.source)
        objects = sorted(store.list(), key=lambda info: info.key)
    except ValueError as error:
        raise WrongUsage(f"SOURCE {error}") from error
    except StoreError as error:
        raise WorkFailed(f"can't list {args.source}: {error}") from error
    rows = []
    found = scan_store(store, objects, threads=args.threads, max_pixels=args.max_pixels, embedder=embedder)
    try:
        with Progress("fingerprint", len(objects)) as progress:
            for row in found:
                rows.append(row)
                progress.advance(bytes=row.get("source_bytes") or 0)
    except EmbeddingError as error:
        raise WorkFailed(str(error)) from error
    return store, rows


def run_dedup(args: argparse.Namespace) -> int:
    if not 0 <= args.distance <= 16:
        raise WrongUsage(f"--distance {args.distance}: pHash copies are within 0 to 16 bits; 7 is a good choice")
    if args.dedup_embedding and args.kind != "near":
        raise WrongUsage(
            f"--kind {args.kind} and --dedup-embedding {args.dedup_embedding} exclude each other: "
            "embeddings propose altered copies; use --kind near or leave --dedup-embedding out"
        )
    from tasks.duplicates.scan import group

    store, rows = scanned(args, embedder_of("--dedup-embedding", args.dedup_embedding))
    unreadable = [row for row in rows if "error" in row]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    groups = group(store, rows, kind=args.kind, distance=args.distance, max_pixels=args.max_pixels)
    others = altered_groups(args, store, rows, groups)
    summary = counted_up(rows, unreadable, groups, others)
    if args.out:
        summary |= write_files(args, store, groups, others, len(rows), len(unreadable))
    if args.json:
        lists = {"group_list": [listed(members) for members in groups]}
        if args.dedup_embedding:
            lists["altered_list"] = [listed(members) for members in others]
        print(json.dumps(summary | lists, indent=1))
    else:
        tell(summary, unreadable, groups, others)
    return 0


def altered_groups(args: argparse.Namespace, store, rows: list[dict], groups: list) -> list[list[dict]]:
    """Copies that only --dedup-embedding proposes, confirmed by their points."""
    if not args.dedup_embedding:
        return []
    from tasks.duplicates.embeddings.embedder import proposed_from
    from tasks.duplicates.scan import altered

    return altered(
        store, rows, groups, proposed_from(args.dedup_embedding), max_pixels=args.max_pixels,
        looked=lambda n: say(f"confirm: {n:,} proposed pairs so far"),
    )  # fmt: skip


def counted_up(rows: list[dict], unreadable: list[dict], groups: list, others: list) -> dict:
    """Figures for --json and the last line."""
    from tasks.duplicates.scan import freed

    return {
        "objects": len(rows),
        "unreadable": len(unreadable),
        "groups": len(groups),
        "duplicates": dict(Counter(row["duplicate_kind"] for members in groups + others for row in members[1:])),
        "freed_bytes": sum(map(freed, groups)),
    }


def write_files(args: argparse.Namespace, store, groups: list, others: list, objects: int, unreadable: int) -> dict:
    """groups.parquet and the page in --out; their paths."""
    import pyarrow.parquet as pq

    from tasks.duplicates.scan import groups_table
    from tasks.report.gallery import groups_page

    table, page = args.out / "groups.parquet", args.out / "duplicates.html"
    pq.write_table(groups_table(groups + others), table)
    page.write_text(groups_page(store, args.source, groups, others, objects, unreadable), encoding="utf-8")
    return {"groups_file": str(table), "page": str(page)}


def tell(summary: dict, unreadable: list[dict], groups: list, others: list) -> None:
    """The groups in words; where they are in a file too, the first of them."""
    from tasks.duplicates.scan import freed

    for row in unreadable[:10]:
        say(f"not read as a picture: {row['key']}: {row['error']}")
    if len(unreadable) > 10:
        say(f"… and {len(unreadable) - 10} more that are no readable pictures")
    file = summary.get("groups_file")
    for members in groups[: SHOWN if file else None]:
        print(f"{members[0]['key']}  stays; {size(freed(members))} could be freed")
        for row in members[1:]:
            near = f", distance {row['hamming_distance']}, {row['psnr']:.1f} dB" if row["psnr"] is not None else ""
            print(f"  {row['key']}  {row['duplicate_kind']}{near}; {row['reason']}")
    if file and len(groups) > SHOWN:
        print(f"… and {len(groups) - SHOWN} more groups in {file}")
    for members in others[: SHOWN if file else None]:
        print(f"{members[0]['key']}  has altered copies, which stay")
        for row in members[1:]:
            print(f"  {row['key']}  similarity {row['similarity']:.2f}; {row['reason']}")
    if file and len(others) > SHOWN:
        print(f"… and {len(others) - SHOWN} more groups of altered copies in {file}")
    found = ", ".join(f"{n} {kind}" for kind, n in sorted(summary["duplicates"].items())) or "none"
    print(
        f"{summary['objects']} objects, {len(groups)} groups, duplicates: {found}; "
        f"{size(summary['freed_bytes'])} could be freed (nothing was deleted)"
    )
    if file:
        print(f"page: {summary['page']}")


def listed(members: list[dict]) -> dict:
    """A group in JSON."""
    from tasks.duplicates.scan import freed

    names = ("key", "duplicate_kind", "hamming_distance", "psnr", "reason", "source_bytes")
    if members[1]["duplicate_kind"] == "altered":
        names = (*names, "similarity", "inliers")
    return {
        "keeper": members[0]["key"],
        "freed_bytes": freed(members),
        "members": [{name: row.get(name) for name in names} for row in members[1:]],
    }
