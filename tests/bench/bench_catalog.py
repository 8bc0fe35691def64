"""A night of 10,000 new objects over a catalog of 1,000,000: time and peak memory, by step.

    tests/bench/bench_catalog.py [--known 1000000] [--new 10000] [--vectors] [--only steps|night] [--out FILE.json]

The catalog is made up, as tasks/night/catalog.py stores it: every column filled, keys in 120 folders, eight rows in ten
compressed, one in ten a duplicate of the row before it, the rest kept, skipped or failed; hashes are bench_pairs.py's
`skewed` codes, one in ten a near copy of another. Of the new rows one in fifty has the bytes of a known picture, one in
fifty its pixels. Steps are the night's own functions in its own order, in one fresh process; peak memory is the whole
process's during the step (VmHWM, set back before each). Second looks are answered here (yes within 3 bits) and
counted; on workers each costs what reading and decoding two pictures costs.

Then two real runs of `nightpress run` against the demo's S3 server (moto): one of a few
photographs; then the made-up rows are put into its catalog and the next night lists them through an S3 Inventory,
with a few photographs that are new and re-encoded copies of old ones, which must become their duplicates.
"""

import argparse
import binascii
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_listing import key_at
from bench_pairs import codes_of, memory

OLD, FRESH, COPIES = 6, 4, 4  # photographs of the real nights: known, new, re-encoded from known ones
DIMENSIONS, LEAST = 128, 0.4  # of an embedding; cosine from which the night proposes pairs
RUN = "20260101T020000Z-0001"
THEN = datetime(2026, 1, 1, 2, tzinfo=UTC)


# --- made-up rows


@functools.cache
def hashes(known: int, new: int) -> np.ndarray:
    """pHashes of both, uint64[known + new]: of one make, so that some of the new are near copies of known ones."""
    return np.random.default_rng(7).permutation(codes_of("skewed", known + new))


def in_hex(random: np.random.Generator, n: int, digits: int) -> list[str]:
    text = binascii.hexlify(random.bytes(n * digits // 2)).decode()
    return [text[at : at + digits] for at in range(0, len(text), digits)]


def in_vectors(random: np.random.Generator, n: int) -> list[bytes]:
    """Directions in DIMENSIONS as the catalog stores them, float16."""
    vectors = random.standard_normal((n, DIMENSIONS), np.float32)
    return stored_vectors(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def stored_vectors(vectors: np.ndarray) -> list[bytes]:
    return [vector.tobytes() for vector in vectors.astype(np.float16)]


def made_up(known: int, new: int, start: int, stop: int, vectors: bool = False) -> pa.Table:
    """Rows start..stop of the catalog (below `known`), or of the new objects after it; CATALOG_SCHEMA, by key."""
    from tasks.night.catalog import CATALOG_SCHEMA

    n, random = stop - start, np.random.default_rng([11, start])
    at = np.arange(start, stop)
    fresh = start >= known
    keys = [f"new/img_{i:08d}.jpg" if fresh else key_at(i, known, "folders") for i in range(start, stop)]
    status = np.array(["compressed"] * 8 + ["duplicate", "kept"], object)[at % 10]
    status[at % 200 == 199], status[at % 400 == 399] = "skipped", "failed"
    picture, compressed = np.isin(status, ["compressed", "duplicate", "kept"]), status == "compressed"
    stored = compressed | (status == "duplicate")
    if fresh:
        status, picture, compressed, stored = np.full(n, None), np.full(n, True), np.full(n, False), np.full(n, False)
    keeper = np.where(status == "duplicate", at - 1, -1)
    codes = hashes(known, new)[start:stop]
    codes = np.where(keeper >= 0, np.r_[0, codes[:-1]].astype(np.uint64), codes)
    width, height = random.choice([1600, 2048, 3024, 4032], n), random.choice([1066, 1365, 2268, 3024], n)
    size = random.integers(200_000, 6_000_000, n)
    packed = random.integers(20_000, 600_000, n)

    def where(mask, values):
        return [value if one else None for one, value in zip(mask.tolist(), values, strict=True)]

    columns = {
        "key": keys, "status": status.tolist(), "first_run": [None if fresh else RUN] * n, "size": size,
        "reason": where(~compressed & ~picture, ["no picture"] * n), "source_bytes": size,
        "stored_bytes": np.where(compressed, packed, 0), "etag": in_hex(random, n, 32),
        "output_key": where(stored, [f"objects/{RUN}/{max(i - (k >= 0), 0):08d}.npi"
                                     for i, k in zip(at.tolist(), keeper.tolist(), strict=True)]),
        "width": width, "height": height, "true_pixels": width * height, "format": ["JPEG"] * n, "mode": ["RGB"] * n,
        "sha256": in_hex(random, n, 64), "pixel_sha256": where(picture, in_hex(random, n, 64)),
        "ahash": where(picture, in_words(~codes)), "dhash": where(picture, in_words(codes << np.uint64(1))),
        "phash": where(picture, in_words(codes)), "hash_method": where(picture, ["full"] * n),
        "keeper_key": where(keeper >= 0, [None, *keys[:-1]]),
        "hamming_distance": where(keeper >= 0, [0] * n), "duplicate_kind": where(keeper >= 0, ["near"] * n),
        "noise_sigma": random.gamma(2.0, 0.7, n), "denoised": [False] * n, "upscaled": [False] * n,
        "quality": where(stored, random.uniform(30, 70, n).tolist()),
        "bpp": where(stored, random.uniform(0.2, 1.4, n).tolist()),
        "psnr": where(stored, random.uniform(31, 40, n).tolist()),
        "ms_ssim": where(stored, random.uniform(0.98, 0.9802, n).tolist()),
        "psnr_source": where(stored, random.uniform(31, 40, n).tolist()),
        "codec": where(stored, ["1"] * n), "model": where(stored, ["0123456789abcdef"] * n),
        "seconds": random.uniform(0.2, 4.0, n), "modified": [THEN] * n, "content_type": ["image/jpeg"] * n,
        "output_sha256": where(stored, in_hex(random, n, 64)), "exif_bytes": random.integers(0, 9000, n),
        "jpeg_quality": random.integers(70, 98, n), "at_source": [True] * n, "retry": [False] * n,
    }  # fmt: skip
    if vectors:
        columns["embedding"] = where(picture, in_vectors(random, n))
        columns["embedding_id"] = where(picture, ["0123456789abcdef"] * n)
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in CATALOG_SCHEMA]
    return pa.table(arrays, schema=CATALOG_SCHEMA)


def in_words(codes: np.ndarray) -> list[str]:
    """16 hex digits each."""
    text = binascii.hexlify(codes.astype(">u8").tobytes()).decode()
    return [text[at : at + 16] for at in range(0, len(text), 16)]


def planted(rows: pa.Table, catalog: pa.Table, vectors: bool) -> pa.Table:
    """New rows, one in fifty with the bytes of a known picture, one with its pixels, one with a vector near its own."""
    names = ("sha256", "pixel_sha256", "embedding")[: 3 if vectors else 2]
    columns = {name: rows[name].to_pylist() for name in names}
    random = np.random.default_rng(13)
    donors = np.flatnonzero(np.array(catalog["status"].to_pylist()) == "compressed")
    chosen = random.choice(donors, len(names) * (len(rows) // 50), replace=False).tolist()
    for number, donor in enumerate(chosen):
        name = names[number % len(names)]
        value = catalog[name][donor].as_py()
        if name == "embedding":
            near = np.frombuffer(value, np.float16) + 0.05 * random.standard_normal(DIMENSIONS)
            value = stored_vectors(near[None] / np.linalg.norm(near))[0]
        columns[name][(number // len(names)) * 50 + number % len(names)] = value
    for name, values in columns.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, name, pa.array(values, rows.schema.field(at).type))
    return rows


def write_catalog(dest: str, known: int, new: int, vectors: bool) -> int:
    """The catalog and the manifest that names it, under DEST; its bytes."""
    from tasks.night.catalog import PART_ROWS, write_table
    from tasks.night.runs import write_json
    from tasks.stores.open import open_store

    store = open_store(dest)
    for number, start in enumerate(range(0, known, PART_ROWS)):
        part = made_up(known, new, start, min(start + PART_ROWS, known), vectors)
        write_table(store, f"catalog/{RUN}/part-{number:05d}.parquet", part)
    write_json(store, f"runs/{RUN}/manifest.json", {"run_id": RUN, "catalog": f"catalog/{RUN}/"})
    return sum(info.size for info in store.list("catalog/"))


# --- the night's functions, step by step


class Steps:
    """Seconds, on the clock and of processors (the same on a quiet machine, threads aside), and peak memory by step."""

    def __init__(self):
        self.rows: list[dict] = []

    def time(self, name: str, body):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is held now
        except OSError:
            pass  # the peak is then that of the process so far
        begun, cpu = time.perf_counter(), time.process_time()
        result = body()
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        self.rows.append({
            "step": name, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
            "peak_mb": round(memory("VmHWM") / 1e6), "held_mb": round(memory("VmRSS") / 1e6),
        })  # fmt: skip
        return result


def steps(dest: str, known: int, new: int, vectors: bool) -> dict:
    """The coordinator's part of the night over the catalog under DEST."""
    from tasks.night import listing, plan, publish
    from tasks.night.catalog import read_catalog
    from tasks.night.runs import latest_manifest
    from tasks.stores.base import ObjectInfo
    from tasks.stores.open import open_store

    fresh = made_up(known, new, known, known + new, vectors)
    warm = fresh.slice(0, 50)
    plan.find_duplicates(warm, fresh.slice(50, 50), "near", lambda pairs: [])  # compiled, or loaded as compiled
    store, asked, clock = open_store(dest), [], Steps()
    manifest = latest_manifest(store)
    catalog = clock.time("read the catalog", lambda: read_catalog(store, manifest))
    fresh = planted(fresh, catalog, vectors)

    def infos():
        for batch in pa.concat_tables([catalog, fresh]).select(["key", "size", "etag", "modified"]).to_batches(10_000):
            for row in batch.to_pylist():
                yield ObjectInfo(**row)

    listed = clock.time("take in the listing", lambda: listing.list_source(infos(), lambda key: True))
    compared = clock.time("what is new, shards", lambda: listing.with_shards(listing.compare(listed, catalog)))
    gone = listing.vanished(compared, catalog)
    places = compared["known"].to_numpy()
    held = clock.time("known rows", lambda: catalog.take(pa.array(np.concatenate([places[places >= 0], gone]))))

    def confirm(pairs):
        asked.append(len(pairs))
        apart = [int(keeper["phash"], 16) ^ int(member["phash"], 16) for keeper, member in pairs]
        asked_by_vector = [member["by_embedding"] for _, member in pairs]
        return [
            plan.Answer(bits.bit_count() <= 3 or by_vector, 35.0)
            for bits, by_vector in zip(apart, asked_by_vector, strict=True)
        ]

    def duplicates(dedup: str):
        return plan.find_duplicates(fresh, held, dedup, confirm, LEAST)

    exact = clock.time("exact and pixel duplicates", lambda: duplicates("exact"))
    found = clock.time("all duplicates, near ones too", lambda: duplicates("near"))
    decided = plan.with_columns(fresh, found)
    alone = [{"status": "kept", "reason": "not compressed in this bench"} if one is None else None for one in found]
    decided = plan.with_columns(decided, alone)
    rows, whole = clock.time("whole state", lambda: publish.whole_state(compared, decided, catalog, gone))
    clock.time("check it", lambda: publish.check_state(whole))
    clock.time("write report, catalog, removable.csv",
               lambda: publish.write_tables(store, "20260102T020000Z-0002", rows, whole, store))  # fmt: skip
    kinds = [one["duplicate_kind"] for one in found if one]
    return {"steps": clock.rows, "new": compared.filter(pa.array(places < 0)).num_rows, "looks": sum(asked),
            "batches": len(asked), "exact_alone": sum(one is not None for one in exact),
            "duplicates": {kind: kinds.count(kind) for kind in sorted(set(kinds))}}  # fmt: skip


# --- real nights


def the_night(command: list[str]) -> tuple[float, dict, dict]:
    """(wall seconds, manifest, peak MB by role) of `nightpress run`."""
    from bench_night import Watcher

    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", *command, "--workers", "1", "--quality", "50", "--json"],
            stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        watcher = Watcher(process.pid)
        watcher.start()
        manifest, _ = process.communicate()
        wall = time.perf_counter() - begun
        watcher.ended.set()
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"the night ended with {process.returncode}: {log.read()[-3000:]}")
    return wall, json.loads(manifest), watcher.peaks


def write_inventory(folder: Path, bucket: str, parts) -> str:
    """An S3 Inventory of the tables' keys, sizes and etags, a Parquet file each; its manifest's path."""
    import hashlib

    import pyarrow.parquet as pq

    files = []
    for number, table in enumerate(parts):
        data = folder / f"{number}.parquet"
        names = {"key": "key", "size": "size", "modified": "last_modified_date", "etag": "e_tag"}
        pq.write_table(table.select(list(names)).rename_columns(list(names.values())), data)
        digest = hashlib.md5(data.read_bytes(), usedforsecurity=False).hexdigest()
        files.append({"key": data.name, "size": data.stat().st_size, "MD5checksum": digest})
    manifest = {"sourceBucket": bucket, "fileFormat": "Parquet", "fileSchema": "message s3", "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return str(folder / "manifest.json")


def nights(folder: Path, known: int, new: int) -> dict:
    """A night of a few photographs, then one over the made-up catalog with a few more."""
    import io

    import boto3
    from bench_night import cut
    from PIL import Image

    from flows.embedded_s3 import SOURCE_BUCKET, embedded_s3
    from tasks.night.catalog import PART_ROWS, read_catalog, read_report, write_table
    from tasks.stores.open import open_store

    cut(folder / "pictures", OLD + FRESH, None)
    pictures = sorted((folder / "pictures").iterdir())
    dest = folder / "dest"
    with embedded_s3():
        client, source = boto3.client("s3"), f"s3://{SOURCE_BUCKET}/"

        def put(name: str, data: bytes) -> None:
            client.put_object(Bucket=SOURCE_BUCKET, Key=name, Body=data, ContentType="image/jpeg")

        for path in pictures[:OLD]:
            put(f"real/{path.name}", path.read_bytes())
        wall, manifest, _ = the_night([source, str(dest)])
        out = {"first": {"seconds": round(wall, 1), "counts": manifest["counts"]}}
        store = open_store(str(dest))
        for number, start in enumerate(range(0, known, PART_ROWS)):
            part = made_up(known, new, start, min(start + PART_ROWS, known))
            write_table(store, f"{manifest['catalog']}part-9{number:04d}.parquet", part)
        for path in pictures[OLD:]:
            put(f"real/{path.name}", path.read_bytes())
        for path in pictures[:COPIES]:
            again = io.BytesIO()
            Image.open(path).save(again, "JPEG", quality=60)
            put(f"real/again-{path.name}", again.getvalue())
        real = [{"key": info.key, "size": info.size, "etag": info.etag, "modified": info.modified}
                for info in open_store(source).list()]  # fmt: skip
        catalog = read_catalog(store, manifest).select(["key", "size", "etag", "modified"])
        known_rows = catalog.filter(~np.char.startswith(np.array(catalog["key"].to_pylist(), str), "real/"))
        (folder / "inventory").mkdir()
        listed = write_inventory(folder / "inventory", SOURCE_BUCKET, [known_rows, pa.Table.from_pylist(real)])
        wall, manifest, peaks = the_night([source, str(dest), "--inventory", listed])
    report = read_report(store, manifest).select(["key", "status", "keeper_key"]).to_pylist()
    rows = {row["key"]: row for row in report if row["key"].startswith("real/again-")}
    for name, row in rows.items():
        if row["keeper_key"] != name.replace("again-", ""):
            raise SystemExit(f"{name} is a copy and became {row}")
    stages = {stage["stage"]: stage["seconds"] for stage in manifest["stages"]}
    return out | {"second": {"seconds": round(wall, 1), "counts": manifest["counts"], "objects": manifest["objects"],
                             "stages": stages, "peak_mb": {role: round(mb) for role, mb in peaks.items()}}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=1_000_000, help="rows of the catalog")
    parser.add_argument("--new", type=int, default=10_000, help="new objects")
    parser.add_argument("--vectors", action="store_true", help="with an embedding of every picture, in the steps")
    parser.add_argument("--only", choices=("steps", "night"), help="the steps alone, or the real runs alone")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", metavar="DEST", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.steps:
        print(json.dumps(steps(args.steps, args.known, args.new, args.vectors)))
        return
    result = {"known": args.known}
    with tempfile.TemporaryDirectory(prefix="nightpress-catalog-") as folder:
        if args.only != "night":
            result |= timed_steps(folder, args.known, args.new, args.vectors)
        if args.only != "steps":
            result["nights"] = timed_nights(Path(folder), args.known, args.new)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1))


def timed_steps(folder: str, known: int, new: int, vectors: bool) -> dict:
    """The catalog made, `steps` in a process of its own, both printed."""
    begun = time.perf_counter()
    size = write_catalog(folder, known, new, vectors)
    made = time.perf_counter() - begun
    print(f"catalog of {known:,} rows: {size / 1e6:.0f} MB, made up in {made:.0f} s", flush=True)
    command = [sys.executable, __file__, "--steps", folder, "--known", str(known), "--new", str(new)]
    command += ["--vectors"] if vectors else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    result = {"catalog_bytes": size, **json.loads(done.stdout)}
    print(f"{'step':<38} {'seconds':>8} {'CPU s':>8} {'peak MB':>8} {'held MB':>8}")
    for row in result["steps"]:
        spent = f"{row['seconds']:>8.2f} {row['cpu_seconds']:>8.2f}"
        print(f"{row['step']:<38} {spent} {row['peak_mb']:>8} {row['held_mb']:>8}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in result["duplicates"].items())
    looks = f"{result['looks']:,} second looks in {result['batches']} batches"
    whole, cpu = (sum(row[name] for row in result["steps"]) for name in ("seconds", "cpu_seconds"))
    print(f"{result['new']:,} new: {kinds}; {looks}")
    print(f"{result['new']:,} new among {known:,}: {whole:.0f} s in all, {cpu:.0f} s of CPU", flush=True)
    return result


def timed_nights(folder: Path, known: int, new: int) -> dict:
    """`nights`, printed."""
    real = nights(folder, known, new)
    second = real["second"]
    print(f"real night over {second['objects']:,} objects, {FRESH + COPIES} of them new: {second['counts']}")
    print("  " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in second["stages"].items()))
    print("  peak memory: " + ", ".join(f"{role} {mb} MB" for role, mb in second["peak_mb"].items()))
    first = f"the night before, {OLD} objects over nothing: {real['first']['seconds']:.1f} s"
    print(f"real night of {FRESH + COPIES} new among {known:,}: {second['seconds']:.1f} s in all; {first}")
    return real


if __name__ == "__main__":
    main()
