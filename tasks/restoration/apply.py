"""Clean what is noisy, enlarge what is small, leave the rest alone: the step itself, on one picture.

Here: the denoisers and enlargers behind one call each (`denoise`, `upscale`), tiles with a halo (`run_tiled`). Whether
a picture is noisy is decision.py's, the networks stand in networks.py, how they are trained in train.py, what they are
worth in evaluate.py; weights/ holds trained ones. Which pictures of a night get here, and where the results go, is the
night's business.

Pictures are Pillow images with 8 bits a channel (L, LA, RGB, RGBA; 1 and P where the answer is clear).
Profiles and EXIF travel in `image.info`; the alpha plane is never filtered by `denoise`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tasks.restoration import decision, impulses
from tasks.restoration.noise import UnsupportedPicture, colour_samples

if TYPE_CHECKING:
    from tasks.restoration.networks import Loaded

WEIGHTS = Path(__file__).parent / "weights"

DENOISE_TILE = 1536  # pixels a side: about 0.4 GB of activations in bfloat16
UPSCALE_TILE = 512  # larger ones leave the caches: at 768 a third slower in float32
LUMA = np.array([299, 587, 114], np.float32)  # thousandths of red, green, blue: whole numbers, so that sums are exact
BICUBIC = "bicubic"
UPSCALE_FILTERS = {BICUBIC: Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
UPSCALE_NETWORKS = ("night", "fsrcnn", "srcnn")
NON_LOCAL_MEANS = "nlm"


class RestorationError(RuntimeError):
    """A network gave something unusable (non-finite values), or memory ran out even for the smallest tile."""


# --- denoising ---


def denoise(
    image: Image.Image,
    sigma: float | None = None,
    *,
    method: str = "auto",
    device: str = "auto",
    tile: int | None = None,
) -> Image.Image:
    """The picture without its noise; same size, mode, alpha, profile and EXIF.

    `sigma` None: estimated, impulses are replaced, and a picture that is not clearly noisy comes back itself, bit for
    bit; where there are impulses only, all other samples keep theirs. With a `sigma` (0..255 scale) the picture is
    filtered for that noise alone; 0 returns it itself. Grey stays grey, R = G = B too.
    `method`: `auto` (our network where its weights are, else non-local means), `night`, `dncnn`, `nlm`, `gaussian`,
    `wavelet`. `device` (auto, cpu, cuda) and `tile` (pixels a side) concern the networks.
    Raises UnsupportedPicture for other modes, RestorationError where a network fails, ValueError for wrong arguments.
    """
    if sigma is None:
        found, mask = decision.examine(image)
        if mask is not None:
            image = _filled(image, mask)
        sigma = found.strength
    if not sigma >= 0:
        raise ValueError(f"sigma {sigma}: give a standard deviation (0..255 scale), or None to estimate it")
    if sigma == 0:
        return image
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnsupportedPicture(f"mode {image.mode}: denoising works on 8-bit L, LA, RGB and RGBA pictures")
    if method == "auto":
        method = "night" if network_for("denoise") else NON_LOCAL_MEANS

    def clean(work: np.ndarray) -> np.ndarray:
        if method in ("night", "dncnn"):
            return denoise_samples(work, float(sigma), _needed("denoise", method), device, tile or DENOISE_TILE)
        return _denoise_by_filter(np.ascontiguousarray(work), float(sigma), method)

    return _on_colours(image, clean)


def remove_impulses(image: Image.Image) -> Image.Image:
    """The picture with single wrong pixels (white, black, any) replaced; itself, bit for bit, where there are none.

    All other samples, mode, alpha, profile and EXIF stay. How they are found, and after whom: impulses.py.
    Raises UnsupportedPicture for modes other than 8-bit L, LA, RGB and RGBA.
    """
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnsupportedPicture(f"mode {image.mode}: impulses are looked for in 8-bit L, LA, RGB and RGBA pictures")
    colours = colour_samples(image)[:, :, : 3 if image.mode.startswith("RGB") else 1]
    mask, _ = impulses.find_impulses(colours)
    return image if mask is None else _filled(image, mask)


def _filled(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with the samples of bool [H, W, colour channels] replaced from their surroundings."""
    return _on_colours(image, lambda colours: impulses.fill(colours, mask[:, :, : colours.shape[2]]))


def _on_colours(image: Image.Image, function: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """`function` (uint8 [H, W, 1 or 3] -> the same) on all channels but alpha; a grey picture in RGB goes in as one."""
    samples = colour_samples(image)
    colours = 3 if image.mode.startswith("RGB") else 1
    colour, alpha = samples[:, :, :colours], samples[:, :, colours:]
    grey = colours == 3 and _is_grey(colour)
    clean = function(colour[:, :, :1] if grey else colour)
    if grey:
        clean = np.repeat(clean, 3, axis=2)
    return _with_samples(image, np.concatenate([clean, alpha], axis=2))


def denoiser_id() -> str:
    """What `denoise` uses by default, for the report: the model's id, or `nlm` without weights."""
    loaded = network_for("denoise")
    return f"{loaded.name}-{loaded.identity}" if loaded else NON_LOCAL_MEANS


def denoise_samples(samples: np.ndarray, sigma: float, loaded: Loaded, device: str, tile: int) -> np.ndarray:
    """[H, W, 1 or 3] on the 0..255 scale (uint8, or float beyond it) -> uint8, filtered; grey goes in as three equal
    channels, their mean comes out."""
    import torch

    where = _device(device)
    network = _placed(loaded, where)
    told = torch.full((1, 1, 1, 1), sigma / 255.0, device=where)

    def clean(piece: np.ndarray) -> np.ndarray:
        noisy = torch.from_numpy(np.array(piece.transpose(2, 0, 1), order="C")).to(where)[None].float() / 255.0
        with torch.inference_mode(), _reduced_precision(where):
            result = network(noisy.expand(-1, 3, -1, -1), told)
        if piece.shape[2] == 1:
            result = result.mean(1, keepdim=True)
        return result[0].permute(1, 2, 0).float().cpu().numpy()

    return run_tiled(clean, samples, loaded.network.halo, loaded.network.multiple, tile)


def _denoise_by_filter(samples: np.ndarray, sigma: float, method: str) -> np.ndarray:
    """uint8 [H, W, 1 or 3] -> the same, filtered."""
    if method == NON_LOCAL_MEANS:
        import cv2

        # Patch side and strength that gave the best PSNR on training tiles; colours share their weights.
        colour = samples.shape[2] == 3
        clean = cv2.fastNlMeansDenoising(
            samples, None, sigma * (0.9 if colour else 1.0), 3 if colour and sigma < 20 else 5, 21
        )
    elif method == "gaussian":
        import cv2

        clean = cv2.GaussianBlur(samples, (0, 0), 0.4 + 0.033 * sigma)
    elif method == "wavelet":
        from skimage.restoration import denoise_wavelet

        colour = samples.shape[2] == 3
        clean = denoise_wavelet(
            samples[:, :, 0] / 255.0 if not colour else samples / 255.0,
            sigma=sigma / 255.0,
            mode="soft",
            convert2ycbcr=colour,
            channel_axis=2 if colour else None,
            rescale_sigma=True,
        )
        clean = np.clip(np.rint(clean * 255.0), 0, 255).astype(np.uint8)
    else:
        raise ValueError(f"method {method!r}: one of auto, night, dncnn, nlm, gaussian, wavelet is needed")
    return clean.reshape(samples.shape)


def _is_grey(colour: np.ndarray) -> bool:
    return bool((colour[:, :, 0] == colour[:, :, 1]).all() and (colour[:, :, 0] == colour[:, :, 2]).all())


def _with_samples(image: Image.Image, samples: np.ndarray) -> Image.Image:
    """A picture of `samples` with the mode, profile and metadata of `image`."""
    result = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples, image.mode)
    result.info = dict(image.info)
    return result


# --- super-resolution ---


def upscale(
    image: Image.Image, scale: int, *, method: str = "auto", device: str = "auto", tile: int | None = None
) -> Image.Image:
    """The picture `scale` (2, 3 or 4) times as wide and as high; mode, profile and EXIF kept.

    Networks enlarge the luma, colour and alpha are bicubic; colours under full transparency give way to the nearest
    visible ones before, so that they show nowhere. Detail beyond the source's resolution is synthetic: keep
    the result beside the source, never instead of it (`provenance`). `method`: `auto` (our network where its weights
    are, else bicubic), `night`, `fsrcnn`, `srcnn`, `bicubic`, `lanczos`; `device`, `tile`, errors as in `denoise`.
    """
    if scale not in (2, 3, 4):
        raise ValueError(f"scale {scale}: 2, 3 or 4 is needed")
    scale = int(scale)
    if image.mode in ("1", "P", "PA"):
        transparent = "transparency" in image.info or image.mode == "PA"
        info = {name: value for name, value in image.info.items() if name != "transparency"}
        image = image.convert("RGBA" if transparent else "RGB" if image.mode == "P" else "L")
        image.info = info
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise UnsupportedPicture(f"mode {image.mode}: enlarging works on 8-bit L, LA, RGB and RGBA pictures")
    if method == "auto":
        method = "night" if network_for("superres", scale) else BICUBIC
    if method not in UPSCALE_FILTERS and method not in UPSCALE_NETWORKS:
        known = ", ".join((*UPSCALE_NETWORKS, *UPSCALE_FILTERS))
        raise ValueError(f"method {method!r}: one of auto, {known} is needed")
    size = (image.width * scale, image.height * scale)
    if method in UPSCALE_FILTERS:  # which weigh colours by alpha
        result = image.resize(size, UPSCALE_FILTERS[method])
        result.info = dict(image.info)
        return result
    image = _without_hidden_colours(image)
    small, luma = colour_samples(image), luma_of(image)
    large = upscale_luma(luma, scale, method=method, device=device, tile=tile)
    planes = [large]
    if image.mode in ("RGB", "RGBA"):
        red, blue = (_resized(small[:, :, c] - luma, size, BICUBIC) for c in (0, 2))
        green = red * (-LUMA[0] / LUMA[1]) - blue * (LUMA[2] / LUMA[1])
        planes = [np.add(difference, large, out=difference) for difference in (red, green, blue)]
    if image.mode in ("LA", "RGBA"):
        planes.append(np.asarray(image.getchannel("A").resize(size, UPSCALE_FILTERS[BICUBIC])))
    return _with_samples(image, np.stack([eight_bit(plane) for plane in planes], axis=2))


def _without_hidden_colours(image: Image.Image) -> Image.Image:
    """The picture with the nearest visible pixel's colour wherever alpha is 0; itself where there is no such place."""
    if image.mode not in ("LA", "RGBA"):
        return image
    samples = np.array(image)
    hidden = samples[:, :, -1] == 0
    if not hidden.any() or hidden.all():
        return image
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    samples[hidden, :-1] = samples[rows[hidden], columns[hidden], :-1]
    return _with_samples(image, samples)


def upscale_luma(
    luma: np.ndarray, scale: int, *, method: str = "night", device: str = "auto", tile: int | None = None
) -> np.ndarray:
    """A luma plane float32 [h, w] in 0..255 -> float32 [scale * h, scale * w], not rounded; networks clip to 0..255.
    `method` as in `upscale` but `auto`; errors as there."""
    height, width = luma.shape
    if method in UPSCALE_FILTERS:
        return _resized(luma, (width * scale, height * scale), method)
    import torch

    loaded, where = _needed("superres", method, scale), _device(device)
    network = _placed(loaded, where)

    def enlarge(piece: np.ndarray) -> np.ndarray:
        small = torch.from_numpy(np.array(piece.transpose(2, 0, 1), order="C")).to(where)[None] / 255.0
        with torch.inference_mode(), _reduced_precision(where):
            return network(small)[0].permute(1, 2, 0).float().cpu().numpy()

    halo, multiple = loaded.network.halo, loaded.network.multiple
    large = run_tiled(enlarge, luma[:, :, None], halo, multiple, tile or UPSCALE_TILE, scale, rounded=False)[:, :, 0]
    return np.multiply(large, 255.0, out=large)


def eight_bit(samples: np.ndarray) -> np.ndarray:
    """Floats in 0..255 -> uint8, rounded and clipped."""
    return np.rint(np.clip(samples, 0.0, 255.0)).astype(np.uint8)


def _resized(plane: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """float32 [h, w] -> float32 [H, W] for size (W, H), neither rounded nor clipped."""
    return np.array(Image.fromarray(plane).resize(size, UPSCALE_FILTERS[method]))


def luma_of(image: Image.Image) -> np.ndarray:
    """float32 [H, W] in 0..255: Rec. 601 luma, full range, not rounded; exactly the grey value where all are equal."""
    samples = colour_samples(image)
    if image.mode in ("L", "LA"):
        return samples[:, :, 0].astype(np.float32)
    return samples[:, :, :3].astype(np.float32) @ LUMA / np.float32(1000)


def upscaler_id(scale: int) -> str:
    """What `upscale` uses by default at this scale, for the report: the model's id, or `bicubic` without weights."""
    loaded = network_for("superres", scale)
    return f"{loaded.name}-{loaded.identity}" if loaded else BICUBIC


def provenance(parent_sha256: str, scale: int) -> dict[str, str]:
    """Metadata for an enlarged picture that is stored: what it was made from and how, and that detail is made up."""
    return {
        "nightpress-parent-sha256": parent_sha256,
        "nightpress-model": upscaler_id(scale),
        "nightpress-scale": str(scale),
        "nightpress-synthetic-detail": "true",
    }


# --- networks and tiles ---


def network_for(task: str, scale: int = 1, name: str = "night") -> Loaded | None:
    """The trained network of weights/ for a task (denoise | superres), or None without its weights."""
    path = WEIGHTS / f"{task}-{name}{f'-x{scale}' if task == 'superres' else ''}.safetensors"
    return _loaded(path) if path.exists() else None


def _needed(task: str, name: str, scale: int = 1) -> Loaded:
    loaded = network_for(task, scale, name)
    if loaded is None:
        raise ValueError(
            f"method {name!r}: no weights for {task}{f' x{scale}' if task == 'superres' else ''} under {WEIGHTS}; "
            f"train them (`nightpress train {task}`) and put the file there, or use method 'auto'"
        )
    return loaded


@functools.lru_cache(maxsize=16)
def _loaded(path: Path) -> Loaded:
    from tasks.restoration.networks import load_network

    return load_network(path)


def _device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _placed(loaded: Loaded, where: str):
    """The network on its device; moving it once is enough, since a process works on one device."""
    parameter = next(loaded.network.parameters())
    return loaded.network if parameter.device.type == where else loaded.network.to(where)


def _reduced_precision(where: str):
    """bfloat16 convolutions where the device multiplies it natively, float32 elsewhere. Measured on Kodak: below
    0.01 dB for all networks, since they compute a correction that is added to the picture in float32."""
    import torch

    from codec.network.layers import native_bfloat16

    return torch.autocast(where, dtype=torch.bfloat16, enabled=native_bfloat16(where))


def run_tiled(
    function: Callable[[np.ndarray], np.ndarray],
    samples: np.ndarray,
    halo: int,
    multiple: int,
    tile: int,
    scale: int = 1,
    rounded: bool = True,
) -> np.ndarray:
    """Run `function` over a picture in tiles of one shape and paste the middles together, seamless.

    function: [h, w, C] (sides multiples of `multiple`) -> float [s*h, s*w, C'] in 0..1; samples: [H, W, C]; halo: the
    radius that an output pixel sees, in input pixels; tile: largest side. -> uint8 [s*H, s*W, C'], or
    float32 in 0..1 where not `rounded`.
    Where memory runs out the tile is halved and everything starts again. Raises RestorationError where even the
    smallest tile does not fit, and for values that are not finite: a black or half-finished picture is never returned.
    """
    height, width = samples.shape[:2]
    padding = [(0, -height % multiple), (0, -width % multiple), (0, 0)]
    padded = np.pad(samples, padding, mode="edge") if any(after for _, after in padding) else samples
    smallest = -(-(2 * halo + multiple) // multiple) * multiple
    while True:
        tile = max(smallest, tile // multiple * multiple)
        try:
            result = _tiles(function, padded, halo, multiple, tile, scale, rounded)
            return result[: scale * height, : scale * width]
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            tile = min(tile, max(padded.shape[:2]))
            if tile <= smallest:
                raise RestorationError(
                    f"out of memory on a {width}x{height} picture even in tiles of {tile} pixels; free memory, or "
                    "run with fewer workers"
                ) from error
        _release_device_memory()
        tile //= 2


def _tiles(function, padded: np.ndarray, halo: int, multiple: int, tile: int, scale: int, rounded: bool) -> np.ndarray:
    spans = [_spans(length, halo, multiple, tile) for length in padded.shape[:2]]
    result: np.ndarray | None = None
    for top, bottom, first, last in spans[0]:
        for left, right, start, stop in spans[1]:
            piece = function(padded[top:bottom, left:right])
            if not np.isfinite(piece).all():
                raise RestorationError(
                    f"the network gave values that are not finite at rows {top}-{bottom}, columns {left}-{right}; "
                    "check the weights, or use another method"
                )
            if result is None:
                shape = (scale * padded.shape[0], scale * padded.shape[1], piece.shape[2])
                result = np.empty(shape, np.uint8 if rounded else np.float32)
            middle = piece[scale * (first - top) : scale * (last - top), scale * (start - left) : scale * (stop - left)]
            cell = result[scale * first : scale * last, scale * start : scale * stop]
            middle = np.clip(middle, 0.0, 1.0)
            cell[...] = np.rint(middle * 255.0) if rounded else middle
    assert result is not None, "there is a tile at least"
    return result


def _spans(length: int, halo: int, multiple: int, tile: int) -> list[tuple[int, int, int, int]]:
    """Along one axis: (begin, end) of each tile as read and (first, last) as kept; all tiles are equally long."""
    if length <= tile:
        return [(0, length, 0, length)]
    halo = -(-halo // multiple) * multiple
    count = -(-(length - 2 * halo) // (tile - 2 * halo))
    size = -(-(length + 2 * halo * (count - 1)) // (count * multiple)) * multiple
    begins = [min(k * (size - 2 * halo), length - size) for k in range(count)]
    edges = [0, *(begin + halo for begin in begins[1:]), length]
    return [(b, b + size, first, last) for b, first, last in zip(begins, edges, edges[1:], strict=False)]


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _release_device_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
