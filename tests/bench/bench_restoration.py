"""Restoration bench: MP/s of every denoiser and enlarger on the same picture, one thread, interleaved rounds.

    tests/bench/bench_restoration.py [--pixels 1500000] [--rounds 3] [--threads 1] [--json]

Pictures: skimage's astronaut, tiled and enlarged to the size asked for. A round runs every method once, so that a
change of the machine's pace hits all of them; the median round counts. Networks run with the weights of the repository
where there are any (else with random ones, which cost the same: marked with *), through the product's own call, in
bfloat16 where the processor multiplies it, and in float32. MP/s: megapixels of the result for enlarging. kMAC per
pixel of the input. `estimate`: noise_sigma. The FSRCNN row is what its authors describe, deconvolution included.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def picture(pixels: int):
    """RGB picture of about `pixels` pixels, 3:2, with sharp and smooth places."""
    import skimage.data
    from PIL import Image

    height = int((pixels / 1.5) ** 0.5)
    tile = Image.fromarray(skimage.data.astronaut())
    sheet = Image.new("RGB", (int(height * 1.5), height))
    for y in range(0, sheet.height, tile.height):
        for x in range(0, sheet.width, tile.width):
            sheet.paste(tile, (x, y))
    return sheet


def fill_in(folder: Path) -> set[tuple[str, str]]:
    """Copies the repository's weights to `folder` and writes random ones for what is missing; returns those."""
    from tasks.restoration import apply as restoration
    from tasks.restoration import networks

    missing = set()
    for path in restoration.WEIGHTS.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    for task, kinds in networks.NETWORKS.items():
        for name, kind in kinds.items():
            path = folder / f"{task}-{name}{'-x2' if task == 'superres' else ''}.safetensors"
            if not path.exists():
                network = kind()
                if hasattr(network, "merge"):
                    network = network.merge()
                networks.save_network(network, task, name, path)
                missing.add((task, name))
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Example: tests/bench/bench_restoration.py --rounds 5"
    )
    parser.add_argument(
        "--pixels", type=int, default=800_000, help="of the noisy picture; enlarging starts at a quarter"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    sys.path.insert(0, str(ROOT))

    import cv2
    import numpy as np
    import torch
    from PIL import Image

    from tasks.restoration import apply as restoration
    from tasks.restoration import networks
    from tasks.restoration.noise import noise_sigma

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    clean = picture(args.pixels)
    noise = np.random.default_rng(0).normal(0, 25, (clean.height, clean.width, 3))
    noisy = Image.fromarray(np.clip(np.asarray(clean) + noise, 0, 255).astype(np.uint8))
    small = clean.resize((clean.width // 2, clean.height // 2), Image.Resampling.BICUBIC)
    with tempfile.TemporaryDirectory() as folder:
        missing = fill_in(Path(folder))
        restoration.WEIGHTS = Path(folder)
        native = restoration._reduced_precision

        def float32(where):
            return contextlib.nullcontext()

        work = {("estimate", "laplacian", ""): (lambda: noise_sigma(noisy), native)}
        for method in ("gaussian", "wavelet", "nlm"):
            work["denoise", method, ""] = (lambda m=method: restoration.denoise(noisy, 25, method=m), native)
        for method in ("bicubic", "lanczos"):
            work["superres x2", method, ""] = (lambda m=method: restoration.upscale(small, 2, method=m), native)
        for name in networks.NETWORKS["denoise"]:
            for precision, context in (("auto", native), ("float32", float32)):
                work["denoise", name, precision] = (lambda m=name: restoration.denoise(noisy, 25, method=m), context)
        for name in networks.NETWORKS["superres"]:
            for precision, context in (("auto", native), ("float32", float32)):
                work["superres x2", name, precision] = (lambda m=name: restoration.upscale(small, 2, method=m), context)
        seconds: dict[tuple, list[float]] = {key: [] for key in work}
        for _ in range(args.rounds + 1):
            for key, (function, context) in work.items():
                restoration._reduced_precision = context
                started = time.perf_counter()
                function()
                seconds[key].append(time.perf_counter() - started)
        restoration._reduced_precision = native
        rows = []
        for (task, name, precision), times in seconds.items():
            kind = task.split()[0]
            loaded = restoration.network_for(kind, 2, name) if precision else None
            rows.append(
                {
                    "task": task,
                    "method": name + ("*" if (kind, name) in missing else ""),
                    "precision": precision,
                    "megapixels_per_second": clean.width * clean.height / 1e6 / statistics.median(times[1:]),
                    "kilomacs_per_pixel": networks.macs_per_pixel(loaded.network, kind) / 1e3 if loaded else None,
                }
            )
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{clean.width}x{clean.height}, {args.threads} thread(s), median of {args.rounds} rounds (* random weights)")
    for row in rows:
        macs = f"{row['kilomacs_per_pixel']:8.1f} kMAC/px" if row["kilomacs_per_pixel"] else ""
        print(
            f"{row['task']:12} {row['method']:10} {row['precision']:8} {row['megapixels_per_second']:8.2f} MP/s {macs}"
        )
    pace = {(row["task"], row["method"].rstrip("*"), row["precision"]): row["megapixels_per_second"] for row in rows}
    night, nlm = pace["denoise", "night", "auto"], pace["denoise", "nlm", ""]
    ours, theirs = pace["superres x2", "night", "auto"], pace["superres x2", "fsrcnn", "auto"]
    print(f"our denoiser {night / nlm:.1f} x non-local means; our enlarger {ours / theirs:.2f} x FSRCNN's pace")


if __name__ == "__main__":
    main()
