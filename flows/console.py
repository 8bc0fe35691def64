"""What every command shares on the terminal: exit codes, one line for the person watching, progress.

All of it goes to stderr; results go to stdout and are each command's own business.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tasks.report.words import duration, size

ETA_AFTER = 3.0  # seconds of work before a time is foretold


class WrongUsage(Exception):
    """The command line cannot be carried out as given; exit code 2."""


class WorkFailed(Exception):
    """The work itself failed; exit code 1."""


def say(message: str) -> None:
    """One line for the person watching, above a bar where there is one."""
    if Progress.drawn is not None:
        Progress.drawn.above(message)
    else:
        print(message, file=sys.stderr, flush=True)


class Progress:
    """How far a stage is: a bar on a terminal, plain lines (at most one every `every` seconds) elsewhere.

    Both say how many of how many, how fast (objects and, where they are told, bytes a second) and how long it will
    take. Used in a `with` block, so that the terminal is left as it was; ends by itself with the last one.
    """

    drawn: "Progress | None" = None  # the bar that is on the terminal: `say` has to write above it

    def __init__(self, label: str, total: int, every: float = 5.0, stream: TextIO | None = None):
        self.label, self.total, self.every = label, total, every
        self.done, self.bytes = 0, 0
        self.started, self.shown = time.monotonic(), 0.0
        self.stream = stream or sys.stderr
        self.bar: Any = None  # rich.progress.Progress on a terminal
        if self.stream.isatty():
            self._draw()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def advance(self, n: int = 1, note: str = "", *, bytes: int = 0) -> None:
        """`n` more are done, of `bytes` bytes; `note`: why, where that is not plain."""
        self.done += n
        self.bytes += bytes
        now, last = time.monotonic(), self.done >= self.total
        if not last and now - self.shown < (0.1 if self.bar else self.every):
            return
        self.shown = now
        if self.bar:
            self.bar.update(self.task, completed=self.done, words=f"{self.pace()} {note}".rstrip(), refresh=True)
        else:
            print(
                f"{self.label}: {self.done}/{self.total} ({self.pace()}) {note}".rstrip(), file=self.stream, flush=True
            )
        if last:
            self.close()

    def pace(self) -> str:
        """'3.1/s, 4.2 MB/s, about 2 min 10 s left'."""
        passed = max(time.monotonic() - self.started, 1e-9)
        words = [f"{self.done / passed:.1f}/s"]
        if self.bytes:
            words.append(f"{size(self.bytes / passed)}/s")
        if 0 < self.done < self.total and passed >= ETA_AFTER:
            words.append(f"about {duration(passed / self.done * (self.total - self.done))} left")
        return ", ".join(words)

    def close(self) -> None:
        """The bar stays where it got to; lines follow it."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        if Progress.drawn is self:
            Progress.drawn = None

    def above(self, message: str) -> None:
        self.bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        if Progress.drawn is not None:  # one bar at a time
            Progress.drawn.close()
        self.bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=Console(file=self.stream),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.task = self.bar.add_task(self.label, total=self.total, words="")
        self.bar.start()
        Progress.drawn = self


@contextlib.contextmanager
def counted(label: str) -> Iterator[Callable[[int, int], None]]:
    """watch(done, total), for work that only says while it runs how much there is of it."""
    shown: list[Progress] = []

    def watch(done: int, total: int) -> None:
        if not shown:
            shown.append(Progress(label, total))
        shown[0].advance(done - shown[0].done)

    try:
        yield watch
    finally:
        for bar in shown:
            bar.close()
