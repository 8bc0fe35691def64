"""The journal of a restore into a folder: a line for each file that is finished, so that a later one goes on there."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from tasks.stores.base import OWN_NAMES
from tasks.stores.local import LocalStore

JOURNAL = OWN_NAMES + "restored.jsonl"


def open_journal(out: LocalStore):
    Path(out.root).mkdir(parents=True, exist_ok=True)
    return open(Path(out.root) / JOURNAL, "a", encoding="utf-8")


def journal_lines(out: LocalStore) -> Iterator[dict]:
    """What earlier restores into this folder have finished; a line cut short by a crash is passed over."""
    try:
        with open(Path(out.root) / JOURNAL, encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    yield {name: entry[name] for name in ("name", "etag", "from")}
    except FileNotFoundError:
        return
