"""Fingerprint bench: speed from bytes in memory, and how well reduced decodes agree with full ones.

    tests/bench/bench_fingerprint.py FOLDER [--limit 600] [--sizes 512,1024,1600] [--out FILE.json]

Every picture in FOLDER (any format Pillow opens) is enlarged to the given longer sides and saved as JPEG (quality
85, 4:2:0) in memory; JPEG files are also taken as they are. Speed: the same files in one run, taken in turns,
best of three rounds, one thread, then all cores: the imagehash package (open, then its three functions), our full
path, our fast path, and the bare reduced decode that the fast path rests on. Without FOLDER the photographs in
scikit-image's wheel stand in.
"""

import argparse
import io
import json
import time
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, JpegImagePlugin

from tasks.duplicates.perceptual_hash import HASHES, REDUCED_SIDE, fingerprints, hex_to_codes


def pictures(folder: Path | None, limit: int) -> list[Image.Image]:
    if folder is None:
        import skimage.data

        folder = Path(skimage.data.__file__).parent
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as image:
                if min(image.size) >= 128 and getattr(image, "n_frames", 1) == 1:
                    found.append(image.convert("RGB"))
        except Exception:  # folders hold other files too
            continue
        if len(found) == limit:
            break
    return found


def as_jpeg(image: Image.Image, side: int) -> bytes:
    factor = side / max(image.size)
    if factor != 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def package_hashes(data: bytes) -> None:
    image = Image.open(io.BytesIO(data))
    imagehash.average_hash(image)
    imagehash.dhash(image)
    imagehash.phash(image)


def bare_decode(data: bytes, side: int) -> None:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.draft("L", (side, side))
    image.load()


def agreement(blobs: list[bytes], sides: tuple[int, ...]) -> dict:
    """Distance distribution (counts at 0, 1, 2, ...) of reduced against full hashes, by side and hash."""
    full = fingerprints(blobs, fast=False)
    table = {}
    for side in sides:
        reduced = fingerprints(blobs, side=side)
        row = {"methods": {}}
        for facts in reduced:
            row["methods"][facts["hash_method"]] = row["methods"].get(facts["hash_method"], 0) + 1
        for name in HASHES:
            a, b = (hex_to_codes([facts[name] for facts in rows]) for rows in (full, reduced))
            row[name] = np.bincount(np.bitwise_count(a ^ b)).tolist()
        table[side] = row
    return table


def speed(blobs: list[bytes], side: int, rounds: int, threads: int | None) -> dict:
    """Seconds a picture, best of `rounds`, the ways taken in turns over chunks of 16 files."""
    ways = {
        "imagehash": lambda part: [package_hashes(data) for data in part],
        "full": lambda part: fingerprints(part, fast=False, threads=threads),
        "fast": lambda part: fingerprints(part, side=side, threads=threads),
        "bare": lambda part: [bare_decode(data, side) for data in part],
    }
    if threads != 1:
        ways = {"fast": ways["fast"]}
    seconds = {name: 0.0 for name in ways}
    for start in range(0, len(blobs), 16):
        part = blobs[start : start + 16]
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds):
            for name, way in ways.items():
                begun = time.perf_counter()
                way(part)
                best[name] = min(best[name], time.perf_counter() - begun)
        for name in ways:
            seconds[name] += best[name]
    return {name: total / len(blobs) for name, total in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--limit", type=int, default=600, help="pictures taken")
    parser.add_argument("--sizes", default="512,1024,1600", help="longer sides of the JPEG files")
    parser.add_argument("--sides", default=f"32,{REDUCED_SIDE},128", help="reduced sides for the agreement table")
    parser.add_argument("--speed-limit", type=int, default=96, help="pictures timed a size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    images = pictures(args.folder, args.limit)
    sides = tuple(int(side) for side in args.sides.split(","))
    results = {"pictures": len(images), "sizes": {}}
    for size in (int(size) for size in args.sizes.split(",")):
        blobs = [as_jpeg(image, size) for image in images]
        table = agreement(blobs, sides)
        print(
            f"\n{len(blobs)} JPEG files, longer side {size}, {np.mean([len(b) for b in blobs]) / 1e3:.0f} kB on average"
        )
        print("reduced side  decode used            hash   within 0     2     4     7   most")
        for side, row in table.items():
            methods = ", ".join(f"{name}: {count}" for name, count in sorted(row["methods"].items()))
            for name in HASHES:
                counts = np.array(row[name])
                shares = [100 * counts[: d + 1].sum() / counts.sum() for d in (0, 2, 4, 7)]
                print(
                    f"{side:12}  {methods:22} {name}  "
                    + " ".join(f"{s:7.1f}%" if at == 0 else f"{s:5.1f}" for at, s in enumerate(shares))
                    + f"  {len(counts) - 1:4}"
                )
        timed = blobs[: args.speed_limit]
        one = speed(timed, REDUCED_SIDE, args.rounds, 1)
        many = speed(timed, REDUCED_SIDE, args.rounds, None)["fast"]
        print(
            "ms a picture, one thread: "
            + ", ".join(f"{name} {1e3 * value:.2f}" for name, value in one.items())
            + f"; fast on all cores {1e3 * many:.2f} ({1 / many:.0f} objects/s)"
        )
        print(
            f"fast is {one['imagehash'] / one['fast']:.1f} x imagehash, {one['fast'] / one['bare']:.2f} x the time "
            "of the bare reduced decode"
        )
        results["sizes"][size] = {"agreement": table, "seconds": one, "seconds_all_cores": many}
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
