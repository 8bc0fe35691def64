"""An S3 bucket, or the part of it below a prefix, as a store: boto3 with our own retries and listings in parallel.

Every key of up to 1024 bytes is held as it is. Retrying is retries.py's, listing in ranges parallel_listing.py's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from email.header import Header
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlencode

from tasks.stores.base import (
    CARRIED_HEADERS,
    PART,
    SHA256_METADATA,
    WHOLE_UP_TO,
    WRITER_METADATA,
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
    in_blocks,
    refuse_above,
    whole_range,
)
from tasks.stores.parallel_listing import listed_in_ranges
from tasks.stores.retries import patiently

LISTING_THREADS = 16
POOL = 64  # connections a client keeps open; a caller with more threads waits for one


class S3Store(Store):
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

        def page(after: str, count: int) -> tuple[Sequence[dict], bool]:
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

    def _page(self, prefix: str, after: str, count: int) -> tuple[Sequence[dict], bool]:
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

    def list_prefixes(self, prefix: str = "") -> Sequence[str]:
        """The "folders" directly below `prefix`, with their trailing slash: `runs/` -> [`runs/a/`, ...]."""
        token: dict[str, str] = {}
        found = []
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
            headers=carried_headers(answer),
        )

    def age(self, key: str) -> float:
        """Seconds since the object was written, both ends by the server's own clock (whole seconds)."""

        def attempt():
            head, answer = self._head(key)
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            return (now - head.modified).total_seconds()

        return patiently(attempt, self.place(key))

    def fetch(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> tuple[bytes, ObjectHead]:
        """The object's bytes and everything its one GET says about it (version, content type, metadata).

        `etag`: as listed; Changed if it is another one now. `max_bytes`: TooLarge above, before reading.
        """
        data, head, tags = self._get(key, etag, max_bytes)
        if tags:  # Amazon tells of them only those who may read them
            where = f"{self.place(key)}, its tags (s3:GetObjectTagging)"
            head.headers["Tagging"] = patiently(lambda: self._tags(key), where)
        return data, head

    def read(self, key: str, *, etag: str | None = None, max_bytes: int | None = None) -> bytes:
        return self._get(key, etag, max_bytes)[0]

    def _get(self, key: str, etag: str | None, max_bytes: int | None) -> tuple[bytes, ObjectHead, int | None]:
        """Bytes, head, number of tags."""

        def attempt():
            condition = {"IfMatch": f'"{etag}"'} if etag else {}
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **condition)
            with contextlib.closing(answer["Body"]) as body:
                head = self._head_of(key, answer, answer["ContentLength"])
                refuse_above(max_bytes, head.size, self.place(key))
                return body.read(), head, answer.get("TagCount")

        return patiently(attempt, self.place(key))

    def _tags(self, key: str) -> str:
        """The object's tags in the form that a write takes: a=1&b=2, URL-encoded."""
        answer = self.client.get_object_tagging(Bucket=self.bucket, Key=self.prefix + key)
        return urlencode([(tag["Key"], tag["Value"]) for tag in answer["TagSet"]], quote_via=quote)

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
        condition, writer = {}, None
        if if_absent or if_match:
            form = self._match_form or '"{}"'
            condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": form.format(if_match)}
            writer = uuid.uuid4().hex
        ours = {SHA256_METADATA: sha256} | ({WRITER_METADATA: writer} if writer else {})
        try:
            return self._put(key, data, condition | self._described(content_type, metadata, headers, ours), writer)
        except Changed as error:
            if if_absent:
                raise AlreadyExists(f"{self.place(key)}: there is an object already") from error
            raise

    def _put(self, key: str, data: bytes, options: dict, writer: str | None) -> str:
        """One PUT, retried; its etag. Where a retry finds that an earlier try of ours (`writer` in its metadata) was
        carried out although its answer was lost, that one counts."""
        digest = b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        tries = 0

        def attempt():
            nonlocal tries
            tries += 1
            answer = self.client.put_object(
                Bucket=self.bucket, Key=self.prefix + key, Body=bytes(data), ContentMD5=digest, **options
            )
            return answer["ETag"].strip('"')

        try:
            return patiently(attempt, self.place(key))
        except Changed:
            if writer and tries > 1:
                with contextlib.suppress(NotFound):
                    there = self.head(key)
                    if there.metadata.get(WRITER_METADATA) == writer:
                        return there.etag
            raise

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
        if "Expires" in described and parsed_date(described["Expires"]) is None:
            del described["Expires"]  # not a date: boto3 sends none but dates
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
        return bool(self._conditional)

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


def standard_is_none(storage_class: str | None) -> str | None:
    return None if storage_class in (None, "", "STANDARD") else storage_class


def carried_headers(answer: dict) -> dict[str, str]:
    """CARRIED_HEADERS of a GET's or HEAD's answer, as text."""
    found = {name: as_text(answer[name]) for name in CARRIED_HEADERS if isinstance(answer.get(name), str)}
    if answer.get("ExpiresString"):
        found["Expires"] = answer["ExpiresString"]
    return {name: value for name, value in found.items() if value}


def parsed_date(value: str) -> datetime | None:
    try:
        return parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None


def as_header(value: str) -> str:
    """ASCII form of a metadata value; RFC 2047 where it is needed, as S3 itself answers."""
    return value if value.isascii() else Header(value, "utf-8", maxlinelen=4096).encode()


def as_text(value: str) -> str:
    """A header's value as it came: UTF-8 that the HTTP layer read as Latin-1 is put right."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except (UnicodeEncodeError, UnicodeDecodeError):
        return value
