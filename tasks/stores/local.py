"""A local folder as a store.

It cannot hold every key: refused are empty, `.` or `..` path components (`/a`, `a//b`, `a/`), components above 255
bytes, NUL, names in our own `.nightpress-` space, and a key that is also the folder of another (`a` beside `a/b`).

A local name that is not UTF-8 becomes a key in which each stray byte is written `\\xff` (see `key_of_name`).
Symbolic links to folders are not followed, those to files only where they stay inside the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tasks.stores.base import (
    OWN_NAMES,
    AccessDenied,
    AlreadyExists,
    CannotHold,
    Changed,
    NotFound,
    ObjectHead,
    ObjectInfo,
    Store,
    StoreError,
    Unavailable,
    refuse_above,
    whole_range,
)


class LocalStore(Store):
    """A local folder. Content type and user metadata have no place here: writes drop them, heads are empty.

    The etag is made of modification time (ns) and size. Writes go to a temporary file beside the target
    and are renamed, so a reader never sees half of one.
    """

    def __init__(self, url: str):
        self.root = os.path.abspath(os.path.expanduser(url))
        self.url = self.root

    def __reduce__(self):
        return LocalStore, (self.root,)

    def __repr__(self):
        return f"LocalStore({self.url!r})"

    def place(self, key: str) -> str:
        return os.path.join(self.root, key)

    def refusal(self, key: str) -> str | None:
        """Why a folder cannot hold `key`, as far as the key itself tells; None if it can."""
        if not key:
            return "the key is empty"
        if "\0" in key:
            return "a file's name cannot contain NUL"
        try:
            name = name_of_key(key)
        except UnicodeEncodeError:
            return "the key is not valid Unicode"
        if key_of_name(name) != key:
            return "its escape sequences stand for another file's name"
        for component in name.split("/"):
            if component in ("", ".", ".."):
                return f"a path cannot have the component {component!r}"
            if component.startswith(OWN_NAMES):
                return f"names starting with {OWN_NAMES} are Nightpress's own"
            if len(os.fsencode(component)) > 255:
                return f"its component {component[:20]!r}... has more than 255 bytes"
        if len(os.fsencode(os.path.join(self.root, name))) > 4095:
            return "the path has more than 4095 bytes"
        return None

    def _path(self, key: str) -> str:
        reason = self.refusal(key)
        if reason:
            raise CannotHold(f"{key!r} in {self.root}: {reason}")
        return os.path.join(self.root, name_of_key(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every file whose key starts with `prefix`, folder by folder. One folder's entries are held at a time.

        A folder that cannot be read is an error: a listing that silently lacks files would make them look
        deleted.
        """
        folder = prefix.rpartition("/")[0]
        start = os.path.join(self.root, name_of_key(folder)) if folder else self.root
        inside = Path(os.path.realpath(self.root))
        if os.path.islink(start) or not Path(os.path.realpath(start)).is_relative_to(inside):
            return
        pending = [start]
        while pending:
            current = pending.pop()
            with local_errors(current):
                try:
                    entries = list(os.scandir(current))
                except (FileNotFoundError, NotADirectoryError):
                    if current == self.root and not os.path.isdir(self.root):
                        raise
                    continue
            for entry in entries:
                if entry.name.startswith(OWN_NAMES):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    continue
                key = key_of_name(os.path.relpath(entry.path, self.root))
                if not key.startswith(prefix):
                    continue
                if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
                    continue
                with contextlib.suppress(FileNotFoundError):  # gone between the two calls, or a dangling link
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield ObjectInfo(key, status.st_size, etag_of(status), modified_of(status))

    def list_prefixes(self, prefix: str = "") -> Sequence[str]:
        """The folders directly below `prefix`, with their trailing slash: `runs/` -> [`runs/a/`, ...]."""
        folder, _, start = prefix.rpartition("/")
        base = folder + "/" if folder else ""
        try:
            entries = os.scandir(os.path.join(self.root, name_of_key(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = [
            key_of_name(e.name) for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(OWN_NAMES)
        ]
        return sorted(f"{base}{name}/" for name in names if name.startswith(start))

    def _open(self, key: str):
        """The file, opened for reading; links that lead out of the folder count as not there."""
        path = self._path(key)
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise NotFound(f"{path}: a symbolic link out of the folder; such links are not followed")
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise NotFound(f"{path}: not a regular file")
        return file

    def head(self, key: str) -> ObjectHead:
        with local_errors(self.place(key)), self._open(key) as file:
            return self._head_of(key, os.fstat(file.fileno()))

    def _head_of(self, key: str, status: os.stat_result) -> ObjectHead:
        return ObjectHead(key, status.st_size, etag_of(status), modified_of(status))

    def age(self, key: str) -> float:
        """Seconds since the file was written."""
        return (datetime.now(UTC) - self.head(key).modified).total_seconds()

    def fetch(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> tuple[bytes, ObjectHead]:
        """The file's bytes and its head; Changed where it is not (or, while reading, no longer) `etag`'s."""
        with local_errors(self.place(key)), self._open(key) as file:
            head = self._head_of(key, self._unchanged(file, key, etag))
            refuse_above(max_bytes, head.size, self.place(key))
            data = file.read()
            self._unchanged(file, key, head.etag)
            return data, head

    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        """`length` bytes from `offset`; StoreError where the file ends before."""
        with local_errors(self.place(key)), self._open(key) as file:
            self._unchanged(file, key, etag)
            file.seek(offset)
            data = file.read(length)
            self._unchanged(file, key, etag)
        return whole_range(data, offset, length, self.place(key))

    def _unchanged(self, file, key: str, etag: str | None) -> os.stat_result:
        status = os.fstat(file.fileno())
        if etag is not None and etag_of(status) != etag:
            raise Changed(f"{self.place(key)}: the file has changed since it was listed; the next run takes it up")
        return status

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
        """Write a file, whole or not at all; returns its etag. Conditions as in S3Store.write."""
        return self._write(key, [data], len(data), if_absent, if_match)

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
        """Write `size` bytes that come in pieces; nothing is left where it fails."""
        return self._write(key, pieces, size, False, None)

    def _write(self, key: str, pieces, size: int, if_absent: bool, if_match: str | None) -> str:
        path = self._path(key)
        with local_errors(path):
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if os.path.isdir(path):
                    raise IsADirectoryError
            except (NotADirectoryError, FileExistsError, IsADirectoryError):
                raise CannotHold(f"{path}: a folder cannot hold both a file of this name and files below it") from None
            temporary = os.path.join(os.path.dirname(path), f"{OWN_NAMES}tmp-{uuid.uuid4().hex}")
            try:
                with self._create(temporary) as file:
                    for piece in pieces:
                        file.write(piece)
                    if file.tell() != size:
                        raise Changed(f"{path}: {file.tell()} bytes came instead of {size}; nothing was written")
                    if if_absent or if_match is not None:  # commits outlive a power cut
                        file.flush()
                        os.fsync(file.fileno())
                if if_absent or if_match is not None:
                    with self._lock():
                        self._replace_if(temporary, path, if_match)
                else:
                    os.replace(temporary, path)
                return etag_of(os.stat(path))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)

    def _create(self, path: str):
        """A new file, its folder made again where a `delete` has just removed it as empty."""
        for _ in range(10):
            with contextlib.suppress(FileNotFoundError):
                return open(path, "xb")
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "xb")

    def _replace_if(self, temporary: str, path: str, if_match: str | None) -> None:
        """Under the folder's lock: put the file in place if its predecessor is the expected one."""
        if if_match is None:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise AlreadyExists(f"{path}: there is a file already") from None
            except OSError as error:  # a file system without hard links: the lock alone must do
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                if os.path.lexists(path):
                    raise AlreadyExists(f"{path}: there is a file already") from None
                os.replace(temporary, path)
            return
        before = os.stat(path)
        if etag_of(before) != if_match:
            raise Changed(f"{path}: somebody else has written this file")
        now = os.stat(temporary).st_mtime_ns
        if now <= before.st_mtime_ns:  # two writes within one tick of the clock must not share an etag
            os.utime(temporary, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
        os.replace(temporary, path)

    @contextlib.contextmanager
    def _lock(self):
        with open(os.path.join(self.root, f"{OWN_NAMES}lock"), "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def delete(self, key: str) -> None:
        """Remove the file, and the folders that this leaves empty; one that is not there is fine."""
        path = self._path(key)
        with local_errors(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)
            folder = os.path.dirname(path)
            with contextlib.suppress(OSError):
                while folder != self.root:
                    os.rmdir(folder)
                    folder = os.path.dirname(folder)

    def honours_conditional_write(self) -> bool:
        return True

    def honours_if_match(self) -> bool:
        return True


@contextlib.contextmanager
def local_errors(path: str):
    """Turns the operating system's errors about `path` into StoreErrors."""
    shown = os.fsencode(path).decode(errors="backslashreplace")
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound(f"{shown}: no such file or folder (any more)") from error
    except PermissionError as error:
        raise AccessDenied(f"{shown}: {error.strerror}; give this user the right, or leave it out") from error
    except OSError as error:
        lost = error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
        raise (Unavailable if lost else StoreError)(f"{shown}: {error.strerror or error}") from error


def etag_of(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def modified_of(status: os.stat_result) -> datetime:
    return datetime.fromtimestamp(status.st_mtime, UTC)


STRAY = r"\\(?:x5c)*x[89a-f][0-9a-f]"  # one or more levels of escaping


def key_of_name(name: str) -> str:
    r"""The key of a local path as os.fsdecode gives it: bytes that are not UTF-8 (lone surrogates U+DC80..FF)
    are written `\x80`..`\xff`; text that already looks so gets one `x5c` more, so that keys stay distinct.
    """
    if name.isascii() and "\\x" not in name:
        return name
    name = re.sub(STRAY, lambda match: "\\x5c" + match[0][1:], name)
    return re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", name)


def name_of_key(key: str) -> str:
    """The inverse of `key_of_name`. UnicodeEncodeError where the key itself holds surrogates."""
    key.encode()
    if "\\x" not in key:
        return key

    def plain(match: re.Match) -> str:
        text = match[0]
        return "\\" + text[4:] if text.startswith("\\x5c") else chr(0xDC00 + int(text[2:], 16))

    return os.fsdecode(os.fsencode(re.sub(STRAY, plain, key)))
