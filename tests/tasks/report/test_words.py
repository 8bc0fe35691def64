"""Figures in words, and text from outside that would hide or do something."""

import pytest

from tasks.report import words


@pytest.mark.parametrize(
    "number, said",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_940, "99.9 kB"), (123_456, "123 kB"), (999_600, "1.0 MB"),
     (1_500_000, "1.5 MB"), (3.2e12, "3.2 TB"), (4.5e15, "4,500 TB")],
)  # fmt: skip
def test_sizes(number, said):
    assert words.size(number) == said


@pytest.mark.parametrize(
    "dollars, said",
    [(0, "$0.00"), (1234.5, "$1,234.50"), (0.25, "$0.25"), (0.00069, "$0.00069"), (-2, "−$2.00"), (0.999, "$1.00"),
     (1e-12, "$0.000000000")],
)  # fmt: skip
def test_money(dollars, said):
    assert words.money(dollars) == said


def test_shares_durations_moments():
    assert words.share(1, 4) == "25.0 %"
    assert words.share(-1, 4) == "−25.0 %"
    assert words.share(1, 10**6) == "< 0.1 %"
    assert words.share(0, 0) == "–"
    assert [words.duration(n) for n in (4.24, 192, 3845)] == ["4.2 s", "3 min 12 s", "1 h 04 min"]
    assert words.moment("2026-01-01T03:04:05+00:00") == "2026-01-01 03:04:05 UTC"
    assert words.moment("\x1b[31mred") == "\\u{1b}[31mred"


def test_readable_shows_what_would_hide():
    assert words.readable("a\x1b]0;x\x07\u202egpj.exe\udcff\n") == "a\\u{1b}]0;x\\u{7}\\u{202e}gpj.exe\\u{dcff}\\u{a}"
    assert words.readable("größe 日本 🎉") == "größe 日本 🎉"
    long = words.readable("f" * 500 + "/name.jpg", 40)
    assert len(long) == 40 and long.endswith("/name.jpg") and "…" in long
