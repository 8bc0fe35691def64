"""`nightpress train`: the trainings of all networks, one word each; what they do stands beside the networks."""

import argparse
from pathlib import Path

from flows.console import WorkFailed, WrongUsage, say

CONTEXT_PICTURES, CONTEXT_LEVELS = 150, 3  # that a codec's contexts are found on, in some ten minutes of a core


def register(subparsers) -> None:
    command = subparsers.add_parser(
        "train",
        help="train the codec or another network on a folder of pictures",
        epilog="Example: nightpress train codec --data photos/ --out trained/ --minutes 60",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("network", choices=("codec", "denoise", "superres", "embedding"))
    command.add_argument("--data", type=Path, nargs="+", required=True, help="folders of pictures, searched whole")
    command.add_argument("--out", type=Path, required=True, help="checkpoints, log and weights go here")
    command.add_argument("--minutes", type=float, default=60.0, help="time to train (default 60)")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    command.add_argument("--start", type=Path, metavar="FILE", help="weights to start from (not embedding's)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=int, default=1, help="CPU threads (default 1; see README)")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--variant", help="for networks that have several: which one (see the training's own --help)")
    command.set_defaults(handler=train)


def train(args: argparse.Namespace) -> int:
    import torch

    for folder in args.data:
        if not folder.is_dir():
            raise WrongUsage(f"--data {folder} is not a folder; name a folder of pictures")
    if args.start and not args.start.is_file():
        raise WrongUsage(f"--start {args.start} is not there; name a .safetensors file that a training wrote")
    if args.start and args.network == "embedding":
        raise WrongUsage("--start is for codec, denoise and superres; embeddings go on by --resume")
    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise WrongUsage("--device cuda: torch sees no GPU here; use --device cpu")
    torch.set_num_threads(args.threads)
    common = {"minutes": args.minutes, "resume": args.resume, "device": device, "seed": args.seed, "say": say}
    try:
        if args.network == "codec":
            from codec.training import fit_contexts
            from codec.training.train import train as train_codec

            path = train_codec(args.data, args.out, start=args.start, **common)
            say(f"contexts for {path}")
            fit_contexts.add(path, args.data, path, CONTEXT_PICTURES, CONTEXT_LEVELS)
        elif args.network == "embedding":
            from tasks.duplicates.embeddings.train import train as train_embedding

            path = train_embedding(args.data, args.out, variant=args.variant or "copy", **common)
        else:
            from tasks.restoration.train import train as train_restoration

            path = train_restoration(
                args.network, args.data, args.out, variant=args.variant, start=args.start, **common
            )
    except FileNotFoundError as error:
        raise WorkFailed(str(error)) from error
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    print(path)
    return 0
