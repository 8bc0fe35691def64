"""An evaluation written down: curves.json, curves.md, and curves as PNG and SVG."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codec.evaluation.codecs import OURS, title_of
from codec.evaluation.curves import (
    ANCHORS,
    METRICS,
    SEEN_ANCHORS,
    SEEN_VALUES,
    at_equal_quality,
    axes,
    compare,
    curves_of,
    read_references,
)


def write_comparison(
    table: pa.Table, out: str | Path, *, reference: str | Path | None = None, left_out: dict[str, str] | None = None
) -> dict:
    """Rows of points.SCHEMA -> curves.json, curves.md, rd-psnr, rd-ms-ssim and rd-ssimulacra2 as PNG and SVG in `out`;
    the JSON's content."""
    out = Path(out)
    measured = curves_of(table)
    published = read_references(reference) if reference else {}
    versions = {row["codec"]: row for row in table.select(["codec", "version", "model"]).to_pylist()}
    content = {
        "pictures": len(pc.unique(table["picture"])) if table.num_rows else 0,
        "left_out": left_out or {},
        "incomplete": sorted(set(versions) - set(measured)),  # measured, but at no setting on all of these pictures
        "versions": {name: versions[name]["version"] for name in measured},
        "model": versions[OURS]["model"] if OURS in measured else None,
        "curves": measured,
        "bd_rate": compare(measured),
        "at_equal_ssimulacra2": {
            anchor: at_equal_quality(table, anchor) for anchor in SEEN_ANCHORS if anchor in measured
        },
        "published_bd_rate": {
            name: figures
            for name, figures in compare({**{a: measured[a] for a in ANCHORS if a in measured}, **published}).items()
            if name in published
        },
    }
    (out / "curves.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "curves.md").write_text(markdown(content))
    for metric in METRICS:
        file = f"rd-{metric.replace('_', '-')}"
        figure = plot(measured, published, metric)
        if figure is not None:
            figure.savefig(out / f"{file}.png", dpi=150)
            figure.savefig(out / f"{file}.svg", metadata={"Date": None})
    return content


_PAIRS = [f"{metric} vs {anchor}" for anchor in ANCHORS for metric in METRICS]
_NAMES = {"psnr": "PSNR", "ms_ssim": "MS-SSIM", "ssimulacra2": "SSIMULACRA2"}
_HEADS = " | ".join(f"{_NAMES[metric]}, {anchor.upper()}" for anchor in ANCHORS for metric in METRICS)


def markdown(content: dict) -> str:
    """The tables of an evaluation: BD-rates with speeds, then every curve."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:+.1f} %"

    lines = [
        f"# Rate and distortion, mean of {content['pictures']} pictures",
        "",
        "BD-rate of the mean curves: bits at equal quality against the anchor, less is better; empty where curves "
        "share no qualities. Speeds in MP/s over all settings, from pixels to file and back.",
        "",
        f"| codec | {_HEADS} | encode | decode | version |",
        f"|---|{'--:|' * (len(_PAIRS) + 2)}---|",
    ]
    order = sorted(content["bd_rate"], key=lambda name: content["bd_rate"][name]["psnr vs jpeg"] or 0.0)
    for name in order:
        cells = [percent(content["bd_rate"][name][pair]) for pair in _PAIRS]
        points = content["curves"][name]
        for kind in ("encode_mps", "decode_mps"):  # the same pictures at each setting, so the harmonic mean pools them
            cells.append(f"{len(points) / sum(1 / point[kind] for point in points):.2f}")
        lines.append(f"| {title_of(name)} | {' | '.join(cells)} | {content['versions'][name]} |")
    if content["published_bd_rate"]:
        lines += ["", "Published curves:", "", f"| codec | {_HEADS} |", f"|---|{'--:|' * len(_PAIRS)}"]
        for name, figures in sorted(content["published_bd_rate"].items(), key=lambda i: i[1]["psnr vs jpeg"] or 0.0):
            cells = [percent(figures[pair]) for pair in _PAIRS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    for anchor, found in content["at_equal_ssimulacra2"].items():
        lines += ["", *seen_lines(anchor, found)]
    for name in order:
        lines += ["", f"## {title_of(name)}", ""]
        lines.append("| setting | bpp | PSNR | SSIM | MS-SSIM | SSIMULACRA2 | encode MP/s | decode MP/s |")
        lines.append("|--:|--:|--:|--:|--:|--:|--:|--:|")
        for p in content["curves"][name]:
            multiple = "" if p["ms_ssim"] is None else f"{p['ms_ssim']:.4f}"
            seen = "" if p["ssimulacra2"] is None else f"{p['ssimulacra2']:.1f}"
            lines.append(
                f"| {p['setting']:g} | {p['bpp']:.4f} | {p['psnr']:.2f} | {p['ssim']:.4f} | {multiple} | {seen} | "
                f"{p['encode_mps']:.2f} | {p['decode_mps']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def seen_lines(anchor: str, found: dict[str, list[dict]]) -> list[str]:
    """The table for people: bytes at equal SSIMULACRA2 against one anchor."""
    heads = " | ".join(f"{value:g}" for value in SEEN_VALUES)
    lines = [
        f"Bytes at equal SSIMULACRA2 against {title_of(anchor)}: geometric mean (median, worst) over the pictures that "
        "both bring there, and how many pictures the codec brings there:",
        "",
        f"| codec | {heads} |",
        f"|---|{'--:|' * len(SEEN_VALUES)}",
    ]
    for name, values in found.items():
        cells = [
            f"{one['reached']} there"
            if one["mean"] is None
            else f"{one['mean']:.3f} ({one['median']:.2f}, {one['worst']:.2f}), {one['reached']} there"
            for one in values
        ]
        lines.append(f"| {title_of(name)} | {' | '.join(cells)} |")
    return lines


LABELS = {
    "psnr": "PSNR (dB, RGB)",
    "ms_ssim": "MS-SSIM (dB, −10 log₁₀(1 − x), RGB)",
    "ssimulacra2": "SSIMULACRA2 (80 very high, 90 visually lossless)",
}
COLOURS = {
    OURS: "#d1495b", "jpeg": "#6c757d", "webp": "#2a9d8f", "jpeg2000": "#8d6a9f",
    "avif": "#e09f3e", "avif-psnr": "#c9a227", "jxl": "#3a7ca5", "hevc": "#386641",
}  # fmt: skip


def plot(measured: dict[str, list[dict]], published: dict[str, list[dict]], metric: str):
    """matplotlib Figure of a metric over bits per pixel, measured curves solid, published dashed; None if empty."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawn = {name: axes(points, metric) for name, points in measured.items()}
    drawn = {name: both for name, both in drawn.items() if both[0]}
    others = {name: axes(points, metric) for name, points in published.items()}
    others = {name: both for name, both in others.items() if both[0]}
    if not drawn and not others:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    panel = figure.add_subplot()
    shades = [colormaps["tab20"](index) for index in range(20)]
    for name, (rate, quality) in drawn.items():
        ours = name == OURS
        panel.plot(
            rate, quality, "-o", color=COLOURS.get(name), lw=2.4 if ours else 1.4, ms=5 if ours else 3,
            zorder=5 if ours else 3, label=title_of(name),
        )  # fmt: skip
    for i, (name, (rate, quality)) in enumerate(others.items()):
        order = np.argsort(rate)
        panel.plot(
            np.array(rate)[order], np.array(quality)[order], "--", lw=0.9, alpha=0.8, color=shades[i % len(shades)],
            marker="x+|_"[i % 4], ms=3.5, label=f"{name} (published)",
        )  # fmt: skip
    reach = drawn.get(OURS) or next(iter(drawn.values()), None) or next(iter(others.values()))
    width = min(max(1.15 * max(reach[0]), 1.0), 3.0)
    shown = [q for both in (*drawn.values(), *others.values()) for r, q in zip(*both, strict=True) if r <= width]
    panel.set_xlim(0, width)
    least = max(min(shown), 20.0) if metric == "ssimulacra2" else min(shown)  # below 20 nobody looks
    panel.set_ylim(math.floor(least) - 0.5, math.ceil(max(shown)) + 0.5)
    panel.set_xlabel("rate (bits per pixel, whole files)")
    panel.set_ylabel(LABELS[metric])
    panel.set_title("Mean over the pictures at equal settings", fontsize=10)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7, ncols=2 if len(drawn) + len(others) > 9 else 1, loc="lower right")
    return figure
