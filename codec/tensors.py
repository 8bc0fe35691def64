"""Files of named arrays with a format's name in their metadata: safetensors, by its own package.

What stands in a model's file is network/files.py's; no torch here.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy


def packed_tensors(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """Bytes of a safetensors file, the same for the same content: the package's order of metadata changes from process
    to process, and a model's id is a hash of the file."""
    data = safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata)
    header, body = _header_of(data)
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[body:]


def _header_of(data: bytes) -> tuple[dict, int]:
    """The header of a sound safetensors file, and where the arrays begin."""
    body = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:body]), body


def read_tensors(source: str | Path | bytes, wanted: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file whose metadata name the format `wanted`. Raises ValueError."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        arrays = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a type that numpy lacks
        raise ValueError(f"no safetensors file of numbers: {error}") from error
    metadata = _header_of(data)[0].get("__metadata__") or {}
    if metadata.get("format") != wanted:
        raise ValueError(f"its format is {metadata.get('format')!r}, wanted is {wanted!r}")
    return arrays, metadata


def model_id(source: str | Path | bytes) -> str:
    """First 16 hex digits of the sha256 of a model file."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]
