"""OUT, the place that a restore writes to: what is there already, nothing overwritten, what was finished written down.

A name that is taken either holds the same content or fails its key. A restore that was cut off goes on where it
stopped: finished objects are known by their user metadata on S3, by a journal (journal.py) in a folder. Names are
names.py's, what a row becomes rows.py's. The methods are called from many threads.
"""

import contextlib
import csv
import hashlib
import io
import json
import threading
from collections.abc import Iterable, Iterator

from tasks.recovery.journal import journal_lines, open_journal
from tasks.recovery.names import ODD, odd_name
from tasks.recovery.rows import FROM_METADATA, described, keeps_its_bytes, made_of, nearly_same_picture, occupied, png
from tasks.stores.base import NotFound, Store, StoreError
from tasks.stores.local import LocalStore


class Out:
    """OUT during one restore. names: the name of each key in `store`."""

    def __init__(self, store: Store, names: dict[str, str]):
        self.store, self.names = store, names
        self.renamed = False  # a name was found while working: names.csv is to be written anew
        self._there: dict[str, str | None] | None = {}  # names in OUT -> what they were made of, where that is known
        self._journal = None
        self._lock = threading.Lock()

    # --- before and after ---

    def look(self, single: bool) -> None:
        """Learn what an earlier, interrupted restore has written (for a few keys, each is looked up instead)."""
        if single:
            self._there = None
            return
        try:
            listed = {info.key: info.etag for info in self.store.list()}
        except NotFound:
            listed = {}
        self._there = dict.fromkeys(listed)
        if isinstance(self.store, LocalStore):
            for line in journal_lines(self.store):
                if listed.get(line["name"]) == line["etag"]:
                    self._there[line["name"]] = line["from"]

    @contextlib.contextmanager
    def journalled(self) -> Iterator[None]:
        """While a folder is written to, what is finished goes into its journal."""
        with contextlib.ExitStack() as stack:
            if isinstance(self.store, LocalStore):
                self._journal = stack.enter_context(open_journal(self.store))
            yield

    def write_names(self, keys: set[str]) -> int:
        """names.csv, where one of the keys has a name that its reader could not guess; how many of them have."""
        unusual = sorted(
            (key, name)
            for key, name in self.names.items()
            if name != key and (name.startswith(ODD) or name != key + ".png")
        )
        count = sum(key in keys for key, _ in unusual)
        if count:
            text = io.StringIO()
            table = csv.writer(text)
            table.writerow(("key", "name"))
            table.writerows(unusual)
            data = text.getvalue().encode(errors="backslashreplace")
            self.store.write(ODD + "names.csv", data, content_type="text/csv")
        return count

    # --- one object ---

    def has(self, row: dict) -> bool:
        """Whether an earlier restore has finished this very object."""
        name, origin = self.names[row["key"]], made_of(row)
        if not self._occupied(name):
            return False
        if isinstance(self.store, LocalStore):
            return self._there is not None and self._there[name] == origin
        return self.store.head(name).metadata.get(FROM_METADATA) == origin

    def _occupied(self, name: str) -> bool:
        return self.store.exists(name) if self._there is None else name in self._there

    def put_picture(self, row: dict, picture, metadata) -> int:
        """Write the picture as row's PNG, at row's own size and with its own metadata; returns its bytes."""
        name, data = self.names[row["key"]], png(picture, row, metadata)
        if self._occupied(name):
            if not nearly_same_picture(self.store.read(name), data):
                raise occupied(name)
            self._note(row, self.store.head(name).etag)
        else:
            self._write(row, data, *described(row, decoded=True))
        return len(data)

    def put_file(self, row: dict, data: bytes) -> int:
        """Write what a form without loss gives back: the original's own bytes, or a PNG; returns its bytes."""
        own = keeps_its_bytes(row)
        if own and row["sha256"] and hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise StoreError(f"{row['key']} does not come back to the byte from {row['output_key']}: keep its original")
        self.put_bytes(row, data, *described(row, decoded=not own))
        return len(data)

    def put_bytes(self, row: dict, data: bytes, content_type: str | None, metadata: dict, headers: dict) -> None:
        """Write a copy of the original."""
        name = self.names[row["key"]]
        if self._occupied(name):
            if hashlib.sha256(self.store.read(name)).digest() != hashlib.sha256(data).digest():
                raise occupied(name)
            self._note(row, self.store.head(name).etag)
        else:
            self._write(row, data, content_type, metadata, headers)

    def _write(self, row: dict, data: bytes, content_type: str | None, metadata: dict, headers: dict) -> None:
        name = self.names[row["key"]]
        etag = self.store.write(name, data, content_type=content_type, metadata=metadata, headers=headers)
        self._note(row, etag)

    def put_stream(self, row: dict, pieces: Iterable[bytes], size: int, sha256: str | None) -> None:
        """The same for what is too large to be held; `pieces` raise where they are not what they should be."""
        name = self.names[row["key"]]
        if self._occupied(name):
            if self._digest(name) != digest_of(pieces):
                raise occupied(name)
            etag = self.store.head(name).etag
        else:
            content_type, metadata, headers = described(row, decoded=False)
            etag = self.store.write_stream(
                name, pieces, size, sha256=sha256, content_type=content_type, metadata=metadata, headers=headers
            )
        self._note(row, etag)

    def _digest(self, name: str) -> bytes:
        return digest_of(self.store.chunks(name, self.store.head(name).size))

    def rename_to_png(self, row: dict) -> None:
        """A key that was to be copied comes back decoded: a name for its PNG that no other key has."""
        with self._lock:
            name = self.names[row["key"]]
            if name.lower().endswith(".png"):
                return
            used = set(self.names.values())
            while (name := name + ".png") in used:
                pass
            self.names[row["key"]] = odd_name(row["key"], name) if self.store.refusal(name) else name
            self.renamed = True

    def _note(self, row: dict, etag: str) -> None:
        """The object is finished."""
        if self._journal is not None:
            line = json.dumps({"name": self.names[row["key"]], "etag": etag, "from": made_of(row)}) + "\n"
            with self._lock:
                self._journal.write(line)
                self._journal.flush()


def digest_of(pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
