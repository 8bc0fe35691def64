"""Progress: a bar with pace and remaining time on a terminal, plain lines elsewhere, messages above the bar."""

import io

import pytest

from flows import console
from flows.console import Progress, counted, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by the second each time that it is set."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_elsewhere_and_not_too_many(clock):
    stream = io.StringIO()
    with Progress("compress", 100, every=5.0, stream=stream) as shown:
        for _ in range(100):
            clock[0] += 1
            shown.advance(bytes=2_000_000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 21 and "\x1b" not in stream.getvalue()
    assert lines[1] == "compress: 6/100 (1.0/s, 2.0 MB/s, about 1 min 34 s left)"
    assert lines[-1] == "compress: 100/100 (1.0/s, 2.0 MB/s)"


def test_what_was_done_before_is_said(clock):
    stream = io.StringIO()
    shown = Progress("look", 4, stream=stream)
    shown.advance(3, "done before")
    clock[0] += 2
    shown.advance()
    assert stream.getvalue().splitlines()[0].endswith("done before") and "look: 4/4 (2.0/s)" in stream.getvalue()


def test_a_bar_on_a_terminal_that_is_left_as_it_was(clock):
    stream = Terminal()
    with Progress("fingerprint", 10, stream=stream) as shown:
        assert Progress.drawn is shown
        clock[0] += 10
        shown.advance(5, bytes=10_000_000)
        say("the deadline has come [bold]\\[x]")
    text = stream.getvalue()
    assert "fingerprint" in text and "5/10" in text and "0.5/s, 1.0 MB/s" in text
    assert "the deadline has come [bold]\\[x]\n" in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back
    assert Progress.drawn is None


def test_the_last_one_ends_the_bar_and_only_one_is_drawn(clock, capsys):
    one, other = Progress("a", 2, stream=Terminal()), Progress("b", 1, stream=Terminal())
    assert Progress.drawn is other
    other.advance()
    assert Progress.drawn is None
    one.advance(2)
    say("done")
    assert capsys.readouterr().err == "done\n"


def test_work_that_says_later_how_much_there_is(clock, capsys):
    with counted("sample") as watch:
        for done in (1, 2, 4):
            clock[0] += 10
            watch(done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "4/4"]
