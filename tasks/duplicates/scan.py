"""Duplicates of a store on their own: read each object once, fingerprint it, group, look twice.

This is what `nightpress dedup` and `similar` do, without a run, a report or anything stored; the night has its own
steps (inspect, plan) over the same functions. Rules and the second look stand in rules.py, hashes in
perceptual_hash.py, vectors in embeddings.py, what an altered copy is in local_features.py, the page in
report/gallery.py.
"""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa

from codec.pictures.errors import PictureError
from codec.pictures.files import open_picture
from tasks.duplicates.agreement import Agreement, Original, agreement, original_of
from tasks.duplicates.embeddings.embedder import Embedder
from tasks.duplicates.embeddings.neighbours import embedding_candidates
from tasks.duplicates.groups import candidates, choose_keepers
from tasks.duplicates.local_features import Confirmation, Features, compare, features
from tasks.duplicates.perceptual_hash import HASHES, MAX_PIXELS, fingerprints, hex_to_codes
from tasks.duplicates.rules import keeper_rank, keeper_reason, true_pixels
from tasks.machine import cores
from tasks.stores.base import ObjectInfo, StoreError

NEAR_DISTANCE = 7  # bits of pHash that a copy may differ in to be looked at
BATCH = 256  # objects in flight
HELD_PIXELS = 120_000_000  # decoded keepers held at a time
TOLD_EVERY = 500  # proposed pairs
HELD_POINTS = 256  # pictures whose points are held at a time, about 0.7 MB each

GROUPS_SCHEMA = pa.schema(
    [
        ("group", pa.int32()),  # numbered by bytes that could be freed, largest first; then altered copies
        ("key", pa.string()),
        ("keeper_key", pa.string()),  # equal to key for the keeper itself
        ("duplicate_kind", pa.string()),  # null for the keeper; exact, pixel, near, altered
        ("hamming_distance", pa.int32()),  # of the pHash; null for the keeper
        ("psnr", pa.float64()),  # keeper at this one's size against it, dB; null unless near
        ("similarity", pa.float64()),  # cosine of the vectors; null unless altered
        ("inliers", pa.int32()),  # points that agree on one geometry; null unless altered
        ("reason", pa.string()),  # why the keeper stays and this one does not; altered: what of it is the same
        ("source_bytes", pa.int64()),
        ("freed_bytes", pa.int64()),  # 0 for the keeper, and for altered copies, which no other file gives back
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("sha256", pa.string()),
        *[(name, pa.string()) for name in HASHES],
        ("hash_method", pa.string()),
    ]
)


def scan_store(
    store,
    objects: Iterable[ObjectInfo],
    *,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = 1 << 30,
    fast: bool = True,
    embedder: Embedder | None = None,
) -> Iterator[dict]:
    """Fingerprint the objects of a store: a dict each, in the order given, with key, source_bytes, etag, modified and
    what `fingerprints` says, or `error`; with an embedder also `vector`, where the picture has 8 bits and one frame.
    Reads each object once; a bounded number is in flight. Raises EmbeddingError."""

    def one(info: ObjectInfo) -> dict:
        facts = {"key": info.key, "source_bytes": info.size, "etag": info.etag, "modified": info.modified}
        try:
            data = store.read(info.key, etag=info.etag, max_bytes=max_bytes)
        except StoreError as error:
            return facts | {"error": f"{type(error).__name__}: {error}"}
        facts |= fingerprints([data], threads=1, fast=fast, max_pixels=max_pixels)[0]
        if embedder and "error" not in facts:
            with contextlib.suppress(PictureError):
                facts["vector"] = embedder.embed([open_picture(data, max_pixels, checked=False).image])[0]
        return facts

    objects = iter(objects)
    with ThreadPoolExecutor(threads or 4 * cores()) as pool:
        while batch := list(islice(objects, BATCH)):
            yield from pool.map(one, batch)


class _Pictures:
    """Decoded pictures of a store, the latest used ones held up to HELD_PIXELS."""

    def __init__(self, store, max_pixels: int):
        self.store, self.max_pixels = store, max_pixels
        self.held: OrderedDict = OrderedDict()
        self.pixels = 0

    def of(self, row: dict) -> Original | None:
        """The picture upright and how it was coded, or None with the reason noted in row["uncompared"]."""
        if row["key"] in self.held:
            self.held.move_to_end(row["key"])
            return self.held[row["key"]]
        try:
            original = original_of(self.store.read(row["key"], etag=row["etag"]), self.max_pixels)
        except (PictureError, StoreError) as error:
            row["uncompared"] = f"{type(error).__name__}: {error}"
            return None
        self.held[row["key"]] = original
        self.pixels += original.image.width * original.image.height
        while self.pixels > HELD_PIXELS and len(self.held) > 1:
            _, old = self.held.popitem(last=False)
            self.pixels -= old.image.width * old.image.height
        return original


def group(
    store,
    rows: list[dict],
    *,
    kind: str = "near",
    distance: int = NEAR_DISTANCE,
    max_pixels: int = MAX_PIXELS,
    looked: Callable[[int], None] = lambda n: None,
) -> list[list[dict]]:
    """Groups of duplicates among surveyed rows: lists [keeper, member, ...], the one that frees most bytes first.

    `kind`: `exact` groups equal bytes; `near` also equal pixels and copies that the second look confirms. Members
    get keeper_key, duplicate_kind, hamming_distance, psnr, reason. `looked(n)` is told of each n pairs looked at.
    Rows with `error` take part in nothing but equal bytes.
    """
    same: dict[str, list[dict]] = {}
    for row in rows:
        if row.get("sha256") and row["source_bytes"]:
            same.setdefault(row["sha256"], []).append(row)
    firsts = [min(equal, key=keeper_rank) for equal in same.values()]
    keeper_of: dict[str, tuple[dict, int, Agreement | None]] = {}  # sha256 of a near member -> keeper, distance, look
    if kind == "near":
        keeper_of = _near(store, [row for row in firsts if "phash" in row], distance, max_pixels, looked)
    groups: dict[str, list[dict]] = {}
    for first in firsts:
        keeper, apart, look = keeper_of.get(first["sha256"], (first, 0, None))
        members = groups.setdefault(keeper["key"], [keeper])
        for row in same[first["sha256"]]:
            if row is not keeper:
                members.append(_member(row, keeper, apart, look))
    found = [[members[0], *sorted(members[1:], key=lambda row: row["key"])] for members in groups.values()]
    return sorted((g for g in found if len(g) > 1), key=lambda g: (-freed(g), g[0]["key"]))


def _member(row: dict, keeper: dict, apart: int, look: Agreement | None) -> dict:
    if look is None:
        found, psnr = "exact", None
    elif look.exact and (row["width"], row["height"]) == (keeper["width"], keeper["height"]):
        found, psnr = "pixel", None
    else:
        found, psnr = "near", look.psnr
    reason = keeper_reason(keeper, row)
    return row | {
        "keeper_key": keeper["key"],
        "duplicate_kind": found,
        "hamming_distance": apart,
        "psnr": psnr,
        "reason": reason,
    }


def _near(store, rows: list[dict], distance: int, max_pixels: int, looked) -> dict:
    """sha256 of each near member -> (keeper, distance, look), among rows of distinct bytes."""
    if len(rows) < 2:
        return {}
    pictures = _Pictures(store, max_pixels)
    codes = hex_to_codes([row["phash"] for row in rows])
    close = candidates(codes, [keeper_rank(row) for row in rows], distance)
    for at in np.unique(np.concatenate(close[:2])).tolist():  # only those that may matter are decoded and measured
        if (original := pictures.of(rows[at])) is not None:
            rows[at]["true_pixels"] = true_pixels(original.image)
    looks: dict[tuple[int, int], Agreement] = {}

    def confirm(keepers: np.ndarray, members: np.ndarray) -> np.ndarray:
        alike = np.zeros(keepers.size, dtype=bool)
        for at in np.lexsort((members, keepers)).tolist():
            keeper, member = rows[keepers[at]], rows[members[at]]
            a, b = pictures.of(keeper), pictures.of(member)
            if a is not None and b is not None:
                looks[int(keepers[at]), int(members[at])] = look = agreement(a, b)
                alike[at] = look.agrees
            looked(1)
        return alike

    keeper_of = choose_keepers(len(rows), [keeper_rank(row) for row in rows], close, confirm)
    apart = np.bitwise_count(codes ^ codes[keeper_of])
    return {
        rows[member]["sha256"]: (rows[keeper], int(apart[member]), looks[keeper, member])
        for member, keeper in enumerate(keeper_of.tolist())
        if keeper >= 0
    }


def altered(
    store,
    rows: list[dict],
    groups: list[list[dict]],
    least: float,
    *,
    max_pixels: int = MAX_PIXELS,
    looked: Callable[[int], None] = lambda n: None,
) -> list[list[dict]]:
    """Groups of altered copies (crops, frames, overlays, turned and mirrored pictures), for looking at only: lists
    [keeper, member, ...], largest first.

    rows: surveyed with an embedder; groups: what `group` made of them, whose keepers and the rows outside them are held
    against each other. A pair counts when its vectors have a cosine of at least `least` and local_features.py finds one
    picture in the other. Members get keeper_key, duplicate_kind `altered`, hamming_distance, similarity, inliers,
    reason. `looked(n)` is told from time to time how many proposed pairs were looked at.
    """
    gone = {row["key"] for members in groups for row in members[1:]}
    rows = [row for row in rows if "vector" in row and row["key"] not in gone]
    if len(rows) < 2:
        return []
    vectors = np.stack([row["vector"] for row in rows])
    i, j, similarity = embedding_candidates(vectors, least=least)
    pictures = _Pictures(store, max_pixels)

    @functools.lru_cache(HELD_POINTS)
    def points(at: int, mirrored: bool = False) -> Features | None:
        original = pictures.of(rows[at])
        return None if original is None else features(original.image, mirrored=mirrored)

    seen: dict[tuple[int, int], Confirmation] = {}

    def confirm(keepers: np.ndarray, members: np.ndarray) -> np.ndarray:
        copies = np.zeros(keepers.size, dtype=bool)
        for at in np.lexsort((members, keepers)).tolist():
            keeper, member = int(keepers[at]), int(members[at])
            one, other = points(keeper), points(member)
            if one is not None and other is not None:
                seen[keeper, member] = compare(one, other, points(member, True))
                copies[at] = seen[keeper, member].copy
                if len(seen) % TOLD_EVERY == 0:
                    looked(len(seen))
        return copies

    away = np.round((1.0 - similarity) * 1e6).astype(np.int64)  # nearest first
    keeper_of = choose_keepers(len(rows), [keeper_rank(row) for row in rows], (i, j, away), confirm)
    codes = hex_to_codes([row["phash"] for row in rows])
    found: dict[int, list[dict]] = {}
    for member, keeper in enumerate(keeper_of.tolist()):
        if keeper >= 0:
            found.setdefault(keeper, [rows[keeper]]).append(
                rows[member]
                | {
                    "keeper_key": rows[keeper]["key"],
                    "duplicate_kind": "altered",
                    "hamming_distance": int(codes[keeper] ^ codes[member]).bit_count(),
                    "similarity": float(vectors[keeper] @ vectors[member]),
                    "inliers": seen[keeper, member].inliers,
                    "reason": seen[keeper, member].why,
                }
            )
    for members in found.values():
        members[1:] = sorted(members[1:], key=lambda row: (-row["similarity"], row["key"]))
    return sorted(found.values(), key=lambda members: (-len(members), members[0]["key"]))


def freed(members: list[dict]) -> int:
    """Bytes of a group's members: what could go while the keeper stays. Altered copies stay themselves."""
    return sum(row["source_bytes"] for row in members[1:] if row["duplicate_kind"] != "altered")


def groups_table(groups: list[list[dict]]) -> pa.Table:
    """Groups as a table of GROUPS_SCHEMA, keeper first in each."""
    lines = []
    for number, members in enumerate(groups):
        for row in members:
            line = {name: row.get(name) for name in GROUPS_SCHEMA.names}
            frees = row is not members[0] and row["duplicate_kind"] != "altered"
            line |= {"group": number, "freed_bytes": row["source_bytes"] if frees else 0}
            if row is members[0]:
                line["keeper_key"] = row["key"]
            lines.append(line)
    return pa.Table.from_pylist(lines, schema=GROUPS_SCHEMA)


def nearest(query: dict, rows: list[dict], top: int) -> list[dict]:
    """The `top` rows whose hashes are closest to the query's: by pHash distance, then dHash, aHash, equal bytes
    and key; each with
    distances in `hamming_distance` (pHash), `dhash_distance`, `ahash_distance`."""
    rows = [row for row in rows if "phash" in row]
    if not rows:
        return []
    apart = {
        name: np.bitwise_count(hex_to_codes([row[name] for row in rows]) ^ hex_to_codes([query[name]]))
        for name in HASHES
    }

    def closeness(r: int) -> tuple:
        distances = [int(apart[name][r]) for name in reversed(HASHES)]
        return *distances, rows[r]["sha256"] != query["sha256"], rows[r]["key"]

    order = sorted(range(len(rows)), key=closeness)
    return [
        rows[r]
        | {
            "hamming_distance": int(apart["phash"][r]),
            "dhash_distance": int(apart["dhash"][r]),
            "ahash_distance": int(apart["ahash"][r]),
        }
        for r in order[:top]
    ]
