"""`nightpress evaluate`: rate-distortion curves and BD-rates of a folder; the work stands in codec/evaluation.py."""

import argparse
import json
from pathlib import Path

from flows.console import Progress, WorkFailed, WrongUsage, say


def register(subparsers) -> None:
    command = subparsers.add_parser(
        "evaluate",
        help="rate-distortion curves and BD-rates against standard codecs",
        epilog="Example: nightpress evaluate kodak/ --out evaluation/ --codecs nightpress,jpeg,hevc",
    )
    command.add_argument("images", metavar="IMAGES", type=Path, help="a folder of pictures, searched whole")
    command.add_argument("--out", type=Path, required=True, help="Parquet, tables and plots go here; see --codecs")
    command.add_argument(
        "--codecs",
        metavar="LIST",
        help="comma-separated: nightpress, jpeg, webp, jpeg2000, avif, jxl, hevc (default all of these); "
        "rows of others in --out from an earlier time stay; an empty LIST only draws again",
    )
    command.add_argument("--reference", metavar="DIR", type=Path, help="published curves (*.json) to draw in")
    command.add_argument("--points", metavar="N", type=int, help="at most so many settings a codec")
    command.add_argument("--model", metavar="FILE", help="our model (default: the package's)")
    command.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=int, default=1, help="CPU threads of our codec (default 1, as the others)")
    command.add_argument("--json", action="store_true", help="curves and BD-rates as JSON on stdout")
    command.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    from codec.evaluation.codecs import NAMES

    codecs = NAMES if args.codecs is None else tuple(filter(None, (c.strip().lower() for c in args.codecs.split(","))))
    if unknown := [name for name in codecs if name not in NAMES]:
        raise WrongUsage(f"--codecs: unknown {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if not args.images.is_dir():
        raise WrongUsage(f"{args.images} is not a folder; name a folder of pictures")
    if args.reference is not None and not args.reference.is_dir():
        raise WrongUsage(f"--reference {args.reference} is not a folder")
    if args.points is not None and args.points < 2:
        raise WrongUsage(f"--points {args.points}: a curve needs at least 2")
    if args.threads < 1:
        raise WrongUsage(f"--threads {args.threads}: at least 1")

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise WrongUsage("--device cuda: torch sees no GPU here; use --device cpu")
    torch.set_num_threads(args.threads)

    from codec import CodecError
    from codec.evaluation.run import evaluate

    bars: dict[str, Progress] = {}

    def progress(codec: str, done: int, total: int) -> None:
        if codec not in bars:
            bars[codec] = Progress(codec, total)
        bars[codec].advance()

    try:
        content = evaluate(
            args.images, args.out, codecs, reference=args.reference, points=args.points, model=args.model,
            device=args.device, precision=args.precision, progress=progress,
        )  # fmt: skip
    except (CodecError, ValueError, OSError) as error:
        raise WorkFailed(str(error)) from error
    for name, reason in content["left_out"].items():
        say(f"left out {name}: {reason}")
    for name in content["incomplete"]:
        say(f"{name} has old rows for some of these pictures only; name it in --codecs to measure the rest")
    print(json.dumps(content) if args.json else (args.out / "curves.md").read_text().split("\n## ")[0].rstrip())
    say(f"written to {args.out}: points.parquet, curves.json, curves.md, and rd-*.png and .svg")
    return 0
