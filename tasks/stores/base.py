"""What every place for objects is: listings, heads, errors in words, and the keys that may be used.

A store is an S3 bucket (s3.py) or a local folder (local.py), opened by its URL (open.py). Left to others: which keys
there are to be (night, recovery), S3 Inventory as a listing (inventory.py), who may write at all (lease.py).

Keys are relative to the store's prefix and are never normalised: on S3 every key of up to 1024 bytes is held as it
is, leading, doubled and trailing slashes included. A local folder holds less; what it cannot hold is refused with
`CannotHold`, never bent silently (local.py says what); tasks/recovery gives such keys other names and a table of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

SHA256_METADATA = "nightpress-sha256"  # of the bytes as written; on S3, in the user metadata
WRITER_METADATA = "nightpress-writer"  # random, on conditional writes: tells whose write it was
OWN_NAMES = ".nightpress-"  # local files of ours (temporary ones, locks, journals): never listed
PART = 16 << 20  # bytes: ranged reads of streams, parts of multipart uploads
WHOLE_UP_TO = 64 << 20  # bytes: above, a write goes in parts


class StoreError(Exception):
    """Reading or writing failed; the message names the object, what happened and what to do."""


class NotFound(StoreError):
    """No such object (or bucket, or folder)."""


class AccessDenied(StoreError):
    """The credentials, or the file's permissions, do not allow it."""


class Archived(StoreError):
    """In an archive storage class: it must be restored there before it can be read."""


class Changed(StoreError):
    """Not the object that was listed any more: its etag is another one."""


class TooLarge(StoreError):
    """Above the caller's `max_bytes`; nothing was read."""


class AlreadyExists(StoreError):
    """A write with `if_absent` found an object there."""


class CannotHold(StoreError):
    """This kind of store has no place for such a key."""


class Unavailable(StoreError):
    """Throttling, server errors or broken connections, still there after all retries."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One entry of a listing. `key` is relative to the store; `size` in bytes; `etag` without quotes."""

    key: str
    size: int
    etag: str
    modified: datetime  # UTC
    version: str | None = None  # listings of S3 do not carry it; a read does
    storage_class: str | None = None  # None: standard


@dataclass(frozen=True, slots=True)
class ObjectHead(ObjectInfo):
    """What a listing says and what only the object itself says.

    `headers`: those of CARRIED_HEADERS that it has, as text; Tagging (`a=1&b=2`, URL-encoded) in what `fetch` gives.
    """

    content_type: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


CARRIED_HEADERS = (
    "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "Expires", "WebsiteRedirectLocation",
    "Tagging",
)  # fmt: skip


class Store(ABC):
    """A place for objects, cheap to make and offline until its first request; picklable, usable from many threads.

    Reading raises NotFound, Changed (another etag than `etag`), TooLarge, AccessDenied, Archived or Unavailable, all of
    them StoreErrors. Writing is whole or not at all.
    """

    url: str

    @abstractmethod
    def place(self, key: str) -> str:
        """Where `key` lies, for people: a URL or a path."""

    @abstractmethod
    def refusal(self, key: str) -> str | None:
        """Why this store cannot hold `key`, as far as the key itself tells; None if it can."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in no particular order; an error rather than a part of them."""

    @abstractmethod
    def list_prefixes(self, prefix: str = "") -> Sequence[str]:
        """The "folders" directly below `prefix`, with their trailing slash, sorted: `runs/` -> [`runs/a/`, ...]."""

    @abstractmethod
    def head(self, key: str) -> ObjectHead:
        """What the store says about an object without its bytes."""

    @abstractmethod
    def age(self, key: str) -> float:
        """Seconds since the object was written, by the store's own clock where it has one."""

    @abstractmethod
    def fetch(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> tuple[bytes, ObjectHead]:
        """The object's bytes and everything that is known with them (version, content type, metadata).

        `etag`: as listed; Changed if it is another one now. `max_bytes`: TooLarge above, before reading.
        """

    @abstractmethod
    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        """`length` bytes from `offset`; StoreError where the object ends before."""

    @abstractmethod
    def write(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        metadata: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Write an object, whole or not at all; returns its etag.

        `if_absent`: AlreadyExists where there is one. `if_match`: Changed (or NotFound) where the etag is another one.
        Both are for small objects, and mean something only where `honours_conditional_write()` and `honours_if_match()`
        say so.
        """

    @abstractmethod
    def write_stream(
        self,
        key: str,
        pieces: Iterable[bytes | memoryview],
        size: int,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        metadata: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> str:
        """Write `size` bytes that come in pieces; nothing is left where it fails. Returns the etag."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is fine. Only ever called for DEST."""

    @abstractmethod
    def honours_conditional_write(self) -> bool:
        """Whether the second of two writes with `if_absent` is refused."""

    @abstractmethod
    def honours_if_match(self) -> bool:
        """Whether a write with `if_match` goes through for the right etag and for no other one."""

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except (NotFound, CannotHold):
            return False
        return True

    def read(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> bytes:
        """The bytes alone of what `fetch` gives."""
        return self.fetch(key, etag=etag, max_bytes=max_bytes)[0]

    def chunks(self, key: str, size: int, *, etag: str | None = None) -> Iterator[bytes]:
        """The object in pieces of PART bytes, each read (and retried) on its own; for what is too large to be held."""
        for offset in range(0, size, PART):
            yield self.read_range(key, offset, min(PART, size - offset), etag=etag)


def refuse_above(max_bytes: int | None, size: int, where: str) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TooLarge(f"{where}: {size} bytes, the limit is {max_bytes}")


def whole_range(data: bytes, offset: int, length: int, where: str) -> bytes:
    if len(data) != length:
        raise StoreError(f"{where}: bytes {offset}..{offset + length - 1} were asked for, {len(data)} are there")
    return data


def in_blocks(pieces: Iterable[bytes | memoryview], size: int) -> Iterator[bytes]:
    """The same bytes in blocks of `size`, the last one shorter; at least one block."""
    held, some = bytearray(), False
    for piece in pieces:
        held += piece
        while len(held) > size:
            yield bytes(held[:size])
            del held[:size]
            some = True
    if held or not some:
        yield bytes(held)
