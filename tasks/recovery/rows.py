"""One catalog row given back: its PNG, its Content-Type and metadata, what tells that it is there already.

Works on rows and bytes; reading, checking and writing them is restore.py's.
"""

import io
import json
from dataclasses import replace

from PIL import Image, ImageChops

from tasks.stores.base import SHA256_METADATA, WRITER_METADATA, Store, StoreError

FROM_METADATA = "nightpress-from"  # what a restored object was made of: tells a finished one on S3
TYPE_METADATA = "nightpress-content-type"  # the source's Content-Type where the restored PNG has another one
NO_LIMIT = 1 << 40  # pixels: what the run took, restore takes
UNKNOWN_TURN = 0  # of a row that is cut from its keeper, where only the report is left


def png(picture, row: dict, metadata) -> bytes:
    """The decoded keeper as row's own picture: its width x height, grey where it was grey, its metadata, in PNG."""
    from codec.pictures.files import picture_bytes
    from tasks.duplicates.alignment import given_back

    if row["keeper_turn"] == UNKNOWN_TURN:
        raise StoreError(
            f"{row['key']} is cut from {row['keeper_key']}, and the catalog that says where is gone; "
            "restore catalog/ from a version or a backup"
        )
    size = (row["width"] or picture.width, row["height"] or picture.height)
    mode = picture.image.mode
    if row["status"] == "duplicate" and row["mode"]:
        mode = ("L" if row["mode"] in ("1", "L", "LA") else "RGB") + ("A" if mode.endswith("A") else "")
    return picture_bytes(replace(picture, image=given_back(picture.image, row, size, mode), metadata=metadata))


def own_metadata(dest: Store, row: dict, picture):
    """What the row's own file said (codec's Metadata); `picture` is its keeper where it is a duplicate.

    Raises StoreError.
    """
    from codec.pictures.metadata import Metadata
    from tasks.night.duplicate_metadata import metadata_hash, read_metadata_of

    if row["status"] != "duplicate" or row["duplicate_kind"] == "exact":
        return picture.metadata
    if row["metadata_key"] is not None:
        return read_metadata_of(dest, row)
    if row["metadata_sha256"] is None:
        return Metadata()
    if row["metadata_sha256"] != metadata_hash(picture.metadata):
        raise StoreError(
            f"{row['key']}: it said the same as {row['keeper_key']}, whose bitstream says something else now; "
            "bring that object back from a version or backup"
        )
    return picture.metadata


def keeps_its_bytes(row: dict) -> bool:
    """Whether a key comes back under its own name with its own bytes: copied, or stored by a form that keeps them."""
    return row["output_key"] is None or row["gives_back"] == "bytes"


def comes_back_as_file(row: dict) -> bool:
    """Whether what a form without loss gives back is written as it is: for its own picture and equal files."""
    return row["gives_back"] in ("bytes", "pixels") and row["duplicate_kind"] in (None, "exact")


def made_of(row: dict) -> str:
    """What a restored object is made of, in a word: equal for two runs that give a key the same content."""
    if row["output_key"] is None:
        return f"copy {row['sha256'] or row['etag']}"
    where = row["output_sha256"] or f"{row['output_key']}@{row['output_offset'] or 0}"
    view = f" {row['keeper_turn']} {row['keeper_box']}" if row["keeper_box"] is not None else ""
    said = f" {row['metadata_sha256'][:16]}" if row["status"] == "duplicate" and row["metadata_sha256"] else ""
    return f"{row['form'] or 'npi'} {where} {row['width']}x{row['height']}{view}{said}"


def described(row: dict, *, decoded: bool) -> tuple[str | None, dict[str, str], dict[str, str]]:
    """(Content-Type, user metadata, further headers) of a restored object.

    A PNG made of another kind of picture is not called by that kind's type: the source's stands in the metadata.
    """
    recorded = row["content_type"]
    metadata = foreign(json.loads(row["metadata"] or "{}")) | {FROM_METADATA: made_of(row)}
    headers = json.loads(row["headers"] or "{}")
    if not decoded:
        return recorded, metadata, headers
    content_type = recorded
    if not recorded or recorded.lower().startswith("image/"):
        content_type = "image/png"
    if recorded and content_type != recorded:
        metadata[TYPE_METADATA] = recorded
    return content_type, metadata, headers


def foreign(metadata: dict[str, str]) -> dict[str, str]:
    ours = (SHA256_METADATA, WRITER_METADATA, FROM_METADATA, TYPE_METADATA)
    return {name: value for name, value in metadata.items() if name not in ours}


def nearly_same_picture(data: bytes, other: bytes) -> bool:
    """Equal bytes, or equal size, mode and pixels within 1 of 255: decoders on two machines may differ by that."""
    if data == other:
        return True
    from codec.pictures.metadata_readers import bare_png

    try:
        a, b = (Image.open(io.BytesIO(bare_png(each))) for each in (data, other))
        if (a.mode, a.size) != (b.mode, b.size):
            return False
        return max(high for _, high in as_pairs(ImageChops.difference(a, b).getextrema())) <= 1
    except (OSError, SyntaxError, ValueError):
        return False


def as_pairs(extrema) -> list[tuple[int, int]]:
    return [extrema] if isinstance(extrema[0], int) else list(extrema)


def occupied(name: str) -> StoreError:
    return StoreError(f"OUT has another object named {name!r} already; nothing is overwritten. Choose an empty OUT")
