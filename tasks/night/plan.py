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
GRADIENT_DISTANCE, MEANS_DISTANCE = 3, 7  # bits of dHash and of aHash: pHash is unsure of drawings with flat parts
RANKED = (
    "key", "width", "height", "format", "true_pixels", "source_bytes", "exif_bytes", "modified", "error", "status",
    "sha256", "pixel_sha256", "colour_sha256", "phash", "dhash", "ahash", "etag", "size", "at_source",
    "output_key", "output_offset", "output_length", "embedding_id", "psnr_source",
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
    """A second look's outcome. psnr in dB; turn, box: the View of a keeper that has to be cut or turned; similar: no
    copy, but much the same on the whole."""

    alike: bool
    psnr: float | None = None
    turn: int | None = None
    box: list[float] | None = None
    similar: bool = False
    ssimulacra2: float | None = None


class Found(NamedTuple):
    """changes: for each new row None, or what makes it a duplicate. similar: for each new row None, or the key that it
    looks much like, without being a copy. succeeded: key -> what makes a keeper of an earlier night, and each of its
    duplicates, a duplicate of a better picture that is new."""

    changes: list[dict | None]
    similar: list[str | None]
    succeeded: dict[str, dict]


Confirm = Callable[[list[tuple[dict, dict]]], list[Answer]]


def find_duplicates(new: pa.Table, known: pa.Table, dedup: str, confirm: Confirm, least: float = 1.0) -> Found:
    """Which rows of `new` are duplicates, of one another or of what earlier nights keep (columns to set), which only
    look alike, and which earlier keepers a better original takes the place of.

    new: rows of this night, status null (pictures) or `kept` (sound, but not carried by the codec: exact copies
    only). known: rows of earlier nights that stay, `at_source` false where the object was removed since. dedup: off,
    exact or near; pixel-equal pictures are found from `exact` on; embeddings propose where rows have them, from the
    cosine `least` on. confirm: the second look, on (keeper, member) pairs. The outcome does not depend on the order
    of rows.
    """
    n = new.num_rows
    found: list[dict | None] = [None] * n
    similar: list[str | None] = [None] * n
    succeeded: dict[str, dict] = {}
    if dedup == "off" or not n:
        return Found(found, similar, succeeded)
    rows = new.select(list(RANKED)).to_pylist()
    earlier = Earlier(known)
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
        near = NearDuplicates(chosen, vectors, earlier, confirm, least)
        for i, duplicate in near.found.items():
            found[pictures[i]] = duplicate
        for i, other in near.similar.items():
            similar[pictures[i]] = other
        succeeded = near.succeeded
        for i, duplicate in enumerate(found):  # same bytes or pixels as a keeper that has lost its place
            if duplicate and duplicate["keeper_key"] in succeeded:
                change = succeeded[duplicate["keeper_key"]]
                reason = f"the same as {duplicate['keeper_key']}, which is: {change['reason']}"
                found[i] = change | {"reason": reason}
    for i in copy_of:  # copies of what has become a copy itself belong to that one's keeper
        top = copy_of[i]
        while top in copy_of:
            top = copy_of[top]
        if found[top] is not None:
            found[i] = found[top] | {"reason": f"the same as {rows[top]['key']}, which is: {found[top]['reason']}"}
        elif copy_of[i] != top:
            found[i] = made_duplicate(rows[top], rows[i], "pixel", 0)
    return Found(found, similar, succeeded)


def pixels(row: dict):
    """What pixel duplicates have in common: pixels, and how their numbers are to be seen."""
    return (row["pixel_sha256"], row["colour_sha256"]) if row["pixel_sha256"] else None


class Earlier:
    """The keepers of earlier nights, found by content."""

    def __init__(self, known: pa.Table):
        self.held = held = known.filter(pc.is_in(known["status"], pa.array(["compressed", "kept"])))
        self.copies = known.filter(pc.equal(known["status"], "duplicate"))
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

    def dependents(self, keeper: dict) -> list[dict] | None:
        """The keeper's duplicates of earlier nights; None where it cannot lose its place.

        It can where its own bitstream serves it, and it and all of its duplicates are at SOURCE still: then nothing is
        lost if the new keeper's bitstream does not serve one of them.
        """
        if keeper["status"] != "compressed" or not keeper["at_source"]:
            return None
        own = self.copies.filter(pc.equal(self.copies["keeper_key"], keeper["key"]))
        rows = own.select([*RANKED, "duplicate_kind"]).to_pylist()
        return rows if all(row["at_source"] for row in rows) else None

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


class NearDuplicates:
    """Near duplicates among `rows` and earlier keepers, by the second look at what two signals propose: pHash within
    NEAR_DISTANCE, and embeddings (`vectors`, as vectors_of gives them) from the cosine `least` on.

    found: place in `rows` -> what makes it one; similar, succeeded: as Found's, similar by place.
    """

    def __init__(self, rows: list[dict], vectors: tuple, earlier: Earlier, confirm: Confirm, least: float):
        self.found: dict[int, dict] = {}
        self.similar: dict[int, str] = {}
        self.succeeded: dict[str, dict] = {}
        if not rows:
            return
        self.n, self.confirm, self.earlier = len(rows), confirm, earlier
        codes = hex_to_codes([row["phash"] for row in rows])
        within = candidates(codes, [keeper_rank(row) for row in rows], NEAR_DISTANCE)
        places, known_codes = earlier.hashed()
        i, k, d = pairs_between(codes, known_codes, NEAR_DISTANCE) if places.size else (np.empty(0, np.int64),) * 3
        a, b, apart = embedded_pairs(vectors, earlier, self.n, least)
        gradients = gradient_pairs(rows, codes)
        used = np.unique(np.concatenate([places[k], b[b >= self.n] - self.n]))  # places of known keepers that matter
        self.everyone = rows + [earlier.row(int(place)) for place in used]
        b = np.where(b >= self.n, self.n + np.searchsorted(used, b - self.n), b)
        pairs = (
            np.concatenate([within[0], self.n + np.searchsorted(used, places[k]), a, gradients[0]]),
            np.concatenate([within[1], i, b, gradients[1]]),
            np.concatenate([within[2], d, apart, gradients[2]]),
        )
        self.proposed = {frozenset(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)}
        self.dependents: dict[int, list[dict] | None] = {}
        self.answers: dict[tuple[int, str], Answer] = {}  # (place of the keeper, key of the member)
        ranks = [keeper_rank(row) for row in self.everyone]
        keeper = choose_keepers(len(self.everyone), ranks, pairs, self.second_look)
        for member in np.flatnonzero(keeper >= 0).tolist():
            self.settle(int(keeper[member]), member)
        self.note_similar(keeper)

    def second_look(self, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
        """Which pairs are copies; an earlier keeper is one only together with all of its duplicates."""
        asked: list[tuple[int, int, list[dict]]] = []
        for a, b in zip(better.tolist(), worse.tolist(), strict=True):
            # Restore gives the keeper's colour profile: pixels that are to be seen otherwise are no copy.
            if self.everyone[a]["colour_sha256"] == self.everyone[b]["colour_sha256"]:
                members = self.members_of(b)
                if members is not None:
                    asked.append((a, b, members))
        questions = [
            (self.everyone[a], member | {"by_embedding": frozenset((a, b)) in self.proposed})
            for a, b, members in asked
            for member in members
        ]
        marks = [(a, member["key"]) for a, _, members in asked for member in members]
        self.answers.update(zip(marks, self.confirm(questions) if questions else [], strict=True))
        sound = {(a, b) for a, b, members in asked if all(self.answers[a, one["key"]].alike for one in members)}
        return np.array([pair in sound for pair in zip(better.tolist(), worse.tolist(), strict=True)], bool)

    def members_of(self, place: int) -> list[dict] | None:
        """Rows that have to be copies for this one to be: itself, and an earlier keeper's near duplicates too."""
        if place < self.n:
            return [self.everyone[place]]
        if place not in self.dependents:
            self.dependents[place] = self.earlier.dependents(self.everyone[place])
        dependents = self.dependents[place]
        if dependents is None:
            return None
        return [self.everyone[place], *(row for row in dependents if row["duplicate_kind"] == "near")]

    def settle(self, place: int, member: int) -> None:
        """The columns of a member, and of an earlier keeper's duplicates with it."""
        row = self.everyone[member]
        change = self.near(place, row, row)
        if member < self.n:
            self.found[member] = change
            return
        self.succeeded[row["key"]] = change
        for copy in self.dependents[member] or []:
            asked = copy if copy["duplicate_kind"] == "near" else row  # others have the earlier keeper's own pixels
            self.succeeded[copy["key"]] = self.near(place, asked, copy)

    def near(self, place: int, asked: dict, row: dict) -> dict:
        """What makes `row` a near duplicate, by the answer on `asked`."""
        keeper, answer = self.everyone[place], self.answers[place, asked["key"]]
        apart = (int(row["phash"], 16) ^ int(keeper["phash"], 16)).bit_count()
        view = {"keeper_turn": answer.turn, "keeper_box": answer.box}
        return made_duplicate(keeper, row, "near", apart, answer.turn) | {"psnr_source": answer.psnr} | view

    def note_similar(self, keeper: np.ndarray) -> None:
        """For new rows that stand for themselves: the best picture that they look much like."""
        order = {row["key"]: keeper_rank(row) for row in self.everyone}
        by_key = {row["key"]: place for place, row in enumerate(self.everyone)}
        for (place, key), answer in self.answers.items():
            member = by_key.get(key)
            if answer.alike or not answer.similar or member is None:
                continue
            here, other = (member, place) if member < self.n else (place, member)
            if here < self.n and keeper[here] < 0:
                best = self.similar.get(here)
                name = self.everyone[other]["key"]
                if best is None or order[name] < order[best]:
                    self.similar[here] = name


def gradient_pairs(rows: list[dict], codes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pairs of new rows close by dHash and by aHash that pHash (`codes`) does not propose: (place,
    place, distance), the distance above pHash's, so that its pairs are asked about first."""
    places = np.array([at for at, row in enumerate(rows) if row["dhash"] and row["ahash"]], np.int64)
    if not places.size:
        return (np.empty(0, np.int64),) * 3
    dhash, ahash = (hex_to_codes([rows[at][name] for at in places]) for name in ("dhash", "ahash"))
    a, b, apart = candidates(dhash, [keeper_rank(rows[at]) for at in places], GRADIENT_DISTANCE)
    alike = np.bitwise_count(ahash[a] ^ ahash[b]) <= MEANS_DISTANCE
    a, b = places[a], places[b]
    alike &= np.bitwise_count(codes[a] ^ codes[b]) > NEAR_DISTANCE
    return a[alike], b[alike], NEAR_DISTANCE + 1 + apart[alike]


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


NEEDED = (
    "key", "etag", "at_source", "output_key", "output_offset", "output_length", "width", "height", "size",
    "psnr_source",
)  # fmt: skip


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
