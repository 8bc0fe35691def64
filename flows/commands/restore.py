"""`nightpress restore`: gives back every key of the latest complete state, or of a run.

What is read, checked and written stands in tasks/recovery/restore.py; here are arguments, progress and the exit code.
"""

import argparse
import dataclasses
import json
import os

from flows.console import Progress, WorkFailed, WrongUsage, say
from tasks.report.words import size


def register(subparsers) -> None:
    parser = subparsers.add_parser(
        "restore",
        help="gives back every key of the latest complete state (or of a run)",
        description="Writes every key of the latest complete run (or of --run) to OUT: compressed pictures and their "
        "duplicates as PNG (photo.jpg as photo.jpg.png), everything else as it is at SOURCE, byte for byte. "
        "Every bitstream and every copy is checked against its recorded checksum; nothing in OUT is overwritten; "
        "started again, it goes on where it stopped.",
        epilog="Example: nightpress restore s3://photos-pressed /mnt/photos --key 2024/boat.jpg",
    )
    parser.add_argument("dest", metavar="DEST", help="s3://bucket/prefix or a folder that runs were written to")
    parser.add_argument("out", metavar="OUT", help="s3://bucket/prefix or a folder for the restored objects")
    parser.add_argument("--key", metavar="KEY", action="append", help="only this key (may be given several times)")
    parser.add_argument("--run", metavar="ID", help="the state after this run (default: the newest complete one)")
    parser.add_argument("--source", metavar="SOURCE", help="where the originals are now, if they have moved")
    parser.add_argument("--workers", metavar="N", type=int, help="pictures decoded at once (default: the cores)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for decoding")
    parser.add_argument("--json", action="store_true", help="the outcome as one JSON object")
    parser.set_defaults(handler=give_back)


def give_back(args: argparse.Namespace) -> int:
    if args.workers is not None and args.workers < 1:
        raise WrongUsage(f"--workers {args.workers}: at least 1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads decode pictures, not parts of one
    from tasks.recovery.names import ODD
    from tasks.recovery.restore import CannotRestore, PlacesOverlap, restore
    from tasks.stores.base import StoreError
    from tasks.stores.open import open_store

    for place in filter(None, (args.dest, args.out, args.source)):
        try:
            open_store(place)
        except ValueError as error:
            raise WrongUsage(str(error)) from error
    bars: list[Progress] = []
    try:
        outcome = restore(
            args.dest,
            args.out,
            keys=args.key,
            run_id=args.run,
            source=args.source,
            workers=args.workers,
            device=args.device,
            begin=lambda total: bars.append(Progress("restore", total)),
            advance=lambda key, size: bars[0].advance(bytes=size),
        )
    except PlacesOverlap as error:
        raise WrongUsage(str(error)) from error
    except (CannotRestore, StoreError) as error:
        raise WorkFailed(str(error)) from error
    finally:
        for bar in bars:
            bar.close()
    for key, why in outcome.failures[:50]:
        say(f"not restored: {key}: {why}")
    if len(outcome.failures) > 50:
        say(f"... and {len(outcome.failures) - 50} more (--json lists them all)")
    if args.json:
        print(json.dumps(dataclasses.asdict(outcome), ensure_ascii=True, indent=1))
    else:
        print(
            f"run {outcome.run_id}: {outcome.decoded} decoded, {outcome.copied} copied from the source, "
            f"{outcome.there} there already, {len(outcome.failures)} failed; {size(outcome.bytes)} written "
            f"to {args.out}"
        )
        if outcome.unusual:
            print(f"{outcome.unusual} keys have names of their own in {args.out}: see {ODD}names.csv")
    return 1 if outcome.failures else 0
