"""The codecs that are compared, each called the same way: ours and the standard ones through their usual libraries.

Standard codecs run in one thread: JPEG, WebP, JPEG 2000 and AVIF by Pillow, JPEG XL by imagecodecs, HEVC 4:4:4 (x265,
the core of BPG) by pillow-heif. What is measured of them is points.py's.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

OURS = "nightpress"


def title_of(name: str) -> str:
    return {
        OURS: "Nightpress", "jpeg": "JPEG 4:2:0", "webp": "WebP",
        "jpeg2000": "JPEG 2000", "avif": "AVIF", "avif-psnr": "AVIF tuned for PSNR", "jxl": "JPEG XL",
        "hevc": "HEVC 4:4:4",
    }.get(name, name)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Codec:
    """How to call one codec. encode(image, setting) -> file; decode(file) -> uint8 [H,W,C] as the image had it."""

    name: str
    title: str
    settings: tuple[float, ...]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], np.ndarray]
    version: str
    model: str | None = None


def _open(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def _pillow_version(feature: str) -> str:
    import PIL
    from PIL import features

    check = features.version_feature if feature in features.features else features.version
    return f"Pillow {PIL.__version__}, {feature} {check(feature)}"


def _jpeg() -> Codec:
    def encode(image: Image.Image, q: float) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(q), subsampling="4:2:0", optimize=False)
        return file.getvalue()

    settings = (5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95)
    return Codec("jpeg", "JPEG 4:2:0", settings, encode, _open, _pillow_version("libjpeg_turbo"))


def _webp() -> Codec:
    def encode(image: Image.Image, q: float) -> bytes:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=int(q), method=4)
        return file.getvalue()

    return Codec("webp", "WebP", (1, 10, 25, 45, 65, 80, 88, 94, 98), encode, _open, _pillow_version("webp"))


def _jpeg2000() -> Codec:
    def encode(image: Image.Image, ratio: float) -> bytes:
        """One layer at a compression ratio, irreversible wavelet; Pillow leaves the colour transform (mct) off."""
        file = io.BytesIO()
        colour = {"mct": 1} if image.mode == "RGB" else {}
        layers = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True}
        image.save(file, "JPEG2000", no_jp2=True, **layers, **colour)
        return file.getvalue()

    settings = (200, 120, 80, 55, 40, 30, 22, 16, 12, 9, 7)
    return Codec("jpeg2000", "JPEG 2000", settings, encode, _open, _pillow_version("jpg_2000"))


def _avif(tune: str = "iq") -> Codec:
    """tune: iq, libavif's own choice for stills, or psnr, which spends its bits for the squared error."""

    def encode(image: Image.Image, q: float) -> bytes:
        file = io.BytesIO()
        options = {"subsampling": "4:4:4", "speed": 6, "max_threads": 1, "advanced": {"tune": tune}}
        image.save(file, "AVIF", quality=int(q), **options)
        return file.getvalue()

    name = "avif" if tune == "iq" else f"avif-{tune}"
    settings = (5, 15, 25, 35, 45, 55, 65, 75, 83, 90, 95)
    return Codec(name, title_of(name), settings, encode, _open, f"{_pillow_version('avif')}, tune={tune}")


def _jxl() -> Codec:
    import imagecodecs

    def encode(image: Image.Image, distance: float) -> bytes:
        return bytes(imagecodecs.jpegxl_encode(np.asarray(image), distance=distance, effort=7, numthreads=1))

    def decode(data: bytes) -> np.ndarray:
        return imagecodecs.jpegxl_decode(data, numthreads=1)

    settings = (15.0, 10.0, 7.0, 5.0, 3.5, 2.5, 1.8, 1.2, 0.8, 0.5, 0.3)
    return Codec("jxl", "JPEG XL", settings, encode, decode, f"imagecodecs {imagecodecs.__version__}")


def _hevc() -> Codec:
    import pillow_heif

    def encode(image: Image.Image, q: float) -> bytes:
        """Tuned for PSNR (libheif's own choice is SSIM): the stronger anchor for what is compared first here."""
        file = io.BytesIO()
        options = {"tune": "psnr", "x265:pools": "none"}
        pillow_heif.from_pillow(image).save(file, quality=int(q), chroma="444", enc_params=options)
        return file.getvalue()

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(pillow_heif.open_heif(io.BytesIO(data)).to_pillow())

    settings = (4, 10, 17, 24, 31, 38, 45, 52, 60, 70)
    version = f"pillow-heif {pillow_heif.__version__}, {pillow_heif.libheif_info()['HEIF']}"
    return Codec("hevc", "HEVC 4:4:4 (x265)", settings, encode, decode, version)


def _ours(model=None, device: str = "auto", precision: str = "auto") -> Codec:
    from codec import decoder, encoder, models
    from codec.format import VERSION

    net = models.get_model(model, device=device, precision=precision)

    def encode(image: Image.Image, quality: float) -> bytes:
        return encoder.encode(image, quality, model=net)

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(decoder.decode(data, model=net))

    precision = str(net.precision).removeprefix("torch.")
    version = f"npi {VERSION}, {precision} on {net.log_gain.device.type}"
    return Codec(OURS, "Nightpress", tuple(range(0, 101, 10)), encode, decode, version, net.identity)


STANDARD = {
    "jpeg": _jpeg, "webp": _webp, "jpeg2000": _jpeg2000, "avif": _avif, "avif-psnr": lambda: _avif("psnr"),
    "jxl": _jxl, "hevc": _hevc,
}  # fmt: skip
NAMES = (OURS, *STANDARD)


def codec_named(name: str, **ours) -> Codec:
    """One of NAMES, ready to use; `ours`: model, device, precision. Raises ValueError for another name."""
    if name == OURS:
        return _ours(**ours)
    if name not in STANDARD:
        raise ValueError(f"unknown codec {name!r}; there are {', '.join(NAMES)}")
    return STANDARD[name]()
