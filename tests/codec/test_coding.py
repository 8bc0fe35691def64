"""Encoding and decoding: every size and mode, segments without seams, batches, golden files, models found by id."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import codec
from codec import format, models
from codec.bitstream import alpha, container
from codec.decoder import decode, decode_batch, decode_picture, info
from codec.encoder import encode, encode_batch, prepare
from codec.entropy import trellis
from codec.errors import BadBitstream, UnknownModel
from codec.format import level_of
from codec.metrics import psnr
from codec.models import get_model
from codec.network.night_codec import NightCodec
from codec.network.reference import quantised
from codec.pictures.errors import UncarriedPicture


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth structure with edges and a little noise, RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 2
    return Image.fromarray((pixels + rng.normal(size=pixels.shape) * 3).clip(0, 255).astype(np.uint8))


def apart(a, b) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (7, 900), (900, 7), (16, 16), (17, 33), (65, 127), (300, 200)])
def test_every_size_comes_back_in_its_size(small, size):
    image = photo(*size)
    prepared = prepare(image, small)
    data = prepared.code(500)
    shown = decode(data, model=small)
    assert shown.size == size and shown.mode == "RGB"
    assert apart(shown, prepared.reconstruct(500)) <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_and_alpha_are_kept(small, mode):
    image = photo(90, 70).convert(mode[0] if mode[0] == "L" else "RGB")
    alpha = (np.add.outer(np.arange(70) ** 2, np.arange(90) * 3) % 256).astype(np.uint8)
    if "A" in mode:
        image.putalpha(Image.fromarray(alpha))
    shown = decode(encode(image, 40, model=small), model=small)
    assert shown.mode == mode
    if "A" in mode:
        assert np.array_equal(np.asarray(shown)[..., -1], alpha)


def test_alpha_codes(small):
    image = photo(40, 30)
    rng = np.random.default_rng(1)
    planes = {
        "opaque": np.full((30, 40), 255),
        "clear": np.zeros((30, 40)),
        "noise": rng.integers(0, 256, (30, 40)),
        "mask": np.hypot(*np.mgrid[-15:15, -20:20]) < 12,
    }
    sizes = {}
    for name, plane in planes.items():
        image.putalpha(Image.fromarray(plane.astype(np.uint8)))
        data = encode(image, 40, model=small)
        assert np.array_equal(np.asarray(decode(data, model=small))[..., 3], plane.astype(np.uint8)), name
        sizes[name] = info(data)["alpha_bytes"]
    assert sizes["opaque"] == sizes["clear"] == 1 and sizes["mask"] < 120


def test_large_alpha_is_tiled():
    rng = np.random.default_rng(2)
    plane = np.zeros((2100, 4200), np.uint8)
    plane[500:1500, 1000:3000] = 255
    plane[2050:, 4100:] = rng.integers(0, 256, (50, 100))
    data = alpha.encode(plane)
    assert np.array_equal(alpha.decode(data, *plane.shape), plane)
    for cut in (0, 1, 2, 7, len(data) // 2, len(data) - 1):
        with pytest.raises(BadBitstream):
            alpha.decode(data[:cut], *plane.shape) if cut != 1 else alpha.decode(b"\7\7", *plane.shape)


def test_grey_stays_grey(small):
    grey = photo(80, 60).convert("L").convert("RGB")
    data = encode(grey, 50, model=small)
    assert info(data)["achromatic"]
    shown = np.asarray(decode(data, model=small))
    assert (shown[..., 0] == shown[..., 1]).all() and (shown[..., 1] == shown[..., 2]).all()
    assert len(data) == len(encode(grey.convert("L"), 50, model=small))


def whole(model, prepared, level: int) -> np.ndarray:
    """What the networks give on the whole latent at once."""
    with torch.inference_mode():
        latents = prepared._latents(level)
        y, tables, z = (
            t.permute(0, 3, 1, 2)
            for t in (torch.cat(latents.symbols.parts, 1), torch.cat(latents.index.parts, 1), latents.z)
        )
        values = trellis.values_of(y, tables)
        _, means, _ = model.passes(z, level, *y.shape[2:], lambda channels, *_: values[:, channels])
        x_hat = model.synthesis(model.unscale(values + means, level), level)[0].permute(1, 2, 0)
        return torch.round(x_hat * 255).clamp(0, 255).to(torch.uint8).numpy()[: prepared.height, : prepared.width]


@pytest.mark.parametrize("segment", format.SEGMENTS)
def test_segments_leave_no_seam(small, segment):
    """Decoded in segments and as a whole, the same symbols differ by at most 1; the encoder's own bins are exact."""
    image = photo(830, 610)
    prepared = prepare(image, small, segment)
    data = prepared.code(600)
    shown = decode(data, model=small)
    assert apart(shown, whole(small, prepared, 600)) <= 1
    latents = prepared._latents(600)
    y = small.analysis(padded(image))
    symbols = quantised(small, y, 600)[:2]
    for name, mine, theirs in zip("zy", (latents.z, torch.cat(latents.symbols.parts, 1)), symbols, strict=True):
        mine = mine.permute(0, 3, 1, 2)
        assert (mine != theirs).float().mean() < 1e-3, name  # the encoder's float rounding may turn a rare tie


def padded(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image)
    pixels = np.pad(pixels, ((0, -pixels.shape[0] % 16), (0, -pixels.shape[1] % 16), (0, 0)), mode="edge")
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def test_batches_equal_single_pictures(small):
    images = [photo(*size, seed) for seed, size in enumerate([(200, 120), (200, 120), (205, 123), (40, 400)])]
    images.append(images[0].convert("L"))
    qualities = [10, 50, 90, 30, 70]
    files = encode_batch(images, qualities, model=small)
    assert [len(f) for f in files] == [len(encode(i, q, model=small)) for i, q in zip(images, qualities, strict=True)]
    for image, file, shown in zip(images, files, decode_batch(files, model=small), strict=True):
        assert shown.size == image.size and shown.mode == image.mode
        assert apart(shown, decode(file, model=small)) <= 1
    assert encode_batch([], model=small) == [] and decode_batch([], model=small) == []
    with pytest.raises(ValueError, match="3 qualities for 1"):
        encode_batch(images[:1], [1, 2, 3], model=small)


@pytest.mark.parametrize("name", [
    "rgb", "rgb-low", "rgb-high", "rgba", "grey", "grey-alpha", "achromatic", "pixel", "labelled", "segments",
])  # fmt: skip
def test_golden_files_decode_to_golden_pixels(small, golden, name):
    """Format 1, as it was when these files were made. If this fails, old bitstreams would no longer decode."""
    expected = Image.open(golden / f"{name}.png")
    shown = decode((golden / f"{name}.npi").read_bytes(), model=small)
    assert shown.mode == expected.mode and shown.size == expected.size
    assert apart(shown, expected) <= 1
    if "A" in shown.mode:
        assert np.array_equal(np.asarray(shown)[..., -1], np.asarray(expected)[..., -1])


def test_golden_profiles(small, golden):
    data = (golden / "labelled.npi").read_bytes()
    picture = decode_picture(data, model=small)
    assert picture.icc == bytes(range(128)) * 3 and picture.exif and picture.xmp.startswith(b"<x:xmpmeta")
    shown = decode(data, model=small)
    out = io.BytesIO()
    shown.save(out, "JPEG", exif=shown.info["exif"], icc_profile=shown.info["icc_profile"])
    assert Image.open(io.BytesIO(out.getvalue())).getexif()[0x010F] == "Nightpress"


def test_info_tells_the_header(small, golden):
    facts = info((golden / "rgba.npi").read_bytes())
    assert facts["model"] == small.identity and facts["quality"] == 40.0 and facts["mode"] == "RGBA"
    assert (facts["width"], facts["height"]) == (97, 61) and facts["bpp"] == 8 * facts["bytes"] / (97 * 61)


def test_models_are_found_by_id(small, small_bytes, golden, tmp_path, monkeypatch):
    data = (golden / "pixel.npi").read_bytes()
    monkeypatch.setattr(models, "WEIGHTS", tmp_path / "none")
    with pytest.raises(UnknownModel, match=small.identity):
        decode(data)
    with pytest.raises(UnknownModel, match="no trained model"):
        encode(photo(8, 8))
    (tmp_path / "any-name.safetensors").write_bytes(small_bytes)
    assert decode(data, models=[tmp_path], precision="float32").size == (1, 1)
    monkeypatch.setenv(models.MODEL_FOLDERS_VARIABLE, str(tmp_path))
    assert decode(data).size == (1, 1)
    assert get_model(small.identity).identity == small.identity
    with pytest.raises(UnknownModel, match="no model file"):
        get_model(str(tmp_path / "gone.safetensors"))
    other = bytearray(data)
    other[4] ^= 1
    other[-4:] = container.zlib.crc32(bytes(other[:-4])).to_bytes(4, "little")
    with pytest.raises(UnknownModel, match="needs model"):
        decode(bytes(other), model=small)


def test_file_bytes_and_arrays_are_taken(small):
    image = photo(30, 20)
    out = io.BytesIO()
    image.save(out, "PNG")
    expected = encode(image, 30, model=small)
    assert encode(out.getvalue(), 30, model=small) == encode(np.asarray(image), 30, model=small) == expected
    with pytest.raises(UncarriedPicture):
        encode(image.convert("CMYK"), 30, model=small)
    with pytest.raises(TypeError, match="cannot encode a str"):
        encode("picture.png", 30, model=small)


def test_arguments_are_checked(small):
    with pytest.raises(ValueError, match="exclude"):
        encode(photo(8, 8), 30, max_bytes=100, model=small)
    for quality in (-1, 100.5):
        with pytest.raises(ValueError, match="outside"):
            encode(photo(8, 8), quality, model=small)
    assert [level_of(q) for q in (0, 0.04, 37.25, 100)] == [0, 0, 372, 1000]
    with pytest.raises(ValueError, match="outside"):
        prepare(photo(8, 8), small).code(1001)


def test_names_at_the_top():
    assert codec.decode is decode and issubclass(codec.BadBitstream, codec.CodecError)
    assert set(codec.__all__) <= set(dir(codec))
    with pytest.raises(AttributeError):
        codec.nothing  # noqa: B018


def test_quality_rises_with_level_under_an_untrained_full_model():
    """DCT-initialised full-size networks are a transform codec of their own."""
    torch.manual_seed(0)
    model = NightCodec().eval().requires_grad_(False)
    model.identity = "00" * 8
    image = photo(256, 192)
    prepared = prepare(image, model)
    sizes, figures = [], []
    for level in (0, 500, 1000):
        data = prepared.code(level)
        sizes.append(len(data))
        figures.append(psnr(image, decode(data, model=model)))
    assert sizes == sorted(sizes) and figures == sorted(figures) and figures[-1] > 36


def test_several_threads_give_the_same_files(small):
    """Segments and pictures are spread over threads; nothing may depend on which."""
    images = [photo(400, 330, 1), photo(400, 330, 2), photo(90, 80, 3), photo(600, 90, 4)]
    files = encode_batch(images, 60, model=small)
    segmented = prepare(images[0], small, 16).code(600)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert [len(f) for f in encode_batch(images, 60, model=small)] == [len(f) for f in files]
        assert torch.get_num_threads() == 3
        for file, shown in zip(files, decode_batch(files, model=small), strict=True):
            assert apart(shown, decode(file, model=small)) <= 1
        assert apart(decode(segmented, model=small), decode_batch([segmented] * 2, model=small)[1]) <= 1
        assert len(encode_batch([images[0]] * 6, 60, model=small)) == 6
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_memory_of_a_large_picture_is_its_own(small, tmp_path, small_bytes):
    """Decoding takes the picture's memory and that of a few bands; encoding keeps the latent beside it."""
    import subprocess
    import sys

    (tmp_path / "small.safetensors").write_bytes(small_bytes)
    script = """
import resource, sys
import numpy as np
from PIL import Image
from codec.decoder import decode
from codec.models import get_model
from codec.encoder import prepare
import torch
torch.set_num_threads(1)
model = get_model(sys.argv[1] + "/small.safetensors", precision="float32")
prepare(Image.new("RGB", (2000, 1200)), model).code(100)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
data = sys.argv[1] + "/large.npi"
if sys.argv[2] == "encode":
    y, x = np.ogrid[0:5000, 0:8000]
    image = Image.merge("RGB", [Image.fromarray(((x * a + y * b) // 64 % 256).astype(np.uint8)) for a, b in ((3, 2), (1, 5), (7, 1))])
    before = peak()
    open(data, "wb").write(prepare(image, model).code(100))
else:
    before = peak()
    assert decode(open(data, "rb").read(), model=model).size == (8000, 5000)
print(peak() - before)
"""  # noqa: E501

    def grown(step: str) -> float:
        command = [sys.executable, "-c", script, str(tmp_path), step]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    megapixels = 40
    latent = small.config.latent / 256  # cells' channels per pixel
    assert grown("encode") < megapixels * latent * (2 + 2 + 1) + 250  # y in half precision, symbols, bins
    assert grown("decode") < megapixels * 4 + 250  # Pillow's four bytes a pixel
