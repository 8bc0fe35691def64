"""What the rows of points.py say together: mean curves, BD-rates, and bytes at equal quality picture by picture.

Curves are means over the pictures at equal settings; BD-rate compares these mean curves (metrics.bd_rate). What people
see is compared otherwise: each picture's bytes at the same SSIMULACRA2, as a ratio to an anchor's.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codec import metrics

ANCHORS = ("jpeg", "hevc")
METRICS = ("psnr", "ms_ssim", "ssimulacra2")
SEEN_ANCHORS = ("avif", "jxl")
SEEN_VALUES = (70.0, 80.0, 85.0, 90.0)  # SSIMULACRA2: high, very high, excellent, visually lossless


def curves_of(table: pa.Table) -> dict[str, list[dict]]:
    """Per codec the means over pictures at each setting, by rising rate; settings that some picture lacks are left out.

    Rates of MS-SSIM and SSIMULACRA2 (`bpp_…`) are means over the pictures large enough for them. Speeds in
    MP/s over all pixels.
    """
    pictures = len(pc.unique(table["picture"])) if table.num_rows else 0
    grouped = defaultdict(list)
    for row in table.to_pylist():
        grouped[row["codec"], row["setting"]].append(row)
    curves = defaultdict(list)
    for (codec, setting), rows in grouped.items():
        if len(rows) != pictures:
            continue
        large = [row for row in rows if row["ms_ssim"] is not None]
        seen = [row for row in rows if row["ssimulacra2"] is not None]
        megapixels = sum(row["width"] * row["height"] for row in rows) / 1e6

        def mean(column: str, rows: list[dict] = rows) -> float | None:
            return float(np.mean([row[column] for row in rows])) if rows else None

        curves[codec].append(
            {
                "setting": setting,
                "bpp": mean("bpp"),
                "psnr": mean("psnr"),
                "ssim": mean("ssim"),
                "bpp_ms_ssim": mean("bpp", large),
                "ms_ssim": mean("ms_ssim", large),
                "bpp_ssimulacra2": mean("bpp", seen),
                "ssimulacra2": mean("ssimulacra2", seen),
                "encode_mps": megapixels / sum(row["encode_seconds"] for row in rows),
                "decode_mps": megapixels / sum(row["decode_seconds"] for row in rows),
            }
        )
    return {codec: sorted(points, key=lambda point: point["bpp"]) for codec, points in sorted(curves.items())}


def read_references(folder: str | Path) -> dict[str, list[dict]]:
    """Published curves by title from *.json files with results.bpp, results.psnr-rgb and/or results.ms-ssim-rgb."""
    curves = {}
    for path in sorted(Path(folder).glob("*.json")):
        content = json.loads(path.read_text())
        results = content.get("results") if isinstance(content, dict) else None
        if not isinstance(results, dict) or "bpp" not in results:
            continue
        title = content.get("name") or path.stem
        if title in curves or "ms-ssim_" in path.stem:
            title = path.stem
        curves[title] = [
            {
                "bpp": rate,
                "psnr": results["psnr-rgb"][i] if "psnr-rgb" in results else None,
                "bpp_ms_ssim": rate,
                "ms_ssim": results["ms-ssim-rgb"][i] if "ms-ssim-rgb" in results else None,
            }
            for i, rate in enumerate(results["bpp"])
        ]
    return curves


def compare(curves: dict[str, list[dict]], anchors: Iterable[str] = ANCHORS) -> dict[str, dict[str, float | None]]:
    """BD-rates in per cent: {codec: {"psnr vs jpeg": -12.3, ...}}; None where curves share no qualities."""
    found: dict[str, dict[str, float | None]] = {}
    for name, points in curves.items():
        found[name] = {}
        for anchor in anchors:
            for metric in METRICS:
                value = None
                if anchor in curves:
                    ours, theirs = axes(points, metric), axes(curves[anchor], metric)
                    if len(ours[0]) > 1 and len(theirs[0]) > 1:
                        try:
                            value = metrics.bd_rate(*theirs, *ours)
                        except ValueError:
                            value = None
                found[name][f"{metric} vs {anchor}"] = value
    return found


def axes(points: list[dict], metric: str) -> tuple[list[float], list[float]]:
    """Rates and qualities of a curve; mean MS-SSIM is put into dB after averaging, as published curves are."""
    known = [point for point in points if point.get(metric) is not None]
    if metric == "ms_ssim":
        known = [point for point in known if point["ms_ssim"] < 1]
        return [p["bpp_ms_ssim"] for p in known], [metrics.ms_ssim_db(p["ms_ssim"]) for p in known]
    rate = "bpp" if metric == "psnr" else f"bpp_{metric}"
    return [point[rate] for point in known], [point[metric] for point in known]


def at_equal_quality(table: pa.Table, anchor: str, values: Iterable[float] = SEEN_VALUES) -> dict[str, list[dict]]:
    """Bytes relative to the anchor's at equal SSIMULACRA2, picture by picture.

    {codec: [{"value", "reached" (pictures), "compared" (pictures that both reach), "mean" (geometric), "median",
    "worst" (largest ratio; these three None where none is compared)} for each value]}.
    """
    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(dict)
    for row in table.to_pylist():
        if row["ssimulacra2"] is not None:
            curves[row["codec"]].setdefault(row["picture"], []).append((row["bytes"], row["ssimulacra2"]))
    theirs = curves.get(anchor, {})
    return {name: [_ratios(pictures, theirs, value) for value in values] for name, pictures in sorted(curves.items())}


def _ratios(ours: dict[str, list], theirs: dict[str, list], value: float) -> dict:
    found = {name: bytes_at(points, value) for name, points in ours.items()}
    pairs = [(one, bytes_at(theirs[name], value)) for name, one in found.items() if one and name in theirs]
    ratios = np.array([one / other for one, other in pairs if other])
    known = len(ratios) > 0
    return {
        "value": value,
        "reached": sum(one is not None for one in found.values()),
        "compared": len(ratios),
        "mean": float(np.exp(np.log(ratios).mean())) if known else None,
        "median": float(np.median(ratios)) if known else None,
        "worst": float(ratios.max()) if known else None,
    }


def bytes_at(points: list[tuple[int, float]], value: float) -> float | None:
    """Bytes at which a picture's (bytes, quality) curve passes `value`; None where it does not."""
    from scipy.interpolate import PchipInterpolator

    try:
        rate, quality = metrics.frontier(*zip(*points, strict=True))
    except ValueError:  # a single point
        return None
    if not quality[0] <= value <= quality[-1]:
        return None
    return float(10 ** PchipInterpolator(quality, rate)(value))
