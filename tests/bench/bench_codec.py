"""Encode and decode in megapixels per second, paired with Pillow's AVIF at about equal PSNR, and time by stage.

    python tests/bench/bench_codec.py --image photo.png --sizes 0.4,2,24 --precisions float32,bfloat16 --repeat 3

Every figure is for a whole picture: from pixels in memory to bytes, and back to pixels. The codec and AVIF (speed 6)
take turns, repeat by repeat; the best of each counts. AVIF's quality is chosen so that its PSNR is the nearest to ours.
Without --image, pictures are tiled from the photographs in scikit-image's wheel.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import sys
import time

import numpy as np


def picture_of(megapixels: float, source):
    """A 3:2 RGB picture of that size: the source's photographs enlarged at most twice, side by side."""
    from PIL import Image

    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    width = round(1.5 * height)
    canvas = Image.new("RGB", (width, height))
    top = row = 0
    while top < height:
        left, number, tallest = 0, row, height
        while left < width:
            part = source[number % len(source)]
            canvas.paste(part, (left, top))
            left += part.width
            tallest = min(tallest, part.height)
            number += 1
        top += tallest
        row += 1
    return canvas


def photographs(path: str | None) -> list:
    from PIL import Image

    if path:
        return [Image.open(path).convert("RGB")]
    from skimage import data

    return [Image.fromarray(getattr(data, name)()[..., :3]) for name in ("astronaut", "coffee", "chelsea", "rocket")]


def in_turns(functions: dict, repeat: int) -> dict:
    """{name: shortest seconds} of functions that are called one after the other, `repeat` rounds of them."""
    shortest = dict.fromkeys(functions, math.inf)
    for _ in range(repeat):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            shortest[name] = min(shortest[name], time.perf_counter() - begun)
    return shortest


def avif_encoded(image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "AVIF", quality=quality, speed=6, subsampling="4:2:0")
    return out.getvalue()


def shown_by_pillow(data: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def avif_near(image, wanted: float, guess: int | None = None) -> dict:
    """AVIF at speed 6 with the quality whose PSNR is nearest to `wanted`: quality, data, PSNR. guess: where to begin to
    look, which on large pictures takes most of the time."""
    from codec.metrics import psnr

    @functools.cache
    def reached(quality: int) -> float:
        return psnr(image, shown_by_pillow(avif_encoded(image, quality)))

    low, high = 0, 100
    if guess is not None:  # an interval around it that surely holds the quality
        low = high = guess
        while low > 0 and reached(low) >= wanted:
            low = max(0, low - 2)
        while high < 100 and reached(high) < wanted:
            high = min(100, high + 2)
    while low < high:  # PSNR rises with quality
        middle = (low + high) // 2
        low, high = (middle + 1, high) if reached(middle) < wanted else (low, middle)
    if low and wanted - reached(low - 1) < reached(low) - wanted:
        low -= 1
    return {"quality": low, "data": avif_encoded(image, low), "psnr": reached(low)}


@contextlib.contextmanager
def stopwatches(model, spent: dict):
    """Adds up the time inside the networks' and the entropy coder's functions while it is open."""
    import torch

    from codec.bitstream import segments
    from codec.engine import analysis, passes, render, sparse
    from codec.engine.transforms import Inference, inference_of
    from codec.entropy import rans, trellis_cpu

    indices = type(inference_of(model).indices)

    places = {
        (Inference, "analysis"): "analysis",
        (Inference, "hyper_analysis"): "hyper and quantise",
        (type(model), "round"): "hyper and quantise",
        (indices, "index_features"): "indices",
        (indices, "bins_first"): "indices",
        (indices, "bins_second"): "indices",
        (indices, "bins_group"): "indices",
        (Inference, "mean_features"): "means",
        (Inference, "mean_first"): "means",
        (Inference, "mean_second"): "means",
        (Inference, "mean_group"): "means",
        (Inference, "partial_products"): "synthesis",
        (sparse, "worth_listing"): "synthesis",
        (Inference, "synthesis"): "synthesis",
        (analysis, "_blocks_of"): "pixels",
        (render, "gather"): "pixels",
        (render, "_paint_from"): "pixels",
        (Inference, "summed"): "pixels",
        (passes, "_quantise_cells"): "hyper and quantise",
        (trellis_cpu, "viterbi_quantise"): "hyper and quantise",
        (segments, "corrected_pass"): "entropy encode",
        (rans, "encode"): "entropy encode",
        (rans, "checksum"): "checksum",
        (rans.Decoder, "read"): "entropy decode",
        (rans.Decoder, "read_pass"): "entropy decode",
    }
    plain = {place: getattr(*place) for place in places}

    def timed(function, stage):
        def call(*args, **kwargs):
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if model.log_gain.is_cuda:
                    torch.cuda.synchronize()
                spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - begun

        return call

    for (owner, name), stage in places.items():
        setattr(owner, name, timed(plain[owner, name], stage))
    try:
        yield
    finally:
        for (owner, name), function in plain.items():
            setattr(owner, name, function)


def measure(image, model, level: int, avif: dict, repeat: int) -> dict:
    """Seconds of the codec and of AVIF in turns; bytes; PSNR; seconds by stage in one thread."""
    import torch

    from codec import decode, prepare
    from codec.metrics import psnr

    data = prepare(image, model).code(level)
    functions = {
        "encode_s": lambda: prepare(image, model).code(level),
        "avif_encode_s": lambda: avif_encoded(image, avif["quality"]),
        "decode_s": lambda: decode(data, model=model), "avif_decode_s": lambda: shown_by_pillow(avif["data"]),
    }  # fmt: skip
    seconds = in_turns(functions, repeat)
    encoding, decoding = {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # else the stages of several threads overlap
    try:
        for spent, function in ((encoding, functions["encode_s"]), (decoding, functions["decode_s"])):
            function()
            with stopwatches(model, spent):
                begun = time.perf_counter()
                function()
                total = time.perf_counter() - begun
            spent["rest"] = total - sum(spent.values())
    finally:
        torch.set_num_threads(threads)
    return {
        **seconds, "bytes": len(data), "psnr": psnr(image, decode(data, model=model)), "encode_stages": encoding,
        "decode_stages": decoding,
    }  # fmt: skip


def measure_batch(image, model, level: int, count: int, repeat: int) -> dict:
    from codec import decode_batch, encode_batch

    images = [image] * count
    files = encode_batch(images, level / 10, model=model)
    functions = {
        "encode_s": lambda: encode_batch(images, level / 10, model=model),
        "decode_s": lambda: decode_batch(files, model=model),
    }
    return {name: seconds / count for name, seconds in in_turns(functions, repeat).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="photograph to tile (default: those in scikit-image)")
    parser.add_argument("--model", help="model file (default: the package's)")
    parser.add_argument("--sizes", default="0.4,2", help="megapixels (default 0.4,2; the stated figures add 24)")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--quality", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: as many cores as there are)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0, help="also batches of so many equal pictures")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    import torch

    from codec import decode, default_model, get_model, level_of, prepare
    from codec.metrics import psnr

    torch.set_num_threads(args.threads or len(__import__("os").sched_getaffinity(0)))
    path = args.model or default_model()
    source = photographs(args.image)
    rows, guess = [], None
    for size in (float(part) for part in args.sizes.split(",")):
        image = picture_of(size, source)
        megapixels = image.width * image.height / 1e6
        avif = None
        for precision in args.precisions.split(","):
            model = get_model(path, device=args.device, precision=precision)
            if avif is None:
                shown = decode(prepare(image, model).code(level_of(args.quality)), model=model)
                avif = avif_near(image, psnr(image, shown), guess)
                guess = avif["quality"]
            ours = measure(image, model, level_of(args.quality), avif, args.repeat)
            facts = {"megapixels": megapixels, "precision": precision, "threads": torch.get_num_threads()}
            row = {**facts, **ours, "avif": {**avif, "data": len(avif["data"])}}
            if args.batch:
                row["batch"] = measure_batch(image, model, level_of(args.quality), args.batch, args.repeat)
            rows.append(row)
            if args.json:
                continue
            paces = "  ".join(
                f"{way} {megapixels / ours[f'{way}_s']:7.2f} MP/s "
                f"({ours[f'avif_{way}_s'] / ours[f'{way}_s']:.2f} x AVIF)"
                for way in ("encode", "decode")
            )
            print(
                f"{megapixels:5.1f} MP {precision:<9} {paces}  {ours['psnr']:.2f} dB {ours['bytes']} bytes; "
                f"AVIF {avif['psnr']:.2f} dB {len(avif['data'])} bytes",
                flush=True,
            )
            for title, stages in (("encode", ours["encode_stages"]), ("decode", ours["decode_stages"])):
                listed = sorted(stages.items(), key=lambda item: -item[1])
                parts = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in listed)
                print(f"         {title}, ms in one thread: {parts}")
            if args.batch:
                print(
                    f"         in batches of {args.batch}: encode {megapixels / row['batch']['encode_s']:.2f}, decode "
                    f"{megapixels / row['batch']['decode_s']:.2f} MP/s"
                )
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
