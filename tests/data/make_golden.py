"""Makes tests/data/small.safetensors.xz and golden/*: the files that pin the format. Run on purpose only:

    python tests/data/make_golden.py --really

The model is of the shipped architecture, small, and drawn from a seed, not trained: linear transforms as at the start
of training, random networks with most weights of the wide layers at zero (so that they pack small), made strong enough
for every branch to matter and for escapes to occur; its contexts are found on drawings.
"""

import argparse
import lzma
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from codec import picture_from_image, prepare
from codec.network.config import Config
from codec.network.files import load_model, save_model
from codec.network.night_codec import NightCodec
from codec.training import fit_contexts

HERE = Path(__file__).parent
MODEL = HERE / "small.safetensors.xz"
SIZES = Config(
    channels=24, latent=48, hyper=12, encoder_blocks=1, decoder_blocks=2, mean_channels=16, index_channels=16,
    groups=(6, 12, 30), encoder_inner=12, decoder_inner=12,
)  # fmt: skip
SPARSE = (
    "indices.expand", "means.expand", "hyper_middle", "hyper_spatial", "indices.hyper", "indices.join",
    "indices.neighbours",
)  # fmt: skip


def drawn_model() -> NightCodec:
    """Its networks, from a fixed seed."""
    rng = np.random.default_rng(20250101)
    model = NightCodec(SIZES)
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
            if name.startswith("indices.groups") and "last" in name:
                values *= 0.6
            if name == "hyper_leave.weight":
                values *= 3.0
            parameter.copy_(torch.from_numpy(values))
        model.lap_synthesis += 0.02 * torch.from_numpy(rng.normal(size=(8, 8)))  # not quite the inverse
        for layer in model.indices.layers():
            layer.bias.copy_(torch.from_numpy(rng.normal(size=layer.bias.shape) * 0.2))
        for last in (model.indices.first, model.indices.second, *(group.last for group in model.indices.groups)):
            last.bias.fill_(2.5)
        model.z_log_scale.fill_(0.6)
    return model


def small_model() -> bytes:
    """Bytes of its file."""
    drawings = [np.asarray(drawing(160 + 16 * i, 320 - 16 * (i % 7))) for i in range(12)]
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_model(drawn_model(), file.name)
        data = Path(file.name).read_bytes()
    model = load_model(data)
    found = fit_contexts.fitted(model, fit_contexts.summed(model, drawings, 24, 1), drawings, 24)
    return fit_contexts.with_contexts(data, found)


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
        "achromatic": (plain.convert("L").convert("RGB"), 500, 64),
        "pixel": (plain.crop((50, 30, 51, 31)), 700, 64),
        "labelled": (labelled, 450, 64),
        "segments": (drawing(390, 385).convert("L"), 350, 16),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--really", action="store_true", help="write the files; else only sizes")
    args = parser.parse_args()
    data, folder = small_model(), HERE / "golden"
    packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
    print(f"model: {len(data)} bytes, {len(packed)} packed")
    if args.really:
        MODEL.write_bytes(packed)
        folder.mkdir(exist_ok=True)
    model = load_model(data)
    for name, (image, level, segment) in pictures().items():
        analysed = prepare(picture_from_image(image), model, segment)
        file = analysed.code(level)
        used = len(np.unique(torch.cat(analysed._latents(level).index.parts, 1)))
        print(f"{name}: {len(file)} bytes, {used} tables")
        if args.really:
            (folder / f"{name}.npi").write_bytes(file)
            pixels = analysed.reconstruct(level)
            Image.fromarray(pixels.squeeze(2) if analysed.mode == "L" else pixels).save(folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
