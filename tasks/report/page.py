"""The report as one HTML page that opens anywhere, offline: no request leaves it, its own policy forbids them.

`build` turns the report's table and manifest into the page. What stands in each section is sections.py's, how it is
laid out templates/'; figures come from savings.py, words from summary.py, charts from charts.py, pictures from
thumbnails.py.
"""

from collections.abc import Callable

import pyarrow as pa

from tasks.report import savings, sections, summary
from tasks.report.templating import render
from tasks.report.thumbnails import Album

TITLES = {  # in the order of the page; no title: not in its menu
    "saved": None,
    "bill": "Bill",
    "quality": "Quality",
    "where": "Folders and formats",
    "worst": "Worst pictures",
    "duplicates": "Duplicates",
    "similar": "Similar pictures",
    "causes": "Not compressed",
    "settings": "The run",
}


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

    table: the report (schema.py); manifest: manifest.json as parsed; source, dest: the run's stores, each may be None
    (pictures are then replaced by a sentence); decode: bitstream → PIL image (default codec.decode); picture_bytes:
    bound for all embedded pictures together; seconds: for reading and decoding them. Raises savings.UnknownPrice for a
    region or class without prices; a picture that can't be shown raises nothing.
    """
    totals = savings.totals(table)
    bill = savings.bill(table, manifest, region=region, storage_class=storage_class)
    dest_url = getattr(dest, "url", "")
    album = Album(source, dest, decode=decode, budget=picture_bytes * 3 // 4, seconds=seconds * 2 / 3)
    worst = sections.worst_rows(table)
    worst_view = sections.worst(worst, totals.counts["compressed"], album)
    album.budget += picture_bytes // 4  # what the worst pictures leave, and a quarter: duplicates and similar ones
    album.until += seconds / 3
    views = {
        "saved": sections.saved(table, manifest, totals),
        "bill": sections.bill(table, manifest, totals, bill, dest_url),
        "quality": sections.quality(table, manifest, {row["key"] for row in worst}),
        "where": sections.where(table),
        "worst": worst_view,
        "duplicates": sections.duplicates(table, album),
        "similar": sections.similar(table, album),
        "causes": sections.causes(table),
        "settings": sections.settings(table, manifest),
    }
    return render(
        "page.html",
        run=manifest.get("run_id", "?"),
        source=manifest.get("source", ""),
        dest=dest_url or "DEST",
        finished=manifest.get("finished", ""),
        took=summary.took(manifest),
        sections=[{"name": n, "title": TITLES[n], "view": views[n]} for n in TITLES if views[n] is not None],
    )
