"""What the restoration is worth, measured on folders of clean pictures: decision, denoising, camera noise, enlarging,
bytes saved. One function a table, each yields rows; `markdown` prints them, `strip` shows them side by side.

Conditions, so that figures can be laid beside published ones: denoising PSNR over RGB with the clean picture as the
file has it, networks once on float noise (as papers do) and once on 8-bit files (as the product does). Enlarging is
judged on MATLAB's luma (65.481, 128.553, 24.966, +16), rounded, a border of `scale` pixels cut; files of one channel
are taken as they are. It is done twice: as the papers on SRCNN, FSRCNN and VDSR do it, that luma reduced in floating
point by the bicubic filter and enlarged; and as the product does it, an 8-bit file reduced and enlarged in its
colours. Methods themselves stand in apply.py.
"""

import io
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from tasks.restoration import apply as restoration
from tasks.restoration.apply import eight_bit
from tasks.restoration.decision import SMALLEST_JUDGED, decide
from tasks.restoration.noise import noise_sigma
from tasks.restoration.samples import camera_pair, through_jpeg

PICTURES = (".png", ".avif", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
SIGMAS = (15, 25, 50)
FILTERS = ("gaussian", "wavelet", "nlm")
NETWORKS = ("dncnn", "night")
# (electrons of full white, read noise in electrons, JPEG quality): from a good to a poor exposure
CAMERAS = ((800, 3.0, 95), (250, 4.0, 92), (100, 5.0, 92))


def pictures(folder: Path, limit: int | None = None, grey: bool = False) -> list[tuple[str, Image.Image]]:
    """(name, RGB picture) of a folder and all below it, sorted; at most `limit`, evenly chosen. Files of one channel
    stay so (L) where `grey` is set.

    Raises FileNotFoundError where there is none.
    """
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PICTURES)
    if not paths:
        raise FileNotFoundError(f"no pictures ({', '.join(PICTURES)}) under {folder}")
    if limit and limit < len(paths):
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]
    found = []
    for path in paths:
        with Image.open(path) as image:
            mode = "L" if grey and image.mode == "L" else "RGB"
            found.append((path.stem, ImageOps.exif_transpose(image).convert(mode)))
    return found


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB for values on the 0..255 scale."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * np.log10(255.0**2 / max(error, 1e-10))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity with the Gaussian window of Wang et al. (2004); colour: mean over channels."""
    from skimage.metrics import structural_similarity

    channel = 2 if a.ndim == 3 else None
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255.0}
    return float(structural_similarity(a.astype(float), b.astype(float), channel_axis=channel, **options))


def noisy_samples(clean: np.ndarray, sigma: float, name: str) -> np.ndarray:
    """Float samples with white noise: the same noise for the same picture and sigma in every run."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), int(sigma * 1000)])
    return clean.astype(np.float32) + np.float32(sigma) * rng.standard_normal(clean.shape, dtype=np.float32)


def decision_rows(folder: Path, limit: int | None = None) -> Iterator[dict]:
    """Share of pictures that `decide` would touch, clean and at known noise, also as JPEG and grey."""
    outcomes: dict[str, list[tuple[bool, float]]] = {}

    def note(condition: str, image: Image.Image, jpeg_quality: int | None = None) -> None:
        decision = decide(image, jpeg_quality)
        outcomes.setdefault(condition, []).append((decision.noisy, decision.sigma))

    for name, image in pictures(folder, limit):
        if min(image.size) < SMALLEST_JUDGED:
            continue
        clean = np.asarray(image)
        note("clean", image)
        note("clean, grey", image.convert("L"))
        for quality in (95, 85, 75):
            note(f"clean, JPEG {quality}", _stored(image, quality), quality)
        for sigma in (5, 7, 10, 15, 25, 50):
            noisy = Image.fromarray(eight_bit(noisy_samples(clean, sigma, name)))
            note(f"sigma {sigma}", noisy)
            if sigma in (10, 25):
                grey = eight_bit(noisy_samples(np.asarray(image.convert("L")), sigma, name))
                note(f"sigma {sigma}, grey", Image.fromarray(grey))
                for quality in (95, 85, 60):
                    note(f"sigma {sigma}, JPEG {quality}", _stored(noisy, quality), quality)
    for condition, results in outcomes.items():
        noisy, sigma = np.array(results, float).T
        yield {
            "table": "decision",
            "set": Path(folder).name,
            "condition": condition,
            "pictures": len(results),
            "touched": float(noisy.mean()),
            "estimate_mean": float(sigma.mean()),
            "estimate_5th": float(np.percentile(sigma, 5)),
            "estimate_95th": float(np.percentile(sigma, 95)),
            "estimate_max": float(sigma.max()),
        }


def _stored(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def networks_at_hand() -> list[str]:
    """Denoising networks whose weights are there."""
    return [name for name in NETWORKS if restoration.network_for("denoise", name=name)]


def denoising_rows(folder: Path, limit: int | None = None, strips: Path | None = None) -> Iterator[dict]:
    """White noise: every method at its known sigma on 8-bit files, networks on float noise and at the estimated one."""
    for number, (name, image) in enumerate(pictures(folder, limit)):
        clean = np.asarray(image)
        for sigma in SIGMAS:
            samples = noisy_samples(clean, sigma, name)
            noisy = Image.fromarray(eight_bit(samples))
            shown = [("clean", image), (f"noisy, sigma {sigma}", noisy)]
            yield _row("denoise", folder, f"sigma {sigma}", "noisy (8 bit)", name, clean, np.asarray(noisy), 0.0)
            for method in (*FILTERS, *networks_at_hand()):
                result, seconds = _timed(lambda m=method, n=noisy, s=sigma: restoration.denoise(n, s, method=m))
                shown.append((method, result))
                yield _row("denoise", folder, f"sigma {sigma}", method, name, clean, np.asarray(result), seconds)
            for method in networks_at_hand():
                loaded = restoration.network_for("denoise", name=method)
                result, seconds = _timed(
                    lambda x=samples, s=sigma, k=loaded: restoration.denoise_samples(
                        x, float(s), k, "auto", restoration.DENOISE_TILE
                    )
                )
                yield _row("denoise", folder, f"sigma {sigma}", f"{method}, float noise", name, clean, result, seconds)
            result, seconds = _timed(lambda n=noisy: restoration.denoise(n))
            yield _row("denoise", folder, f"sigma {sigma}", "auto, blind", name, clean, np.asarray(result), seconds)
            if strips and number < 4:
                strip(shown, clean).save(strips / f"denoise-{name}-{sigma}.png")


def camera_rows(folder: Path, limit: int | None = None, strips: Path | None = None) -> Iterator[dict]:
    """Noise as a camera makes it (restoration_samples.camera_pair, colour mosaic, JPEG 4:2:0), sigma estimated."""
    for number, (name, image) in enumerate(pictures(folder, limit)):
        samples = np.asarray(image, np.float32) / 255.0
        for electrons, read, quality in CAMERAS:
            rng = np.random.default_rng([zlib.crc32(name.encode()), electrons])
            noisy, target = camera_pair(samples, rng, electrons, read, mosaic=True, blur=0.0)
            noisy, clean = eight_bit(through_jpeg(noisy, quality, False) * 255), eight_bit(target * 255)
            picture, condition = Image.fromarray(noisy), f"{electrons} e-, JPEG {quality}"
            sigma = noise_sigma(picture)
            shown = [("clean", Image.fromarray(clean)), (f"camera, {electrons} e-", picture)]
            yield _row("camera", folder, condition, "noisy", name, clean, noisy, 0.0, sigma=sigma)
            for method in (*FILTERS, *networks_at_hand()):
                result, seconds = _timed(lambda m=method, p=picture, s=sigma: restoration.denoise(p, s, method=m))
                shown.append((method, result))
                yield _row("camera", folder, condition, method, name, clean, np.asarray(result), seconds, sigma=sigma)
            if strips and number < 4:
                strip(shown, clean).save(strips / f"camera-{name}-{electrons}.png")


def enlarging_rows(folder: Path, scale: int, limit: int | None = None, strips: Path | None = None) -> Iterator[dict]:
    """Luma PSNR and SSIM of every method at hand: condition `x2` on luma as published figures are, `x2, 8-bit files` as
    the product enlarges them."""
    at_hand = [m for m in restoration.UPSCALE_NETWORKS[::-1] if restoration.network_for("superres", scale, m)]
    for number, (name, image) in enumerate(pictures(folder, limit, grey=True)):
        width, height = (n // scale * scale for n in image.size)
        image = image.crop((0, 0, width, height))
        size = (width // scale, height // scale)
        inside = (slice(scale, -scale), slice(scale, -scale))
        luma = matlab_luma(image)
        low, span = (0.0, 255.0) if image.mode == "L" else (16.0, 219.0)
        plane = np.array(Image.fromarray(luma.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        plane = (plane - np.float32(low)) * np.float32(255.0 / span)
        small = image.resize(size, Image.Resampling.BICUBIC)
        shown = [("original", image), (f"x{scale} nearest", small.resize(image.size, Image.Resampling.NEAREST))]
        for method in (*restoration.UPSCALE_FILTERS, *at_hand):
            large, seconds = _timed(lambda m=method, p=plane: restoration.upscale_luma(p, scale, method=m))
            got = np.rint(np.clip(large.astype(np.float64), 0, 255) * (span / 255.0) + low)
            yield _row("superres", folder, f"x{scale}", method, name, luma[inside], got[inside], seconds)
            result, seconds = _timed(lambda m=method, i=small: restoration.upscale(i, scale, method=m))
            shown.append((method, result))
            got = matlab_luma(result)[inside]
            yield _row("superres", folder, f"x{scale}, 8-bit files", method, name, luma[inside], got, seconds)
        if strips and number < 4:
            strip(shown, np.asarray(image)).save(strips / f"superres-{name}-x{scale}.png")


def matlab_luma(image: Image.Image) -> np.ndarray:
    """float64 [H, W], rounded: MATLAB's rgb2ycbcr on 8-bit values, 16..235; L as it is."""
    if image.mode == "L":
        return np.asarray(image, np.float64)
    samples = np.asarray(image.convert("RGB"), np.float64)
    return np.rint(samples @ np.array([65.481, 128.553, 24.966]) / 255.0 + 16.0)


def saving_rows(
    folder: Path, codec: str = "npi", limit: int | None = None, sigmas: tuple[int, ...] = (10, 15, 25)
) -> Iterator[dict]:
    """Bytes of denoise-then-compress against compress alone, at equal PSNR to the clean picture.

    Both are encoded at several qualities; the comparison is made at the best PSNR to the clean picture that
    compressing alone reaches (log bytes interpolated over PSNR). `codec`: npi, avif or webp.
    """
    encode, qualities = _codec(codec)
    for name, image in pictures(folder, limit):
        clean = np.asarray(image)
        for sigma in sigmas:
            noisy = Image.fromarray(eight_bit(noisy_samples(clean, sigma, name)))
            curves = []
            for picture in (noisy, restoration.denoise(noisy)):
                points = [encode(picture, quality) for quality in qualities]
                curves.append([(psnr(decoded, clean), size) for size, decoded in points])
            alone_psnr, alone_bytes = max(curves[0])
            # along the other curve, only as far as quality still rises
            rising = [p for i, p in enumerate(curves[1]) if p[0] > max([q[0] for q in curves[1][:i]], default=0)]
            decibels, sizes = np.array(rising).T
            reached = decibels[-1] >= alone_psnr
            same_bytes = float(np.exp(np.interp(alone_psnr, decibels, np.log(sizes)))) if reached else float("nan")
            yield {
                "table": "saving",
                "set": Path(folder).name,
                "condition": f"sigma {sigma}",
                "method": f"denoise ({restoration.denoiser_id()}) + {codec}",
                "picture": name,
                "psnr": alone_psnr,
                "bytes_alone": alone_bytes,
                "bytes": same_bytes,
                "saved": 1 - same_bytes / alone_bytes,
                "best_psnr": float(decibels[-1]),
            }


def _codec(name: str) -> tuple[Callable[[Image.Image, float], tuple[int, np.ndarray]], tuple[int, ...]]:
    """(encode(image, quality) -> (bytes, decoded samples), qualities in rising order)."""
    if name == "npi":
        import codec

        def encode(image: Image.Image, quality: float) -> tuple[int, np.ndarray]:
            data = codec.encode(image, quality=quality)
            return len(data), np.asarray(codec.decode(data))

        return encode, tuple(range(10, 101, 10))

    def encode(image: Image.Image, quality: float) -> tuple[int, np.ndarray]:
        buffer = io.BytesIO()
        image.save(buffer, name.upper(), quality=int(quality))
        return buffer.tell(), np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))

    return encode, tuple(range(20, 96, 8))


def _timed(function: Callable) -> tuple:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def _row(
    table: str, folder: Path, condition: str, method: str, name: str, wanted, got, seconds: float, **more: float
) -> dict:
    megapixels = wanted.shape[0] * wanted.shape[1] / 1e6
    return {
        "table": table,
        "set": Path(folder).name,
        "condition": condition,
        "method": method,
        "picture": name,
        "psnr": psnr(got, wanted),
        "ssim": ssim(got, wanted),
        "megapixels_per_second": megapixels / seconds if seconds else None,
        **more,
    }


def strip(shown: list[tuple[str, Image.Image]], clean: np.ndarray, side: int = 192) -> Image.Image:
    """Labelled cut-outs side by side, twice enlarged, from where the picture has most detail."""
    luma = clean[:, :, :3].mean(axis=2) if clean.ndim == 3 else clean
    side = min(side, *luma.shape)
    steps = [(y, x) for y in range(0, luma.shape[0] - side + 1, 64) for x in range(0, luma.shape[1] - side + 1, 64)]
    detail = np.abs(np.diff(luma.astype(float), axis=1, append=0))
    top, left = max(steps, key=lambda yx: detail[yx[0] : yx[0] + side, yx[1] : yx[1] + side].mean())
    sheet = Image.new("RGB", (len(shown) * (2 * side + 8) - 8, 2 * side + 20), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, image) in enumerate(shown):
        cut = image.convert("RGB").crop((left, top, left + side, top + side))
        sheet.paste(cut.resize((2 * side, 2 * side), Image.Resampling.NEAREST), (column * (2 * side + 8), 20))
        draw.text((column * (2 * side + 8) + 2, 4), label, fill="black")
    return sheet


def averages(rows: list[dict]) -> list[dict]:
    """Means over the pictures of each (table, set, condition, method), in the order of first appearance."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["table"], row["set"], row["condition"], row.get("method", "")), []).append(row)
    result = []
    for (table, name, condition, method), members in groups.items():
        mean: dict = {"table": table, "set": name, "condition": condition, "method": method, "pictures": len(members)}
        for column in members[0]:
            values = [m[column] for m in members if isinstance(m.get(column), int | float)]
            if column not in mean and values:
                mean[column] = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
        mean["pictures"] = members[0].get("pictures", len(members))
        result.append(mean)
    return result


def markdown(rows: list[dict]) -> str:
    """The averages as one Markdown table for each kind of figure."""
    columns = {
        "decision": ("touched", "estimate_mean", "estimate_5th", "estimate_95th", "estimate_max"),
        "denoise": ("psnr", "ssim", "megapixels_per_second"),
        "camera": ("psnr", "ssim", "sigma", "megapixels_per_second"),
        "superres": ("psnr", "ssim", "megapixels_per_second"),
        "saving": ("psnr", "best_psnr", "bytes_alone", "bytes", "saved"),
    }
    headings = {"megapixels_per_second": "MP/s", "touched": "touched", "saved": "saved"}
    blocks = []
    for table, figures in columns.items():
        members = [m for m in averages(rows) if m["table"] == table]
        if not members:
            continue
        names = ["set", "condition", *(["method"] if members[0]["method"] else []), "pictures"]
        lines = [f"## {table}", "", "| " + " | ".join([*names, *(headings.get(f, f) for f in figures)]) + " |"]
        lines.append("|" + "---|" * (len(names) + len(figures)))
        for member in members:
            cells = [str(member[n]) for n in names] + [_cell(f, member.get(f)) for f in figures]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _cell(figure: str, value: float | None) -> str:
    if value is None:
        return ""
    if figure in ("touched", "saved"):
        return f"{100 * value:.1f} %"
    return f"{value:.4f}" if figure == "ssim" else f"{value:.0f}" if figure.startswith("bytes") else f"{value:.2f}"
