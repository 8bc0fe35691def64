"""Models as the night handles them: which file the codec's is, its copy under DEST/models, a user's own network.

Knows files and hashes only and loads no network: a night with nothing to do must not pay for one.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from codec.errors import UnknownModel
from codec.models import default_model
from tasks.machine import cache_folder
from tasks.stores.base import AlreadyExists, Store

VARIABLE = "NIGHTPRESS_CODEC"


@dataclass(frozen=True)
class ModelFile:
    """identity: the first 16 hex digits of the file's sha256, as bitstreams name it."""

    identity: str
    path: Path


class NoModel(Exception):
    """The package holds no trained codec."""


def codec_model() -> ModelFile:
    """The model to compress with: the file that $NIGHTPRESS_CODEC names, else the package's. Raises NoModel."""
    return _codec_model(os.environ.get(VARIABLE))


@cache
def _codec_model(named: str | None) -> ModelFile:
    if named:
        try:
            return ModelFile(identity_of(Path(named)), Path(named))
        except OSError as error:
            raise NoModel(f"${VARIABLE} names {named}: {error.strerror}") from None
    try:
        found = default_model()
    except UnknownModel as error:
        raise NoModel(str(error)) from error
    return ModelFile(identity_of(found), found)


def identity_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def embedding_of(dest: Store, named: str | None) -> str | None:
    """What workers are told of --dedup-embedding: the kind, or the key under DEST that a FILE.onnx was copied to.

    Raises EmbeddingError where the network can't be used, ModuleNotFoundError without the extra `embedding`.
    """
    from tasks.duplicates.embeddings.embedder import KINDS, open_embedder

    if named is None:
        return None
    import faiss  # noqa: F401 - what searches the vectors: missing, it is missed here and not after hours of reading

    if named in KINDS:
        return named
    key = f"models/{open_embedder(named).id}.onnx"
    if not dest.exists(key):
        with contextlib.suppress(AlreadyExists):
            dest.write(key, Path(named).read_bytes(), content_type="application/octet-stream")
    return key


def embedding_identity(embedding: str | None) -> list[str]:
    """What a run's fingerprint has to hold of Night.embedding: a network of ours may change with the package."""
    from tasks.duplicates.embeddings.embedder import KINDS, WEIGHTS

    return [identity_of(WEIGHTS / f"embedding-{embedding}.safetensors")] if embedding in KINDS else []


def local_copy(dest: Store, key: str) -> Path:
    """A file under DEST/models on this machine, fetched on first use. Raises StoreError."""
    base = cache_folder("models")
    file = base / key.rpartition("/")[2]
    if not file.exists():
        data = dest.read(key)
        base.mkdir(parents=True, exist_ok=True)
        part = base / f".{file.name}.{os.getpid()}"
        part.write_bytes(data)
        part.replace(file)
    return file


def copy_model(dest: Store, identity: str) -> None:
    """Put the model under DEST/models, before the first bitstream that needs it."""
    key = f"models/{identity}.safetensors"
    model = codec_model()
    if model.identity != identity:
        raise NoModel(f"this run began with model {identity}, the installation has {model.identity} now")
    if dest.exists(key):
        return
    try:
        dest.write(key, model.path.read_bytes(), content_type="application/octet-stream")
    except AlreadyExists:
        pass
