"""From a URL to its store: `s3://bucket/prefix` or a local folder; whether two of them overlap."""

from __future__ import annotations

import os
import re

from tasks.stores.base import Store
from tasks.stores.local import LocalStore
from tasks.stores.s3 import S3Store


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
