"""Pages of duplicate groups and of similar pictures: one HTML file each, pictures inside, opens offline.

Looks are the report page's (templates/), thumbnails its album's. The night's own report has a gallery in sections.py.
"""

from tasks.duplicates.scan import freed
from tasks.report.sections import SAME, thumbnail
from tasks.report.templating import render
from tasks.report.thumbnails import Album
from tasks.report.words import plural, size

GROUPS_SHOWN, MEMBERS_SHOWN = 200, 12
PICTURE_BYTES = 12_000_000
SECONDS = 300.0


def figure(row: dict, album: Album, label: str, extra: str = "", kind: str = "") -> dict:
    return {"row": row, "shown": thumbnail(row, album), "label": label, "extra": extra, "kind": kind}


def groups_page(
    store, url: str, groups: list[list[dict]], altered: list[list[dict]], objects: int, unreadable: int
) -> str:
    """HTML of duplicate groups ([keeper, member, ...] as duplicates/scan.py makes them), those that free most first,
    then of altered copies in a section of their own."""
    album = Album(store, None, budget=PICTURE_BYTES, seconds=SECONDS)
    members, others = (sum(len(group) - 1 for group in part) for part in (groups, altered))
    lead = (
        f"{members:,} of {objects:,} objects in {url} are copies, in {plural(len(groups), 'group')}; "
        f"{size(sum(map(freed, groups)))} could be freed. Nothing was deleted."
    )
    if others:
        lead += f" {others:,} more are altered copies."
    if unreadable:
        lead += f" {unreadable:,} objects could not be read as pictures."
    return render(
        "gallery.html",
        title="Duplicates",
        lead=lead,
        groups=[group_view(group, album, copy_words, freed(group)) for group in groups[:GROUPS_SHOWN]],
        groups_left=len(groups) - GROUPS_SHOWN,
        altered=[group_view(group, album, altered_words, None) for group in altered[:GROUPS_SHOWN]],
        altered_left=len(altered) - GROUPS_SHOWN,
        altered_pictures=others,
    )


def group_view(group: list[dict], album: Album, words, bytes_freed: int | None) -> dict:
    """words(row): label and extra line of a member; bytes_freed: None where nothing could be freed."""
    keeper, copies = group[0], group[1:]
    figures = [figure(keeper, album, "stays", kind="keeper")]
    figures += [figure(row, album, *words(row)) for row in copies[:MEMBERS_SHOWN]]
    return {
        "keeper_key": keeper["key"],
        "copies": len(copies),
        "freed": bytes_freed,
        "figures": figures,
        "left": len(copies) - MEMBERS_SHOWN,
    }


def copy_words(row: dict) -> tuple[str, str]:
    label = SAME.get(row["duplicate_kind"], f"distance {row['hamming_distance']}")
    if row["psnr"] is not None:
        label += f", {row['psnr']:.1f} dB"
    return label, f"stays instead: {row['reason']}"


def altered_words(row: dict) -> tuple[str, str]:
    return f"similarity {row['similarity']:.2f}, {row['inliers']} points", row["reason"]


def similar_page(store, url: str, image_name: str, image_row: dict, image_uri: str, found: list[dict]) -> str:
    """HTML of the pictures most similar to one; `image_uri`: its thumbnail as a data URI."""
    album = Album(store, None, budget=PICTURE_BYTES, seconds=SECONDS)
    asked = {"key": image_name, "width": image_row["width"], "height": image_row["height"], "format": None}
    figures = [{"row": asked, "shown": (image_uri, ""), "label": "asked for", "extra": "", "kind": "keeper"}]
    figures += [figure(row, album, f"{place}. {row['verdict']}", row["how"]) for place, row in enumerate(found, 1)]
    lead = f"The {len(found)} pictures in {url} whose hashes are closest."
    return render("similar.html", title="Similar pictures", lead=lead, figures=figures)
