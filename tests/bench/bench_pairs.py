"""All-pairs bench: time, peak memory and growth, against faiss's binary indexes and a BK-tree, in one run.

    tests/bench/bench_pairs.py [--sizes 100000,1000000,10000000] [--distance 3] [--out FILE.json]

Each measurement is a process of its own, so that peak memory (VmHWM, from which the memory before the call is taken
off) is its own. Codes: `uniform`, random 64 bits with one in ten a near copy; `skewed`, as real pHashes are: the
first bit always set, bits that follow a few shared patterns (so that buckets are uneven), 5 % of the codes equal to
one of 50 (blank pictures and the like, at most 500 each: every pair of them is output). faiss and the BK-tree answer a
sample of queries, from which the time for all is extrapolated; the BK-tree is built over at most 100,000 codes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def codes_of(kind: str, n: int, seed: int = 1) -> np.ndarray:
    """uint64[n] of one kind, the same for the same seed."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2**64, n, dtype=np.uint64)
    if kind == "skewed":
        patterns = random.integers(0, 2**64, 64, dtype=np.uint64)
        which = np.minimum(random.geometric(0.12, n) - 1, 63)
        kept = random.integers(0, 2**64, 64, dtype=np.uint64) & random.integers(0, 2**64, 64, dtype=np.uint64)
        codes = (codes & ~kept[which]) | (patterns[which] & kept[which])  # a pattern fixes about 16 bits
        codes |= np.uint64(1) << np.uint64(63)
        crowds = min(50 * 500, n // 20)
        at = random.choice(n, crowds, replace=False)
        codes[at] = codes[random.integers(0, n, 50)][np.arange(crowds) % 50]
    copies = random.choice(n, n // 10, replace=False)
    codes[copies] = codes[random.integers(0, n, copies.size)]
    for _ in range(3):
        flips = np.uint64(1) << random.integers(0, 64, copies.size).astype(np.uint64)
        codes[copies] ^= flips * (random.random(copies.size) < 0.5)
    return codes


def memory(field: str) -> int:
    """Bytes of one field (VmRSS, VmHWM) of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def measure(way: str, kind: str, n: int, distance: int, threads: int | None) -> dict:
    """One measurement in this process: seconds, extra peak bytes, pairs found."""
    codes = codes_of(kind, n)
    rows = codes.view(np.uint8).reshape(-1, 8)
    queries = min(n, 2000)
    share = 1.0
    if way in ("ours", "count", "between"):
        from tasks.duplicates.hamming_pairs import iter_pairs, pairs_between, pairs_within

        warm = codes_of(kind, 20_000, 2)
        pairs_within(warm, distance)  # compiles, or loads what was compiled
        pairs_between(warm[:500], warm, distance)
    elif way.startswith("faiss"):
        import faiss

        if threads:
            faiss.omp_set_num_threads(threads)
    else:
        import pybktree
    before, begun = memory("VmRSS"), time.perf_counter()
    build = 0.0
    if way == "ours":
        found = int(pairs_within(codes, distance, threads=threads)[0].size)
    elif way == "count":
        found = sum(i.size for i, _, _ in iter_pairs(codes, distance, threads))
    elif way == "between":
        new = codes_of(kind, 10_000, 3)
        new[:5000] = codes[-5000:]
        before, begun = memory("VmRSS"), time.perf_counter()
        found = int(pairs_between(new, codes, distance, threads=threads)[0].size)
    elif way.startswith("faiss"):
        index = faiss.IndexBinaryFlat(64) if way == "faiss flat" else faiss.IndexBinaryMultiHash(64, 4, 16)
        index.add(rows)
        build = time.perf_counter() - begun
        if way == "faiss multihash":
            index.nflip = max(0, distance // 4)
        limits, _, _ = index.range_search(rows[:queries], distance + 1)
        share, found = queries / n, int(limits[-1]) - queries
    else:
        queries = 200
        tree = pybktree.BKTree(lambda a, b: (a ^ b).bit_count(), codes.tolist())
        build = time.perf_counter() - begun
        found = sum(len(tree.find(code, distance)) - 1 for code in codes[:queries].tolist())
        share = queries / n
    seconds = time.perf_counter() - begun
    return {
        "way": way,
        "kind": kind,
        "n": n,
        "distance": distance,
        "seconds": build + (seconds - build) / share,
        "measured_seconds": seconds,
        "extrapolated": share < 1,
        "peak_bytes": memory("VmHWM") - before,
        "process_bytes": memory("VmHWM"),
        "pairs": found if share == 1 else None,
    }


def in_process(*arguments) -> dict:
    """`measure` in a fresh process of this script."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def complete(n: int, distance: int) -> dict:
    """Pairs found against all there are, by faiss's exhaustive index, for both kinds of codes."""
    import faiss

    from tasks.duplicates.hamming_pairs import pairs_within

    result = {}
    for kind in ("uniform", "skewed"):
        codes = codes_of(kind, n)
        rows = codes.view(np.uint8).reshape(-1, 8)
        index = faiss.IndexBinaryFlat(64)
        index.add(rows)
        limits, _, j = index.range_search(rows, distance + 1)
        i = np.repeat(np.arange(n), np.diff(limits.astype(np.int64)))
        wanted = set(zip(i[i < j].tolist(), j[i < j].tolist(), strict=True))
        a, b, _ = pairs_within(codes, distance)
        found = set(zip(a.tolist(), b.tolist(), strict=True))
        result[kind] = {"wanted": len(wanted), "missing": len(wanted - found), "wrong": len(found - wanted)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100000,1000000,10000000")
    parser.add_argument("--distance", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    parser.add_argument("--far", default="7,10", help="other distances, measured at the middle size")
    parser.add_argument("--complete", type=int, default=50_000, help="codes in the check against brute force")
    parser.add_argument("--without", default="", help="ways left out: faiss flat, faiss multihash, bk-tree")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*json.loads(args.measure))))
        return
    threads = args.threads or len(os.sched_getaffinity(0))
    sizes = [int(float(size)) for size in args.sizes.split(",")]
    without = {name.strip() for name in args.without.split(",")}
    results = []
    print(f"distance {args.distance}, {threads} threads")
    print("codes    way                       n    seconds    peak MB (all)      pairs")

    def note(*arguments) -> dict:
        row = in_process(*arguments, threads)
        results.append(row)
        print(
            f"{row['kind']:8} {row['way']:16} {row['n']:10,} {row['seconds']:10.2f}"
            f"{'*' if row['extrapolated'] else ' '}"
            f" {row['peak_bytes'] / 1e6:9.0f} ({row['process_bytes'] / 1e6:.0f})"
            f" {'' if row['pairs'] is None else format(row['pairs'], ','):>10}  d={row['distance']}",
            flush=True,
        )
        return row

    for kind in ("uniform", "skewed"):
        own = [note("ours", kind, n, args.distance) for n in sizes]
        if len(own) > 1:
            growth = np.polyfit(np.log(sizes), np.log([row["seconds"] for row in own]), 1)[0]
            print(f"{kind}: time grows as n^{growth:.2f}")
        for way in ("faiss flat", "faiss multihash", "bk-tree"):
            if way not in without:
                for n in sizes:
                    if way != "bk-tree" or n <= 100_000:
                        note(way, kind, n, args.distance)
        note("between", kind, sizes[-1], args.distance)
    for distance in (int(d) for d in args.far.split(",") if d):
        note("count", "uniform", sizes[len(sizes) // 2], distance)
    checked = complete(args.complete, args.distance)
    for kind, row in checked.items():
        print(
            f"{args.complete:,} {kind} codes: {row['wanted']:,} pairs, {row['missing']} missing, {row['wrong']} wrong"
        )
    print("* extrapolated from a sample of queries; `between`: 10,000 new codes against n known ones")
    if args.out:
        args.out.write_text(json.dumps({"measurements": results, "complete": checked}, indent=1))


if __name__ == "__main__":
    main()
