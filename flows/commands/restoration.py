"""`nightpress evaluate-restoration`: the tables and strips of tasks/restoration/evaluate.py for folders."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from flows.console import WorkFailed, WrongUsage, say

TABLES = ("decision", "denoise", "camera", "superres", "saving")


def register(subparsers) -> None:
    command = subparsers.add_parser(
        "evaluate-restoration",
        help="denoising and super-resolution: tables and side-by-side strips",
        description="Adds noise to clean pictures, or reduces them, and measures how every method brings them back.",
        epilog="Example: nightpress evaluate-restoration kodak/ --out restoration/ --superres-images set5/ set14/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("images", type=Path, metavar="IMAGES", help="folder of clean pictures")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="tables, strips, restoration.parquet")
    command.add_argument(
        "--superres-images", type=Path, nargs="+", metavar="DIR", help="folders for enlarging (default: IMAGES)"
    )
    command.add_argument(
        "--decision-images", type=Path, nargs="+", metavar="DIR", help="more folders for the decision table"
    )
    command.add_argument("--tables", default=",".join(TABLES), metavar="LIST", help=f"of {','.join(TABLES)}")
    command.add_argument("--scales", default="2,3,4", metavar="LIST", help="enlarging, default 2,3,4")
    command.add_argument("--codec", choices=("npi", "avif", "webp"), default="npi", help="for the table of savings")
    command.add_argument("--limit", type=int, metavar="N", help="at most N pictures a folder, evenly chosen")
    command.add_argument("--threads", type=int, default=1, help="CPU threads of the networks (default 1)")
    command.add_argument("--json", action="store_true", help="averages as JSON on stdout instead of Markdown")
    command.set_defaults(handler=evaluate)


def evaluate(args: argparse.Namespace) -> int:
    tables, scales = checked(args)

    import cv2
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from tasks.restoration import evaluate as evaluation

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    work = parts_of(args, scales)
    rows: list[dict] = []
    try:
        for table in tables:
            for part in work[table]:
                before = len(rows)
                rows.extend(part())
                say(f"{table}: {len(rows) - before} rows")
    except FileNotFoundError as error:
        raise WorkFailed(str(error)) from error
    columns = list(dict.fromkeys(key for row in rows for key in row))
    pq.write_table(
        pa.Table.from_pylist([{c: row.get(c) for c in columns} for row in rows]), args.out / "restoration.parquet"
    )
    text = evaluation.markdown(rows)
    (args.out / "restoration.md").write_text(text)
    print(json.dumps(evaluation.averages(rows), indent=2) if args.json else text, end="\n" if args.json else "")
    say(f"wrote {args.out}/restoration.md, restoration.parquet and strips/")
    return 0


def checked(args: argparse.Namespace) -> tuple[list[str], list[int]]:
    """(tables, scales) that are asked for. Raises WrongUsage."""
    tables = [name for name in args.tables.split(",") if name]
    if not tables or set(tables) - set(TABLES):
        raise WrongUsage(f"--tables {args.tables}: choose from {', '.join(TABLES)}")
    try:
        scales = [int(scale) for scale in args.scales.split(",")]
    except ValueError:
        scales = []
    if not scales or not set(scales) <= {2, 3, 4}:
        raise WrongUsage(f"--scales {args.scales}: choose from 2, 3, 4")
    if args.limit is not None and args.limit < 1:
        raise WrongUsage(f"--limit {args.limit}: at least 1 picture is needed")
    for folder in (args.images, *(args.superres_images or ()), *(args.decision_images or ())):
        if not folder.is_dir():
            raise WrongUsage(f"{folder} is not a folder; name a folder of pictures")
    return tables, scales


def parts_of(args: argparse.Namespace, scales: list[int]) -> dict[str, list[Callable[[], list[dict]]]]:
    """What gives each table's rows, folder by folder; strips go to --out."""
    from tasks.restoration import evaluate as evaluation

    strips = args.out / "strips"
    strips.mkdir(parents=True, exist_ok=True)
    return {
        "decision": [
            lambda f=folder: evaluation.decision_rows(f, args.limit)
            for folder in (args.images, *(args.decision_images or ()))
        ],
        "denoise": [lambda: evaluation.denoising_rows(args.images, args.limit, strips)],
        "camera": [lambda: evaluation.camera_rows(args.images, args.limit, strips)],
        "superres": [
            lambda f=folder, s=scale: evaluation.enlarging_rows(f, s, args.limit, strips)
            for folder in (args.superres_images or (args.images,))
            for scale in scales
        ],
        "saving": [lambda: evaluation.saving_rows(args.images, args.codec, args.limit)],
    }
