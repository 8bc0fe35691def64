"""Kills: nights that lose a worker, or die whole, at a random moment; each must end as an undisturbed one.

For each kill a fresh DEST: `nightpress run` is started, at a random moment SIGKILL goes to one of its workers or to
itself; where the whole run died the same command is given again. Then the report (all but first_run, seconds and the
run's id in names), the stored objects (bytes) and the catalog are compared with those of an undisturbed run, and what
was done again is counted. Prints a line a kill, the count of equal reports at the end; exit code 1 unless all are.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

VARYING = ("first_run", "seconds")  # besides the run's id inside names
COMMAND = [sys.executable, "-m", "flows.cli", "run"]


def photographs() -> list[Image.Image]:
    """Pictures that ship in scikit-image's wheel, RGB."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    return [Image.open(folder / name).convert("RGB") for name in names if (folder / name).exists()]


def fill(folder: Path, count: int, seed: int = 1) -> None:
    """`count` objects: crops of photographs as PNG and JPEG, with exact and resized copies and broken files."""
    rng = np.random.default_rng(seed)
    pictures = photographs()
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture = pictures[i % len(pictures)]
        left = int(rng.integers(0, picture.width - 200))
        top = int(rng.integers(0, picture.height - 200))
        crop = picture.crop((left, top, left + 200, top + 200))
        path = folder / f"{i % 5}" / f"{i:04d}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        crop.save(path, **({} if i % 2 else {"quality": 93}))
        if i % 6 == 0:
            shutil.copy(path, path.with_name(f"copy of {path.name}"))
        if i % 8 == 0:
            crop.resize((150, 150), Image.LANCZOS).save(path.with_name(f"small {i:04d}.jpg"), quality=90)
        if i % 10 == 0:
            path.with_name(f"broken {i:04d}.jpg").write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def start(source: Path, dest: Path, options: list[str]) -> subprocess.Popen:
    log = open(dest.with_suffix(".log"), "ab")
    with log:
        return subprocess.Popen([*COMMAND, str(source), str(dest), *options], stdout=log, stderr=log)


def finish(source: Path, dest: Path, options: list[str], timeout: float = 1800) -> float:
    begun = time.monotonic()
    process = start(source, dest, options)
    if process.wait(timeout):
        raise SystemExit(f"the run failed with {process.returncode}: {dest.with_suffix('.log').read_text()[-3000:]}")
    return time.monotonic() - begun


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Dask's worker processes of a run."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if any("multiprocessing" in word for word in words) and not any("resource_tracker" in word for word in words):
            found.append(child)
    return found


def the_run(dest: Path) -> Path:
    """The one complete run under DEST."""
    (manifest,) = dest.glob("runs/*/manifest.json")
    return manifest.parent


def outcome(dest: Path) -> dict:
    """What must be equal: rows, catalog, stored objects by name and hash, removable.csv, counts."""
    run = the_run(dest)
    manifest = json.loads((run / "manifest.json").read_text())

    def plain(value):
        return value.replace(run.name, "RUN") if isinstance(value, str) else value

    def rows(folder: Path) -> list[dict]:
        table = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        return [{name: plain(value) for name, value in row.items() if name not in VARYING} for row in table]

    objects = {
        plain(str(path.relative_to(dest))): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("objects", "models")
        for path in sorted((dest / folder).rglob("*"))
        if path.is_file()
    }
    named = ("objects", "source_bytes", "stored_bytes", "counts", "source", "removable")
    return {
        "report": rows(run / "report"),
        "catalog": rows(dest / "catalog" / run.name),
        "objects": objects,
        "removable": (run / "removable.csv").read_text(),
        "manifest": {name: manifest[name] for name in named},
    }


def markers(dest: Path) -> dict[str, tuple]:
    """Shards done so far, by when they were written."""
    return {
        str(path.relative_to(dest)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in dest.glob("runs/*/work/*/*.parquet")
    }


def shards_done(dest: Path) -> tuple[int, int]:
    """(shards done by this attempt, shards read from an earlier one) as the manifest's stages count them."""
    stages = json.loads((the_run(dest) / "manifest.json").read_text())["stages"]
    done = sum(stage["done"] - stage["resumed"] for stage in stages if "resumed" in stage)
    return done, sum(stage["resumed"] for stage in stages if "resumed" in stage)


def one_kill(source: Path, dest: Path, options: list[str], moment: float, whole: bool, chance: random.Random) -> str:
    """Start, kill at `moment` seconds, finish; a line of what happened."""
    process = start(source, dest, options)
    try:
        process.wait(moment)
        return "finished before the kill"
    except subprocess.TimeoutExpired:
        pass
    children = psutil.Process(process.pid).children(recursive=True)
    workers = workers_of(process)
    if whole or not workers:
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = len(markers(dest))
        gone, alive = psutil.wait_procs(children, 120)
        left = f", {len(alive)} processes left behind" if alive else ""
        if list(dest.glob("runs/*/manifest.json")):  # again would be the next night
            return f"run killed at {moment:.1f} s, after its commit{left}"
        seconds = finish(source, dest, options)
        _, kept = shards_done(dest)
        return f"run killed at {moment:.1f} s with {before} shards done, {kept} kept; again in {seconds:.1f} s{left}"
    victim = chance.choice(workers)
    victim.send_signal(signal.SIGKILL)
    if process.wait(1800):
        raise SystemExit(f"the run failed after its worker died: {dest.with_suffix('.log').read_text()[-3000:]}")
    return f"worker killed at {moment:.1f} s"


def different(a: dict, b: dict) -> str:
    """The first difference in words; '' where there is none."""
    for part in a:
        if a[part] == b[part]:
            continue
        if isinstance(a[part], list):
            for one, other in zip(a[part], b[part], strict=False):
                if one != other:
                    names = [name for name in one if one[name] != other.get(name)]
                    return f"{part}, {one['key']}: " + ", ".join(f"{n} {one[n]!r} / {other.get(n)!r}" for n in names)
            return f"{part}: {len(a[part])} and {len(b[part])} rows"
        return f"{part}: {str(a[part])[:300]} / {str(b[part])[:300]}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: bench_kills.py --kills 5 --pictures 60")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=120, help="in the bucket, besides copies and broken ones")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--shard-size", default="6")
    parser.add_argument("--target", default="psnr=34")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from-second", type=float, default=4.0, help="no kill before: nothing has begun yet")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    options = ["--workers", args.workers, "--shard-size", args.shard_size, "--target", args.target]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="nightpress-kills-") as folder:
        source, still = Path(folder, "source"), Path(folder, "undisturbed")
        fill(source, args.pictures)
        if not os.environ.get("PREFECT_API_URL"):  # our own server makes its database first; moments mean the same then
            finish(source, Path(folder, "warm"), options)
        duration = finish(source, still, options)
        expected = outcome(still)
        shards, _ = shards_done(still)
        print(f"undisturbed: {duration:.1f} s, {len(expected['report'])} objects, {shards} shards over all stages")
        equal = 0
        for number in range(args.kills):
            dest = Path(folder, f"killed-{number}")
            moment = chance.uniform(min(args.from_second, duration / 3), duration)
            what = one_kill(source, dest, options, moment, chance.random() < 0.5, chance)
            difference = different(expected, outcome(dest))
            equal += not difference
            print(f"kill {number + 1}: {what}: {'equal' if not difference else 'DIFFERENT: ' + difference}", flush=True)
            shutil.rmtree(dest)
        print(f"{equal} of {args.kills} killed runs ended with a report equal to the undisturbed one")
        return 0 if equal == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
