"""Do all ways of computing give the same symbols? The table of ways tried, symbols compared, mismatches.

    python tests/bench/exactness.py --model codec/weights/codec.safetensors [--images DIR] [--json]

One picture set is encoded once, in this process. Then each way (threads, oneDNN on or off, memory layout, batch
size, window size, float64, lower instruction sets, CUDA where there is one) decodes these files in a process of its
own: all table indices are hashed, all symbols are compared by decoding (which fails loudly on the first wrong
index), pixels are compared with the first way's. A float64 way recomputes the integer networks in double precision,
where nothing can round: what it agrees with is exact.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

WAYS = {
    "1 thread": {},
    "2 threads": {"threads": 2},
    "3 threads": {"threads": 3},
    "oneDNN off": {"onednn": False},
    "oneDNN off, 2 threads": {"onednn": False, "threads": 2},
    "oneDNN off, batch of 24": {"onednn": False, "batch": 24},
    "oneDNN off, no NNPACK": {"onednn": False, "nnpack": False},
    "matmul precision medium": {"matmul": "medium"},
    "oneDNN bf16 by environment": {"env": {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}},
    "channels last": {"channels_last": True},
    "batch of 3": {"batch": 3},
    "batch of 8, 2 threads": {"batch": 8, "threads": 2},
    "oneDNN at AVX2": {"env": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}},
    "oneDNN at SSE4.1": {"env": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}},
    "indices in float32": {"integers": False},
    "float64": {"float64": True, "integers": False},
    "bfloat16 transforms": {"precision": "bfloat16"},
    "whole picture, no windows": {"whole": True},
    "CUDA": {"device": "cuda"},
    "CUDA, batch of 3": {"device": "cuda", "batch": 3},
    "CUDA, TF32 allowed": {"device": "cuda", "tf32": True},
    "CUDA, bfloat16 transforms": {"device": "cuda", "precision": "bfloat16"},
}


def drawings(count: int) -> list:
    """Pictures made from integers, of several sizes: enough for a check without any data at hand."""
    from PIL import Image

    pictures = []
    for i in range(count):
        width, height = (160, 120) if i % 3 else (376, 288)  # most alike, so that batches are full
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (height // 20 + 2, width // 20 + 2, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        smooth[height // 3 : height // 2] += rng.integers(-40, 40, (1, width, 3))
        pictures.append(Image.fromarray(smooth.clip(0, 255).astype(np.uint8)))
    return pictures


def make_files(
    model, folder: Path | None, count: int, qualities: list[float], rows: tuple[int, int] = (64, 16)
) -> tuple[list[bytes], list]:
    """Bitstreams, and for each the picture that it was made from; `rows` of the latent to a segment, in turn."""
    from PIL import Image

    from codec import level_of, prepare

    if folder is None:
        pictures = drawings(count)
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".avif"))
        pictures = [Image.open(path).convert("RGB") for path in paths[:count]]
    files, originals = [], []
    for i, picture in enumerate(pictures):
        prepared = prepare(picture, model, rows[i % 2])  # small segments: many windows and halos
        files += [prepared.code(level_of(quality)) for quality in qualities]
        originals += [np.asarray(picture).astype(np.int16)] * len(qualities)
    return files, originals


def run_way(way: dict, model_path: str, files: list[bytes]) -> dict:
    """In the process of that way: hash of all indices, counts, and the pixels' hash and values."""
    import torch

    from codec import decode_batch, get_model
    from codec.engine import scale_indices, windows
    from codec.entropy.rans import Decoder
    from codec.network import exact

    torch.set_num_threads(way.get("threads", 1))
    torch.backends.mkldnn.enabled = way.get("onednn", True)
    if "matmul" in way:
        torch.set_float32_matmul_precision(way["matmul"])
    if "nnpack" in way:
        torch.backends.nnpack.set_flags(way["nnpack"])
    if way.get("tf32"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = way.get("device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        return {"absent": True}
    if not way.get("integers", True):
        scale_indices.wanted = lambda: False
    model = get_model(model_path, device=device, precision=way.get("precision", "float32"))
    if way.get("channels_last"):
        model = model.to(memory_format=torch.channels_last)
    if way.get("float64"):
        plain = exact.exact_conv2d

        def doubled(x, weight, bias, padding):
            return plain(x.double(), weight.double(), bias.double(), padding).to(x.dtype)

        exact.exact_conv2d = doubled
    if way.get("whole"):
        windows.Window.grown = lambda self, halo: windows.Window(0, self.grid[0], 0, self.grid[1], self.grid)
    counts: dict = {}
    sizes: list[tuple[int, int]] = []  # appended to by several threads at once
    digest = hashlib.sha256()
    read, read_pass = Decoder.read, Decoder.read_pass
    seen = {}

    def watching(decoder, block):
        read(decoder, block)
        note(decoder, block.numbers, block.symbols)

    def watching_pass(decoder, given, tables):
        read_pass(decoder, given, tables)
        top, bottom, left, right = given.window
        step = np.add.outer(np.arange(top, bottom), np.arange(left, right)) % 2 == given.cells
        step = step if given.cells >= 0 else np.ones_like(step)
        note(decoder, *(array[:, top:bottom, left:right][:, step] for array in (given.index, given.symbols)))

    def note(decoder, index, value):
        own = seen.setdefault(id(decoder), [decoder, hashlib.sha256()])[1]
        own.update(np.ascontiguousarray(index).tobytes())
        own.update(np.ascontiguousarray(value).tobytes())
        sizes.append((index.size, int(np.count_nonzero(index))))

    Decoder.read, Decoder.read_pass = watching, watching_pass
    pixels = []
    batch = way.get("batch", 1)
    with torch.inference_mode():
        for start in range(0, len(files), batch):
            seen.clear()
            for image in decode_batch(files[start : start + batch], model=model):
                pixels.append(np.asarray(image))
            for own in sorted(entry[1].hexdigest() for entry in seen.values()):
                counts.setdefault("streams", []).append(own)
    Decoder.read, Decoder.read_pass = read, read_pass
    counts["indices"], counts["symbols"] = (sum(parts) for parts in zip(*sizes, strict=True))
    for own in sorted(counts.pop("streams")):
        digest.update(own.encode())
    return {**counts, "digest": digest.hexdigest(), "pixels": pixels}


def child(arguments: list[str]) -> int:
    """Runs one way: reads files, writes the outcome as npz and JSON to a folder of its own."""
    name, model_path, folder, own = arguments
    place = Path(own)
    files = [path.read_bytes() for path in sorted(Path(folder).glob("*.npi"))]
    try:
        outcome = run_way(WAYS[name], model_path, files)
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    pixels = outcome.pop("pixels", None)
    if pixels is not None:
        np.savez(place / "pixels.npz", *pixels)
    (place / "outcome.json").write_text(json.dumps(outcome))
    return 0


def mean_psnr(originals: list, shown: list) -> float:
    """Mean over pictures, in dB."""
    errors = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(originals, shown, strict=True)]
    return float(np.mean([10 * np.log10(255**2 / max(error, 1e-10)) for error in errors]))


def compare(model_path: str, files: list[bytes], originals: list, names: list[str]) -> list[dict]:
    """One row per way: symbols, mismatches (0, or what went wrong), pixels and PSNR against the first way's. As many
    ways at a time as there are cores: how long they take is not asked."""
    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(files):
            Path(folder, f"{i:05}.npi").write_bytes(data)

        def go(number: int) -> tuple[dict, list[np.ndarray]]:
            way, place = WAYS[names[number]], Path(folder, str(number))
            place.mkdir()
            environment = {
                **os.environ, "OMP_NUM_THREADS": str(way.get("threads", 1)),
                "PYTHONPATH": str(Path(__file__).parents[2]), **way.get("env", {}),
            }  # fmt: skip
            command = [sys.executable, __file__, "--child", names[number], model_path, folder, str(place)]
            subprocess.run(command, check=True, env=environment)
            outcome = json.loads((place / "outcome.json").read_text())
            if "digest" not in outcome:
                return outcome, []
            with np.load(place / "pixels.npz") as stored:
                return outcome, [stored[key].astype(np.int16) for key in stored.files]

        rows = []
        first = None
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for name, (outcome, pixels) in zip(names, pool.map(go, range(len(names))), strict=True):
                if outcome.get("absent"):
                    rows.append({"way": name, "outcome": "no CUDA here"})
                    continue
                if "error" in outcome:
                    rows.append({"way": name, "outcome": f"FAILED: {outcome['error']}", "mismatches": 1})
                    continue
                first = first or (outcome, pixels)
                differences = [np.abs(a - b) for a, b in zip(pixels, first[1], strict=True)]
                same = outcome["digest"] == first[0]["digest"]
                rows.append(
                    {
                        "way": name,
                        "indices": outcome["indices"],
                        "symbols": outcome["symbols"],
                        "mismatches": 0 if same else 1,
                        "largest pixel difference": int(max(d.max() for d in differences)),
                        "dB": mean_psnr(originals, pixels) - mean_psnr(originals, first[1]),
                        "pixels that differ": float(np.mean([(d > 0).mean() for d in differences])),
                        "outcome": "same" if same else "DIFFERENT",
                    }
                )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model file (default: the package's)")
    parser.add_argument("--images", type=Path, help="folder of pictures (default: drawings made here)")
    parser.add_argument("--count", type=int, default=12, help="pictures (default 12)")
    parser.add_argument("--qualities", default="5,35,65,95")
    parser.add_argument("--ways", help="only ways whose names contain this")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    from codec import default_model, get_model

    model_path = args.model or str(default_model())
    model = get_model(model_path, device="cpu", precision="float32")
    qualities = [float(q) for q in args.qualities.split(",")]
    files, originals = make_files(model, args.images, args.count, qualities)
    names = [name for name in WAYS if not args.ways or args.ways in name or name == "1 thread"]
    whole = [name for name in names if WAYS[name].get("whole")]
    rows = compare(model_path, files, originals, [name for name in names if name not in whole])
    if whole:  # a whole picture is one segment: files of their own, of pictures up to 1,024 rows
        single, pictures = make_files(model, args.images, args.count, qualities, (64, 64))
        rows += compare(model_path, single, pictures, ["1 thread", *whole])[1:]
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{len(files)} files, model {model.identity}")
        print(f"{'way':<40}{'indices':>13}{'symbols':>12}{'mismatches':>12}{'max pixel':>11}{'differing':>11}{'dB':>9}")
        for row in rows:
            if "indices" not in row:
                print(f"{row['way']:<40}{row['outcome']}")
                continue
            print(
                f"{row['way']:<40}{row['indices']:>13,}{row['symbols']:>12,}{row['mismatches']:>12}"
                f"{row['largest pixel difference']:>11}{row['pixels that differ']:>11.2e}"
                f"{row['dB']:>9.4f}"
            )
    return 1 if any(row.get("mismatches") for row in rows) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2:]))
    sys.exit(main())
