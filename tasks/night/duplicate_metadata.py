"""What duplicates say of their own: each keeps its EXIF, GPS, caption, profile ... beside its keeper's bitstream.

    fingerprint, per shard    runs/<run id>/work/metadata/<shard>.bin   every picture's metadata, deflated one by one
    before the commit         objects/<run id>/metadata-<hash>.bin      of it, what duplicates need

A compressed picture's metadata is in its bitstream, an exact duplicate's is its keeper's. Any other duplicate whose
metadata differs from its keeper's gets a slice of an object of its own: columns metadata_key, metadata_offset,
metadata_length; metadata_sha256 is of every picture's, null where it says nothing. Who is a duplicate is plan.py's;
giving it back is recovery's.
"""

import hashlib
import zlib
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codec.pictures.metadata import MOST_BYTES, Metadata
from tasks.night.plan import with_columns
from tasks.night.runs import Night
from tasks.stores.base import Store, StoreError

COLUMNS = ("key", "metadata_key", "metadata_offset", "metadata_length", "metadata_sha256")
NOWHERE = {"metadata_key": None, "metadata_offset": None, "metadata_length": None}


def metadata_hash(metadata: Metadata) -> str | None:
    """sha256 (hex) of what a picture says; None where that is nothing."""
    raw = metadata.to_bytes()
    return hashlib.sha256(raw).hexdigest() if raw else None


def save_shard(dest: Store, night: Night, shard: str, said: list[Metadata | None]) -> list[dict]:
    """Write down what a shard's pictures say; the columns that tell where, one dict a picture."""
    key, parts, columns, offset = f"{night.folder}work/metadata/{shard}.bin", [], [], 0
    for metadata in said:
        if metadata is None or not metadata.parts:
            columns.append({})
            continue
        packed = zlib.compress(metadata.to_bytes(), 6)
        place = {"metadata_key": key, "metadata_offset": offset, "metadata_length": len(packed)}
        columns.append(place | {"metadata_sha256": metadata_hash(metadata)})
        parts.append(packed)
        offset += len(packed)
    if parts:
        dest.write(key, b"".join(parts), content_type="application/octet-stream")
    return columns


def unpacked(packed: bytes) -> Metadata:
    """A slice of such an object -> Metadata. Raises ValueError."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(packed, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not inflater.eof or inflater.unused_data:
        raise ValueError("it does not end where it should")
    return Metadata.from_bytes(raw)


def read_metadata_of(dest: Store, row: dict) -> Metadata:
    """A duplicate's own metadata from where its row says. Raises StoreError."""
    packed = dest.read_range(row["metadata_key"], row["metadata_offset"], row["metadata_length"])
    try:
        metadata = unpacked(packed)
        if metadata_hash(metadata) != row["metadata_sha256"]:
            raise ValueError("its sha256 is not the one that was recorded")
    except ValueError as error:
        raise StoreError(
            f"{row['metadata_key']} at {row['metadata_offset']}, the metadata of {row['key']}: {error}; it is damaged. "
            "Bring that object back from a version or backup"
        ) from None
    return metadata


def keep_metadata(dest: Store, night: Night, decided: pa.Table, known: pa.Table) -> pa.Table:
    """The decided rows, with the metadata of duplicates under DEST where it differs from their keepers'.

    decided: this night's rows, placed by save_shard, and rows of earlier nights whose keeper is another one now; known:
    rows of earlier nights that stay, and those as they were.
    """
    own = needs_its_own(decided, known)
    keys = decided["metadata_key"].to_pylist()
    at_work = f"{night.folder}work/"
    changes: list[dict | None] = [dict(NOWHERE) if key and key.startswith(at_work) else None for key in keys]
    by_place: dict[str, list[int]] = defaultdict(list)
    for place in own.tolist():
        if keys[place] is None or keys[place].startswith(at_work):  # else it is under objects/ from an earlier night
            by_place[keys[place] or ""].append(place)
    for work_key, places in sorted(by_place.items()):
        rows = decided.select(COLUMNS).take(pa.array(places)).to_pylist()
        packed = _from_work(dest, work_key, rows) if work_key else _from_bitstreams(dest, rows, known)
        data = b"".join(packed)
        key, offset = f"objects/{night.run_id}/metadata-{hashlib.sha256(data).hexdigest()[:32]}.bin", 0
        dest.write(key, data, content_type="application/octet-stream")
        for place, part in zip(places, packed, strict=True):
            changes[place] = {"metadata_key": key, "metadata_offset": offset, "metadata_length": len(part)}
            offset += len(part)
    return with_columns(decided, changes)


def _from_work(dest: Store, key: str, rows: list[dict]) -> list[bytes]:
    """Slices of what save_shard wrote."""
    held = dest.read(key)
    return [held[row["metadata_offset"] : row["metadata_offset"] + row["metadata_length"]] for row in rows]


def _from_bitstreams(dest: Store, rows: list[dict], known: pa.Table) -> list[bytes]:
    """What rows of earlier nights said in the bitstream that was theirs, or that of a keeper that said the same."""
    wanted = pa.array([row["key"] for row in rows], pa.string())
    before = {row["key"]: row for row in known.filter(pc.is_in(known["key"], value_set=wanted)).to_pylist()}
    packed = []
    for row in rows:
        was = before[row["key"]]
        data = dest.read_range(was["output_key"], was["output_offset"] or 0, was["output_length"])
        metadata = said_in(data)
        if metadata_hash(metadata) != row["metadata_sha256"]:
            raise StoreError(f"{was['output_key']} under DEST does not say any more what {row['key']} said")
        packed.append(zlib.compress(metadata.to_bytes(), 6))
    return packed


def said_in(data: bytes) -> Metadata:
    """The metadata in stored bytes of any form, without decoding pixels where that can be helped. Raises StoreError."""
    from codec.bitstream import container
    from codec.errors import CodecError
    from codec.pictures.errors import PictureError
    from codec.pictures.files import open_picture
    from tasks.forms.choose import FORMS, form_of

    form = FORMS.get(form_of(data) or "")
    try:
        if form is None:
            return container.read(data, max_pixels=container.MAX_SIDE**2).metadata
        return open_picture(form.decode(data), container.MAX_SIDE**2, checked=False).metadata
    except (CodecError, PictureError, ValueError) as error:
        raise StoreError(f"the metadata of an earlier night's keeper cannot be read: {error}") from error


def needs_its_own(decided: pa.Table, known: pa.Table) -> np.ndarray:
    """Places of duplicates that say something other than their keepers do."""
    duplicate = pc.fill_null(pc.equal(decided["status"], "duplicate"), False).to_numpy()
    speaks = pc.is_valid(decided["metadata_sha256"]).to_numpy()
    places = np.flatnonzero(duplicate & speaks)
    rows = decided.select(["keeper_key", "metadata_sha256"]).take(pa.array(places)).to_pylist()
    names = pa.array(sorted({row["keeper_key"] for row in rows}), pa.string())
    said: dict[str, str | None] = {}
    for table in (known, decided):  # a key that is new again tonight replaces the one that was known
        chosen = table.filter(pc.is_in(table["key"], value_set=names)).select(["key", "metadata_sha256"])
        said |= {row["key"]: row["metadata_sha256"] for row in chosen.to_pylist()}
    differs = [said.get(row["keeper_key"]) != row["metadata_sha256"] for row in rows]
    return places[np.array(differs, bool)]
