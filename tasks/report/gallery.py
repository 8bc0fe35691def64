"""Pages of duplicate groups and of similar pictures: one HTML file each, pictures inside, opens offline.

Looks are the report page's (page.css), thumbnails its album's. The night's own report has a gallery in page.py.
Keys and messages come from strangers: everything passes `escape`.
"""

from html import escape
from pathlib import Path

from tasks.duplicates.scan import freed
from tasks.report.thumbnails import Album, NotShown

GROUPS_SHOWN, MEMBERS_SHOWN = 200, 12
PICTURE_BYTES = 12_000_000
SECONDS = 300.0

_KINDS = {"exact": "same bytes", "pixel": "same pixels"}


def _size(n: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _figure(row: dict, album: Album, label: str, extra: str = "", kind: str = "") -> str:
    try:
        picture = f'<img src="{album.thumbnail(row)}" alt="">'
    except NotShown as reason:
        picture = escape(str(reason))[:120]
    return (
        f'<figure class="{kind}"><div class="frame">{picture}</div><figcaption><b>{escape(label)}</b><br>'
        f"{row.get('width')} × {row.get('height')} {escape(row.get('format') or '')}, {_size(row['source_bytes'])}<br>"
        f'<bdi class="key">{escape(row["key"])}</bdi>{"<br>" + escape(extra) if extra else ""}</figcaption></figure>'
    )


def _page(title: str, lead: str, body: str) -> str:
    css = (Path(__file__).parent / "page.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(lead)}</p>{body}</main></body></html>\n'
    )


def groups_page(
    store, url: str, groups: list[list[dict]], altered: list[list[dict]], objects: int, unreadable: int
) -> str:
    """HTML of duplicate groups ([keeper, member, ...] as duplicates/scan.py makes them), those that free most first,
    then of altered copies in a section of their own."""
    album = Album(store, None, budget=PICTURE_BYTES, seconds=SECONDS)
    members, others = (sum(len(group) - 1 for group in part) for part in (groups, altered))
    bytes_freed = sum(map(freed, groups))
    body = _groups(groups, album, _copy_words, lambda group: f", {_size(freed(group))} could be freed")
    if altered:
        body += (
            f'<section><h2>Altered copies</h2><p class="soft">{others:,} pictures that show another one or a part of '
            "it: crops, frames, overlays, turned and mirrored. To look at only: no other file gives them back, so "
            f"nothing could be freed.</p>{_groups(altered, album, _altered_words, lambda group: '')}</section>"
        )
    lead = (
        f"{members:,} of {objects:,} objects in {url} are copies, in {len(groups):,} groups; {_size(bytes_freed)} "
        "could be freed. Nothing was deleted."
    )
    if others:
        lead += f" {others:,} more are altered copies."
    if unreadable:
        lead += f" {unreadable:,} objects could not be read as pictures."
    return _page("Duplicates", lead, body)


def _groups(groups: list[list[dict]], album: Album, words, freeing) -> str:
    """A block per group; words(row): label and extra line of a member, freeing(group): what its heading adds."""
    blocks = []
    for group in groups[:GROUPS_SHOWN]:
        keeper, copies = group[0], group[1:]
        figures = [_figure(keeper, album, "stays", kind="keeper")]
        figures += [_figure(row, album, *words(row)) for row in copies[:MEMBERS_SHOWN]]
        left = len(copies) - MEMBERS_SHOWN
        blocks.append(
            f'<section class="group"><h3>{len(copies)} {"copy" if len(copies) == 1 else "copies"} of '
            f'<bdi class="key">{escape(keeper["key"])}</bdi>{freeing(group)}</h3>'
            f'<div class="strip">{"".join(figures)}</div>'
            + (f'<p class="note">… and {left:,} more copies</p>' if left > 0 else "")
            + "</section>"
        )
    if len(groups) > GROUPS_SHOWN:
        blocks.append(f'<p class="note">{len(groups) - GROUPS_SHOWN:,} more groups are in groups.parquet.</p>')
    return "".join(blocks)


def _copy_words(row: dict) -> tuple[str, str]:
    label = _KINDS.get(row["duplicate_kind"], f"distance {row['hamming_distance']}")
    if row["psnr"] is not None:
        label += f", {row['psnr']:.1f} dB"
    return label, f"stays instead: {row['reason']}"


def _altered_words(row: dict) -> tuple[str, str]:
    return f"similarity {row['similarity']:.2f}, {row['inliers']} points", row["reason"]


def similar_page(store, url: str, image_name: str, image_row: dict, image_uri: str, found: list[dict]) -> str:
    """HTML of the pictures most similar to one; `image_uri`: its thumbnail as a data URI."""
    album = Album(store, None, budget=PICTURE_BYTES, seconds=SECONDS)
    asked = (
        f'<figure class="keeper"><div class="frame"><img src="{image_uri}" alt=""></div>'
        f"<figcaption><b>asked for</b><br>{image_row['width']} × {image_row['height']}<br>"
        f'<bdi class="key">{escape(image_name)}</bdi></figcaption></figure>'
    )
    figures = [
        _figure(row, album, f"{place}. {row['verdict']}", row["how"]) for place, row in enumerate(found, start=1)
    ]
    lead = f"The {len(found)} pictures in {url} whose hashes are closest."
    return _page("Similar pictures", lead, f'<div class="strip">{asked}{"".join(figures)}</div>')
