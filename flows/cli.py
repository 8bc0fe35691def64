"""The `nightpress` command: finds the subcommand, turns its outcome into an exit code.

What a subcommand does stands in flows/commands/, one file a family. Exit codes: 0 done, 1 the work failed,
2 wrong usage, 3 (`--strict`) at least one failed row.
"""

import argparse
import importlib
import os
import sys

from flows.console import WorkFailed, WrongUsage, say

# Packages that only some commands need, and the extra of pyproject.toml that brings each.
EXTRAS = {
    "bokeh": "serve",
    "cronsim": "serve",
    "faiss": "embedding",
    "matplotlib": "evaluate",
    "moto": "demo",
    "onnxruntime": "embedding",
    "pillow_heif": "evaluate",
    "skimage": "evaluate",
}

COMMANDS = (
    "run",
    "report",
    "restore",
    "picture",
    "duplicates",
    "similar",
    "evaluate",
    "restoration",
    "train",
    "serve",
    "demo",
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="nightpress",
        description="Nightly compression of image buckets with a learned codec, each bitstream proved by decoding it.",
        epilog="Example: nightpress run s3://photos s3://photos-pressed --target ssimulacra2=85",
    )
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"flows.commands.{name}").register(subparsers)
    return top


def lacking(error: ModuleNotFoundError, command: str) -> str:
    """What to install for `command` where a package of an extra is not there; raises `error` itself for any other."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    extra = "demo" if command == "demo" else EXTRAS[package]
    return f"{command} needs {package}, which is not installed; pip install 'nightpress[{extra}]' brings it"


def main(argv: list[str] | None = None) -> int:
    """Run one command; `argv` defaults to the process's own arguments. Returns the exit code."""
    args = argparse.Namespace(command="nightpress")
    try:
        args = parser().parse_args(argv)
        return int(args.handler(args) or 0)
    except WrongUsage as error:
        say(f"nightpress: {error}")
        return 2
    except WorkFailed as error:
        say(f"nightpress: {error}")
        return 1
    except ModuleNotFoundError as error:
        say(f"nightpress: {lacking(error, args.command)}")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("nightpress: interrupted; start the same command again to go on where it stopped")
        return 1


if __name__ == "__main__":
    sys.exit(main())
