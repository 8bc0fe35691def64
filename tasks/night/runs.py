"""Which runs there are under a DEST, and what is written of one under way: settings, finished shards, resumption.

    runs/<run id>/work/settings.json     the run has begun: what was asked for, on which state it builds
    runs/<run id>/work/<stage>/<shard>.parquet   a shard of a stage is done; written after everything it describes
    runs/<run id>/work/aborted.json      too many failures: transient ones are tried again by the next attempt
    catalog/<run id>/part-*.parquet      the whole state after the run, read by the next night (catalog.py)
    runs/<run id>/manifest.json          the run exists; written last (publish.py)

An unfinished run is taken up again when it was asked for the same things and builds on the same state; every
shard whose file is there is read instead of done. What the steps do is theirs; which step follows which is
flows/nightly.py's.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import pyarrow as pa

from tasks.night.catalog import READERS, read_table
from tasks.stores.base import NotFound, Store, StoreError
from tasks.stores.open import open_store


@dataclass(frozen=True)
class Night:
    """What a worker needs to know of the run. Small and picklable; stores are opened where they are used."""

    run_id: str
    source: str
    dest: str
    quality: float | None = None  # one of quality, (metric, target) and budget
    metric: str | None = None  # ssimulacra2, psnr, ms-ssim
    target: float | None = None
    dedup: str = "near"
    embedding: str | None = None  # copy, classifier, autoencoder, or the key under DEST of a user's own network
    denoise: bool = False
    superres: bool = False
    codec: str = "learned"  # policy of forms: learned, lossless, avif, jxl, smallest
    min_gain: float = 10.0  # percent
    max_pixels: int = 200_000_000
    device: str = "auto"
    model: str | None = None  # id of the codec's model, 16 hex digits

    @property
    def folder(self) -> str:
        return f"runs/{self.run_id}/"


@lru_cache(8)
def store_of(url: str) -> Store:
    """One store object per URL and process."""
    return open_store(url)


def new_run_id(now: datetime | None = None) -> str:
    """`20260101T020000Z-1f3c`: sorts by time."""
    return f"{(now or datetime.now(UTC)):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


# --- finding the run to build on, and the run to go on with ---


class NoRun(NotFound):
    """DEST has no such complete run; the message says which there are."""


def read_manifest(dest: Store, run_id: str) -> dict | None:
    """The run's manifest, None where it has none (yet). StoreError where what lies there is no manifest."""
    key = f"runs/{run_id}/manifest.json"
    try:
        content = json.loads(dest.read(key))
        return {"run_id": run_id} | content
    except NotFound:
        return None
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{dest.place(key)} is not a manifest ({error}); restore it from a version or a backup"
        ) from error


def latest_manifest(dest: Store) -> dict | None:
    """The newest complete run's manifest, None where there is none."""
    return next(filter(None, (read_manifest(dest, run_id) for run_id in run_ids(dest))), None)


def find_run(dest: Store, run_id: str | None = None) -> dict:
    """The manifest of a run, by default of the newest complete one. Raises NoRun."""
    manifest = read_manifest(dest, run_id) if run_id else latest_manifest(dest)
    if manifest:
        return manifest
    begun = run_ids(dest)
    if not begun:
        raise NoRun(f"no run under {dest.url}; check the name, or start one with `nightpress run SOURCE {dest.url}`")
    complete = [name for name in begun if dest.exists(f"runs/{name}/manifest.json")]
    if not complete:
        raise NoRun(f"no run under {dest.url} is complete yet; the same `nightpress run` again finishes {begun[0]}")
    raise NoRun(f"no complete run {run_id} under {dest.url}; the newest there: {', '.join(complete[:3])}")


def run_ids(dest: Store) -> list[str]:
    """Runs begun under DEST, newest first, complete or not."""
    names = [prefix.rstrip("/").rpartition("/")[2] for prefix in dest.list_prefixes("runs/")]
    return sorted((name for name in names if RUN_ID.fullmatch(name)), reverse=True)


def unfinished_run(dest: Store, fingerprint: str, base: str | None) -> dict | None:
    """settings.json of the newest run without a manifest, if it is the same work on the same state, else None."""
    for run_id in run_ids(dest):
        if read_manifest(dest, run_id) is not None:
            return None
        begun = read_json(dest, f"runs/{run_id}/work/settings.json")
        if begun and begun.get("fingerprint") == fingerprint and begun.get("base") == base:
            return begun
    return None


def read_json(store: Store, key: str) -> dict | None:
    """A JSON object, None where there is none (or where it is no JSON: a crash cannot leave that, a person can)."""
    try:
        content = json.loads(store.read(key))
    except (NotFound, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(store: Store, key: str, content: dict, **conditions) -> None:
    data = json.dumps(content, indent=1, ensure_ascii=False, default=str).encode()
    store.write(key, data, content_type="application/json", **conditions)


# --- work in progress ---


def work_key(night: Night, stage: str, shard: str) -> str:
    return f"{night.folder}work/{stage}/{shard}.parquet"


def finished_shards(dest: Store, night: Night, stage: str) -> set[str]:
    """Shards of a stage whose file is there."""
    prefix = f"{night.folder}work/{stage}/"
    keys = (info.key for info in dest.list(prefix))
    return {key[len(prefix) :].removesuffix(".parquet") for key in keys if key.endswith(".parquet")}


def read_shards(dest: Store, night: Night, stage: str, shards: Iterable[str]) -> Iterator[tuple[str, pa.Table]]:
    """(shard, table) in the order given, several being read at once."""
    shards = list(shards)
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda shard: read_table(dest, work_key(night, stage, shard)), shards)
        yield from zip(shards, tables, strict=True)


def clear_work(dest: Store, night: Night) -> None:
    """Remove the run's work in progress; it means nothing once the manifest is there."""
    keys = [info.key for info in dest.list(f"{night.folder}work/")]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(dest.delete, keys))
