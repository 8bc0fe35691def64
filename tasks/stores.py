"""Where objects lie: an S3 bucket (or a prefix of one) and a local folder behind one small interface.

Here: listing, reading, writing, the conditional write that a commit needs, retries, and errors in words.
Left to others: which keys there are to be (publish.py, restore.py), S3 Inventory as a listing
(inventory.py), who may write at all (lease.py).

Keys are relative to the store's prefix and are never normalised: on S3 every key of up to 1024 bytes is
held as it is, leading, doubled and trailing slashes included. A local folder holds less; what it cannot
hold is refused with `CannotHold`, never bent silently: empty, `.` or `..` path components (`/a`, `a//b`,
`a/`), components above 255 bytes, NUL, names in our own `.nightpress-` space, and a key that is also the
folder of another (`a` beside `a/b`). restore.py gives such keys other names and a table of them.

A local name that is not UTF-8 becomes a key in which each stray byte is written `\\xff` (see `key_of_name`).
Symbolic links to folders are not followed, those to files only where they stay inside the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import queue
import random
import re
import stat
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.header import Header
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

SHA256_METADATA = "nightpress-sha256"  # of the bytes as written; on S3, in the user metadata
WRITER_METADATA = "nightpress-writer"  # random, on conditional writes: tells whose write it was
OWN_NAMES = ".nightpress-"  # local files of ours (temporary ones, locks, journals): never listed

ATTEMPTS = 10  # tries before an object store counts as unavailable: about a minute of waiting in all
FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0  # seconds; doubled each time, full jitter
LISTING_THREADS = 16
POOL = 64  # connections a client keeps open; a caller with more threads waits for one
PART = 16 << 20  # bytes: ranged reads of streams, parts of multipart uploads
WHOLE_UP_TO = 64 << 20  # bytes: above, a write goes in parts

THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
TRANSIENT = {
    "InternalError", "ServiceUnavailable", "RequestTimeout", "IncompleteBody", "BadDigest",
    "ConditionalRequestConflict", "OperationAborted", "PriorRequestNotComplete",
}  # fmt: skip
REFUSED = {
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "AllAccessDisabled", "AccountProblem", "Forbidden", "Unauthorized",
}  # fmt: skip


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
    """What a listing says and what only the object itself says. `headers`: Cache-Control and the like."""

    content_type: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


CARRIED_HEADERS = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage")


def open_store(url: str) -> Store:
    """The store at `s3://bucket/prefix` or in a local folder (created at the first write).

    Cheap and offline: the first request is made by the first use. Endpoint and credentials come as boto3
    takes them. The result may be pickled and used from many threads. ValueError for another scheme.
    """
    if url.startswith("s3://"):
        return S3Store(url)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if scheme and scheme[1].lower() != "file":
        raise ValueError(f"{url}: {scheme[1]}:// is neither s3:// nor a local folder")
    if not url.strip():
        raise ValueError("an empty name is neither s3://bucket/prefix nor a folder")
    return LocalStore(url.removeprefix("file://") if scheme else url)


def overlap(url_a: str, url_b: str) -> bool:
    """Whether some object could belong to both stores: one contains the other, or they are the same."""
    a, b = open_store(url_a), open_store(url_b)
    if isinstance(a, S3Store) and isinstance(b, S3Store):
        return a.bucket == b.bucket and (a.prefix.startswith(b.prefix) or b.prefix.startswith(a.prefix))
    if isinstance(a, LocalStore) and isinstance(b, LocalStore):
        one, other = os.path.realpath(a.root), os.path.realpath(b.root)
        return os.path.commonpath([one, other]) in (one, other)
    return False


# ---------------------------------------------------------------------------------------------- S3


class S3Store:
    """A bucket, or the part of it below a prefix. Thread-safe; one boto3 client per process."""

    def __init__(self, url: str):
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise ValueError(f"{url}: the bucket's name is missing (s3://bucket/prefix)")
        self.prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._match_form: str | None = None  # how this server wants an etag in a write's If-Match; "": not at all
        self._conditional: bool | None = None

    def __reduce__(self):
        return S3Store, (f"s3://{self.bucket}/{self.prefix}",)

    def __repr__(self):
        return f"S3Store({self.url!r})"

    @property
    def client(self):
        return s3_client()

    def place(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def refusal(self, key: str) -> str | None:
        """Why this store cannot hold `key`; None if it can."""
        if not key:
            return "the key is empty"
        try:
            size = len((self.prefix + key).encode())
        except UnicodeEncodeError:
            return "the key is not valid Unicode"
        return f"the key has {size} bytes and S3 takes 1024" if size > 1024 else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in no particular order.

        The key space is listed in ranges, in parallel; a range that proves long is split where its keys
        branch, so that one flat folder of a million objects is listed in parallel as well. Holds a few dozen
        pages of 1000 entries at a time. The object that is the store's own prefix (a folder marker such as
        `photos/` for s3://bucket/photos) has no key here and is left out.
        """
        full = self.prefix + prefix
        cut = len(self.prefix)

        def page(after: str, count: int) -> tuple[list[dict], bool]:
            return self._page(full, after, count)

        for entries in listed_in_ranges(page, full, LISTING_THREADS):
            for entry in entries:
                if len(entry["Key"]) > cut:
                    yield ObjectInfo(
                        key=entry["Key"][cut:],
                        size=entry["Size"],
                        etag=entry["ETag"].strip('"'),
                        modified=entry["LastModified"].astimezone(UTC),
                        storage_class=standard_is_none(entry.get("StorageClass")),
                    )

    def _page(self, prefix: str, after: str, count: int) -> tuple[list[dict], bool]:
        """Up to `count` entries above `after`, and whether there are more; empty only at the end."""
        position = {"StartAfter": after} if after else {}
        while True:
            answer = patiently(
                lambda position=position: self.client.list_objects_v2(
                    Bucket=self.bucket, Prefix=prefix, MaxKeys=count, **position
                ),
                f"listing {self.url}",
            )
            entries, more = answer.get("Contents", []), bool(answer.get("IsTruncated"))
            if entries or not more:
                return entries, more
            position = {"ContinuationToken": answer["NextContinuationToken"]}

    def list_prefixes(self, prefix: str = "") -> list[str]:
        """The "folders" directly below `prefix`, with their trailing slash: `runs/` -> [`runs/a/`, ...]."""
        found, token = [], {}
        while True:
            answer = patiently(
                lambda token=token: self.client.list_objects_v2(
                    Bucket=self.bucket, Prefix=self.prefix + prefix, Delimiter="/", **token
                ),
                f"listing {self.place(prefix)}",
            )
            found += [p["Prefix"][len(self.prefix) :] for p in answer.get("CommonPrefixes", [])]
            if not answer.get("IsTruncated"):
                return sorted(found)
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def head(self, key: str) -> ObjectHead:
        return patiently(lambda: self._head(key)[0], self.place(key))

    def _head(self, key: str) -> tuple[ObjectHead, dict]:
        answer = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
        return self._head_of(key, answer, answer["ContentLength"]), answer

    def _head_of(self, key: str, answer: dict, size: int) -> ObjectHead:
        version = answer.get("VersionId")
        return ObjectHead(
            key=key,
            size=size,
            etag=answer["ETag"].strip('"'),
            modified=answer["LastModified"].astimezone(UTC),
            version=None if version == "null" else version,
            storage_class=standard_is_none(answer.get("StorageClass")),
            content_type=answer.get("ContentType"),
            metadata={name: as_text(value) for name, value in answer.get("Metadata", {}).items()},
            headers={name: answer[name] for name in CARRIED_HEADERS if answer.get(name)},
        )

    def age(self, key: str) -> float:
        """Seconds since the object was written, both ends by the server's own clock (whole seconds)."""

        def attempt():
            head, answer = self._head(key)
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            return (now - head.modified).total_seconds()

        return patiently(attempt, self.place(key))

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def fetch(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> tuple[bytes, ObjectHead]:
        """The object's bytes and everything its one GET says about it (version, content type, metadata).

        `etag`: as listed; Changed if it is another one now. `max_bytes`: TooLarge above, before reading.
        """

        def attempt():
            condition = {"IfMatch": f'"{etag}"'} if etag else {}
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **condition)
            with contextlib.closing(answer["Body"]) as body:
                head = self._head_of(key, answer, answer["ContentLength"])
                refuse_above(max_bytes, head.size, self.place(key))
                return body.read(), head

        return patiently(attempt, self.place(key))

    def read(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> bytes:
        return self.fetch(key, etag=etag, max_bytes=max_bytes)[0]

    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        """`length` bytes from `offset`; StoreError where the object ends before."""
        if not length:
            return b""

        def attempt():
            condition = {"IfMatch": f'"{etag}"'} if etag else {}
            answer = self.client.get_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Range=f"bytes={offset}-{offset + length - 1}",
                **condition,
            )
            with contextlib.closing(answer["Body"]) as body:
                return body.read()

        data = patiently(attempt, self.place(key))
        return whole_range(data, offset, length, self.place(key))

    def chunks(self, key: str, size: int, *, etag: str | None = None) -> Iterator[bytes]:
        """The object in pieces of 16 MiB, each retried on its own; for what is too large to be held."""
        for offset in range(0, size, PART):
            yield self.read_range(key, offset, min(PART, size - offset), etag=etag)

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

        The server checks the bytes against an MD5; their sha256 is put into the user metadata (unless the
        caller's own fill S3's 2 KB). `if_absent`: AlreadyExists where there is one. `if_match`: Changed
        (or NotFound) where the etag is another one. Both are for small objects, and mean something only where
        `honours_conditional_write()` and `honours_if_match()` say so.
        """
        self._refuse(key)
        sha256 = hashlib.sha256(data).hexdigest()
        if len(data) > WHOLE_UP_TO:
            if if_absent or if_match:
                raise ValueError(f"{self.place(key)}: {len(data)} bytes are too many for a conditional write")
            view = memoryview(data)
            pieces = (view[i : i + PART] for i in range(0, len(data), PART))
            return self.write_stream(
                key, pieces, len(data), sha256=sha256, content_type=content_type, metadata=metadata, headers=headers
            )
        ours, condition = {SHA256_METADATA: sha256}, {}
        if if_absent or if_match:
            form = self._match_form or '"{}"'
            condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": form.format(if_match)}
            ours[WRITER_METADATA] = uuid.uuid4().hex
        digest = b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        described = self._described(content_type, metadata, headers, ours)
        tries = 0

        def attempt():
            nonlocal tries
            tries += 1
            return self.client.put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=bytes(data),
                ContentMD5=digest,
                **condition,
                **described,
            )["ETag"].strip('"')

        try:
            return patiently(attempt, self.place(key))
        except Changed as error:
            if tries > 1:  # an earlier try of ours may have been carried out although its answer was lost
                with contextlib.suppress(NotFound):
                    there = self.head(key)
                    if there.metadata.get(WRITER_METADATA) == ours[WRITER_METADATA]:
                        return there.etag
            if if_absent:
                raise AlreadyExists(f"{self.place(key)}: there is an object already") from error
            raise

    def write_stream(
        self,
        key: str,
        pieces: Iterable[bytes],
        size: int,
        *,
        sha256: str | None = None,
        content_type: str | None = None,
        metadata: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> str:
        """Write `size` bytes that come in pieces, as a multipart upload; nothing is left where it fails."""
        self._refuse(key)
        if size <= WHOLE_UP_TO:
            return self.write(key, b"".join(pieces), content_type=content_type, metadata=metadata, headers=headers)
        target = {"Bucket": self.bucket, "Key": self.prefix + key}
        described = self._described(content_type, metadata, headers, {SHA256_METADATA: sha256} if sha256 else {})
        where = self.place(key)
        upload = patiently(lambda: self.client.create_multipart_upload(**target, **described), where)["UploadId"]
        try:
            parts, sent = [], 0
            for number, part in enumerate(in_blocks(pieces, max(PART, -(-size // 9000))), 1):
                digest = b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
                answer = patiently(
                    lambda number=number, part=part, digest=digest: self.client.upload_part(
                        **target, UploadId=upload, PartNumber=number, Body=part, ContentMD5=digest
                    ),
                    where,
                )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                sent += len(part)
            if sent != size:
                raise Changed(f"{where}: {sent} bytes came instead of {size}; nothing was written")
            done = patiently(
                lambda: self.client.complete_multipart_upload(
                    **target, UploadId=upload, MultipartUpload={"Parts": parts}
                ),
                where,
            )
            return done.get("ETag", "").strip('"') or self.head(key).etag  # Ceph answers with an empty one
        except BaseException:
            with contextlib.suppress(Exception):
                self.client.abort_multipart_upload(**target, UploadId=upload)
            raise

    def _refuse(self, key: str) -> None:
        reason = self.refusal(key)
        if reason:
            raise CannotHold(f"{self.place(key)!r}: {reason}")

    def _described(self, content_type, metadata, headers, ours) -> dict:
        own = {name: as_header(str(value)) for name, value in (metadata or {}).items() if name not in ours}
        both = own | ours
        if sum(len(name) + len(value) for name, value in both.items()) > 2048:
            both = own
        described = {name: value for name, value in (headers or {}).items() if name in CARRIED_HEADERS}
        if content_type:
            described["ContentType"] = content_type
        return described | ({"Metadata": both} if both else {})

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is fine. Only ever called for DEST."""
        patiently(lambda: self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key), self.place(key))

    def honours_conditional_write(self) -> bool:
        """Whether the server refuses the second of two writes with If-None-Match: several take the header and
        overwrite all the same.

        Asked once, by a small object under `catalog/` that is removed again.
        """
        self._probe()
        return self._conditional

    def honours_if_match(self) -> bool:
        """Whether a write with If-Match goes through for the right etag and for no other one.

        Asked together with the above. Ceph (16 at least) compares the header with the bare etag and refuses
        the quoted form that HTTP prescribes: `write` uses the form that was found to work.
        """
        self._probe()
        return bool(self._match_form)

    def _probe(self) -> None:
        if self._conditional is not None:
            return
        key = f"catalog/probe-{uuid.uuid4().hex}"

        def refused(**condition) -> bool:
            try:
                self.write(key, uuid.uuid4().bytes, **condition)
            except (Unavailable, AccessDenied):
                raise
            except StoreError:  # the condition does not hold, or the header itself is not known (501)
                return True
            return False

        try:
            conditional = not refused(if_absent=True) and refused(if_absent=True)
            etag = self.write(key, b"probe")
            match_form = ""
            for self._match_form in ('"{}"', "{}"):
                if not refused(if_match=etag):
                    match_form = self._match_form if refused(if_match=etag) else ""  # another one by now
                    break
            self._match_form, self._conditional = match_form, conditional
        finally:
            with contextlib.suppress(StoreError):
                self.delete(key)


clients: dict = {}
clients_lock = threading.Lock()


def s3_client():
    """This process's boto3 client; made anew after a fork and when the endpoint or credentials change."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION")
    identity = (os.getpid(), *(os.environ.get(name) for name in names))
    with clients_lock:
        if identity not in clients:
            clients[identity] = new_s3_client()
        return clients[identity]


def new_s3_client():
    """A boto3 client that leaves retries to `patiently` and sends no checksum that older servers refuse."""
    import boto3
    import botocore.session
    from botocore.config import Config

    core = botocore.session.get_session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp)
    session = boto3.session.Session(botocore_session=core)
    region = session.region_name or "us-east-1"
    config = Config(
        max_pool_connections=POOL,
        retries={"total_max_attempts": 1},
        connect_timeout=10,
        read_timeout=60,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra="nightpress",
    )
    client = session.client("s3", region_name=region, config=config)
    if ".amazonaws.com" in client.meta.endpoint_url:
        return client
    # Names like bucket.localhost rarely resolve: other servers are addressed by path.
    return session.client("s3", region_name=region, config=config.merge(Config(s3={"addressing_style": "path"})))


def timestamp(value: str) -> datetime:
    """A response's time; ISO 8601 without dateutil, which takes three quarters of a listing's time otherwise."""
    with contextlib.suppress(ValueError, TypeError):
        if (parsed := datetime.fromisoformat(value)).tzinfo:
            return parsed
    from botocore.utils import parse_timestamp

    return parse_timestamp(value)


def patiently(action, where: str):
    """`action()`, again while the server is busy, failing or out of reach; other errors as StoreError.

    Waits a random time of up to 0.2, 0.4, ... 20 s (full jitter), or what Retry-After asks for.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    started = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (ClientError, BotoCoreError, OSError) as error:
            failure = lasting_failure(error, where)
            if failure:
                raise failure from error
            if attempt == ATTEMPTS:
                waited = time.monotonic() - started
                raise Unavailable(
                    f"{where}: given up after {attempt} tries in {waited:.0f} s; the last one: {brief(error)}. "
                    "Check the endpoint and the network, or start again later"
                ) from error
            time.sleep(wait_before_retry(error, attempt))
    raise AssertionError("unreachable")


def wait_before_retry(error: Exception, attempt: int) -> float:
    response = getattr(error, "response", None) or {}
    asked = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    if asked.isdigit():
        return min(float(asked), LONGEST_WAIT)
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)))


def lasting_failure(error: Exception, where: str) -> StoreError | None:
    """The StoreError that `error` means; None where trying again may help."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in THROTTLED | TRANSIENT or status in (408, 429) or (status >= 500 and status != 501):
            return None
        if code == "InvalidObjectState":
            return Archived(f"{where}: in an archive storage class; restore it on S3 first (restore-object)")
        if code == "NoSuchBucket":
            return NotFound(f"{where}: there is no such bucket")
        if status == 404 or code in ("NoSuchKey", "NotFound"):
            return NotFound(f"{where}: no such object (any more)")
        if status == 412 or code == "PreconditionFailed":
            return Changed(f"{where}: the object has changed since it was listed; the next run takes it up")
        if code in REFUSED or status in (401, 403):
            return AccessDenied(f"{where}: the server refuses these credentials ({code})")
        return StoreError(f"{where}: {brief(error)}")
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.ProfileNotFound):
        return AccessDenied(f"{where}: {brief(error)}; set AWS_ACCESS_KEY_ID and so on, or a profile")
    if isinstance(error, boto.ParamValidationError):
        return CannotHold(f"{where}: {brief(error)}")
    if isinstance(error, boto.HTTPClientError | boto.ReadTimeoutError | boto.IncompleteReadError | OSError):
        return None  # connections: refused, reset, timed out, cut short
    if isinstance(error, boto.ConnectionError):
        return None
    return StoreError(f"{where}: {brief(error)}")


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def standard_is_none(storage_class: str | None) -> str | None:
    return None if storage_class in (None, "", "STANDARD") else storage_class


def as_header(value: str) -> str:
    """ASCII form of a metadata value; RFC 2047 where it is needed, as S3 itself answers."""
    return value if value.isascii() else Header(value, "utf-8", maxlinelen=4096).encode()


def as_text(value: str) -> str:
    """A metadata value as it came: UTF-8 that the HTTP layer read as Latin-1 is put right."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except (UnicodeEncodeError, UnicodeDecodeError):
        return value


def refuse_above(max_bytes: int | None, size: int, where: str) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TooLarge(f"{where}: {size} bytes, the limit is {max_bytes}")


def whole_range(data: bytes, offset: int, length: int, where: str) -> bytes:
    if len(data) != length:
        raise StoreError(f"{where}: bytes {offset}..{offset + length - 1} were asked for, {len(data)} are there")
    return data


def in_blocks(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
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


# ------------------------------------------------------------------------------ listing in ranges


def listed_in_ranges(page, prefix: str, threads: int) -> Iterator[list[dict]]:
    """Pages of all entries under `prefix`, listed by several threads, each on a range of the key space.

    `page(after, count)` gives (entries above key `after` in ascending order of code points, more?). There is one
    range at first. A thread that has listed a few pages of its range while another one is idle cuts the rest where its
    keys branch (which costs up to forty requests for one key each). The ranges (after, until] always tile the key
    space, whatever the branching points, so that no key is missed or listed twice.
    """
    pages: queue.Queue = queue.Queue(maxsize=2 * threads)
    ranges: list[tuple[str, str | None]] = [("", None)]
    changed = threading.Condition()
    idle, stopped = 0, False

    def put(item) -> None:
        while not stopped:
            with contextlib.suppress(queue.Full):
                return pages.put(item, timeout=0.5)

    def list_range(after: str, until: str | None) -> None:
        patience, since_split = 6 if after else 2, 0
        while not stopped:
            entries, more = page(after, 1000)
            if entries and entries[0]["Key"] <= after:
                raise StoreError(
                    f"the server lists {entries[0]['Key']!r} after {after!r}, not in ascending order; "
                    "such buckets (S3 directory buckets) cannot be listed"
                )
            if until is not None and entries and entries[-1]["Key"] > until:
                entries, more = [entry for entry in entries if entry["Key"] <= until], False
            if entries:
                put(entries)
            if not entries or not more:
                return
            after, since_split = entries[-1]["Key"], since_split + 1
            if since_split >= patience and idle:
                cuts = branching_points(partial(first_key, page, until), prefix, after)
                patience, since_split = 6 if cuts else 2 * patience, 0
                if cuts:
                    with changed:
                        ranges.extend(zip(cuts, [*cuts[1:], until], strict=True))
                        changed.notify_all()
                    until = cuts[0]

    def work() -> None:
        nonlocal idle, stopped
        while True:
            with changed:
                idle += 1
                while not ranges and idle < threads and not stopped:
                    changed.wait()
                if stopped or not ranges:  # no range left and nobody who could still split one
                    changed.notify_all()
                    return
                idle -= 1
                after, until = ranges.pop(0)
            try:
                list_range(after, until)
            except BaseException as error:
                put(error)
                with changed:
                    stopped = True
                    changed.notify_all()
                return

    def run() -> None:
        workers = [threading.Thread(target=work, daemon=True, name=f"listing-{i}") for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        put(None)

    threading.Thread(target=run, daemon=True, name="listing").start()
    try:
        while (item := pages.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped = True
        with changed:
            changed.notify_all()


def first_key(page, until: str | None, after: str) -> str | None:
    entries, _ = page(after, 1)
    return entries[0]["Key"] if entries and (until is None or entries[0]["Key"] <= until) else None


def branching_points(first, prefix: str, after: str, most: int = 32) -> list[str]:
    """Strings above `after` that cut the remaining keys where they branch; empty where they do not.

    `first(a)`: the first key above `a`, or None. All keys left share the first i characters of `after` for
    some largest i, found by bisection; from there on, one request a branch.
    """

    def beyond(i: int) -> str | None:
        """The first key that leaves `after` at character i or before."""
        start = successor(after[: i + 1])
        return None if start is None else first(start)

    low, high = len(prefix), len(after)
    while low < high:
        middle = (low + high) // 2
        if beyond(middle) is not None:
            high = middle
        else:
            low = middle + 1
    if low >= len(after):
        return []
    cuts, cut = [], successor(after[: low + 1])
    while cut is not None and len(cuts) < most and (key := first(cut)) is not None:
        cuts.append(cut)
        cut = successor(key[: low + 1])
    return cuts


def successor(text: str) -> str | None:
    """The smallest string above every string that starts with `text`, in order of code points; None: there is none."""
    text = text.rstrip("\U0010ffff")
    if not text:
        return None
    last = ord(text[-1]) + 1
    return text[:-1] + chr(0xE000 if last == 0xD800 else last)


# ------------------------------------------------------------------------------------ local folder


class LocalStore:
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

    def list_prefixes(self, prefix: str = "") -> list[str]:
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

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except (NotFound, CannotHold):
            return False
        return True

    def fetch(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> tuple[bytes, ObjectHead]:
        """The file's bytes and its head; Changed where it is not (or, while reading, no longer) `etag`'s."""
        with local_errors(self.place(key)), self._open(key) as file:
            head = self._head_of(key, self._unchanged(file, key, etag))
            refuse_above(max_bytes, head.size, self.place(key))
            data = file.read()
            self._unchanged(file, key, head.etag)
            return data, head

    def read(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> bytes:
        return self.fetch(key, etag=etag, max_bytes=max_bytes)[0]

    def read_range(self, key: str, offset: int, length: int, *, etag: str | None = None) -> bytes:
        """`length` bytes from `offset`; StoreError where the file ends before."""
        with local_errors(self.place(key)), self._open(key) as file:
            self._unchanged(file, key, etag)
            file.seek(offset)
            data = file.read(length)
            self._unchanged(file, key, etag)
        return whole_range(data, offset, length, self.place(key))

    def chunks(self, key: str, size: int, *, etag: str | None = None) -> Iterator[bytes]:
        """The file in pieces of 16 MiB."""
        for offset in range(0, size, PART):
            yield self.read_range(key, offset, min(PART, size - offset), etag=etag)

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
        pieces: Iterable[bytes],
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


Store = S3Store | LocalStore


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
