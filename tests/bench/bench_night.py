"""The night's own cost: 1,000 pictures of about 0.26 MP, end to end, against a plain loop with the same codec.

Objects/s and MP/s of `nightpress run` (two local folders; server start, listing, report and page included), the share
of its wall time in which workers did not work on objects, core use, peak memory of coordinator, workers and Prefect's
server, and how many times faster it is than a loop on one core that reads, encodes to the target, decodes, measures
and writes each picture without any orchestration. Both aim at the same target; the loop runs before the night, alone.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

SIDE = 512  # 0.26 MP


def cut(folder: Path, count: int, tiles: Path | None, seed: int = 1) -> float:
    """`count` JPEGs (quality 92) of SIDE x SIDE into `folder`, no two alike; their megapixels."""
    rng = np.random.default_rng(seed)
    if tiles:
        kinds = (".png", ".jpg", ".jpeg", ".webp", ".avif")
        paths = sorted(path for path in tiles.rglob("*") if path.suffix.lower() in kinds)
    else:
        import skimage.data

        names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
        paths = [path for name in names if (path := Path(skimage.data.__file__).with_name(name)).exists()]
    if not paths:
        raise SystemExit(f"no pictures in {tiles}")
    folder.mkdir(parents=True)
    order = rng.permutation(len(paths))
    for i in range(count):
        with Image.open(paths[order[i % len(paths)]]) as image:
            image = image.convert("RGB")
        side = int(rng.integers(3 * min(image.size) // 5, min(image.size) + 1)) if i >= len(paths) else min(image.size)
        side = min(side, SIDE) if tiles and i < len(paths) else side
        left, top = (int(rng.integers(0, n - side + 1)) for n in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        if i >= len(paths):
            crop = crop.transpose(Image.Transpose(int(rng.integers(0, 7))))
        out = io.BytesIO()
        crop.save(out, "JPEG", quality=92)
        (folder / f"{i:06d}.jpg").write_bytes(out.getvalue())
    return count * SIDE * SIDE / 1e6


def plain_loop(source: Path, dest: Path, count: int, target: str) -> None:
    """The work alone, on one core: prints its seconds, first picture left out."""
    import torch

    from codec import decode, get_model, metrics, prepare
    from codec.pictures.files import open_picture
    from codec.rate_control import target as rate

    torch.set_num_threads(1)
    model, (metric, value) = get_model(device="cpu"), rate.parse_target(target)
    dest.mkdir(parents=True)
    begun = 0.0
    for number, path in enumerate(sorted(source.iterdir())[: count + 1]):
        if number == 1:
            begun = time.perf_counter()
        picture = open_picture(path.read_bytes())
        try:
            bitstream = rate.target_level(prepare(picture, model), metric, value).bitstream
        except rate.TargetUnreachable as missed:
            bitstream = missed.bitstream
        decoded = decode(bitstream, model=model)
        metrics.psnr(picture.image, decoded)
        metrics.ms_ssim(picture.image, decoded)
        (dest / f"{path.stem}.npi").write_bytes(bitstream)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


class Watcher(threading.Thread):
    """Peak resident memory, MB, of a run's processes by role; workers: of the largest."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.process, self.peaks, self.ended = psutil.Process(pid), {}, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            try:
                everyone = [self.process, *self.process.children(recursive=True)]
            except psutil.Error:
                return
            for one in everyone:
                try:
                    words, memory = " ".join(one.cmdline()), one.memory_info().rss / 1e6
                except psutil.Error:
                    continue
                if one.pid == self.process.pid:
                    role = "coordinator"
                elif "resource_tracker" in words:
                    continue
                else:
                    role = "worker" if "multiprocessing" in words else "prefect server"
                self.peaks[role] = max(self.peaks.get(role, 0.0), memory)


def the_night(source: Path, dest: Path, workers: int, target: str) -> tuple[float, float, dict, dict]:
    """(wall seconds, CPU seconds of all processes, manifest, peak memory by role)."""
    command = [sys.executable, "-m", "flows.cli", "run", str(source), str(dest), "--target", target]
    before, begun = os.times(), time.perf_counter()
    with open(dest.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen([*command, "--workers", str(workers), "--json"], stdout=subprocess.PIPE, stderr=log)
    watcher = Watcher(process.pid)
    watcher.start()
    manifest, _ = process.communicate()
    wall, after = time.perf_counter() - begun, os.times()
    watcher.ended.set()
    if process.returncode:
        raise SystemExit(f"the night failed: {dest.with_suffix('.log').read_text()[-3000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, json.loads(manifest), watcher.peaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: bench_night.py --tiles DIR --pictures 1000")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--tiles", type=Path, metavar="DIR", help="cut from pictures here (default: skimage.data)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--target", default="ms-ssim=0.98")
    parser.add_argument("--loop", type=int, default=100, metavar="N", help="pictures of the plain loop (default 100)")
    parser.add_argument("--only-loop", nargs=2, metavar=("SOURCE", "DEST"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_loop:
        plain_loop(*map(Path, args.only_loop), args.loop, args.target)
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="nightpress-bench-") as folder:
        source = Path(folder, "source")
        megapixels = cut(source, args.pictures, args.tiles)
        count = min(args.loop, args.pictures - 1)
        core = min(os.sched_getaffinity(0))
        loop = [sys.executable, __file__, "--only-loop", str(source), str(Path(folder, "loop")), "--loop", str(count)]
        done = subprocess.run(
            [*loop, "--target", args.target], stdout=subprocess.PIPE, check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
        each = json.loads(done.stdout)["seconds"] / count
        wall, cpu, manifest, peaks = the_night(source, Path(folder, "dest"), args.workers, args.target)
    stages = {stage["stage"]: stage for stage in manifest["stages"]}
    busy = sum(stage.get("busy_seconds", 0.0) for stage in stages.values())
    in_stages = sum(stage["seconds"] for stage in stages.values() if stage.get("busy_seconds"))
    size = manifest["source_bytes"] / 1e6
    print(f"{args.pictures} pictures, {megapixels:.0f} MP, {size:.0f} MB; {manifest['counts']}")
    print(f"plain loop, one core: {1 / each:.2f} objects/s, {megapixels / args.pictures / each:.2f} MP/s")
    speed = f"{args.pictures / wall:.2f} objects/s, {megapixels / wall:.2f} MP/s"
    print(f"night, {args.workers} workers: {wall:.1f} s, {speed}")
    for name, stage in stages.items():
        share = f", workers busy {stage['busy_seconds']:.1f} s" if "busy_seconds" in stage else ""
        print(f"  {name:<12} {stage['seconds']:7.1f} s{share}")
    print(
        f"orchestration: {100 * (1 - busy / (args.workers * wall)):.1f} % of the wall time, start and end included; "
        f"{100 * (1 - busy / (args.workers * max(in_stages, 1e-9))):.1f} % within the stages"
    )
    print(f"core use: {100 * cpu / (wall * args.workers):.0f} % of {args.workers} cores ({cpu:.0f} CPU seconds)")
    print("peak memory: " + ", ".join(f"{role} {memory:.0f} MB" for role, memory in sorted(peaks.items())))
    print(f"{each * args.pictures / wall:.2f} times the plain loop on one core, with {args.workers} workers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
