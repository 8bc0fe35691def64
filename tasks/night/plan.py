"""Decide: which pictures are copies of which, and what is left to be compressed.

Works on tables of the whole night (rows of fingerprint.py, the catalog), on the coordinator; the second looks that it
asks for run on workers. Rules: duplicates/rules.py; grouping and pair search: duplicates/groups.py,
duplicates/hamming_pairs.py; the budget's rates: rate_points.py.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.duplicates.groups import candidates, choose_keepers
from tasks.duplicates.hamming_pairs import pairs_between
from tasks.duplicates.perceptual_hash import hex_to_codes
from tasks.duplicates.rules import keeper_rank, keeper_reason

NEAR_DISTANCE = 7  # bits of pHash within which every pair is found and looked at
RANKED = (
    "key", "width", "height", "format", "true_pixels", "source_bytes", "exif_bytes", "modified", "error", "status",
    "sha256", "pixel_sha256", "colour_sha256", "phash", "etag", "size", "at_source", "output_key", "output_offset",
    "output_length", "embedding_id",
)  # fmt: skip
MEMBERS = 32  # of one keeper in one item of second looks
BYTES_PER_PIXEL = 90  # memory that a picture takes at its worst while it is compressed
FAN = 32  # known keepers with one and the same hash that a new picture is held against

CUT = "cut from "  # in the reason of duplicates that show a part of their keeper, or the keeper turned
TURNED = {  # by EXIF's orientation value, as alignment.View counts turns; after the keeper's name
    1: "", 2: ", mirrored", 3: ", turned by 180°", 4: ", upside down and mirrored", 5: ", on its side and mirrored",
    6: ", turned by 90° to the right", 7: ", on its side and mirrored", 8: ", turned by 90° to the left",
}  # fmt: skip


class Answer(NamedTuple):
    """A second look's outcome. psnr in dB; turn, box: the View of a keeper that has to be cut or turned."""

    alike: bool
    psnr: float | None = None
    turn: int | None = None
    box: list[float] | None = None


Confirm = Callable[[list[tuple[dict, dict]]], list[Answer]]


def find_duplicates(
    new: pa.Table, known: pa.Table, dedup: str, confirm: Confirm, least: float = 1.0
) -> list[dict | None]:
    """For each row of `new`: None, or what makes it a duplicate (columns to set).

    new: rows of this night, status null (pictures) or `kept` (sound, but not carried by the codec: exact copies
    only). known: rows of earlier nights that stay, status compressed or kept; they remain keepers. dedup: off,
    exact or near; pixel-equal pictures are found from `exact` on; embeddings propose where rows have them, from the
    cosine `least` on. confirm: the second look, on (keeper, member) pairs. The outcome does not depend on the order
    of rows.
    """
    n = new.num_rows
    found: list[dict | None] = [None] * n
    if dedup == "off" or not n:
        return found
    rows = new.select(list(RANKED)).to_pylist()
    held = known.filter(pc.is_in(known["status"], pa.array(["compressed", "kept"])))
    earlier = Earlier(held)
    standing = [i for i in range(n) if rows[i]["status"] is None or rows[i]["status"] == "kept"]
    copy_of: dict[int, int] = {}

    def by_value(kind: str, value: Callable[[dict], object], among: list[int]) -> list[int]:
        groups: dict[object, list[int]] = {}
        for i in among:
            groups.setdefault(value(rows[i]), []).append(i)
        left = groups.pop(None, [])
        keepers = earlier.keepers(kind, groups)
        for mark in groups:
            members = groups[mark]
            keeper = keepers.get(mark)
            if keeper is None:
                best = min(members, key=lambda i: keeper_rank(rows[i]))
                left.append(best)
                for i in members:
                    if i != best:
                        copy_of[i] = best
                        found[i] = made_duplicate(rows[best], rows[i], kind, 0)
            else:
                for i in members:
                    found[i] = made_duplicate(keeper, rows[i], kind, 0)
        return sorted(left)

    standing = by_value("exact", lambda row: row["sha256"], standing)
    pictures = [i for i in standing if rows[i]["status"] is None]
    pictures = by_value("pixel", pixels, pictures)
    if dedup == "near":
        pictures = [i for i in pictures if rows[i]["phash"]]
        vectors = vectors_of(new, np.array(pictures, np.int64))
        chosen = [rows[i] for i in pictures]
        for i, duplicate in near_duplicates(chosen, vectors, earlier, confirm, least).items():
            found[pictures[i]] = duplicate
    for i in copy_of:  # copies of what has become a copy itself belong to that one's keeper
        top = copy_of[i]
        while top in copy_of:
            top = copy_of[top]
        if found[top] is not None:
            found[i] = found[top] | {"reason": f"the same as {rows[top]['key']}, which is: {found[top]['reason']}"}
        elif copy_of[i] != top:
            found[i] = made_duplicate(rows[top], rows[i], "pixel", 0)
    return found


def pixels(row: dict):
    """What pixel duplicates have in common: pixels, and how their numbers are to be seen."""
    return (row["pixel_sha256"], row["colour_sha256"]) if row["pixel_sha256"] else None


class Earlier:
    """The keepers of earlier nights, found by content."""

    def __init__(self, held: pa.Table):
        self.held = held
        compressed = pc.equal(held["status"], "compressed").to_numpy()
        self.order = np.argsort(~compressed, kind="stable")  # a keeper whose bitstream is here goes first

    def keepers(self, kind: str, marks: Iterable) -> dict:
        """Mark -> row of the keeper that has it, for those marks (`by_value`'s) that an earlier night has seen."""
        names = ["sha256"] if kind == "exact" else ["pixel_sha256", "colour_sha256"]
        wanted = pa.array([mark if kind == "exact" else mark[0] for mark in marks], pa.string())
        seen = pc.is_in(self.held[names[0]], value_set=wanted).to_numpy()
        places = self.order[seen[self.order]]
        found: dict = {}
        for place, *values in zip(
            places.tolist(), *(self.held[name].take(pa.array(places)).to_pylist() for name in names), strict=True
        ):
            found.setdefault(values[0] if kind == "exact" else tuple(values), place)
        return {mark: self.row(found[mark]) for mark in marks if mark in found}

    def row(self, place: int) -> dict:
        row = self.held.select(list(RANKED)).slice(place, 1).to_pylist()[0]
        return row | {"earlier_keeper": True}

    def hashed(self) -> tuple[np.ndarray, np.ndarray]:
        """(places, pHash codes) of keepers that have one; of equal codes at most FAN, compressed ones first."""
        usable = pc.is_valid(self.held["phash"]).to_numpy()
        places = self.order[usable[self.order]]
        if not places.size:
            return places, np.empty(0, np.uint64)
        codes = hex_to_codes(self.held["phash"].take(pa.array(places)).to_pylist())
        by_code = np.argsort(codes, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(codes[by_code]) != 0])
        nth = np.arange(len(codes)) - np.repeat(starts, np.diff(np.r_[starts, len(codes)]))
        chosen = np.sort(by_code[nth < FAN])
        return places[chosen], codes[chosen]

    def embedded(self, network: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(places, float32 vectors or None) of keepers that have an embedding by this network."""
        places = np.flatnonzero(pc.fill_null(pc.equal(self.held["embedding_id"], network), False).to_numpy())
        return (places, vectors_of(self.held, places)[1]) if places.size else (places, None)


def vectors_of(table: pa.Table, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, str | None]:
    """(places in `among`, float32 vectors, network) of the rows `among` that have an embedding, all by one network."""
    chosen = table.select(["embedding", "embedding_id"]).take(pa.array(among))
    places = np.flatnonzero(pc.is_valid(chosen["embedding"]).to_numpy())
    if not places.size:
        return places, np.empty((0, 0), np.float32), None
    chosen = chosen.take(pa.array(places))
    values = np.frombuffer(b"".join(chosen["embedding"].to_pylist()), np.float16)
    return places, values.reshape(len(places), -1).astype(np.float32), chosen["embedding_id"][0].as_py()


def near_duplicates(
    rows: list[dict], vectors: tuple, earlier: Earlier, confirm: Confirm, least: float
) -> dict[int, dict]:
    """Place in `rows` -> what makes it a near duplicate, by the second look at what two signals propose: pHash within
    NEAR_DISTANCE, and embeddings (`vectors`, as vectors_of gives them) from the cosine `least` on."""
    if not rows:
        return {}
    n = len(rows)
    codes = hex_to_codes([row["phash"] for row in rows])
    rank = [keeper_rank(row) for row in rows]
    within = candidates(codes, rank, NEAR_DISTANCE)
    places, known_codes = earlier.hashed()
    i, k, d = pairs_between(codes, known_codes, NEAR_DISTANCE) if places.size else (np.empty(0, np.int64),) * 3
    a, b, apart = embedded_pairs(vectors, earlier, n, least)
    used = np.unique(np.concatenate([places[k], b[b >= n] - n]))  # places of the known keepers that matter
    everyone = rows + [earlier.row(int(place)) for place in used]
    b = np.where(b >= n, n + np.searchsorted(used, b - n), b)
    pairs = (
        np.concatenate([within[0], n + np.searchsorted(used, places[k]), a]),
        np.concatenate([within[1], i, b]),
        np.concatenate([within[2], d, apart]),
    )
    ranks = rank + [keeper_rank(row) for row in everyone[n:]]
    proposed = {frozenset(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)}
    answers: dict[tuple[int, int], Answer] = {}

    def second_look(better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        pairs = list(zip(better.tolist(), worse.tolist(), strict=True))
        # Restore gives the keeper's colour profile: pixels that are to be seen otherwise are no copy.
        asked = [(a, b) for a, b in pairs if everyone[a]["colour_sha256"] == everyone[b]["colour_sha256"]]
        questions = [(everyone[a], everyone[b] | {"by_embedding": frozenset((a, b)) in proposed}) for a, b in asked]
        answers.update(zip(asked, confirm(questions) if asked else [], strict=True))
        return np.array([pair in answers and answers[pair].alike for pair in pairs], bool)

    keeper = choose_keepers(len(everyone), ranks, pairs, second_look)
    found = {}
    for member in np.flatnonzero(keeper[:n] >= 0).tolist():
        place = int(keeper[member])
        answer = answers[place, member]
        apart = (int(rows[member]["phash"], 16) ^ int(everyone[place]["phash"], 16)).bit_count()
        found[member] = made_duplicate(everyone[place], rows[member], "near", apart, answer.turn)
        found[member] |= {"psnr_source": answer.psnr, "keeper_turn": answer.turn, "keeper_box": answer.box}
    return found


def embedded_pairs(vectors: tuple, earlier: Earlier, n: int, least: float) -> tuple[np.ndarray, ...]:
    """Pairs of which embeddings say that one may be cut from the other: (place in rows, place in rows or n + place
    among the earlier, distance), the distance above every hash's, so that the hashes' pairs are asked about first."""
    places, new, network = vectors
    if network is None:
        return (np.empty(0, np.int64),) * 3
    from tasks.duplicates.embeddings.neighbours import embedding_candidates

    known_places, known = earlier.embedded(network)
    a, b, similarity = embedding_candidates(new, known, least=least)
    among = np.concatenate([places, n + known_places])
    return among[a], among[b], 64 + np.rint(100 * (1 - similarity)).astype(np.int64)


def made_duplicate(keeper: dict, member: dict, kind: str, apart: int, turn: int | None = None) -> dict:
    words = f"{WORDS[kind]} {keeper['key']}" if turn is None else f"{CUT}{keeper['key']}{TURNED[turn]}"
    return {
        "status": "duplicate", "keeper_key": keeper["key"], "duplicate_kind": kind, "hamming_distance": apart,
        "reason": f"{words}, which stays: {keeper_reason(keeper, member)}",
    }  # fmt: skip


WORDS = {"exact": "same bytes as", "pixel": "same pixels as", "near": "looks the same as"}


NEEDED = ("key", "etag", "at_source", "output_key", "output_offset", "output_length", "width", "height", "size")


def look_items(pairs: list[tuple[dict, dict]]) -> list[dict]:
    """(keeper row, member row) pairs, as items of at most MEMBERS members of one keeper, in order of keys."""
    by_keeper: dict[str, tuple[dict, list[dict]]] = {}
    for keeper, member in pairs:
        slim = {name: member.get(name) for name in (*NEEDED, "by_embedding", "keeper_turn", "keeper_box")}
        by_keeper.setdefault(keeper["key"], ({name: keeper.get(name) for name in NEEDED}, []))[1].append(slim)
    out = []
    for key in sorted(by_keeper):
        keeper, members = by_keeper[key]
        members.sort(key=lambda row: row["key"])
        for start in range(0, len(members), MEMBERS):
            out.append({"keeper": keeper, "members": members[start : start + MEMBERS]})
    return out


def with_columns(table: pa.Table, changes: list[dict | None]) -> pa.Table:
    """The table with the changed columns of each row set; null clears."""
    names = sorted({name for change in changes if change for name in change})
    for name in names:
        column = table[name].to_pylist()
        for place, change in enumerate(changes):
            if change and name in change:
                column[place] = change[name]
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(column, table.schema.field(at).type))
    return table


def memory_of(row: dict) -> int:
    """Bytes of memory that compressing this picture takes at its worst, about."""
    return (row["size"] or 0) + BYTES_PER_PIXEL * (row["width"] or 0) * (row["height"] or 0)
