"""Fingerprint: each new object is read once, opened, hashed and judged; what is no sound picture is a row from here on.

A row leaves with status null where it is a picture to be compressed (or to become a duplicate), with `kept`, `skipped`
or `failed` and a reason otherwise. `denoised` says here what is planned for it. Hashes are
duplicates/perceptual_hash.py's, what is noise restoration/decision.py's, what counts as a sound picture
codec/pictures's.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from codec.pictures.errors import BrokenPicture, DamagedPicture, NotAPicture, PictureError, UncarriedPicture
from codec.pictures.files import Picture, open_picture, pixel_sha256
from codec.pictures.metadata import Metadata
from codec.pictures.profiles import is_srgb
from tasks.duplicates.perceptual_hash import hashes_of
from tasks.duplicates.rules import true_pixels
from tasks.forms.content import kind_of
from tasks.night.catalog import CATALOG_SCHEMA, table_of
from tasks.night.duplicate_metadata import save_shard
from tasks.night.listing import listed_row
from tasks.night.model_files import local_copy
from tasks.night.runs import Night, store_of
from tasks.night.shards import Stopwatch
from tasks.restoration.decision import decide
from tasks.restoration.noise import noise_sigma
from tasks.stores.base import ObjectHead, StoreError

MAX_BYTES = 1 << 30  # of a file that is read whole
PEEK_ABOVE = 32 << 20  # larger files are looked at from both ends before they are read
PEEK = 1 << 16


def fetch(night: Night, item: dict) -> tuple[bytes, ObjectHead | None]:
    """The object's bytes, if they are still those that were listed, and what its GET says about it.

    Of a large file that is no picture (a video, an archive) only both ends, with None. Raises StoreError.
    """
    source = store_of(night.source)
    if item["size"] > PEEK_ABOVE:
        length = min(PEEK, item["size"])
        ends = source.read_range(item["key"], 0, length, etag=item["etag"])
        ends += source.read_range(item["key"], item["size"] - length, length, etag=item["etag"])  # TGA signs at the end
        try:
            open_picture(ends, night.max_pixels)
        except NotAPicture:
            return ends, None
        except PictureError:
            pass
    return source.fetch(item["key"], etag=item["etag"], max_bytes=MAX_BYTES)


@dataclass(frozen=True)
class InspectedObject:
    """One object's row, and what its file says beside the pixels (None: it is no picture that can be coded)."""

    row: dict
    metadata: Metadata | None = None


def inspect_object(night: Night, item: dict, fetched) -> InspectedObject:
    """The row of one object as far as looking at it can say; never raises for what is wrong with the object."""
    watch = Stopwatch()
    row, metadata = listed_row(night, item), None
    try:
        if isinstance(fetched, StoreError):
            raise fetched
        data, head = fetched
        if head is not None:
            row["sha256"] = hashlib.sha256(data).hexdigest()
            row["version"] = head.version or row["version"]
            row["content_type"] = head.content_type
            row["metadata"] = json.dumps(head.metadata) if head.metadata else None
            row["headers"] = json.dumps(head.headers) if head.headers else None
        picture = open_picture(data, night.max_pixels)
        metadata = picture.metadata
        if picture.exact:
            row |= {"status": "kept", "reason": f"a lossy codec would spoil it: {picture.exact}", "exact_only": True}
        row |= facts(picture, night.denoise and not picture.exact) | vector(night, picture.image)
    except StoreError as error:
        row |= failure(error, str(error)) | {"retry": True}
    except NotAPicture as error:
        row |= {"status": "skipped", "reason": error.reason}
    except UncarriedPicture as error:
        change = {"status": "kept", "reason": f"no lossy form carries it: {error.reason}", "exact_only": True}
        row |= change | shape(error)
    except DamagedPicture as error:
        row |= {"status": "kept", "reason": f"it is damaged, and stays as it is: {error.reason}"} | shape(error)
    except BrokenPicture as error:
        row |= failure(error, error.reason) | shape(error)
    except Exception as error:  # a decoder's own bug over one file must not cost the night
        row |= failure(error, f"looking at it failed: {type(error).__name__}: {error}")
    row["seconds"] = watch.seconds
    return InspectedObject(row, metadata)


def facts(picture: Picture, denoise: bool) -> dict:
    """Columns that the decoded picture gives."""
    image = picture.image
    decision = decide(image, picture.jpeg_quality) if denoise else None
    cleaned = decision is not None and decision.noisy
    icc = None if picture.icc and is_srgb(picture.icc) else picture.icc
    colour = b"".join(part or b"" for part in (icc, picture.colour))
    return {
        "width": image.width, "height": image.height, "format": picture.format, "mode": picture.mode,
        "pixel_sha256": pixel_sha256(image), **hashes_of(image), "hash_method": "full",
        "noise_sigma": decision.sigma if decision else noise_sigma(image), "denoised": cleaned,
        **({"reason": f"cleaned: {decision.why}"} if cleaned else {}),
        "colour_sha256": hashlib.sha256(colour).hexdigest() if colour else None,
        "exif_bytes": len(picture.exif or b""), "true_pixels": true_pixels(image),
        "jpeg_quality": picture.jpeg_quality, "content": kind_of(image),
    }  # fmt: skip


def vector(night: Night, image: Image.Image) -> dict:
    """The picture's embedding, where the night compares them."""
    if night.embedding is None:
        return {}
    embedder = embedder_of(night.dest, night.embedding)
    return {"embedding": embedder.embed([image])[0].astype(np.float16).tobytes(), "embedding_id": embedder.id}


@lru_cache(2)
def embedder_of(dest: str, embedding: str):
    """The network that Night.embedding names, loaded once per process. Raises EmbeddingError, StoreError."""
    from tasks.duplicates.embeddings.embedder import KINDS, open_embedder

    return open_embedder(embedding if embedding in KINDS else str(local_copy(store_of(dest), embedding)))


def shape(error: PictureError) -> dict:
    """What is known of a picture that cannot be had."""
    return {name: getattr(error, name) for name in ("width", "height", "format", "mode")}


def failure(error: Exception, reason: str) -> dict:
    return {"status": "failed", "reason": reason, "error": f"{type(error).__name__}: {error}"}


def killed_row(night: Night, item: dict, why: str) -> InspectedObject:
    """The row of an object over which workers keep dying."""
    change = {"status": "failed", "reason": why, "error": f"KilledWorker: {why}", "seconds": 0.0}
    return InspectedObject(listed_row(night, item) | change)


def gather(night: Night, shard: str, results: list[InspectedObject]):
    places = save_shard(store_of(night.dest), night, shard, [result.metadata for result in results])
    return table_of([result.row | place for result, place in zip(results, places, strict=True)], CATALOG_SCHEMA)
