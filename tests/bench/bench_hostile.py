"""Mutated .npi files through the decoder: what became of them, and the worst time and memory of one file.

    python tests/bench/bench_hostile.py --count 100000

Seeds are the golden files of tests/data (with the small frozen model, so that decoding is quick) and, with --model,
files encoded here with that model. Half of the mutants get a fitting checksum, so that they reach what lies behind
it: there a changed picture is possible in principle (a forger may encode what he likes) and is counted; with the
checksum as it was, anything but an error or the exact picture is a failure. Memory is what the process's peak grows by
over the whole run after the seeds were decoded once; one file in 50 is also traced by tracemalloc.
"""

import argparse
import collections
import lzma
import resource
import struct
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data"


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: a flipped bit, a byte, a stretch of noise or zeros, a cut, a repeat, an insertion, a splice."""
    bad = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not bad:
            break
        # half of all changes hit the first 40 bytes, where the header is
        at = int(rng.integers(min(len(bad), 40))) if rng.integers(2) else int(rng.integers(len(bad)))
        length = int(rng.integers(1, 33))
        kind = int(rng.integers(9))
        if kind == 0:
            bad[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            bad[at] = int(rng.integers(256))
        elif kind == 2:
            bad[at : at + length] = rng.bytes(len(bad[at : at + length]))
        elif kind == 3:
            bad[at : at + length] = bytes(len(bad[at : at + length]))
        elif kind == 4:
            del bad[at:]
        elif kind == 5:
            bad[at:at] = bad[at : at + length]
        elif kind == 6:
            bad[at:at] = rng.bytes(length)
        elif kind == 7:
            del bad[at : at + length]
        else:
            bad[at : at + length] = b"\xff" * len(bad[at : at + length])
    return bytes(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="mutants (default 5,000; the stated figure is 100,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help="also mutate files of this model, pictures of 160x120 and 640x480")
    parser.add_argument("--seconds", type=float, default=1.0, help="longest that one file may take")
    parser.add_argument("--megabytes", type=float, default=500.0, help="most that decoding may add to the process")
    args = parser.parse_args()

    import torch
    from PIL import Image

    from codec import CodecError, decode, get_model, prepare
    from codec.network.files import load_model

    torch.set_num_threads(1)
    small = load_model(lzma.decompress((DATA / "small.safetensors.xz").read_bytes()))
    seeds = [(path.stem, path.read_bytes(), small) for path in sorted((DATA / "golden").glob("*.npi"))]
    if args.model:
        model = get_model(args.model, precision="float32")
        for width, height in ((160, 120), (640, 480)):
            y, x = np.mgrid[0:height, 0:width]
            pixels = np.stack((x * 255 // width, y * 255 // height, (x * y) % 256), 2).astype(np.uint8)
            for level in (100, 700):
                data = prepare(Image.fromarray(pixels), model).code(level)
                seeds.append((f"{width}x{height} at {level}", data, model))
    originals = [np.asarray(decode(data, model=model)) for _, data, model in seeds]
    rng = np.random.default_rng(args.seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outcomes: collections.Counter = collections.Counter()
    failures: list[str] = []
    worst_time = worst_traced = 0.0
    worst_name = ""
    begun = time.perf_counter()
    for number in range(args.count):
        which = int(rng.integers(len(seeds)))
        name, data, model = seeds[which]
        bad = mutated(data, rng)
        resealed = bool(rng.integers(2))
        if resealed:
            bad = bad[:-4] + struct.pack("<I", zlib.crc32(bad[:-4]))
        traced = number % 50 == 0
        if traced:
            tracemalloc.start()
        started = time.perf_counter()
        try:
            shown = np.asarray(decode(bad, model=model))
        except CodecError as error:
            outcomes[type(error).__name__] += 1
        except BaseException as error:
            failures.append(f"mutant {number} of {name}: {type(error).__name__}: {error}")
        else:
            same = shown.shape == originals[which].shape and np.array_equal(shown, originals[which])
            if same:
                outcomes["the exact picture"] += 1
            elif resealed:
                outcomes["another picture, forged checksum"] += 1
            else:
                failures.append(f"mutant {number} of {name}: a different picture went unnoticed")
        seconds = time.perf_counter() - started
        if traced:
            worst_traced = max(worst_traced, tracemalloc.get_traced_memory()[1] / 1e6)
            tracemalloc.stop()
        elif seconds > worst_time:
            worst_time, worst_name = seconds, name
    total = time.perf_counter() - begun
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    for outcome, count in outcomes.most_common():
        print(f"{count:>8,}  {outcome}")
    for failure in failures[:20]:
        print(failure)
    ok = not failures and worst_time <= args.seconds and grown <= args.megabytes
    print(
        f"{args.count:,} mutants of {len(seeds)} files in {total:.0f} s: {len(failures)} failures; slowest "
        f"{worst_time * 1000:.0f} ms ({worst_name}); peak of the process grew by {grown:.0f} MB "
        f"(traced {worst_traced:.0f} MB); {'ok' if ok else 'NOT OK'}"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
