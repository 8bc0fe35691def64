"""What every command shares on the terminal: exit codes, progress on stderr, sizes in words.

Results go to stdout and are each command's own business.
"""

import sys
import time


class WrongUsage(Exception):
    """The command line cannot be carried out as given; exit code 2."""


class WorkFailed(Exception):
    """The work itself failed; exit code 1."""


def say(message: str) -> None:
    """One line for the person watching, on stderr."""
    print(message, file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal, plain lines (at most one every `every` seconds) elsewhere; always stderr."""

    def __init__(self, label: str, total: int, every: float = 5.0):
        self.label, self.total, self.every = label, total, every
        self.done, self.started, self.shown = 0, time.monotonic(), 0.0
        self.terminal = sys.stderr.isatty()

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        now = time.monotonic()
        last = self.done >= self.total
        if not last and now - self.shown < (0.1 if self.terminal else self.every):
            return
        self.shown = now
        rate = self.done / max(now - self.started, 1e-9)
        line = f"{self.label}: {self.done}/{self.total} ({rate:.1f}/s) {note}".rstrip()
        if self.terminal:
            filled = int(24 * min(1.0, self.done / max(self.total, 1)))
            sys.stderr.write(f"\r[{'#' * filled}{'.' * (24 - filled)}] {line}\x1b[K" + ("\n" if last else ""))
            sys.stderr.flush()
        else:
            say(line)
