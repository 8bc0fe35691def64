"""Codec models beside the bitstreams that need them: DEST/models/<id>.safetensors, taken from there and checked.

A model's id is the first 16 hex digits of its file's sha256, so that what was fetched proves itself.
"""

import hashlib
from pathlib import Path

from tasks.stores.base import Store, StoreError


def model_key(identity: str) -> str:
    return f"models/{identity}.safetensors"


def fetch_model(dest: Store, identity: str, folder: Path) -> Path:
    """The model's file in `folder`, read from DEST. Raises StoreError where it is gone or damaged."""
    key = model_key(identity)
    data = dest.read(key)
    found = hashlib.sha256(data).hexdigest()[:16]
    if found != identity:
        raise StoreError(f"{key} under DEST is damaged: its hash is {found}; bring it back from a version or a backup")
    path = folder / f"{identity}.safetensors"
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
    return path
