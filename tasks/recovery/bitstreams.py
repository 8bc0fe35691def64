"""Stored bytes under DEST, read, checked and decoded: many of one pack at once, models fetched where they are missing.

What they are stored as is tasks/forms'; what is done with files and pictures is restore.py's.
"""

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from tasks.recovery.rows import NO_LIMIT
from tasks.stores.base import Store, StoreError
from tasks.stores.models import fetch_model

TOGETHER = 64 << 20  # bytes of a pack that are read at once
Place = tuple[int, int | None]  # offset and length of a bitstream in its object; no length: all of it
Pack = tuple[int, bytes]  # where a part of an object starts, and its bytes


class Bitstreams:
    """What lies under DEST during one restore; called from many threads, inside `models`."""

    def __init__(self, dest: Store, run_id: str, device: str):
        self.dest, self.run_id, self.device = dest, run_id, device
        self._lock = threading.Lock()
        self._models: Path | None = None
        self._models_found: set[str] = set()

    @contextlib.contextmanager
    def models(self) -> Iterator[None]:
        """A folder for models that the package does not have, for as long as pictures are decoded."""
        with tempfile.TemporaryDirectory(prefix="nightpress-models-") as folder:
            self._models = Path(folder)
            yield

    def read_together(self, key: str, places: Iterable[Place]) -> Pack | None:
        """The part of an object that holds all the bitstreams, where they make up most of it."""
        places = list(places)
        if len(places) < 2 or any(length is None for _, length in places):
            return None
        start = min(offset for offset, _ in places)
        size = max(offset + length for offset, length in places) - start
        if size > min(TOGETHER, 2 * sum(length for _, length in places)):
            return None
        try:
            return start, self.dest.read_range(key, start, size)
        except StoreError:  # each picture, read on its own, will say what is wrong
            return None

    def data(self, row: dict, place: Place, pack: Pack | None) -> bytes:
        """A row's stored bytes, as the run wrote them. Raises StoreError."""
        data = self._bytes(row, place, pack)
        if row["output_sha256"] and hashlib.sha256(data).hexdigest() != row["output_sha256"]:
            raise StoreError(
                f"{row['output_key']} at {place[0]}: its sha256 is not the one recorded by run {self.run_id}; "
                "the bitstream under DEST is damaged. Bring that object back from a version or backup"
            )
        return data

    def picture(self, row: dict, data: bytes):
        """The picture (codec's Picture) that stored bytes decode to. Raises StoreError, CodecError, ValueError."""
        from tasks.forms.stored import picture_of

        self._provide_model(row["model"])
        return picture_of(data, models=[str(self._models)], device=self.device, max_pixels=NO_LIMIT)

    def file(self, data: bytes) -> bytes:
        """The file that stored bytes without loss give back. Raises ValueError where they are damaged."""
        from tasks.forms.stored import file_of

        return file_of(data, models=[str(self._models)], device=self.device)

    def _bytes(self, row: dict, place: Place, pack: Pack | None) -> bytes:
        offset, length = place
        if pack is not None:
            return pack[1][offset - pack[0] : offset - pack[0] + length]
        if length is None:
            return self.dest.read(row["output_key"])
        return self.dest.read_range(row["output_key"], offset, length)

    def _provide_model(self, identity: str | None) -> None:
        """Make sure that the model is found: in the package, else fetched from DEST/models and checked."""
        from codec import UnknownModel
        from codec.models import find_model

        with self._lock:
            if identity is None or identity in self._models_found:
                return
            try:
                find_model(identity, [str(self._models)])
            except UnknownModel:
                fetch_model(self.dest, identity, self._models)
            self._models_found.add(identity)
