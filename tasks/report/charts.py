"""The report page's charts as inline SVG: scatter and histogram with axes, units, and a <title> per mark.

Pure functions from numbers to markup; colours and type sizes come from page.css, tooltips from page.js (which turns
the <title> of each mark into one). All labels are escaped here.
"""

import math
from html import escape

import numpy as np

WIDE = 560  # viewBox units; about CSS pixels when two charts stand side by side
TALL, LOW = 620, 270  # heights of the scatter and of a histogram
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 34, 58


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values inside [low, high], steps of 1, 2, 2.5 or 5 times a power of ten, about `wanted` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(values: list[float]) -> list[str]:
    """The values with just the decimals that tell them apart."""
    for decimals in range(12):
        texts = [f"{value:,.{decimals}f}" for value in values]
        exact = all(
            abs(float(t.replace(",", "")) - v) < 1e-9 * max(1, abs(v)) for t, v in zip(texts, values, strict=True)
        )
        if exact:
            return texts
    return texts


def counted(values: list[float]) -> list[str]:
    """Counts, short enough for an axis: 150000 -> '150k'."""
    for bound, unit in ((1e7, "M"), (1e4, "k"), (0, "")):
        if max(values, default=0) >= bound:
            scale = {"M": 1e6, "k": 1e3, "": 1}[unit]
            return [f"{value / scale:g}{unit}" if value else "0" for value in values]
    return []


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade inside [low, high]; two values each decade where that makes more than seven."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(found) <= 7:
            return found
    return found


def _frame(high: int, x_ticks, y_ticks, x_label: str, y_label: str) -> list[str]:
    """Grid, axis, tick labels and titles; ticks are (position, text)."""
    parts = [f'<line class="rule" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in y_ticks]
    base = high - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{base}" y2="{base}"/>')
    parts += [f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>' for x, _ in x_ticks]
    parts += [f'<text x="{x:.1f}" y="{base + 22}" text-anchor="middle">{escape(text)}</text>' for x, text in x_ticks]
    parts += [f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{escape(text)}</text>' for y, text in y_ticks]
    middle = (LEFT + WIDE - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{high - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="0" y="14">{escape(y_label)}</text>')
    return parts


def scatter(x: np.ndarray, y: np.ndarray, titles: list[str], low: np.ndarray, *, x_label: str, y_label: str) -> str:
    """Points (x > 0, on a log scale where they span more than five-fold; y linear) with a title each.

    x, y: float64[n], finite; low: bool[n], the points to stand out. n ≥ 1.
    """
    x_low, x_high = float(x.min()), float(x.max())
    logarithmic = x_low > 0 and x_high / x_low > 5
    if logarithmic:
        x_low, x_high = x_low / 1.15, x_high * 1.15
        place = lambda v: (np.log(v) - math.log(x_low)) / (math.log(x_high) - math.log(x_low))  # noqa: E731
        x_marks = log_ticks(x_low, x_high)
    else:
        margin = (x_high - x_low) * 0.06 or max(x_high * 0.2, 0.1)
        x_low, x_high = max(0.0, x_low - margin), x_high + margin
        place = lambda v: (np.asarray(v) - x_low) / (x_high - x_low)  # noqa: E731
        x_marks = ticks(x_low, x_high)
    margin = (float(y.max()) - float(y.min())) * 0.06 or max(abs(float(y.max())) * 0.02, 1e-3)
    y_low, y_high = float(y.min()) - margin, float(y.max()) + margin
    across = LEFT + (WIDE - RIGHT - LEFT) * place(x)
    down = (TALL - BOTTOM) - (TALL - BOTTOM - TOP) * (y - y_low) / (y_high - y_low)
    y_marks = ticks(y_low, y_high)
    x_places = (LEFT + (WIDE - RIGHT - LEFT) * place(np.array(x_marks))).tolist() if x_marks else []
    y_places = [(TALL - BOTTOM) - (TALL - BOTTOM - TOP) * (v - y_low) / (y_high - y_low) for v in y_marks]
    parts = _frame(
        TALL,
        list(zip(x_places, labels(x_marks), strict=True)),
        list(zip(y_places, labels(y_marks), strict=True)),
        x_label + (" (log scale)" if logarithmic else ""),
        y_label,
    )
    for index in np.argsort(low, kind="stable"):  # the ones that stand out are drawn last, on top
        parts.append(
            f'<circle class="dot{" low" if low[index] else ""}" cx="{across[index]:.1f}" cy="{down[index]:.1f}" r="4">'
            f"<title>{escape(titles[index])}</title></circle>"
        )
    parts.append('<circle class="ring" r="8" style="display:none"/>')
    return (
        f'<svg class="points" viewBox="0 0 {WIDE} {TALL}" role="img" tabindex="0" '
        f'aria-label="{escape(y_label)} against {escape(x_label)}, {len(x)} points; arrow keys read them out">'
        + "".join(parts)
        + "</svg>"
    )


def histogram(values: np.ndarray, *, x_label: str, what: str = "pictures", aim: float | None = None) -> str:
    """Counts of float64[n ≥ 1] finite values in round bins; `aim`: a dashed line where the target stood."""
    low, high = float(values.min()), float(values.max())
    if aim is not None:
        low, high = min(low, aim), max(high, aim)
    if high - low < 1e-9:
        low, high = low - max(abs(low) * 0.01, 1e-4), high + max(abs(high) * 0.01, 1e-4)
    grid = ticks(low, high, 24)
    step = grid[1] - grid[0] if len(grid) > 1 else high - low
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step + 1e-9) + 1)
    edges = np.arange(first, last + 1) * step
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    base, top = LOW - BOTTOM, float(max(counts.max(), 1)) * (1.06 if aim is None else 1.2)

    def across(v: float) -> float:
        return LEFT + (WIDE - RIGHT - LEFT) * (v - edges[0]) / (edges[-1] - edges[0])

    y_marks = [v for v in ticks(0, top, 4) if v == int(v)]
    x_marks = ticks(float(edges[0]), float(edges[-1]))
    if max(map(len, labels(x_marks))) > 5:
        x_marks = ticks(float(edges[0]), float(edges[-1]), 3)
    parts = _frame(
        LOW,
        [(across(v), text) for v, text in zip(x_marks, labels(x_marks), strict=True)],
        [(base - (base - TOP) * v / top, text) for v, text in zip(y_marks, counted(y_marks), strict=True)],
        x_label,
        what,
    )
    names = labels([float(v) for v in np.round(edges, 9)])
    for count, left, right, begin, end in zip(counts, edges, edges[1:], names, names[1:], strict=False):
        if count:
            x, wide, high_ = across(left) + 1, across(right) - across(left) - 2, (base - TOP) * count / top
            parts.append(
                f'<g class="tip"><title>{escape(f"{begin} to {end}: {count:,} {what}")}</title>'
                f'<rect class="hit" x="{x - 1:.1f}" y="{TOP}" width="{wide + 2:.1f}" height="{base - TOP}"/>'
                f'<rect class="column" x="{x:.1f}" y="{base - high_:.1f}" width="{max(wide, 1):.1f}" '
                f'height="{high_:.1f}"/></g>'
            )
    if aim is not None:
        x = across(aim)
        side = "end" if x > (LEFT + WIDE) / 2 else "start"
        parts.append(f'<line class="aim" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(
            f'<text class="aim-text" x="{x + (-7 if side == "end" else 7):.1f}" y="{TOP + 12}" '
            f'text-anchor="{side}">target {aim:g}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDE} {LOW}" role="img" aria-label="Histogram of {escape(x_label)} over '
        f'{len(values)} {escape(what)}">' + "".join(parts) + "</svg>"
    )
