"""Give every key back: pictures from the bitstreams under DEST, everything else from SOURCE, verified.

    a run's catalog -> a name for each key in OUT -> bitstreams read, checked, decoded, written as PNG
                                                  -> kept originals copied from SOURCE, checked, byte for byte

Here: checks, what is already there, the order of work. Left to others: names in OUT (names.py), what one row becomes
(rows.py), decoding (codec), how a duplicate is made of its keeper (alignment.given_back), the command line
(flows/commands/restore.py).

Nothing in OUT is overwritten: a file that is already there either has the same content or fails its key. A restore
that was cut off goes on where it stopped: written objects are known by their user metadata on S3, by a journal
(`.nightpress-restored.jsonl`, journal.py) in a folder.
"""

import contextlib
import csv
import difflib
import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks.machine import cores
from tasks.night.catalog import CATALOG_SCHEMA, conform, read_catalog, read_report
from tasks.night.plan import CUT
from tasks.night.runs import NoRun, find_run
from tasks.recovery.journal import journal_lines, open_journal
from tasks.recovery.names import ODD, odd_name, restored_names
from tasks.recovery.rows import (
    FROM_METADATA,
    NO_LIMIT,
    UNKNOWN_TURN,
    described,
    foreign,
    made_of,
    nearly_same_picture,
    occupied,
    png,
)
from tasks.stores.base import WHOLE_UP_TO, Changed, NotFound, Store, StoreError
from tasks.stores.local import LocalStore
from tasks.stores.open import open_store, overlap

COPIES = 16  # copies from SOURCE at once
PIXELS = 100_000_000  # decoded pixels in flight, all threads together (about 10 bytes each)
TOGETHER = 64 << 20  # bytes of a pack that are read at once
COLUMNS = (
    "key", "status", "reason", "output_key", "output_offset", "output_length", "output_sha256", "width", "height",
    "mode", "sha256", "keeper_key", "duplicate_kind", "model", "etag", "size", "content_type", "metadata", "headers",
    "keeper_turn", "keeper_box",
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
    advance: Callable[[str], None] | None = None,
) -> Outcome:
    """Write every key (or `keys`) of the latest complete state (or of a run) to `out`.

    dest, out, source: URLs; `source` replaces the place that the run read from, where that has moved. `workers`:
    pictures decoded at once (default: the cores). `begin(n)` is called with the number of keys, `advance(key)` after
    each. Errors of single keys are collected in the outcome; CannotRestore and StoreError mean that nothing began.
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
    names = restored_names([(row["key"], row["output_key"] is None) for row in catalog], target)
    chosen = chosen_rows(catalog, keys, manifest["run_id"])
    work = RestoreJob(store, open_store(source), target, catalog, names, manifest["run_id"], device)
    work.write_names({row["key"] for row in chosen})
    work.find_what_is_there(single=keys is not None)
    if begin:
        begin(len(chosen))
    work.advance = advance or (lambda key: None)
    work.run(chosen, workers or cores())
    if work.renamed:
        work.write_names({row["key"] for row in chosen})
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


@dataclass
class RestoreJob:
    """One restore under way; the methods below are called from many threads."""

    dest: Store
    source: Store
    out: Store
    catalog: list[dict]
    names: dict[str, str]
    run_id: str
    device: str

    def __post_init__(self):
        self.outcome = Outcome(self.run_id)
        self.advance: Callable[[str], None] = lambda key: None
        self._there: dict[str, str | None] | None = {}  # names in OUT -> what they were made of, where that is known
        self._keepers: dict[str, dict] = {}
        self.renamed = False  # a name was found while working: names.csv is written anew
        self._lock = threading.Lock()
        self._journal = None
        self._room = Room(PIXELS)
        self._models: str | None = None
        self._models_found: set[str] = set()

    # --- before ---

    def write_names(self, keys: set[str]) -> None:
        """names.csv, where one of the keys has a name that its reader could not guess."""
        unusual = sorted(
            (key, name)
            for key, name in self.names.items()
            if name != key and (name.startswith(ODD) or name != key + ".png")
        )
        self.outcome.unusual = sum(key in keys for key, _ in unusual)
        if not self.outcome.unusual:
            return
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(("key", "name"))
        table.writerows(unusual)
        self.out.write(ODD + "names.csv", text.getvalue().encode(errors="backslashreplace"), content_type="text/csv")

    def find_what_is_there(self, single: bool) -> None:
        """Learn what an earlier, interrupted restore has written (for a few keys, each is looked up instead)."""
        if single:
            self._there = None
            return
        try:
            listed = {info.key: info.etag for info in self.out.list()}
        except NotFound:
            listed = {}
        self._there = dict.fromkeys(listed)
        if isinstance(self.out, LocalStore):
            for line in journal_lines(self.out):
                if listed.get(line["name"]) == line["etag"]:
                    self._there[line["name"]] = line["from"]

    # --- the work ---

    def run(self, rows: list[dict], workers: int) -> None:
        self._keepers = {row["key"]: row for row in self.catalog if row["output_key"] is None}
        groups: dict[str, list[dict]] = {}
        copies = []
        for row in rows:
            if row["output_key"] is None:
                copies.append(row)
            else:
                groups.setdefault(row["output_key"], []).append(row)
        packs = [groups[name] for name in sorted(groups)]
        with (
            tempfile.TemporaryDirectory(prefix="nightpress-models-") as self._models,
            ThreadPoolExecutor(workers, "decode") as decoders,
            ThreadPoolExecutor(COPIES, "copy") as copiers,
            ThreadPoolExecutor(1) as beside,
            contextlib.ExitStack() as stack,
        ):
            if isinstance(self.out, LocalStore):
                self._journal = stack.enter_context(open_journal(self.out))
            copying = beside.submit(drain, copiers, self.copy, copies, 4 * COPIES)
            drain(decoders, self.decode_pack, packs, 4 * workers)
            copying.result()

    def _attempt(self, row: dict, action):
        """`action()`; what goes wrong with this key is written down (and None returned) and stops no other one."""
        from codec.container import CodecError

        try:
            return action()
        except (StoreError, CodecError, ValueError, MemoryError, OSError) as error:
            night = f"{row['status']} in the run ({row['reason']}); " if row["status"] == "failed" else ""
            with self._lock:
                self.outcome.failures.append((row["key"], f"{night}{type(error).__name__}: {error}"))
            return None

    def decode_pack(self, rows: list[dict]) -> None:
        """All wanted pictures of one object under DEST."""
        streams: dict[tuple[int, int | None], list[dict]] = {}
        for row in rows:
            if self._attempt(row, partial(self._is_there, row)) is False:
                streams.setdefault((row["output_offset"] or 0, row["output_length"]), []).append(row)
            else:
                self.advance(row["key"])
        pack = self._read_together(rows[0]["output_key"], streams)
        for (offset, length), members in sorted(streams.items(), key=lambda item: item[0][0]):
            with self._room.taken(max((row["width"] or 0) * (row["height"] or 0) for row in members)):
                self._decode(members, offset, length, pack)

    def _read_together(self, key: str, streams: Iterable[tuple[int, int | None]]) -> tuple[int, bytes] | None:
        """(start, bytes) of the part of a pack that holds all the streams, where they make up most of it."""
        if len(streams) < 2 or any(length is None for _, length in streams):
            return None
        start = min(offset for offset, _ in streams)
        size = max(offset + length for offset, length in streams) - start
        if size > min(TOGETHER, 2 * sum(length for _, length in streams)):
            return None
        try:
            return start, self.dest.read_range(key, start, size)
        except StoreError:  # each picture, read on its own, will say what is wrong
            return None

    def _decode(self, rows: list[dict], offset: int, length: int | None, pack: tuple[int, bytes] | None) -> None:
        """One bitstream: the picture itself and every duplicate of it that is wanted."""
        picture = None

        def write_one(row: dict) -> None:
            nonlocal picture
            if picture is None:
                picture = self._picture(row, offset, length, pack)
            size = self._put_picture(row, picture)
            with self._lock:
                self.outcome.decoded += 1
                self.outcome.bytes += size

        for row in rows:
            self._attempt(row, partial(write_one, row))
            self.advance(row["key"])

    def _picture(self, row: dict, offset: int, length: int | None, pack):
        from codec.coder import decode_picture

        if pack is not None:
            data = pack[1][offset - pack[0] : offset - pack[0] + length]
        elif length is None:
            data = self.dest.read(row["output_key"])
        else:
            data = self.dest.read_range(row["output_key"], offset, length)
        if row["output_sha256"] and hashlib.sha256(data).hexdigest() != row["output_sha256"]:
            raise StoreError(
                f"{row['output_key']} at {offset}: its sha256 is not the one recorded by run {self.run_id}; "
                "the bitstream under DEST is damaged. Bring that object back from a version or backup"
            )
        self._provide_model(row["model"])
        return decode_picture(data, models=[self._models], device=self.device, max_pixels=NO_LIMIT)

    def _provide_model(self, identity: str | None) -> None:
        """Make sure that the model is found: in the package, else fetched from DEST/models and checked."""
        from codec.coder import find_model
        from codec.container import UnknownModel
        from codec.model import model_id

        with self._lock:
            if identity is None or identity in self._models_found:
                return
            try:
                find_model(identity, [self._models])
            except UnknownModel:
                data = self.dest.read(f"models/{identity}.safetensors")
                if model_id(data) != identity:
                    raise StoreError(
                        f"models/{identity}.safetensors under DEST is damaged: its hash is {model_id(data)}"
                    ) from None
                (Path(self._models) / f"{identity}.safetensors").write_bytes(data)
            self._models_found.add(identity)

    def copy(self, row: dict) -> None:
        """A key whose only copy stays at SOURCE (kept, failed, skipped, duplicate of a kept one)."""
        self._attempt(row, partial(self._copy, row))
        self.advance(row["key"])

    def _copy(self, row: dict) -> None:
        if self._is_there(row):
            return
        try:
            size = self._copy_bytes(row, row)
        except (NotFound, Changed) as error:
            keeper = self._keepers.get(row["keeper_key"])
            if keeper is None:
                raise
            try:
                size = self._copy_of_keeper(row, keeper)
            except StoreError as other:
                raise StoreError(f"{error}. Its keeper: {other}") from other
        with self._lock:
            self.outcome.copied += 1
            self.outcome.bytes += size

    def _copy_bytes(self, row: dict, at: dict) -> int:
        """Copy the source object of row `at` for `row`, checked against the etag and sha256 that the run recorded."""
        size, name = at["size"], self.names[row["key"]]
        if size is not None and size > WHOLE_UP_TO:
            self._copy_stream(row, at, name, size)
            return size
        data, head = self.source.fetch(at["key"], etag=at["etag"])
        self._check_sha256(at, hashlib.sha256(data).hexdigest())
        content_type, metadata, headers = described(row, decoded=False)
        if at is row:  # failed rows may never have been read: the object itself knows
            content_type, headers = head.content_type, head.headers
            metadata = foreign(head.metadata) | {FROM_METADATA: made_of(row)}
        if self._occupied(name):
            if hashlib.sha256(self.out.read(name)).digest() != hashlib.sha256(data).digest():
                raise occupied(name)
            etag = self.out.head(name).etag
        else:
            etag = self.out.write(name, data, content_type=content_type, metadata=metadata, headers=headers)
        self._note(name, made_of(row), etag)
        return len(data)

    def _copy_stream(self, row: dict, at: dict, name: str, size: int) -> None:
        """The same for what is too large to be held."""
        digest = hashlib.sha256()

        def checked() -> Iterator[bytes]:
            for piece in self.source.chunks(at["key"], size, etag=at["etag"]):
                digest.update(piece)
                yield piece
            self._check_sha256(at, digest.hexdigest())

        if self._occupied(name):
            there = hashlib.sha256()
            for piece in self.out.chunks(name, self.out.head(name).size):
                there.update(piece)
            for _ in checked():
                pass
            if there.digest() != digest.digest():
                raise occupied(name)
            etag = self.out.head(name).etag
        else:
            content_type, metadata, headers = described(row, decoded=False)
            etag = self.out.write_stream(
                name,
                checked(),
                size,
                sha256=at["sha256"],
                content_type=content_type,
                metadata=metadata,
                headers=headers,
            )
        self._note(name, made_of(row), etag)

    def _copy_of_keeper(self, row: dict, keeper: dict) -> int:
        """The duplicate is gone from SOURCE, its keeper is still there."""
        if row["duplicate_kind"] == "exact":
            return self._copy_bytes(row, keeper)
        from codec.pixels import PictureError, open_picture

        data, _ = self.source.fetch(keeper["key"], etag=keeper["etag"])
        self._check_sha256(keeper, hashlib.sha256(data).hexdigest())
        try:
            picture = open_picture(data, max_pixels=NO_LIMIT)
        except PictureError as error:
            raise StoreError(f"{keeper['key']} cannot be decoded: {error}") from error
        with self._lock:
            name = self.names[row["key"]]
            if not name.lower().endswith(".png"):
                used = set(self.names.values())
                while (name := name + ".png") in used:
                    pass
                self.names[row["key"]] = odd_name(row["key"], name) if self.out.refusal(name) else name
                self.renamed = True
        return self._put_picture(row, picture)

    def _check_sha256(self, row: dict, sha256: str) -> None:
        if row["sha256"] and row["sha256"] != sha256:
            raise Changed(f"{row['key']} at SOURCE: its sha256 is not the one that run {self.run_id} recorded")

    # --- OUT ---

    def _is_there(self, row: dict) -> bool:
        """Whether an earlier restore has finished this very object."""
        name, origin = self.names[row["key"]], made_of(row)
        if not self._occupied(name):
            return False
        if isinstance(self.out, LocalStore):
            found = self._there is not None and self._there[name] == origin
        else:
            found = self.out.head(name).metadata.get(FROM_METADATA) == origin
        if found:
            with self._lock:
                self.outcome.there += 1
        return found

    def _occupied(self, name: str) -> bool:
        return self.out.exists(name) if self._there is None else name in self._there

    def _put_picture(self, row: dict, picture) -> int:
        """Write the picture as row's PNG, at row's own size; returns its bytes."""
        name, data = self.names[row["key"]], png(picture, row)
        if self._occupied(name):
            if not nearly_same_picture(self.out.read(name), data):
                raise occupied(name)
            etag = self.out.head(name).etag
        else:
            content_type, metadata, headers = described(row, decoded=True)
            etag = self.out.write(name, data, content_type=content_type, metadata=metadata, headers=headers)
        self._note(name, made_of(row), etag)
        return len(data)

    def _note(self, name: str, origin: str, etag: str) -> None:
        if self._journal is not None:
            line = json.dumps({"name": name, "etag": etag, "from": origin}) + "\n"
            with self._lock:
                self._journal.write(line)
                self._journal.flush()


# --- machinery ---


class Room:
    """Bounds what is in flight; one item larger than all the room passes alone."""

    def __init__(self, size: int):
        self._size, self._used, self._changed = size, 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int):
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self._size)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


def drain(pool: ThreadPoolExecutor, function, items: Iterable, most: int) -> None:
    """`function(item)` for all items on the pool, at most so many submitted at a time; the first error is raised."""
    pending: set = set()
    for item in items:
        if len(pending) >= most:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        pending.add(pool.submit(function, item))
    for future in pending:
        future.result()
