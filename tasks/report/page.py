"""The report as one HTML page that opens anywhere, offline: no request leaves it, its own policy forbids them.

build() turns the report's table and manifest into the page; figures come from savings.py, words from summary.py, charts
from charts.py, pictures from thumbnails.py; looks and behaviour are page.css and page.js, inlined. Keys and messages
are hostile input: everything from outside passes e(), which makes control characters visible and escapes HTML. Every
list has an end and says what it leaves out, so that a million rows make a page of the same size.
"""

import base64
import hashlib
import json
import math
import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.report import charts, savings, summary
from tasks.report.summary import money, readable, share, size
from tasks.report.thumbnails import Album, NotShown, rows_of

WORST, GROUPS, MEMBERS, LINES, POINTS = 20, 12, 5, 14, 1500
STATUS_WORDS = {
    "compressed": "compressed",
    "duplicate": "duplicates",
    "kept": "kept as they are",
    "failed": "failed",
    "skipped": "not pictures",
}


def e(text: object, limit: int | None = None) -> str:
    """Text from outside, safe inside HTML text and quoted attributes."""
    return escape(readable(text, limit), quote=True)


def key_html(key: object, limit: int = 90) -> str:
    full = readable(key)
    title = f' title="{e(full)}"' if len(full) > limit else ""
    return f'<bdi class="key"{title}>{e(key, limit)}</bdi>'


def number(value: float | None, digits: int, unit: str = "") -> str:
    if value is None or math.isnan(value):
        return "–"
    return "identical" if math.isinf(value) else f"{value:,.{digits}f}{unit}"


def plural(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _dimensions(row: dict) -> str:
    return f"{row['width']} × {row['height']}" if row["width"] else "size unknown"


def more(left: int, what: str) -> str:
    return (
        f'<p class="note">… and {left:,} more {escape(what)}; the Parquet table has them all.</p>' if left > 0 else ""
    )


# ------------------------------------------------------------------------------------------------ headline and bill


def _headline(table: pa.Table, manifest: dict, figures: savings.Totals) -> str:
    if figures.saved_bytes >= 0:
        sentence = f"{e(size(figures.source_bytes))} of originals fit into <em>{e(size(figures.after_bytes))}</em>"
    else:
        sentence = f"Nothing saved: {e(size(figures.source_bytes))} would become {e(size(figures.after_bytes))}"
    quality = summary.quality(table)
    words = []
    if quality.ms_ssim_median is not None:
        words.append(f"MS-SSIM {quality.ms_ssim_median:.4f} (worst {quality.ms_ssim_worst:.4f})")
    if quality.psnr_median is not None:
        words.append(f"PSNR {quality.psnr_median:.1f} dB (worst {quality.psnr_worst:.1f} dB)")
    aim = summary.target_words(manifest.get("config") or {})
    lead = f"<b>{share(figures.saved_bytes, figures.source_bytes)} less</b> for {plural(figures.objects, 'object')}"
    if words:
        lead += ", at a median " + " and ".join(words)
    lead += f". The aim was {e(aim)}." if aim else "."
    largest = max(figures.source_bytes, figures.after_bytes, 1)

    def track(parts: list[tuple[str, int, str]], total: int) -> str:
        cells = "".join(
            f'<i class="{name} tip" style="width:{78 * n / largest:.3f}%" data-tip="{e(tip)}"></i>'
            for name, n, tip in parts
            if n
        )
        return f'<div class="track">{cells}<span>{e(size(total))}</span></div>'

    before = [
        (s, figures.bytes_of[s], f"{STATUS_WORDS[s]}: {figures.counts[s]:,} objects, {size(figures.bytes_of[s])}")
        for s in STATUS_WORDS
    ]
    staying = {
        s: savings.totals(table.filter(pc.equal(table["status"], s))).remaining_bytes
        for s in STATUS_WORDS
        if s != "compressed"
    }
    after = [("compressed", figures.stored_bytes, f"bitstreams under DEST: {size(figures.stored_bytes)}")]
    after += [(s, n, f"{STATUS_WORDS[s]}, staying at SOURCE: {size(n)}") for s, n in staying.items()]
    legend = "".join(
        f'<li><i class="{s}"></i>{figures.counts[s]:,} {STATUS_WORDS[s]}</li>'
        for s in STATUS_WORDS
        if figures.counts[s]
    )
    proved = summary.proofs(table, manifest)
    sound = all(holds for holds, _ in proved)
    proofs = "".join(f"<li{'' if holds else ' class=broken'}>{e(claim)}</li>" for holds, claim in proved)
    return (
        f'<section class="first" id="saved"><h1>{sentence}</h1><p class="lead">{lead}</p>'
        f'<div class="scale"><div><span class="name">before</span>{track(before, figures.source_bytes)}</div>'
        f'<div><span class="name">after</span>{track(after, figures.after_bytes)}</div></div>'
        f'<ul class="legend">{legend}</ul></section>'
        f'<section id="safe"><h2>{"Nothing lost" if sound else "Look at this before you remove anything"}</h2>'
        f'<ul class="proofs">{proofs}</ul></section>'
    )


def _change(value: float, base: float) -> str:
    if not base:
        return ""
    percent = 100 * (value - base) / base
    return f'<span class="{"up" if percent > 0 else "down"}">{percent:+,.1f} %</span>'.replace("-", "−", 1)


def _bill(table: pa.Table, manifest: dict, figures: savings.Totals, bill: savings.Bill, dest_url: str) -> str:
    region = savings.prices()["regions"][bill.region]["name"]
    classes = savings.prices()["classes"]
    payback = "" if bill.payback_days is None else f", earned back {_days(bill.payback_days)} after the removal"
    still_there = "originals still there"
    both = "until the originals go: you store both."
    if bill.removed_objects:
        still_there, both = "originals in part removed", f"{bill.removed_objects:,} originals were removed already."
    cards = (
        f'<div class="card"><h3>Before Nightpress</h3><div class="sum">{money(bill.before)} '
        f"<small>a month</small></div><p>{plural(figures.objects, 'original')}, {e(size(figures.source_bytes))}"
        + (f", and {bill.removed_objects:,} removed since" if bill.removed_objects else "")
        + "</p></div>"
        f'<div class="card"><h3>Now, {still_there}</h3><div class="sum">{money(bill.now)} '
        f"<small>a month</small></div><p>{_change(bill.now, bill.before)} {both}</p></div>"
        f'<div class="card best"><h3>After removing {plural(figures.removable_objects, "original")}</h3>'
        f'<div class="sum">{money(bill.after)} <small>a month</small></div>'
        f"<p>{_change(bill.after, bill.before)}, {money(abs(bill.saved) * 12)} "
        f"{'less' if bill.saved >= 0 else 'more'} a year.</p></div>"
    )
    lines = _bill_lines(bill)
    detail = "".join(
        f"<tr><td>{e(name)}</td><td>{money(a)}</td><td>{money(b)}</td><td>{money(c)}</td></tr>"
        for name, a, b, c in lines
    )
    detail += (
        f'<tr class="all"><td>Together</td><td>{money(bill.before)}</td><td>{money(bill.now)}</td>'
        f"<td>{money(bill.after)}</td></tr>"
    )
    retrieval = ", retrieval" if bill.storage_class != "STANDARD" else ""
    others = "".join(
        f"<tr><td>{e(_class_words(b))}</td><td>{money(b.before)}</td><td>{money(b.now)}</td>"
        f"<td>{money(b.after)}</td><td>{share(b.saved, b.before)}</td>"
        f'<td class="less">{money(b.source_padding)}</td><td class="less">{money(b.dest_padding)}</td>'
        f"<td>{money(b.run_requests)}</td></tr>"
        for b in savings.bills_by_class(table, manifest, region=bill.region)
    )
    smallest = ""
    if figures.source_bytes and figures.source_bytes < 20e9:
        ratio = figures.after_bytes / figures.source_bytes
        rate = savings.tariff(bill.region, "STANDARD")["storage"][0][1] * 1e12 / savings.GB
        smallest = (
            '<p class="note">A small bucket makes small sums'
            + (", and here they are mostly the nightly listing" if bill.listing > bill.after / 3 else "")
            + f": at the same ratio, 1 TB of such originals in S3 Standard would bill {money(rate)} a month before and "
            f"{money(rate * ratio)} after.</p>"
        )
    young = (
        f" Originals removed before {bill.minimum_days} days bill the rest of that time." if bill.minimum_days else ""
    )
    return (
        f'<section id="bill"><h2>The bill</h2><p class="soft">{e(region)}, originals in {e(_class_words(bill))}, '
        f"bitstreams in {e(classes[bill.dest_class]['name'])}; list prices of {e(bill.prices_as_of)} in "
        f'{e(bill.currency)}.</p><div class="cards">{cards}</div>{smallest}'
        f"<p>This night’s own requests cost about <b>{money(bill.run_requests)}</b>, once "
        f"({bill.gets:,} GET, {bill.puts:,} PUT{retrieval}){payback}.</p>"
        "<details><summary>What is counted</summary><div class=wide><table><tr><th>a month</th><th>before</th>"
        f"<th>now</th><th>after</th></tr>{detail}</table></div><p class=note>A GB is 2³⁰ bytes. Minimum object "
        "sizes and per-object overheads are in the storage lines. The nightly listing is thirty nights of one LIST "
        "request per 1,000 keys. DELETE requests are free. Not counted: traffic between regions, "
        f"tax, discounts, other people’s requests.{young}</p></details>"
        f"<details><summary>The same bucket in other storage classes</summary><div class=wide><table><tr>"
        "<th>originals and bitstreams in</th><th>before</th><th>now</th><th>after</th><th>saved</th>"
        '<th class="less">of before:<br>minimum sizes</th><th class="less">of after, DEST:<br>minimum sizes</th>'
        f"<th>this night,<br>once</th></tr>{others}</table></div></details>"
        f"{_removal(figures, manifest, dest_url)}</section>"
    )


def _bill_lines(bill: savings.Bill) -> list[tuple[str, float, float, float]]:
    """(line, before, now, after) that add up to the bill's three figures."""
    return [
        ("Originals", bill.before, bill.now - bill.listing - bill.dest, bill.after - bill.listing_after - bill.dest),
        ("Bitstreams under DEST", 0.0, bill.dest, bill.dest),
        ("Nightly listing", 0.0, bill.listing, bill.listing_after),
    ]


def _class_words(bill: savings.Bill) -> str:
    """'S3 Standard (900 objects) and S3 Standard-IA (100 objects)'; no counts where there is one class."""
    names = {name: rules["name"] for name, rules in savings.prices()["classes"].items()}
    words = [
        names.get(name, name)
        + (" at S3 Standard’s prices" if name in bill.unpriced else "")
        + (f" ({plural(count, 'object')})" if len(bill.originals) > 1 else "")
        for name, count in sorted(bill.originals.items(), key=lambda item: -item[1])
    ]
    return " and ".join(words)


def _days(days: float) -> str:
    if days < 1:
        return "within a day"
    return f"{days:,.0f} days" if days < 90 else f"{days / 30.4:,.0f} months"


def _removal(figures: savings.Totals, manifest: dict, dest_url: str) -> str:
    if not figures.removable_objects:
        return ""
    run = str(manifest.get("run_id", "RUN"))
    dest = shlex.quote(dest_url or "DEST")
    fields = ",".join(map(str, (manifest.get("removable") or {}).get("fields") or []))
    return (
        "<details><summary>How to remove the originals, and how to get them back</summary>"
        f"<p>{plural(figures.removable_objects, 'original')} ({e(size(figures.removable_bytes))}) are listed with etag "
        f"and version in <code>runs/{e(run)}/removable.csv</code>, a manifest for S3 Batch Operations"
        f"{e(fields and f' with the fields {fields}')}. Nightpress deletes nothing; that is your step. Amazon has no "
        "batch delete: tag the objects by this list and let a lifecycle rule expire the tag. Try a restore first:</p>"
        f"<pre>nightpress restore {e(dest)} ./back --run {e(shlex.quote(run))}</pre>"
        "<p>In a versioned bucket, deleting an object only hides it: the bill falls when its versions go. Pictures "
        "come back decoded, at the quality shown here, not as the original bytes.</p></details>"
    )


# ---------------------------------------------------------------------------------------------------------- quality


def _among(keys: pa.ChunkedArray, wanted: set[str]) -> np.ndarray:
    """bool[n]: the key is one of the wanted."""
    return pc.is_in(keys, value_set=pa.array(sorted(wanted), pa.string())).to_numpy()


def _quality(table: pa.Table, manifest: dict, worst_keys: set[str]) -> str:
    pressed = table.filter(pc.equal(table["status"], "compressed"))
    bpp, psnr = (pc.fill_null(pressed[name], math.nan).to_numpy() for name in ("bpp", "psnr"))
    ms_ssim = pc.fill_null(pressed["ms_ssim"], math.nan).to_numpy()
    usable = np.flatnonzero(np.isfinite(bpp) & np.isfinite(psnr) & (bpp > 0))
    if not len(usable):
        return ""
    chosen = usable
    if len(usable) > POINTS:
        marked = np.intersect1d(usable, np.flatnonzero(_among(pressed["key"], worst_keys)))
        others = np.setdiff1d(usable, marked)
        chosen = np.sort(
            np.concatenate([marked, np.random.default_rng(0).choice(others, POINTS - len(marked), replace=False)])
        )
    rows = pressed.select(
        ["key", "width", "height", "source_bytes", "output_length", "stored_bytes", "quality", "denoised"]
    )
    rows = rows.take(pa.array(chosen)).to_pylist()
    low = np.array([row["key"] in worst_keys for row in rows])
    titles = [
        f"{readable(row['key'], 70)}\n{b:.3f} bpp, {p:.2f} dB"
        + (f", MS-SSIM {m:.4f}" if math.isfinite(m) else "")
        + f"\n{_dimensions(row)}, {size(row['source_bytes'])} → "
        + size(row["output_length"] or row["stored_bytes"] or 0)
        + (f", quality {row['quality']:.1f}" if row["quality"] is not None else "")
        + (", denoised" if row["denoised"] else "")
        for row, b, p, m in zip(rows, bpp[chosen], psnr[chosen], ms_ssim[chosen], strict=True)
    ]
    target = str((manifest.get("config") or {}).get("target") or "")
    metric, _, bound = target.partition("=")
    try:
        aim = float(bound)
    except ValueError:
        aim = None
    drawn = (
        f"{len(chosen):,} of {len(usable):,} pictures drawn, the worst among them"
        if len(chosen) < len(usable)
        else plural(len(usable), "picture")
    )
    plots = (
        '<figure class="plot tall">'
        + charts.scatter(bpp[chosen], psnr[chosen], titles, low, x_label="bits per pixel", y_label="PSNR in dB")
        + f"<figcaption>Size against quality, measured on the decoded bitstreams. {drawn}"
        + ("; red: the twenty worst, shown below" if low.any() and not low.all() else "")
        + ".</figcaption></figure>"
    )
    for name, values, label in (("ms-ssim", ms_ssim, "MS-SSIM"), ("psnr", psnr, "PSNR in dB")):
        finite = values[np.isfinite(values)]
        if len(finite):
            plots += (
                '<figure class="plot">'
                + charts.histogram(finite, x_label=label, aim=aim if metric == name else None)
                + f"<figcaption>{label.split()[0]} of {plural(len(finite), 'picture')}"
                + (", 1 is identical; pictures under 160 pixels have none" if name == "ms-ssim" else "")
                + ".</figcaption></figure>"
            )
    words = "".join(f"<li>{e(line)}</li>" for line in summary.quality_words(summary.quality(table)))
    return (
        f'<section id="quality"><h2>Quality</h2><ul class="soft">{words}</ul>'
        f'<div class="charts">{plots}</div></section>'
    )


# ----------------------------------------------------------------------------------------------------------- groups


def _group_table(groups: list[savings.Group], head: str, what: str) -> str:
    shown = groups[:LINES]
    scale = max((max(g.source_bytes, g.after_bytes) for g in groups), default=0) or 1

    def line(group: savings.Group, name: str, kind: str = "") -> str:
        bars = (
            f'<b><i style="width:{100 * group.source_bytes / scale:.2f}%"></i>'
            f'<i style="width:{100 * group.after_bytes / scale:.2f}%"></i></b>'
        )
        return (
            f'<tr{kind}><td>{name}</td><td class="less">{group.objects:,}</td><td>{e(size(group.source_bytes))}</td>'
            f"<td>{e(size(group.after_bytes))}</td><td>{share(group.saved_bytes, group.source_bytes)}</td>"
            f'<td class="bar">{"" if kind else bars}</td></tr>'
        )

    body = "".join(line(group, key_html(group.name, 60)) for group in shown)
    rest = groups[LINES:]
    if rest:
        together = savings.Group(
            "", *(sum(getattr(g, f) for g in rest) for f in ("objects", "source_bytes", "after_bytes"))
        )
        body += line(together, f"and {len(rest):,} more {escape(what)}", " class=rest")
    everything = savings.Group(
        "", *(sum(getattr(g, f) for g in groups) for f in ("objects", "source_bytes", "after_bytes"))
    )
    body += line(everything, "all", ' class="all"')
    return (
        f'<div class="wide"><table><tr><th>{escape(head)}</th><th class="less">objects</th><th>before</th>'
        f'<th>after</th><th>saved</th><th class="bar"></th></tr>{body}</table></div>'
    )


def _where(table: pa.Table) -> str:
    denoised = int(pc.sum(pc.fill_null(table["denoised"], False)).as_py() or 0)
    upscaled = int(pc.sum(pc.fill_null(table["upscaled"], False)).as_py() or 0)
    words = [plural(denoised, "noisy picture") + " cleaned before compression"] if denoised else []
    words += (
        [plural(upscaled, "small picture") + " enlarged into an extra object, beside its bitstream"] if upscaled else []
    )
    restoration = f'<p class="soft">Restoration: {escape("; ".join(words))}.</p>' if words else ""
    top = "".join(
        f'<tr><td>{key_html(row["key"])}</td><td class="less">{e(row["status"])}</td>'
        f"<td>{e(size(row['source_bytes']))}</td><td>{e(size(row['stored_bytes'] or 0))}</td>"
        f"<td>{e(size(row['saved_bytes']))}</td></tr>"
        for row in summary.largest(table, 10)
    )
    return (
        '<section id="where"><h2>Where it was saved</h2>'
        + _group_table(savings.by_prefix(table), "folder", "folders")
        + _group_table(savings.by_format(table), "format", "formats")
        + restoration
        + (
            "<details><summary>The ten largest savings</summary><div class=wide><table><tr><th>key</th>"
            '<th class="less">status</th><th>original</th><th>stored</th><th>saved</th></tr>'
            f"{top}</table></div></details>"
            if top
            else ""
        )
        + "</section>"
    )


# --------------------------------------------------------------------------------------------------------- pictures


def worst_rows(table: pa.Table, n: int = WORST) -> list[dict]:
    """The n compressed rows with the lowest PSNR of the decoded bitstream, worst first, then by key."""
    pressed = table.filter(
        pc.and_(pc.equal(table["status"], "compressed"), pc.is_finite(pc.fill_null(table["psnr"], math.inf)))
    )
    order = pc.select_k_unstable(pressed, k=n, sort_keys=[("psnr", "ascending"), ("key", "ascending")])
    return pressed.take(order).to_pylist()


def _worst(rows: list[dict], total: int, album: Album) -> str:
    cards = []
    for index, row in enumerate(rows):
        figures = (
            f"<b>{number(row['psnr'], 2, ' dB')}</b>",
            f"MS-SSIM {number(row['ms_ssim'], 4)}",
            number(row["bpp"], 3, " bpp"),
            f"{e(size(row['source_bytes']))} → {e(size(row['output_length'] or row['stored_bytes'] or 0))}",
            _dimensions(row),
            f"{e(row['format'] or '')} {e(row['mode'] or '')}".strip(),
        )
        facts = " · ".join(f'<span class="nb">{fact}</span>' for fact in figures if fact)
        if row["denoised"]:
            facts += "<br>denoised: part of the difference is meant"
        try:
            pair = album.compare(row, len(rows) - index)
            tiny = " tiny" if max(pair.size) < 200 else ""
            picture = (
                f'<div class="compare{tiny}"><img src="{pair.before}" alt="original"><img src="{pair.after}" '
                'alt="decoded"><span class="side l">original</span><span class="side r">decoded</span>'
                '<span class="grip">⇔</span><input type="range" min="0" max="100" value="50" '
                f'aria-label="Original against decoded: {e(row["key"], 90)}"></div>'
            )
            view = ""
            if pair.overview:
                left, top, wide, high = (100 * v for v in pair.box)
                view = (
                    f'<span class="map"><img src="{pair.overview}" alt="the whole picture"><i style="left:{left:.1f}%;'
                    f'top:{top:.1f}%;width:{wide:.1f}%;height:{high:.1f}%"></i></span>'
                )
        except NotShown as reason:
            picture, view = f'<div class="missing">{e(reason, 240)}</div>', ""
        cards.append(
            f'<figure>{picture}<figcaption class="under">{view}<div>{facts}<br>{key_html(row["key"], 64)}</div>'
            "</figcaption></figure>"
        )
    if not cards:
        return ""
    return (
        f'<section id="worst"><h2>The {"twenty " if len(cards) == 20 else ""}worst pictures</h2>'
        f"<p class=soft>Lowest PSNR of {plural(total, 'compressed picture')}. Each crop is the place that differs "
        "most, pixel for pixel; “decoded” comes from the bitstream in the bucket. Drag across a picture to compare. "
        "(The crops are embedded without loss where the page has room, else as JPEG of high quality.)</p>"
        f'<div class="pictures">{"".join(cards)}</div></section>'
    )


def _duplicates(table: pa.Table, album: Album) -> str:
    copies = table.filter(pc.equal(table["status"], "duplicate"))
    if not len(copies):
        return ""
    kinds = {kind: pc.sum(pc.equal(copies["duplicate_kind"], kind)).as_py() or 0 for kind in ("exact", "pixel", "near")}
    words = {
        "exact": "the same bytes",
        "pixel": "the same pixels in another file",
        "near": "near duplicates, confirmed by their pixels and restored at their own size",
    }
    intro = "; ".join(f"{n:,} {words[kind]}" for kind, n in kinds.items() if n)
    sums = copies.group_by("keeper_key").aggregate([("source_bytes", "sum"), ("key", "count")])
    order = pc.sort_indices(sums, [("source_bytes_sum", "descending"), ("keeper_key", "ascending")])
    shown = sums.take(order[:GROUPS]).to_pylist()
    keepers = {
        row["key"]: row
        for row in table.filter(
            pc.is_in(table["key"], pa.array([g["keeper_key"] for g in shown], pa.string()))
        ).to_pylist()
    }
    blocks = []
    for group in shown:
        members = copies.filter(pc.fill_null(pc.equal(copies["keeper_key"], group["keeper_key"]), False))
        nearest = pc.sort_indices(members, [("hamming_distance", "descending"), ("key", "ascending")])
        members = rows_of(members, nearest[:MEMBERS].to_pylist())
        keeper = keepers.get(group["keeper_key"])
        figures = [_thumb(keeper, album, "keeper", "keeper") if keeper else ""]
        for member in members:
            kind, distance = member["duplicate_kind"] or "", member["hamming_distance"]
            label = {"exact": "same bytes", "pixel": "same pixels"}.get(kind, f"distance {distance}")
            if kind == "near" and member["psnr_source"] is not None:
                label += f", {number(member['psnr_source'], 1, ' dB')}"
            figures.append(_thumb(member, album, "", label))
        reasons = list(dict.fromkeys(member["reason"] for member in members if member["reason"]))
        left = group["key_count"] - len(members)
        blocks.append(
            f'<div class="group"><h3>{plural(group["key_count"], "copy", "copies")} of '
            f"{key_html(group['keeper_key'])}, {e(size(group['source_bytes_sum']))} freed</h3>"
            + (f'<p class="note">Why this one: {e("; ".join(reasons[:2]), 300)}</p>' if reasons else "")
            + f'<div class="strip">{"".join(figures)}</div>'
            + (f'<p class="note">… and {left:,} more of this picture</p>' if left else "")
            + "</div>"
        )
    return (
        f'<section id="duplicates"><h2>Duplicates</h2><p>{plural(len(copies), "object")} in '
        f"{plural(len(sums), 'group')}: {escape(intro)}. "
        f"{e(size(pc.sum(copies['source_bytes']).as_py() or 0))} of originals need no bitstream of their own.</p>"
        + "".join(blocks)
        + more(len(sums) - len(shown), "groups")
        + "</section>"
    )


def _thumb(row: dict, album: Album, kind: str, label: str) -> str:
    try:
        picture = f'<img src="{album.thumbnail(row)}" alt="">'
    except NotShown as reason:
        picture = e(reason, 90)
    return (
        f'<figure class="{kind}"><div class="frame">{picture}</div><figcaption><b>{e(label)}</b><br>'
        f"{_dimensions(row)} {e(row['format'] or '')}, {e(size(row['source_bytes'] or 0))}<br>"
        f"{key_html(row['key'], 48)}</figcaption></figure>"
    )


# ---------------------------------------------------------------------------------------------- causes and settings


def _causes(table: pa.Table) -> str:
    blocks = []
    for status, title, words in (
        ("failed", "Failed", "could not be read or compressed; the originals are untouched"),
        ("kept", "Kept as they are", "are pictures that stay at SOURCE"),
        ("skipped", "Skipped", "are not pictures"),
    ):
        found = summary.causes(table, status)
        if not found:
            continue
        lines = "".join(
            f'<tr><td class="text">{e(cause.text, 260)}'
            + (f' <span class="note">({e(cause.error, 60)})</span>' if cause.error else "")
            + "<br>"
            + ", ".join(key_html(key, 56) for key in cause.examples)
            + (", …" if cause.objects > len(cause.examples) else "")
            + f"</td><td>{cause.objects:,}</td><td>{e(size(cause.source_bytes))}</td></tr>"
            for cause in found[:LINES]
        )
        total = sum(cause.objects for cause in found)
        blocks.append(
            f'<h3 class="apart">{title}</h3><p class="soft">{plural(total, "object")} {words}.</p><div class="wide">'
            '<table class="causes"><tr><th class="text">cause, and keys</th><th>objects</th><th>bytes</th></tr>'
            f"{lines}</table></div>" + more(len(found) - LINES, "causes")
        )
    if not blocks:
        return (
            '<section id="causes"><h2>Failures</h2><p>None: every object was compressed or is a duplicate.</p>'
            "</section>"
        )
    return f'<section id="causes"><h2>What was not compressed</h2>{"".join(blocks)}</section>'


def _facts(values: dict) -> str:
    def words(name: str, value: object) -> str:
        if name in ("started", "finished"):
            return summary.moment(value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:,}"
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

    shown = {k: v for k, v in sorted(values.items()) if v not in (None, "", [], {})}
    return "<dl>" + "".join(f"<dt>{e(k)}</dt><dd>{e(words(k, v), 400)}</dd>" for k, v in shown.items()) + "</dl>"


def _settings(table: pa.Table, manifest: dict) -> str:
    models = [m for m in pc.unique(table["model"]).to_pylist() if m]
    formats = [c for c in pc.unique(table["codec"]).to_pylist() if c]
    known = ("config", "versions", "counts")
    rest = {k: v for k, v in manifest.items() if k not in known and isinstance(v, str | int | float | bool)}
    rest |= {"bitstream format": ", ".join(formats[:10]), "models in use": ", ".join(models[:10])} if models else {}
    seconds = pc.sum(table["seconds"]).as_py()
    if seconds:
        rest["work on all objects"] = f"{seconds:,.1f} core seconds"
    return (
        '<section id="settings"><h2>The run</h2><div class="halves">'
        f"<div><h3>Settings</h3>{_facts(manifest.get('config') or {})}</div>"
        f'<div><h3>Record</h3>{_facts(rest)}<h3 class="apart">Versions</h3>{_facts(manifest.get("versions") or {})}'
        "</div></div></section>"
    )


# ------------------------------------------------------------------------------------------------------- the page


def build(
    table: pa.Table,
    manifest: dict,
    source,
    dest,
    *,
    region: str | None = None,
    storage_class: str | None = None,
    decode: Callable[[bytes], object] | None = None,
    picture_bytes: int = 5_600_000,
    seconds: float = 90.0,
) -> str:
    """The whole page as text (write it as UTF-8).

    table: the report (tasks/report/schema.py); manifest: manifest.json as parsed; source, dest: the run's stores, each
    may be None (pictures are then replaced by a sentence); decode: bitstream → PIL image (default codec.decode);
    picture_bytes: bound for all embedded pictures together; seconds: for reading and decoding them. Raises
    savings.UnknownPrice for a region or class without prices; a picture that can't be shown raises nothing.
    """
    here = Path(__file__).parent
    style, script = (here / name for name in ("page.css", "page.js"))
    style, script = style.read_text(encoding="utf-8"), script.read_text(encoding="utf-8")
    figures = savings.totals(table)
    bill = savings.bill(table, manifest, region=region, storage_class=storage_class)
    album = Album(source, dest, decode=decode, budget=picture_bytes * 3 // 4, seconds=seconds * 2 / 3)
    worst = worst_rows(table)
    worst_html = _worst(worst, figures.counts["compressed"], album)
    album.budget += picture_bytes // 4
    album.until += seconds / 3
    sections = {
        "saved": _headline(table, manifest, figures),
        "bill": _bill(table, manifest, figures, bill, getattr(dest, "url", "")),
        "quality": _quality(table, manifest, {row["key"] for row in worst}),
        "where": _where(table),
        "worst": worst_html,
        "duplicates": _duplicates(table, album),
        "causes": _causes(table),
        "settings": _settings(table, manifest),
    }
    names = {
        "bill": "Bill",
        "quality": "Quality",
        "where": "Folders and formats",
        "worst": "Worst pictures",
        "duplicates": "Duplicates",
        "causes": "Not compressed",
        "settings": "The run",
    }
    links = "\n".join(f'<a href="#{name}">{title}</a>' for name, title in names.items() if sections[name])
    run, took = manifest.get("run_id", "?"), summary.duration(manifest)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>Nightpress {e(run)}</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n'
        f'</head>\n<body>\n<header><div class="mast"><b>Nightpress</b><span>run {e(run)}</span>'
        f"<span>{e(summary.moment(manifest.get('finished', '')))}{e(f', took {took}') if took else ''}</span>"
        f"<span>{key_html(manifest.get('source', ''))} → {key_html(getattr(dest, 'url', 'DEST'))}</span></div>"
        f"</header>\n<nav>{links}</nav>\n<main>\n"
        + "\n".join(section for section in sections.values() if section)
        + "\n</main>\n<footer><div>Made by Nightpress from the run’s own report table; this page opens offline and "
        'loads nothing.</div></footer>\n<div id="tip" role="tooltip"></div>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )
