"""Whole nights over near misses and true copies: what is given up, by kind.

    python tests/bench/check_pairs.py [--seed N] [--per-kind N] [--keep FOLDER] [--workers N]

The pairs are tests/near_miss.py's, each in a folder of its own, near misses in one bucket, copies in another; both are
pressed with default options. A near miss is given up where its pictures end in one group and one of them as a near
duplicate. A copy is found where its pictures end in one group or the second in another's: several pairs are made of one
picture. Exit code 1 where a near miss was given up. The rule alone, without hashes and codec around it, is
evaluate_agreement.py's.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from evaluate_agreement import generator

SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp", b"BM": "bmp", b"II*\x00": "tif"}


def suffix(data: bytes) -> str:
    return next((name for start, name in SUFFIXES.items() if data.startswith(start)), "avif")


def plant(folder: Path, pairs: list) -> list[tuple[str, str]]:
    """Writes each pair; its two keys."""
    keys = []
    for number, pair in enumerate(pairs):
        names = [f"{number:04d}/{which}.{suffix(data)}" for which, data in (("a", pair.first), ("b", pair.second))]
        for name, data in zip(names, (pair.first, pair.second), strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        keys.append(tuple(names))
    return keys


def rows_of_a_night(source: Path, dest: Path, workers: int) -> dict[str, dict]:
    command = [sys.executable, "-m", "flows.cli", "run", str(source), str(dest), "--workers", str(workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (report,) = dest.glob("runs/*/report")
    return {row["key"]: row for row in pq.read_table(report).to_pylist()}


def group_of(rows: dict[str, dict], key: str) -> str:
    """The keeper's key."""
    return rows[key]["keeper_key"] or key


def given_up(rows: dict[str, dict], keys: tuple[str, str]) -> bool:
    """Whether one of a near miss's pictures is a near duplicate of the other."""
    first, second = keys
    return group_of(rows, first) == group_of(rows, second) and any(
        rows[key]["duplicate_kind"] == "near" for key in keys
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-kind", type=int, help="near misses of each kind (default: the generator's)")
    parser.add_argument("--keep", type=Path, help="where buckets and results stay")
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    module = generator()
    misses = list(module.near_misses(a.seed, **({"per_kind": a.per_kind} if a.per_kind else {})))
    copies = list(module.true_copies(a.seed))
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="nightpress-pairs-") as temporary:
        place = a.keep or Path(temporary)
        for name, pairs in (("near misses given up", misses), ("copies found", copies)):
            source, dest = (place / name.replace(" ", "-") / part for part in ("source", "dest"))
            keys = plant(source, pairs)
            begun = time.monotonic()
            rows = rows_of_a_night(source, dest, a.workers)
            seconds = time.monotonic() - begun
            print(f"{name}: a night of {len(rows)} objects in {seconds:.0f} s, {len(rows) / seconds:.1f} objects/s")
            found = defaultdict(list)
            for pair, both in zip(pairs, keys, strict=True):
                if pairs is misses:
                    found[pair.kind].append(given_up(rows, both))
                    if found[pair.kind][-1]:
                        print(f"  given up: {both[0]} and {both[1]}, {pair.kind}: {pair.detail}")
                        wrong += 1
                else:
                    lossy = "" if pair.quality is None else " q >= 50" if pair.quality >= 50 else " q < 50"
                    together = group_of(rows, both[0]) == group_of(rows, both[1])
                    found[pair.kind + lossy].append(together or rows[both[1]]["status"] == "duplicate")
            for kind, results in sorted(found.items()):
                print(f"  {kind:<24}{sum(results):>5} of {len(results)}")
            print(f"  {'all':<24}{sum(map(sum, found.values())):>5} of {len(pairs)}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
