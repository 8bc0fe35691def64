"""From pixels to the latent y and the hyper-latent z, window by window.

What is quantised of y stands in passes.py; the networks are transforms.py's.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec.engine.batches import map_windows, pieces_of
from codec.engine.blocks import lap_blocks, spread, turned_of
from codec.engine.latents import is_large
from codec.engine.transforms import Inference, gain_factors, inference_of
from codec.engine.windows import Bands, Grid, Window
from codec.format import Z_MAX
from codec.network.night_codec import NightCodec
from codec.threads import map_threads


def analyse(model: NightCodec, images: list[Image.Image], grid: Grid) -> Bands:
    """Pictures of one grid -> y [B,h,w,latent]."""
    device, inference = model.log_gain.device, inference_of(model)
    halo = -(-model.analysis_halo // 16)
    y = Bands(grid.rows)

    def one(window: Window) -> None:
        outer = window.grown(halo)
        y.part_of(window)[:] = inference.analysis(_blocks_of(images, outer, inference), window.within(outer))

    for band in range(grid.bands):
        shape = len(images), grid.rows[band + 1] - grid.rows[band], grid.width, model.config.latent
        where = {"dtype": torch.float16, "device": "cpu"} if is_large(grid) else {"device": device}
        y.parts[band] = torch.empty(shape, **where)
        map_windows(model, one, pieces_of(model, grid, band))
    return y


def _blocks_of(images: list[Image.Image], window: Window, inference: Inference) -> Tensor:
    """float32 [B,h,w,768]: the pictures' pixels in the window's cells, as Inference.analysis takes them."""
    if inference.device.type != "cpu":
        pixels = np.stack(map_threads(lambda image: _pixels_of(image, window), images))
        return lap_blocks(turned_of(torch.from_numpy(pixels).to(inference.device), *window.shape), inference.laps[0])
    x = torch.empty(len(images), *window.shape, 768)
    for item, image in enumerate(images):
        inside = _inside(image, window)
        pixels = np.asarray(image if inside == (0, 0, *image.size) else image.crop(inside))
        pixels = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])
        spread(pixels, inference.lap_weights[0], x[item].numpy())
    return x


def _inside(image: Image.Image, window: Window) -> tuple[int, int, int, int]:
    """What lies of a picture in a window's cells: left, top, right, bottom."""
    right, bottom = min(16 * window.right, image.width), min(16 * window.bottom, image.height)
    return 16 * window.left, 16 * window.top, right, bottom


def _pixels_of(image: Image.Image, window: Window) -> np.ndarray:
    """uint8 [up to 16h, up to 16w,3]: what lies of a picture in the window's cells, without alpha, grey three times."""
    pixels = np.asarray(image.crop(_inside(image, window)))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)


def hyper_latent(model: NightCodec, y: Bands, levels: Tensor, grid: Grid) -> Tensor:
    """z, rounded [B,ceil(h/4),ceil(w/4),hyper], float on the model's device."""
    device, gain = model.log_gain.device, gain_factors(model.log_gain, levels)
    size = -(-grid.height // 4), -(-grid.width // 4)
    z = torch.empty(len(levels), *size, model.config.hyper, device=device)

    def one(window: Window) -> None:
        outer = window.grown(4)
        scaled = y.window(*outer.box).to(device) * gain
        part = inference_of(model).hyper_analysis(scaled, levels)
        top, left = (window.top - outer.top) // 4, (window.left - outer.left) // 4
        place = window.z_of(z)
        place[:] = part[:, top : top + place.shape[1], left : left + place.shape[2]]

    for band in range(grid.bands):
        map_windows(model, one, pieces_of(model, grid, band))
    return z.round_().clamp_(-Z_MAX, Z_MAX)
