"""Makes tests/data/tiny.safetensors.xz and golden/*.npi: the files that pin format 1. Run on purpose only:

    python tests/data/make_golden.py --really

The tiny model is drawn from a seed, not trained: linear transforms as at the start of training, random networks
with most weights of the wide layers at zero (so that it packs small), made strong enough for every branch to matter
and for escapes to occur.
"""

import argparse
import lzma
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from codec.coder import prepare
from codec.model import Config, NightCodec, load_model, save_model
from codec.pixels import picture_from_image

HERE = Path(__file__).parent
CONFIG = Config(
    channels=24, latent=48, hyper=12, encoder_blocks=1, decoder_blocks=2, mean_channels=16, index_channels=16
)
SPARSE = (
    "indices.expand", "means.expand", "hyper_middle", "hyper_spatial", "indices.hyper", "indices.join",
    "indices.neighbours",
)  # fmt: skip


def tiny_model() -> bytes:
    """Bytes of the tiny model's file, from a fixed seed."""
    rng = np.random.default_rng(20250101)
    model = NightCodec(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            if not name.endswith("weight") or parameter.ndim != 4:
                continue
            fan = parameter[0].numel()
            values = rng.normal(size=parameter.shape) * (1.4 / fan) ** 0.5
            if name.startswith(SPARSE):
                values *= (rng.random(parameter.shape) < 0.04) / 0.04**0.5
            if "leave" in name and "hyper" not in name or name.startswith("means.first"):
                values *= 0.1
            if name.startswith(("indices.first", "indices.second")):
                values *= 2.5
            if name == "hyper_leave.weight":
                values *= 3.0
            parameter.copy_(torch.from_numpy(values))
        for layer in model.indices.children():
            layer.bias.copy_(torch.from_numpy(rng.normal(size=layer.bias.shape) * 0.2))
        model.indices.first.bias.fill_(2.5)
        model.indices.second.bias.fill_(2.5)
        model.z_log_scale.fill_(0.6)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_model(model, file.name)
        return Path(file.name).read_bytes()


def drawing(width: int, height: int) -> Image.Image:
    """A small RGB picture with smooth parts, edges and texture, from integers alone."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    ramp = (x * 3 + y * 2) % 256
    disc = ((x - width // 2) ** 2 + (y - height // 2) ** 2 < (min(width, height) // 3) ** 2) * 120
    texture = (x * x * 7 + y * y * 13 + x * y * 5) % 31
    planes = np.stack((ramp // 2 + disc, 200 - ramp // 3 + texture, 40 + disc + texture), 2)
    return Image.fromarray(planes.clip(0, 255).astype(np.uint8))


def pictures() -> dict[str, tuple]:
    """name -> (Picture, level, segment)."""
    plain = drawing(97, 61)
    alpha = Image.fromarray((np.add.outer(np.arange(61), np.arange(97)) % 64 * 4).astype(np.uint8))
    clear = plain.copy()
    clear.putalpha(alpha)
    grey_clear = plain.convert("L")
    grey_clear.putalpha(Image.fromarray(np.where(np.asarray(alpha) > 99, 255, 0).astype(np.uint8)))
    labelled = plain.copy()
    labelled.info["icc_profile"] = bytes(range(128)) * 3  # carried, not looked into
    exif = Image.Exif()
    exif[0x010F] = "Nightpress"
    labelled.info["exif"] = exif.tobytes()
    labelled.info["xmp"] = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    return {
        "rgb": (plain, 500, 64),
        "rgb-low": (plain, 0, 64),
        "rgb-high": (plain, 1000, 64),
        "rgba": (clear, 400, 64),
        "grey": (plain.convert("L"), 500, 64),
        "grey-alpha": (grey_clear, 300, 64),
        "colourless": (plain.convert("L").convert("RGB"), 500, 64),
        "pixel": (plain.crop((50, 30, 51, 31)), 700, 64),
        "labelled": (labelled, 450, 64),
        "segments": (drawing(390, 385).convert("L"), 350, 16),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--really", action="store_true", help="write; without it, only sizes are shown")
    args = parser.parse_args()
    data = tiny_model()
    packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    print(f"tiny model: {len(data)} bytes, {len(packed)} packed")
    model = load_model(data)
    folder = HERE / "golden"
    folder.mkdir(exist_ok=True)
    if args.really:
        (HERE / "tiny.safetensors.xz").write_bytes(packed)
    for name, (image, level, segment) in pictures().items():
        prepared = prepare(picture_from_image(image), model, segment)
        file = prepared.code(level)
        print(f"{name}: {len(file)} bytes")
        if args.really:
            (folder / f"{name}.npi").write_bytes(file)
            pixels = prepared.reconstruct(level)
            Image.fromarray(pixels.squeeze(2) if prepared.mode == "L" else pixels).save(folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
