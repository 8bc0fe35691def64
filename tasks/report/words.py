"""Figures as people read them: bytes, dollars, shares, times, counts; text from outside made harmless to show.

Used by everything that tells somebody something: terminal, page, estimates. Knows numbers and strings alone.
"""

import math
from datetime import datetime


def size(n: float) -> str:
    """Bytes in decimal units, as storage is billed: 1_500_000 -> '1.5 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 999.5 or unit == "TB":
            return f"{n:,.0f} B" if unit == "B" else f"{n:,.1f} {unit}" if abs(n) < 99.95 else f"{n:,.0f} {unit}"
        n /= 1000
    raise AssertionError("unreachable")


def money(dollars: float) -> str:
    """US dollars with the digits that matter: 1234.5 -> '$1,234.50', 0.00069 -> '$0.00069'."""
    sign, amount = ("−" if dollars < 0 else ""), abs(dollars)
    if amount == 0 or amount >= 0.995:
        return f"{sign}${amount:,.2f}"
    places = min(9, 1 - math.floor(math.log10(amount)))
    return f"{sign}${amount:.{max(2, places)}f}"


def share(part: float, whole: float) -> str:
    """'74.8 %' of the whole; '–' of nothing."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.1f} %".replace("-", "−") if 0.05 <= abs(percent) or part == 0 else "< 0.1 %"


def number(value: float | None, digits: int, unit: str = "") -> str:
    """'1,234.50 dB'; '–' for None and NaN, 'identical' for an infinite PSNR."""
    if value is None or math.isnan(value):
        return "–"
    return "identical" if math.isinf(value) else f"{value:,.{digits}f}{unit}"


def plural(n: int, one: str, many: str | None = None) -> str:
    """'1 copy', '1,200 copies'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def readable(text: object, limit: int | None = None) -> str:
    """Text from outside made harmless to show: control, bidirectional and unpaired characters become '\\u{…}',
    what is longer than `limit` loses its middle."""
    clean = "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in str(text))
    if limit and len(clean) > limit:
        tail = (limit - 1) * 3 // 5
        clean = clean[: limit - 1 - tail] + "…" + clean[-tail:]
    return clean


def moment(stamp: object) -> str:
    """ISO time to '2026-01-01 02:00:00 UTC'; anything else as it stands."""
    try:
        when = datetime.fromisoformat(str(stamp))
    except ValueError:
        return readable(stamp)
    return when.strftime("%Y-%m-%d %H:%M:%S ") + (when.tzname() or "")


def duration(seconds: float) -> str:
    """'4.2 s', '3 min 12 s', '5 h 04 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def days(count: float) -> str:
    """How long until something pays: 'within a day', '12 days', '7 months'."""
    if count < 1:
        return "within a day"
    return f"{count:,.0f} days" if count < 90 else f"{count / 30.4:,.0f} months"
