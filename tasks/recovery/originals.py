"""Keys whose only copy stays at SOURCE (kept, failed, skipped, duplicates of kept ones): copied byte for byte, checked.

Where a duplicate is gone from SOURCE and its keeper is still there, it is made of the keeper.
"""

import hashlib
from collections.abc import Iterator

from tasks.recovery.out import Out
from tasks.recovery.rows import FROM_METADATA, NO_LIMIT, described, foreign, made_of, own_metadata
from tasks.stores.base import WHOLE_UP_TO, Changed, NotFound, Store, StoreError


class Originals:
    """SOURCE during one restore; DEST holds what duplicates say of their own.

    keepers: rows by key of what may stand in for a duplicate that is gone.
    """

    def __init__(self, source: Store, dest: Store, out: Out, keepers: dict[str, dict], run_id: str):
        self.source, self.dest, self.out, self.keepers, self.run_id = source, dest, out, keepers, run_id

    def copy(self, row: dict) -> int:
        """Write the key to OUT; returns its bytes. Raises StoreError."""
        try:
            return self._copy_bytes(row, row)
        except (NotFound, Changed) as error:
            keeper = self.keepers.get(row["keeper_key"])
            if keeper is None:
                raise
            try:
                return self._copy_of_keeper(row, keeper)
            except StoreError as other:
                raise StoreError(f"{error}. Its keeper: {other}") from other

    def _copy_bytes(self, row: dict, at: dict) -> int:
        """Copy the source object of row `at` for `row`, checked against the etag and sha256 that the run recorded."""
        size = at["size"]
        if size is not None and size > WHOLE_UP_TO:
            self.out.put_stream(row, self._checked(at, size), size, at["sha256"])
            return size
        data, head = self.source.fetch(at["key"], etag=at["etag"])
        self._check_sha256(at, hashlib.sha256(data).hexdigest())
        content_type, metadata, headers = described(row, decoded=False)
        if at is row:  # failed rows may never have been read: the object itself knows
            content_type, headers = head.content_type, head.headers
            metadata = foreign(head.metadata) | {FROM_METADATA: made_of(row)}
        self.out.put_bytes(row, data, content_type, metadata, headers)
        return len(data)

    def _checked(self, at: dict, size: int) -> Iterator[bytes]:
        """The object in pieces; raises Changed after the last one where they are not what the run recorded."""
        digest = hashlib.sha256()
        for piece in self.source.chunks(at["key"], size, etag=at["etag"]):
            digest.update(piece)
            yield piece
        self._check_sha256(at, digest.hexdigest())

    def _copy_of_keeper(self, row: dict, keeper: dict) -> int:
        """The duplicate is gone from SOURCE, its keeper is still there."""
        if row["duplicate_kind"] == "exact":
            return self._copy_bytes(row, keeper)
        from codec import PictureError, open_picture

        data, _ = self.source.fetch(keeper["key"], etag=keeper["etag"])
        self._check_sha256(keeper, hashlib.sha256(data).hexdigest())
        try:
            picture = open_picture(data, max_pixels=NO_LIMIT, checked=False)
        except PictureError as error:
            raise StoreError(f"{keeper['key']} cannot be decoded: {error}") from error
        self.out.rename_to_png(row)
        return self.out.put_picture(row, picture, own_metadata(self.dest, row, picture))

    def _check_sha256(self, row: dict, sha256: str) -> None:
        if row["sha256"] and row["sha256"] != sha256:
            raise Changed(f"{row['key']} at SOURCE: its sha256 is not the one that run {self.run_id} recorded")
