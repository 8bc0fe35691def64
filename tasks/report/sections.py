"""What stands in each section of the report page, as values for its template: figures, rows, sentences, no markup.

One function a section, from the report's table; the layout is templates/section-<name>.html. Every list has an end and
says what it leaves out, so that a million rows make a page of the same size. A section that has nothing to say is None.
"""

import json
import math
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from tasks.report import charts, savings, summary
from tasks.report.thumbnails import Album, NotShown, rows_of
from tasks.report.words import moment, number, plural, readable, size

WORST, GROUPS, MEMBERS, SIMILAR, LINES, POINTS = 20, 12, 5, 8, 14, 1500
STATUS_WORDS = {
    "compressed": "compressed",
    "duplicate": "duplicates",
    "kept": "kept as they are",
    "failed": "failed",
    "skipped": "not pictures",
}
CAUSES = (
    ("failed", "Failed", "could not be read or compressed; the originals are untouched"),
    ("kept", "Kept as they are", "are pictures that stay at SOURCE"),
    ("skipped", "Skipped", "are not pictures"),
)
DUPLICATE_KINDS = {
    "exact": "the same bytes",
    "pixel": "the same pixels in another file",
    "near": "near duplicates, confirmed by their pixels and restored at their own size",
}
SAME = {"exact": "same bytes", "pixel": "same pixels"}  # labels of duplicates that need no distance


def with_status(table: pa.Table, status: str) -> pa.Table:
    return table.filter(pc.fill_null(pc.equal(table["status"], status), False))


def dimensions(row: dict) -> str:
    return f"{row['width']} × {row['height']}" if row["width"] else "size unknown"


# --- what was saved ---


def saved(table: pa.Table, manifest: dict, totals: savings.Totals) -> dict:
    """The headline, both bars and the proofs."""
    largest = max(totals.source_bytes, totals.after_bytes, 1)

    def part(status: str, count: int, words: str) -> dict:
        return {"status": status, "width": f"{78 * count / largest:.3f}", "tip": f"{words}{size(count)}"}

    before = [
        part(status, totals.bytes_of[status], f"{words}: {totals.counts[status]:,} objects, ")
        for status, words in STATUS_WORDS.items()
        if totals.bytes_of[status]
    ]
    after = [("compressed", totals.stored_bytes, "bitstreams under DEST: ")]
    for status, words in STATUS_WORDS.items():
        if status != "compressed":
            staying = savings.totals(with_status(table, status)).remaining_bytes
            after.append((status, staying, f"{words}, staying at SOURCE: "))
    proofs = summary.proofs(table, manifest)
    return {
        "totals": totals,
        "medians": summary.median_words(summary.quality(table)),
        "aim": summary.target_words(manifest.get("config") or {}),
        "before": before,
        "after": [part(*one) for one in after if one[1]],
        "legend": [(s, words, totals.counts[s]) for s, words in STATUS_WORDS.items() if totals.counts[s]],
        "proofs": proofs,
        "sound": all(holds for holds, _ in proofs),
    }


def bill(table: pa.Table, manifest: dict, totals: savings.Totals, bill: savings.Bill, dest_url: str) -> dict:
    """Dollars before, now and after; other classes; how originals are removed."""
    run = str(manifest.get("run_id", "RUN"))
    return {
        "bill": bill,
        "totals": totals,
        "region": savings.prices()["regions"][bill.region]["name"],
        "originals": class_words(bill),
        "dest_class": savings.prices()["classes"][bill.dest_class]["name"],
        "terabyte": a_terabyte(totals, bill),
        "mostly_listing": bill.listing > bill.after / 3,
        "lines": [  # (name, before, now, after): add up to the bill's three figures
            (
                "Originals", bill.before, bill.now - bill.listing - bill.dest,
                bill.after - bill.listing_after - bill.dest,
            ),
            ("Bitstreams under DEST", 0.0, bill.dest, bill.dest),
            ("Nightly listing", 0.0, bill.listing, bill.listing_after),
        ],
        "others": [
            (class_words(other), other) for other in savings.bills_by_class(table, manifest, region=bill.region)
        ],
        "run": run,
        "quoted_run": shlex.quote(run),
        "dest": shlex.quote(dest_url or "DEST"),
        "fields": ",".join(map(str, (manifest.get("removable") or {}).get("fields") or [])),
    }  # fmt: skip


def class_words(bill: savings.Bill) -> str:
    """'S3 Standard (900 objects) and S3 Standard-IA (100 objects)'; no counts where there is one class."""
    names = {name: rules["name"] for name, rules in savings.prices()["classes"].items()}
    words = [
        names.get(name, name)
        + (" at S3 Standard’s prices" if name in bill.unpriced else "")
        + (f" ({plural(count, 'object')})" if len(bill.originals) > 1 else "")
        for name, count in sorted(bill.originals.items(), key=lambda item: -item[1])
    ]
    return " and ".join(words)


def a_terabyte(totals: savings.Totals, bill: savings.Bill) -> tuple[float, float] | None:
    """(before, after): dollars a month for 1 TB at the same ratio in S3 Standard; None for a bucket that says more."""
    if not totals.source_bytes or totals.source_bytes >= 20e9:
        return None
    rate = savings.tariff(bill.region, "STANDARD")["storage"][0][1] * 1e12 / savings.GB
    return rate, rate * totals.after_bytes / totals.source_bytes


def where(table: pa.Table) -> dict:
    """By folder, format and form, what was restored, the largest savings."""
    counts = {name: int(pc.sum(pc.fill_null(table[name], False)).as_py() or 0) for name in ("denoised", "upscaled")}
    restored = []
    if counts["denoised"]:
        restored.append(plural(counts["denoised"], "noisy picture") + " cleaned before compression")
    if counts["upscaled"]:
        words = plural(counts["upscaled"], "small picture")
        restored.append(f"{words} enlarged into an extra object, beside its bitstream")
    return {
        "tables": [
            group_table(savings.by_prefix(table), "folder", "folders"),
            group_table(savings.by_format(table), "format", "formats"),
            group_table(savings.by_form(table), "stored as, comes back", "forms"),
        ],
        "restored": restored,
        "largest": summary.largest(table, 10),
    }


def group_table(groups: list[savings.Group], head: str, what: str) -> dict:
    """The first LINES groups with the widths of their two bars, the others together, all together."""
    scale = max((max(group.source_bytes, group.after_bytes) for group in groups), default=0) or 1

    def together(some: list[savings.Group]) -> savings.Group:
        return savings.Group(
            "", *(sum(getattr(g, name) for g in some) for name in ("objects", "source_bytes", "after_bytes"))
        )

    def bars(group: savings.Group) -> tuple[str, str]:
        return f"{100 * group.source_bytes / scale:.2f}", f"{100 * group.after_bytes / scale:.2f}"

    rest = groups[LINES:]
    return {
        "head": head,
        "what": what,
        "shown": [(group, bars(group)) for group in groups[:LINES]],
        "rest": together(rest) if rest else None,
        "left": len(rest),
        "all": together(groups),
    }


# --- quality ---


def quality(table: pa.Table, manifest: dict, worst_keys: set[str]) -> dict | None:
    """Size against quality as points, the measures as histograms; None where nothing was measured."""
    compressed = with_status(table, "compressed")
    names = ("bpp", "psnr", "ms_ssim", "ssimulacra2")
    bpp, psnr, ms_ssim, seen = (pc.fill_null(compressed[name], math.nan).to_numpy() for name in names)
    usable = np.flatnonzero(np.isfinite(bpp) & np.isfinite(psnr) & (bpp > 0))
    if not len(usable):
        return None
    is_worst = pc.is_in(compressed["key"], value_set=pa.array(sorted(worst_keys), pa.string())).to_numpy()
    chosen = drawn_points(usable, is_worst)
    low = is_worst[chosen]
    titles = point_titles(compressed, chosen)
    return {
        "words": summary.quality_words(summary.quality(table)),
        "scatter": Markup(
            charts.scatter(bpp[chosen], psnr[chosen], titles, low, x_label="bits per pixel", y_label="PSNR in dB")
        ),
        "drawn": f"{len(chosen):,} of {len(usable):,} pictures drawn, the worst among them"
        if len(chosen) < len(usable)
        else plural(len(usable), "picture"),
        "marked": low.any() and not low.all(),
        "histograms": histograms({"ssimulacra2": seen, "ms-ssim": ms_ssim, "psnr": psnr}, manifest),
    }


def drawn_points(usable: np.ndarray, is_worst: np.ndarray) -> np.ndarray:
    """Indices of at most POINTS rows, the worst among them, the others drawn at random (always the same ones)."""
    if len(usable) <= POINTS:
        return usable
    marked = np.intersect1d(usable, np.flatnonzero(is_worst))
    others = np.setdiff1d(usable, marked)
    return np.sort(np.concatenate([marked, np.random.default_rng(0).choice(others, POINTS - len(marked), False)]))


def point_titles(compressed: pa.Table, chosen: np.ndarray) -> list[str]:
    """What a point's tooltip says: key, measures, sizes."""
    names = ("key", "width", "height", "source_bytes", "output_length", "stored_bytes", "quality", "denoised", "bpp")
    measures = ("psnr", "ms_ssim", "ssimulacra2", "worst_tile")
    rows = compressed.select([*names, *measures]).take(pa.array(chosen)).to_pylist()
    return [
        f"{readable(row['key'], 70)}\n{row['bpp']:.3f} bpp, {row['psnr']:.2f} dB"
        + (f", SSIMULACRA2 {row['ssimulacra2']:.1f}" if row["ssimulacra2"] is not None else "")
        + (f", worst tile {row['worst_tile']:.2f}" if row["worst_tile"] is not None else "")
        + (f", MS-SSIM {row['ms_ssim']:.4f}" if row["ms_ssim"] is not None else "")
        + f"\n{dimensions(row)}, {size(row['source_bytes'])} → {size(row['output_length'] or row['stored_bytes'] or 0)}"
        + (f", quality {row['quality']:.1f}" if row["quality"] is not None else "")
        + (", denoised" if row["denoised"] else "")
        for row in rows
    ]


def histograms(measures: dict[str, np.ndarray], manifest: dict) -> list[dict]:
    """One for each measure that has finite values, with the run's target where it stands in that measure."""
    metric, _, bound = str((manifest.get("config") or {}).get("target") or "").partition("=")
    try:
        aim = float(bound)
    except ValueError:
        aim = None
    made = []
    for name, label in (("ssimulacra2", "SSIMULACRA2"), ("ms-ssim", "MS-SSIM"), ("psnr", "PSNR in dB")):
        finite = measures[name][np.isfinite(measures[name])]
        if len(finite):
            words = f"{label.split()[0]} of {plural(len(finite), 'picture')}"
            if name == "ms-ssim":
                words += ", 1 is identical; pictures under 160 pixels have none"
            svg = charts.histogram(finite, x_label=label, aim=aim if metric == name else None)
            made.append({"svg": Markup(svg), "words": words})
    return made


# --- pictures ---


def worst_rows(table: pa.Table, n: int = WORST) -> list[dict]:
    """The n compressed rows whose worst tile kept least of its own structure, worst first, then by PSNR and key."""
    compressed = with_status(table, "compressed")
    compressed = compressed.filter(pc.is_finite(pc.fill_null(compressed["psnr"], math.inf)))
    worst_tile = pc.fill_null(compressed["worst_tile"], 1.0)
    ranked = compressed.set_column(compressed.schema.get_field_index("worst_tile"), "worst_tile", worst_tile)
    by = [("worst_tile", "ascending"), ("psnr", "ascending"), ("key", "ascending")]
    order = pc.select_k_unstable(ranked, k=n, sort_keys=by)
    return compressed.take(order).to_pylist()


def worst(rows: list[dict], total: int, album: Album) -> dict | None:
    """A card for each of the worst pictures: both sides of the place that differs most, and its figures."""
    cards = [picture_card(row, album, len(rows) - index) for index, row in enumerate(rows)]
    return {"cards": cards, "total": total} if cards else None


def picture_card(row: dict, album: Album, to_come: int) -> dict:
    """pair: thumbnails.Comparison, None with a sentence in `missing`; map: percent of the overview, or None."""
    stored = row["output_length"] or row["stored_bytes"] or 0
    figures = (
        f"worst tile {number(row['worst_tile'], 2)}" if row["worst_tile"] is not None else "",
        f"SSIMULACRA2 {number(row['ssimulacra2'], 1)}" if row["ssimulacra2"] is not None else "",
        number(row["psnr"], 2, " dB"),
        f"MS-SSIM {number(row['ms_ssim'], 4)}",
        number(row["bpp"], 3, " bpp"),
        f"{size(row['source_bytes'])} → {size(stored)}",
        dimensions(row),
        f"{row['format'] or ''} {row['mode'] or ''}".strip(),
    )
    card: dict[str, object] = {"row": row, "figures": list(filter(None, figures)), "pair": None, "map": None}
    try:
        pair = album.compare(row, to_come)
    except NotShown as reason:
        return card | {"missing": str(reason)}
    card |= {"pair": pair, "tiny": max(pair.size) < 200}
    return card | ({"map": [f"{100 * share:.1f}" for share in pair.box]} if pair.overview else {})


def thumbnail(row: dict, album: Album) -> tuple[str | None, str]:
    """(data URI, "") or (None, why the picture is not shown)."""
    try:
        return album.thumbnail(row), ""
    except NotShown as reason:
        return None, str(reason)


def duplicates(table: pa.Table, album: Album) -> dict | None:
    """The groups that free most, with thumbnails of the keeper and of the copies that are farthest from it."""
    copies = with_status(table, "duplicate")
    if not len(copies):
        return None
    kinds = {kind: pc.sum(pc.equal(copies["duplicate_kind"], kind)).as_py() or 0 for kind in DUPLICATE_KINDS}
    sums = copies.group_by("keeper_key").aggregate([("source_bytes", "sum"), ("key", "count")])
    order = pc.sort_indices(sums, [("source_bytes_sum", "descending"), ("keeper_key", "ascending")])
    shown = sums.take(order[:GROUPS]).to_pylist()
    wanted = pa.array([group["keeper_key"] for group in shown], pa.string())
    keepers = {row["key"]: row for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist()}
    return {
        "copies": len(copies),
        "groups_total": len(sums),
        "kinds": [f"{n:,} {DUPLICATE_KINDS[kind]}" for kind, n in kinds.items() if n],
        "source_bytes": pc.sum(copies["source_bytes"]).as_py() or 0,
        "groups": [duplicate_group(group, copies, keepers.get(group["keeper_key"]), album) for group in shown],
    }


def duplicate_group(group: dict, copies: pa.Table, keeper: dict | None, album: Album) -> dict:
    members = copies.filter(pc.fill_null(pc.equal(copies["keeper_key"], group["keeper_key"]), False))
    farthest = pc.sort_indices(members, [("hamming_distance", "descending"), ("key", "ascending")])
    members = rows_of(members, farthest[:MEMBERS].to_pylist())
    figures = []
    if keeper:
        figures.append({"row": keeper, "shown": thumbnail(keeper, album), "kind": "keeper", "label": "keeper"})
    for member in members:
        label = SAME.get(member["duplicate_kind"], f"distance {member['hamming_distance']}")
        if member["duplicate_kind"] == "near" and member["psnr_source"] is not None:
            label += f", {number(member['psnr_source'], 1, ' dB')}"
        figures.append({"row": member, "shown": thumbnail(member, album), "kind": "", "label": label})
    return {
        "keeper_key": group["keeper_key"],
        "copies": group["key_count"],
        "source_bytes": group["source_bytes_sum"],
        "reasons": list(dict.fromkeys(member["reason"] for member in members if member["reason"]))[:2],
        "figures": figures,
        "left": group["key_count"] - len(members),
    }


def similar(table: pa.Table, album: Album) -> dict | None:
    """Pictures that look much like another and are none of its copies, those that cost most first, side by side."""
    rows, freed = summary.similar_rows(table)
    if not len(rows):
        return None
    order = pc.sort_indices(rows, [("freed", "descending"), ("key", "ascending")])[:SIMILAR]
    shown = rows.take(order).to_pylist()
    others = table.filter(pc.is_in(table["key"], pa.array([row["similar_to"] for row in shown], pa.string())))
    others = {row["key"]: row for row in others.to_pylist()}
    pairs = []
    for row in shown:
        pair = [{"row": row, "shown": thumbnail(row, album), "kind": "", "label": f"{size(row['freed'])} by hand"}]
        if other := others.get(row["similar_to"]):
            pair.append({"row": other, "shown": thumbnail(other, album), "kind": "keeper", "label": "much like it"})
        pairs.append(pair)
    return {"total": len(rows), "freed": freed, "pairs": pairs}


# --- causes and settings ---


def causes(table: pa.Table) -> dict:
    """Why objects were not compressed, by status, most frequent first."""
    statuses = []
    for status, title, words in CAUSES:
        found = summary.causes(table, status)
        if found:
            total = sum(cause.objects for cause in found)
            one = {"title": title, "words": words, "objects": total, "causes": found[:LINES]}
            statuses.append(one | {"left": len(found) - LINES})
    return {"statuses": statuses}


def settings(table: pa.Table, manifest: dict) -> dict:
    """The run's options, its record and the versions that made it."""
    record = {
        name: value
        for name, value in manifest.items()
        if name not in ("config", "versions", "counts") and isinstance(value, str | int | float | bool)
    }
    for name, column in (("bitstream format", "codec"), ("models in use", "model")):
        values = [value for value in pc.unique(table[column]).to_pylist() if value]
        if values:
            record[name] = ", ".join(values[:10])
    seconds = pc.sum(table["seconds"]).as_py()
    if seconds:
        record["work on all objects"] = f"{seconds:,.1f} core seconds"
    return {
        "settings": facts(manifest.get("config") or {}),
        "record": facts(record),
        "versions": facts(manifest.get("versions") or {}),
    }


def facts(values: dict) -> list[tuple[str, str]]:
    """(name, value in words), sorted; what is empty is left out."""

    def words(name: str, value: object) -> str:
        if name in ("started", "finished"):
            return moment(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    return [(name, words(name, value)) for name, value in sorted(values.items()) if value not in (None, "", [], {})]
