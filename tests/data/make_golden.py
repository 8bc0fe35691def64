"""Makes tests/data/{tiny,grouped,contexts}.safetensors.xz and golden/*.npi: the files that pin formats 1, 2 and 3. Run
on purpose only:

    python tests/data/make_golden.py --really [tiny] [grouped] [trellis] [contexts]

`tiny` codes its latent as one group, in two passes; `grouped` in three groups and four passes; both write format 1.
`trellis` are files of the grouped model in format 2, `contexts` of the same in format 3, with contexts that were found
on drawings (their tensors alone are in contexts.safetensors.xz). The models are drawn
from a seed, not trained: linear transforms as at the start of training, random networks with most weights of the wide
layers at zero (so that they pack small), made strong enough for every branch to matter and for escapes to occur.
"""

import argparse
import lzma
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from codec import contexts_fit, trellis
from codec.coder import prepare
from codec.model import Config, NightCodec, load_model, packed_tensors, read_tensors, save_model
from codec.pixels import picture_from_image

HERE = Path(__file__).parent
SIZES = dict(
    channels=24, latent=48, hyper=12, encoder_blocks=1, decoder_blocks=2, mean_channels=16, index_channels=16,
    encoder_inner=0, decoder_inner=0, lapped=False, last_means=True,
)  # fmt: skip
CONFIGS = {"tiny": Config(**SIZES, groups=()), "grouped": Config(**SIZES, groups=(6, 12, 30))}
SPARSE = (
    "indices.expand", "means.expand", "hyper_middle", "hyper_spatial", "indices.hyper", "indices.join",
    "indices.neighbours",
)  # fmt: skip


def small_model(config: Config) -> bytes:
    """Bytes of a small model's file, from a fixed seed."""
    rng = np.random.default_rng(20250101)
    model = NightCodec(config)
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
        for layer in model.indices.layers():
            layer.bias.copy_(torch.from_numpy(rng.normal(size=layer.bias.shape) * 0.2))
        model.indices.first.bias.fill_(2.5)
        model.indices.second.bias.fill_(2.5)
        for group in model.indices.groups:
            group.last.bias.fill_(2.5)
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


def small_contexts(model: NightCodec) -> bytes:
    """Bytes of a file with contexts for a model, found on drawings."""
    drawings = [np.asarray(drawing(160 + 16 * i, 320 - 16 * (i % 7))) for i in range(12)]
    found = contexts_fit.fitted(model, contexts_fit.summed(model, drawings, 24, 1), drawings, 24)
    return packed_tensors(found, {"format": CONTEXTS})


CONTEXTS = "nightpress-contexts-of-tests"
KINDS = (*CONFIGS, "trellis", "contexts")
GROUPED = ("rgb", "rgb-low", "rgb-high", "segments")  # what the second model codes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--really", nargs="*", choices=KINDS, default=[], help="write this model's files; else only sizes"
    )
    args = parser.parse_args()
    folder = HERE / "golden"
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        trellis.applies = lambda config, kind=kind: kind not in CONFIGS
        if kind not in CONFIGS:
            data = lzma.decompress((HERE / "grouped.safetensors.xz").read_bytes())
            if kind == "contexts":
                file = HERE / "contexts.safetensors.xz"
                if kind in args.really:
                    file.write_bytes(lzma.compress(small_contexts(load_model(data)), preset=9 | lzma.PRESET_EXTREME))
                found, _ = read_tensors(lzma.decompress(file.read_bytes()), CONTEXTS)
                data = contexts_fit.with_contexts(data, found)
        else:
            data = small_model(CONFIGS[kind])
            packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
            print(f"{kind}: {len(data)} bytes, {len(packed)} packed")
            if kind in args.really:
                (HERE / f"{kind}.safetensors.xz").write_bytes(packed)
        model = load_model(data)
        for name, (image, level, segment) in pictures().items():
            if kind != "tiny" and name not in GROUPED:
                continue
            name = name if kind == "tiny" else f"{kind}-{name}"
            prepared = prepare(picture_from_image(image), model, segment)
            file = prepared.code(level)
            used = len(np.unique(torch.cat(prepared._latents(level).index.parts, 1)))
            print(f"{name}: {len(file)} bytes, {used} bins")
            if kind in args.really:
                (folder / f"{name}.npi").write_bytes(file)
                pixels = prepared.reconstruct(level)
                Image.fromarray(pixels.squeeze(2) if prepared.mode == "L" else pixels).save(folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
