"""Give every key back: pictures from the bitstreams under DEST, everything else from SOURCE, verified.

    a run's catalog -> a name for each key in OUT -> bitstreams read, checked, decoded, written as PNG
                                                  -> kept originals copied from SOURCE, checked, byte for byte

Here: which rows, the order of work, what goes wrong with one key. Left to others: names in OUT (names.py), what is
there and how it is written (out.py), what one row becomes (rows.py), reading and decoding (bitstreams.py), copying
(originals.py), how a duplicate is made of its keeper (alignment.given_back), the command line
(flows/commands/restore.py).
"""

import contextlib
import difflib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from tasks.machine import cores
from tasks.night.catalog import CATALOG_SCHEMA, conform, read_catalog, read_report
from tasks.night.plan import CUT
from tasks.night.runs import NoRun, find_run
from tasks.recovery.bitstreams import Bitstreams, Pack, Place
from tasks.recovery.in_flight import Room, drain
from tasks.recovery.names import restored_names
from tasks.recovery.originals import Originals
from tasks.recovery.out import Out
from tasks.recovery.rows import UNKNOWN_TURN, comes_back_as_file, keeps_its_bytes, own_metadata
from tasks.stores.base import NotFound, Store, StoreError
from tasks.stores.open import open_store, overlap

COPIES = 16  # copies from SOURCE at once
PIXELS = 100_000_000  # decoded pixels in flight, all threads together (about 10 bytes each)
COLUMNS = (
    "key", "status", "reason", "output_key", "output_offset", "output_length", "output_sha256", "width", "height",
    "mode", "sha256", "keeper_key", "duplicate_kind", "model", "etag", "size", "content_type", "metadata", "headers",
    "keeper_turn", "keeper_box", "form", "gives_back", "metadata_sha256", "metadata_key", "metadata_offset",
    "metadata_length",
)  # fmt: skip


class CannotRestore(Exception):
    """The restore as a whole cannot start: no such run, no such key."""


class PlacesOverlap(CannotRestore):
    """OUT lies in DEST or SOURCE, or contains them."""


@dataclass
class Outcome:
    """What a restore did. `failures`: (key, why), sorted by key."""

    run_id: str
    decoded: int = 0
    copied: int = 0
    there: int = 0  # found in OUT with the right content
    bytes: int = 0  # written
    unusual: int = 0  # keys whose name in OUT stands in names.csv
    failures: list[tuple[str, str]] = field(default_factory=list)


def restore(
    dest: str,
    out: str,
    *,
    keys: Iterable[str] | None = None,
    run_id: str | None = None,
    source: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    begin: Callable[[int], None] | None = None,
    advance: Callable[[str, int], None] | None = None,
) -> Outcome:
    """Write every key (or `keys`) of the latest complete state (or of a run) to `out`.

    dest, out, source: URLs; `source` replaces the place that the run read from, where that has moved. `workers`:
    pictures decoded at once (default: the cores). `begin(n)` is called with the number of keys, `advance(key, bytes of
    its original)` after each. Errors of single keys are collected in the outcome; CannotRestore and StoreError mean
    that nothing began.
    """
    store = open_store(dest)
    try:
        manifest = find_run(store, run_id)
    except NoRun as error:
        raise CannotRestore(str(error)) from None
    source = source or manifest.get("source")
    if source is None:
        raise CannotRestore(f"the manifest of run {manifest['run_id']} names no source; give one")
    for name, other in (("DEST", dest), ("SOURCE", source)):
        if overlap(other, out):
            raise PlacesOverlap(f"OUT {out} and {name} {other} overlap; choose another place")
    catalog = state_after(store, manifest).select(COLUMNS).to_pylist()
    target = open_store(out)
    place = Out(target, restored_names([(row["key"], keeps_its_bytes(row)) for row in catalog], target))
    chosen = chosen_rows(catalog, keys, manifest["run_id"])
    chosen_keys = {row["key"] for row in chosen}
    keepers = {row["key"]: row for row in catalog if row["output_key"] is None}
    originals = Originals(open_store(source), store, place, keepers, manifest["run_id"])
    work = RestoreJob(Bitstreams(store, manifest["run_id"], device), originals, place, manifest["run_id"])
    work.outcome.unusual = place.write_names(chosen_keys)
    place.look(single=keys is not None)
    if begin:
        begin(len(chosen))
    work.advance = advance or work.advance
    work.run(chosen, workers or cores())
    if place.renamed:
        work.outcome.unusual = place.write_names(chosen_keys)
    work.outcome.failures.sort()
    return work.outcome


def state_after(dest: Store, manifest: dict) -> pa.Table:
    """The run's catalog; where it is gone, its report, which lacks etags and metadata but not the pictures."""
    if manifest.get("catalog"):
        with contextlib.suppress(NotFound):
            return read_catalog(dest, manifest)
    try:
        report = read_report(dest, manifest)
    except NotFound as error:
        raise CannotRestore(f"{error}, and its catalog too") from None
    table = conform(report, CATALOG_SCHEMA)
    cut = pc.fill_null(pc.match_substring(table["reason"], CUT), False)
    turns = pc.if_else(cut, pa.scalar(UNKNOWN_TURN, pa.int32()), table["keeper_turn"])
    return table.set_column(table.schema.get_field_index("keeper_turn"), "keeper_turn", turns)


def chosen_rows(catalog: list[dict], keys: Iterable[str] | None, run_id: str) -> list[dict]:
    if keys is None:
        return catalog
    rows = {row["key"]: row for row in catalog}
    chosen = []
    for key in dict.fromkeys(keys):
        if key not in rows:
            near = difflib.get_close_matches(key, list(rows)[:100_000], 3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise CannotRestore(f"run {run_id} has no key {key!r}{hint}")
        chosen.append(rows[key])
    return chosen


class RestoreJob:
    """One restore under way; but for `run`, the methods are called from many threads."""

    def __init__(self, bitstreams: Bitstreams, originals: Originals, out: Out, run_id: str):
        self.bitstreams, self.originals, self.out = bitstreams, originals, out
        self.outcome = Outcome(run_id)
        self.advance: Callable[[str, int], None] = lambda key, size: None
        self._lock = threading.Lock()
        self._room = Room(PIXELS)

    def run(self, rows: list[dict], workers: int) -> None:
        """Packs are decoded by `workers` threads while COPIES others copy what stays at SOURCE."""
        packs: dict[str, list[dict]] = {}
        copies = []
        for row in rows:
            if row["output_key"] is None:
                copies.append(row)
            else:
                packs.setdefault(row["output_key"], []).append(row)
        with (
            self.bitstreams.models(),
            self.out.journalled(),
            ThreadPoolExecutor(workers, "decode") as decoders,
            ThreadPoolExecutor(COPIES, "copy") as copiers,
            ThreadPoolExecutor(1) as beside,
        ):
            copying = beside.submit(drain, copiers, self.copy, copies, 4 * COPIES)
            drain(decoders, self.decode_pack, (packs[name] for name in sorted(packs)), 4 * workers)
            copying.result()

    def decode_pack(self, rows: list[dict]) -> None:
        """All wanted pictures of one object under DEST."""
        streams: dict[Place, list[dict]] = {}
        for row in rows:
            if self._attempt(row, partial(self._is_there, row)) is False:
                streams.setdefault((row["output_offset"] or 0, row["output_length"]), []).append(row)
            else:
                self._advance(row)
        pack = self.bitstreams.read_together(rows[0]["output_key"], streams)
        for place, members in sorted(streams.items(), key=lambda item: item[0][0]):
            with self._room.taken(max((row["width"] or 0) * (row["height"] or 0) for row in members)):
                self._decode(members, place, pack)

    def _decode(self, rows: list[dict], place: Place, pack: Pack | None) -> None:
        """One object's stored bytes: the picture itself and every duplicate of it that is wanted."""
        data = picture = file = None

        def write_one(row: dict) -> None:
            nonlocal data, picture, file
            data = data or self.bitstreams.data(row, place, pack)
            if comes_back_as_file(row):
                file = file or self.bitstreams.file(data)
                size = self.out.put_file(row, file)
            else:
                picture = picture or self.bitstreams.picture(row, data)
                size = self.out.put_picture(row, picture, own_metadata(self.bitstreams.dest, row, picture))
            self._count(decoded=1, bytes=size)

        for row in rows:
            self._attempt(row, partial(write_one, row))
            self._advance(row)

    def copy(self, row: dict) -> None:
        """A key whose only copy stays at SOURCE."""

        def write() -> None:
            if not self._is_there(row):
                self._count(copied=1, bytes=self.originals.copy(row))

        self._attempt(row, write)
        self._advance(row)

    def _is_there(self, row: dict) -> bool:
        found = self.out.has(row)
        if found:
            self._count(there=1)
        return found

    def _attempt(self, row: dict, action: Callable):
        """`action()`; what goes wrong with this key is written down (and None returned) and stops no other one."""
        from codec import CodecError

        try:
            return action()
        except (StoreError, CodecError, ValueError, MemoryError, OSError) as error:
            night = f"{row['status']} in the run ({row['reason']}); " if row["status"] == "failed" else ""
            with self._lock:
                self.outcome.failures.append((row["key"], f"{night}{type(error).__name__}: {error}"))
            return None

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, n in more.items():
                setattr(self.outcome, name, getattr(self.outcome, name) + n)

    def _advance(self, row: dict) -> None:
        with self._lock:
            self.advance(row["key"], row["size"] or 0)
