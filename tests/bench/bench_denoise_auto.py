"""What `--denoise auto` touches and what it leaves; how impulses are removed beside median filters.

    tests/bench/bench_denoise_auto.py [--photographs DIR ...] [--seeds 3] [--json]

`--tables touched`: pictures that `decide` would clean, of the textured ones (tests/tasks/restoration/textured.py;
none is right) and of folders of clean photographs: as they are, with white noise of sigma 10, with impulses (white, any
colour: 1.1 % of the pixels; of a large folder some pictures only).
`--tables impulses`: PSNR to the clean picture on skimage's astronaut and on the first folder's first six pictures: as
damaged, after scipy's median filter in 3x3 and 5x5 pixels, OpenCV's in 3x3 and 5x5, and `remove_impulses`; false: how
many sound samples were changed, in thousandths.
"""

import argparse
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def textured():
    """tests/tasks/restoration/textured.py, which is no package."""
    spec = importlib.util.spec_from_file_location("textured", ROOT / "tests/tasks/restoration/textured.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.textured


def hit(samples, kind: str, share: float, seed: int = 0):
    """uint8 [H, W, C] with impulses at `share` of its pixels (white, coloured) or samples (salt and pepper)."""
    import numpy as np

    rng, damaged = np.random.default_rng(seed), samples.copy()
    height, width, channels = samples.shape
    if kind == "salt and pepper":
        drawn = rng.random(samples.shape)
        damaged[drawn < share / 2] = 0
        damaged[drawn > 1 - share / 2] = 255
        return damaged
    count = round(share * height * width)
    at = rng.integers(0, height, count), rng.integers(0, width, count)
    damaged[at] = 255 if kind == "white" else rng.integers(0, 256, (count, channels))
    return damaged


def touched(folders: list[Path], seeds: int):
    """Rows: set, condition, pictures, touched, with the names of those that should not have been, or have not."""
    import numpy as np
    from PIL import Image

    from tasks.restoration.apply import eight_bit
    from tasks.restoration.decision import decide
    from tasks.restoration.evaluate import noisy_samples, pictures

    counts: Counter = Counter()
    names: dict[tuple, list[str]] = {}

    def note(group: str, condition: str, name: str, image: Image.Image, wanted: bool) -> None:
        decision = decide(image)
        key = group, condition
        counts[key, decision.noisy] += 1
        names.setdefault(key, [])
        if decision.noisy != wanted:
            names[key].append(f"{name}: {decision.why}")

    for seed in range(seeds):
        for name, image in textured()(seed):
            note("textured", "as drawn", name, image, False)
    for folder in folders:
        found = [(name, image) for name, image in pictures(folder) if min(image.size) >= 64]
        for number, (name, image) in enumerate(found):
            clean = np.asarray(image)
            note(folder.name, "clean", name, image, False)
            noisy = Image.fromarray(eight_bit(noisy_samples(clean, 10, name)))
            note(folder.name, "sigma 10", name, noisy, True)
            for kind in ("white", "coloured") if number % (1 + len(found) // 150) == 0 else ():
                note(folder.name, f"{kind} impulses", name, Image.fromarray(hit(clean, kind, 3000 / 512**2)), True)
    for key, wrong in names.items():
        total = counts[key, True] + counts[key, False]
        yield {"set": key[0], "condition": key[1], "pictures": total, "touched": counts[key, True], "wrong": wrong}


def impulse_rows(folder: Path | None):
    """Rows: picture, impulses, PSNR of each filter."""
    import cv2
    import numpy as np
    import skimage.data
    from PIL import Image
    from scipy.ndimage import median_filter

    from tasks.restoration import remove_impulses
    from tasks.restoration.evaluate import pictures, psnr

    shown = [("astronaut", skimage.data.astronaut())]
    if folder:
        shown += [(name, np.asarray(image)) for name, image in pictures(folder, 6)]
    cases = [("white", 3000 / 512**2), ("coloured", 3000 / 512**2)]
    cases += [("salt and pepper", share) for share in (0.01, 0.05, 0.1, 0.2)]
    for kind, share in cases:
        for name, clean in shown:
            damaged = hit(clean, kind, share)
            cleaned = np.asarray(remove_impulses(Image.fromarray(damaged)))
            row = {"picture": name, "impulses": f"{kind} {100 * share:.3g} %", "damaged": psnr(clean, damaged)}
            row |= {f"scipy {side}x{side}": psnr(clean, median_filter(damaged, (side, side, 1))) for side in (3, 5)}
            row |= {f"OpenCV {side}x{side}": psnr(clean, cv2.medianBlur(damaged, side)) for side in (3, 5)}
            wrong = int(((cleaned != damaged) & (damaged == clean)).sum())
            yield row | {"remove_impulses": psnr(clean, cleaned), "false": 1000 * wrong / clean.size}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: tests/bench/bench_denoise_auto.py --photographs DATA/kodak",
    )
    parser.add_argument("--photographs", type=Path, nargs="*", default=[], help="folders of clean photographs")
    parser.add_argument("--tables", nargs="*", default=["touched", "impulses"], choices=("touched", "impulses"))
    parser.add_argument("--seeds", type=int, default=3, help="of the textured pictures")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    rows = []
    if "touched" in args.tables:
        for row in touched(args.photographs, args.seeds):
            rows.append(row)
            if not args.json:
                print(f"{row['set']:10} {row['condition']:18} {row['touched']:5} of {row['pictures']}", flush=True)
                print("".join(f"    {line}\n" for line in row["wrong"]), end="")
    if "impulses" in args.tables:
        for row in impulse_rows(args.photographs[0] if args.photographs else None):
            rows.append(row)
            if not args.json:
                told = "  ".join(f"{k} {v:.2f}" for k, v in row.items() if isinstance(v, float))
                print(f"{row['picture']:10} {row['impulses']:22} {told}", flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
