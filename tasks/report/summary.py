"""What a night's report says in sentences: quality, proofs, causes, the terminal summary.

Shared by the terminal (text), Prefect's artifacts (largest) and the page (sections.py). Bytes and money are counted in
savings.py, figures put into words in words.py.
"""

import json
import math
import re
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.report import savings
from tasks.report.schema import STATUSES
from tasks.report.words import duration, moment, money, readable, share, size


def took(manifest: dict) -> str:
    """'3 min 12 s' between started and finished; '' where the manifest does not say."""
    try:
        start, end = (datetime.fromisoformat(str(manifest[name])) for name in ("started", "finished"))
        return duration((end - start).total_seconds())
    except (KeyError, ValueError, TypeError):
        return ""


@dataclass(frozen=True)
class Quality:
    """PSNR (dB), MS-SSIM (0..1), SSIMULACRA2 (at most 100) and worst tile (0..1) of the compressed rows; None where no
    row has one. `exact`: infinite PSNR."""

    measured: int
    exact: int
    psnr_median: float | None
    psnr_low: float | None  # 5th percentile
    psnr_worst: float | None
    ms_ssim_median: float | None
    ms_ssim_low: float | None
    ms_ssim_worst: float | None
    ssimulacra2_median: float | None
    ssimulacra2_low: float | None
    ssimulacra2_worst: float | None
    worst_tile: float | None  # lowest
    worst_tile_key: str | None
    restored_worst: float | None  # lowest psnr_source of near duplicates
    restored_worst_key: str | None


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """float64[n]; null is NaN."""
    return pc.fill_null(table[name].cast(pa.float64()), math.nan).to_numpy()


def quality(table: pa.Table) -> Quality:
    """How good the compressed pictures are, as measured on their decoded bitstreams; those without any difference are
    counted and left out of the other figures. Cleaned ones differ from their source on purpose: SSIMULACRA2 and worst
    tile leave them out."""
    compressed = table.filter(pc.equal(table["status"], "compressed"))
    psnr, ms_ssim = _numbers(compressed, "psnr"), _numbers(compressed, "ms_ssim")
    measured, exact = int((~np.isnan(psnr)).sum()), int(np.isinf(psnr).sum())
    differs = ~np.isinf(psnr)
    as_it_was = differs & ~pc.fill_null(compressed["denoised"], False).to_numpy()
    seen, tiles = (np.where(as_it_was, _numbers(compressed, name), math.nan) for name in ("ssimulacra2", "worst_tile"))
    psnr, ms_ssim = psnr[np.isfinite(psnr)], ms_ssim[differs & np.isfinite(ms_ssim)]
    weakest = int(np.nanargmin(tiles)) if np.isfinite(tiles).any() else None

    def three(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
        """Median, 5th percentile, lowest."""
        if not len(values):
            return None, None, None
        median, low, worst = np.percentile(values, [50, 5, 0]).tolist()
        return median, low, worst

    near = table.filter(pc.fill_null(pc.equal(table["duplicate_kind"], "near"), False))
    restored = _numbers(near, "psnr_source")
    worst = int(np.nanargmin(restored)) if np.isfinite(restored).any() else None
    return Quality(
        measured,
        exact,
        *three(psnr),
        *three(ms_ssim),
        *three(seen[np.isfinite(seen)]),
        None if weakest is None else float(tiles[weakest]),
        None if weakest is None else compressed["key"][weakest].as_py(),
        None if worst is None else float(restored[worst]),
        None if worst is None else near["key"][worst].as_py(),
    )


def median_words(figures: Quality) -> list[str]:
    """'SSIMULACRA2 80.3 (worst 80.0)' and the like: what the headline says, by people's measure if it is there."""
    words = []
    if figures.ssimulacra2_median is not None:
        words.append(f"SSIMULACRA2 {figures.ssimulacra2_median:.1f} (worst {figures.ssimulacra2_worst:.1f})")
    elif figures.ms_ssim_median is not None:
        words.append(f"MS-SSIM {figures.ms_ssim_median:.4f} (worst {figures.ms_ssim_worst:.4f})")
    if figures.psnr_median is not None:
        words.append(f"PSNR {figures.psnr_median:.1f} dB (worst {figures.psnr_worst:.1f} dB)")
    return words


def lowest_words(figures: Quality) -> str:
    """': lowest SSIMULACRA2 80.0, lowest worst tile 0.61', of what was measured."""
    measured = [
        f"lowest {name} {value:.{digits}f}"
        for name, value, digits in (
            ("SSIMULACRA2", figures.ssimulacra2_worst, 1),
            ("worst tile", figures.worst_tile, 2),
        )
        if value is not None
    ]
    return ": " + ", ".join(measured) if measured else ""


def proofs(table: pa.Table, manifest: dict | None = None) -> list[tuple[bool, str]]:
    """(holds, sentence): what the report's own rows prove about nothing being lost.

    A keeper whose original was removed from SOURCE since has no row any more; its duplicates then name the bitstream.
    """
    removed = (manifest or {}).get("removed_at_source") or {}
    figures = savings.totals(table)
    compressed = table.filter(pc.equal(table["status"], "compressed"))
    measured = len(compressed) - pc.sum(pc.is_null(compressed["psnr"])).as_py() if len(compressed) else 0
    placed = len(compressed) - pc.sum(pc.is_null(compressed["output_key"])).as_py() if len(compressed) else 0
    copies = table.filter(pc.equal(table["status"], "duplicate"))
    keepers = table.filter(pc.is_in(table["status"], pa.array(["compressed", "kept"])))["key"]
    safe = pc.is_in(copies["keeper_key"], value_set=keepers.combine_chunks())
    if removed.get("objects"):
        away = pc.invert(pc.is_in(copies["keeper_key"], value_set=table["key"].combine_chunks()))
        safe = pc.or_(safe, pc.and_(away, pc.is_valid(copies["output_key"])))
    backed = pc.sum(safe).as_py() or 0
    total = sum(figures.counts.values())
    result = [
        (total == table.num_rows, f"All {table.num_rows:,} objects are accounted for, one row each."),
        (
            measured == placed == len(compressed),
            f"{measured:,} of {len(compressed):,} bitstreams were decoded again from their bytes and measured before "
            f"they were stored{lowest_words(quality(table))}.",
        ),
    ]
    cleaned = pc.sum(pc.fill_null(compressed["denoised"], False)).as_py() or 0
    if cleaned:
        result.append((True, f"{cleaned:,} pictures were cleaned as asked: what they show without noise was measured."))
    as_png = sum(objects for words, (objects, _) in savings.given_back(table).items() if words != "to the byte")
    if as_png:
        result.append(
            (
                True,
                f"{as_png:,} objects come back as PNG, their bytes new: photo.jpg as photo.jpg.png, photo.png so.",
            )
        )
    if len(copies):
        result.append((backed == len(copies), f"{backed:,} of {len(copies):,} duplicates have their keeper safe."))
    staying = table.num_rows - figures.removable_objects
    if staying:
        result.append(
            (True, f"{staying:,} objects ({size(figures.remaining_bytes)}) stay at SOURCE, their only place.")
        )
    if removed.get("objects"):
        result.append(
            (
                True,
                f"{removed['objects']:,} pictures whose originals were removed from SOURCE "
                f"({size(removed.get('source_bytes', 0))}) lie under DEST, in {size(removed.get('stored_bytes', 0))}.",
            )
        )
    result.append((True, "SOURCE was only read. Nightpress deletes and overwrites nothing there."))
    return result


@dataclass(frozen=True)
class Cause:
    """Rows of one status that share a reason but for its figures; `text` is the first one's own words."""

    text: str
    error: str | None  # exception class
    objects: int
    source_bytes: int
    examples: tuple[str, ...]  # keys, at most three


def causes(table: pa.Table, status: str) -> list[Cause]:
    """Why rows have this status, most frequent first. Reasons are grouped without their numbers and quoted names."""
    rows = table.filter(pc.equal(table["status"], status)).select(["key", "reason", "error", "source_bytes"])
    found: dict[tuple, list] = {}
    for batch in rows.to_batches():
        for key, reason, error, n in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            kind = (error or "").split(":", 1)[0] or None
            text = reason or error or "no reason recorded"
            pattern = re.sub(r"\d+(?:[.,]\d+)*", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "*", text.replace(key, "*")))
            entry = found.setdefault((kind, pattern), [text, 0, 0, []])
            entry[1] += 1
            entry[2] += n or 0
            if len(entry[3]) < 3:
                entry[3].append(key)
    result = [Cause(text, kind, n, b, tuple(keys)) for (kind, _), (text, n, b, keys) in found.items()]
    return sorted(result, key=lambda cause: (-cause.objects, cause.text))


def largest(table: pa.Table, n: int = 10) -> list[dict]:
    """The n largest savings: key, status, source_bytes, stored_bytes, saved_bytes; largest first, then by key."""
    safe = table.filter(savings.is_removable(table))
    safe = safe.select(["key", "status", "source_bytes", "stored_bytes"])
    saved = pc.subtract(safe["source_bytes"], pc.fill_null(safe["stored_bytes"], 0))
    safe = safe.append_column("saved_bytes", saved)
    order = pc.select_k_unstable(safe, k=n, sort_keys=[("saved_bytes", "descending"), ("key", "ascending")])
    return safe.take(order).to_pylist()


def target_words(config: dict) -> str:
    """The run's aim in words, from its configuration: 'MS-SSIM at least 0.98'."""
    for name in ("quality", "target", "budget"):
        value = config.get(name)
        if value not in (None, "", {}):
            if name == "target" and "=" in str(value):
                metric, _, bound = str(value).partition("=")
                unit = " dB" if metric == "psnr" else ""
                return f"{readable(metric.upper())} at least {readable(bound)}{unit}"
            return f"{name} {readable(value if not isinstance(value, dict) else json.dumps(value))}"
    return ""


def quality_words(figures: Quality) -> list[str]:
    """One sentence a measure; empty where nothing was measured."""
    lines = []
    if figures.ssimulacra2_median is not None:
        lines.append(
            f"SSIMULACRA2: half the pictures at {figures.ssimulacra2_median:.1f} or better, 95 % at "
            f"{figures.ssimulacra2_low:.1f} or better, the worst {figures.ssimulacra2_worst:.1f} (80 very high, 90 "
            "visually lossless)"
        )
    if figures.worst_tile is not None:
        lines.append(
            f"Worst part of any picture: {figures.worst_tile:.2f} of its own structure came back "
            f"({readable(figures.worst_tile_key, 60)})"
        )
    if figures.ms_ssim_median is not None:
        lines.append(
            f"MS-SSIM: half the pictures at {figures.ms_ssim_median:.4f} or better, 95 % at "
            f"{figures.ms_ssim_low:.4f} or better, the worst {figures.ms_ssim_worst:.4f}"
        )
    if figures.psnr_median is not None:
        lines.append(
            f"PSNR: half the pictures at {figures.psnr_median:.2f} dB or better, 95 % at "
            f"{figures.psnr_low:.2f} dB or better, the worst {figures.psnr_worst:.2f} dB"
        )
    if figures.exact:
        lines.append(f"{figures.exact:,} pictures come back without a difference in any pixel")
    if figures.restored_worst is not None:
        lines.append(
            f"Near duplicates: the worst comes back at {figures.restored_worst:.2f} dB "
            f"({readable(figures.restored_worst_key, 60)})"
        )
    return lines


def similar_rows(table: pa.Table) -> tuple[pa.Table, int]:
    """Rows with `similar_to`, and what all of them cost: what a person would free who removed them by hand.

    The column `freed` has it of each: its bitstream, or the original where that is what is kept.
    """
    rows = table.filter(pc.is_valid(table["similar_to"]))
    kept = pc.equal(rows["status"], "kept")
    freed = pc.if_else(kept, pc.fill_null(rows["source_bytes"], 0), pc.fill_null(rows["stored_bytes"], 0))
    return rows.append_column("freed", freed), pc.sum(freed).as_py() or 0


def _similar(table: pa.Table) -> list[str]:
    rows, freed = similar_rows(table)
    if not len(rows):
        return []
    looks = "1 picture looks" if len(rows) == 1 else f"{len(rows):,} pictures look"
    return [
        f"  similar: {looks} much like another one without being its copy; whoever finds one of them enough",
        f"  could free {size(freed)} by hand (column similar_to)",
    ]


def text(table: pa.Table, manifest: dict, *, region: str | None = None, storage_class: str | None = None) -> str:
    """The savings summary for a terminal, at most 100 columns but for long keys in it. Raises savings.UnknownPrice."""
    figures = savings.totals(table)
    bill = savings.bill(table, manifest, region=region, storage_class=storage_class)
    run, source = (readable(manifest.get(name, "?")) for name in ("run_id", "source"))
    lasted = took(manifest)
    parts = [
        [
            f"Nightpress run {run} of {source}",
            f"finished {moment(manifest.get('finished', '?'))}" + (f" after {lasted}" if lasted else ""),
        ],
        _saved(table, figures),
        _by_status(table, figures),
        _by_form(table),
        _similar(table),
        _dollars(figures, bill),
        _proved(table, manifest),
        _largest(table),
        *(_by_cause(table, status, title) for status, title in CAUSES_TOLD),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


CAUSES_TOLD = (("failed", "failed"), ("kept", "kept at SOURCE"), ("skipped", "skipped"))


def _saved(table: pa.Table, figures: savings.Totals) -> list[str]:
    lines = [
        f"  before   {size(figures.source_bytes):>9} in {figures.objects:,} objects",
        f"  after    {size(figures.after_bytes):>9}, {share(figures.saved_bytes, figures.source_bytes)} less: "
        f"{size(figures.stored_bytes)} in {figures.stored_objects:,} objects under DEST"
        + (f", {size(figures.remaining_bytes)} that stay at SOURCE" if figures.remaining_bytes else ""),
    ]
    return lines + [f"  {line}" for line in quality_words(quality(table))]


def _sums(name: str, part: savings.Totals | savings.Group, wide: int) -> str:
    """A table's line: objects, bytes before and after, share saved."""
    return (
        f"  {name:<{wide}}{part.objects:>10,}{size(part.source_bytes):>12}{size(part.after_bytes):>12}"
        f"{share(part.saved_bytes, part.source_bytes):>9}"
    )


def _by_status(table: pa.Table, figures: savings.Totals) -> list[str]:
    lines = [f"  {'status':<12}{'objects':>10}{'before':>12}{'after':>12}{'saved':>9}"]
    for status in STATUSES:
        if figures.counts[status]:
            part = savings.totals(table.filter(pc.equal(table["status"], status)))
            lines.append(_sums(status, part, 12))
    return lines


def _by_form(table: pa.Table) -> list[str]:
    """What comes back how, where that is not the same for all."""
    back = savings.given_back(table)
    if not set(back) - {savings.GIVEN_BACK["seen"]}:
        return []
    words = (f"{count:,} objects ({size(total)}) {how}" for how, (count, total) in back.items())
    lines = [f"  comes back: {', '.join(words)}"]
    lines += [f"  {'stored as':<28}{'objects':>10}{'before':>12}{'after':>12}{'saved':>9}"]
    return lines + [_sums(group.name, group, 28) for group in savings.by_form(table)]


def _dollars(figures: savings.Totals, bill: savings.Bill) -> list[str]:
    now = "now: originals in part" if bill.removed_objects else "now: originals still there too"
    retrieval = ", retrieval" if bill.storage_class != "STANDARD" else ""
    lines = [
        f"  dollars a month, {bill.region}, {bill.storage_class}, list prices of {bill.prices_as_of}",
        f"  {'before Nightpress':<34}{money(bill.before):>14}",
        f"  {now:<34}{money(bill.now):>14}",
        f"  {f'after removing {figures.removable_objects:,} originals':<34}{money(bill.after):>14}",
        f"  {'this run, once: about':<34}{money(bill.run_requests):>14}   "
        f"({bill.gets:,} GET, {bill.puts:,} PUT{retrieval})",
    ]
    if bill.source_padding > 0:
        lines.append(f"  {'of it for minimum object sizes':<34}{money(bill.source_padding):>14}   (before)")
    return lines


def _proved(table: pa.Table, manifest: dict) -> list[str]:
    proved = proofs(table, manifest)
    sound = all(holds for holds, _ in proved)
    lines = ["  nothing lost" if sound else "  look at this before you remove anything"]
    return lines + [f"  {'ok ' if holds else 'NOT'} {sentence}" for holds, sentence in proved]


def _largest(table: pa.Table) -> list[str]:
    top = largest(table, 5)
    lines = [f"  {size(row['saved_bytes']):>9}  {row['status']:<10}  {readable(row['key'], 72)}" for row in top]
    return ["  largest savings", *lines] if top else []


def _by_cause(table: pa.Table, status: str, title: str) -> list[str]:
    found = causes(table, status)
    if not found:
        return []
    lines = [f"  {title}, by cause"]
    lines += [f"  {cause.objects:>9,}  {readable(cause.text, 84)}" for cause in found[:5]]
    if len(found) > 5:
        lines.append(f"  {sum(c.objects for c in found[5:]):>9,}  for {len(found) - 5:,} other causes")
    return lines
