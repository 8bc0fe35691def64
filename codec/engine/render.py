"""From a latent's values to pixels, window by window.

Networks are transforms.py's; what becomes of the painted windows is the caller's (codec/decoder.py, codec/encoder.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from codec.engine import sparse
from codec.engine.batches import map_windows, pieces_of
from codec.engine.blocks import gather, pixels_of
from codec.engine.elementwise import as_numbers
from codec.engine.latents import Latents
from codec.engine.transforms import Inference, gain_factors, inference_of
from codec.engine.windows import Window
from codec.network.night_codec import NightCodec


def begin(model: NightCodec, latents: Latents, window: Window) -> None:
    """The part of `render` that needs the values of channels with means alone, for one of a band's pieces, where its
    thread has nothing else to do; Inference.partial_products."""
    inference, gain = inference_of(model), gain_factors(model.log_inverse_gain, latents.levels)
    outer, near = _seen_by(model, window)
    y_hat = latents.values.window(*outer.box) * gain[..., : model.config.channels_with_means]
    latents.partial_products[window] = inference.partial_products(y_hat, near.within(outer))


def render(model: NightCodec, latents: Latents, band: int, show: Callable) -> None:
    """Synthesis of a band whose values and whose neighbours' are there. For each window, in any order and any thread,
    calls show(window, paint), where paint(item, pixels, grey) fills contiguous uint8 [up to 16h, up to 16w,C] with the
    decoded picture `item`."""
    gain = gain_factors(model.log_inverse_gain, latents.levels)

    def one(window: Window) -> None:
        (outer, near), inference = _seen_by(model, window), inference_of(model)
        y_hat, lists = _dequantised(inference, latents, outer, gain)
        given = near.within(outer), lists, latents.partial_products.pop(window, None)
        linear, means, added = inference.synthesis(y_hat, latents.levels, *given)
        place = window.top - near.top, window.left - near.left
        if linear.is_cuda:
            show(window, _paint_from(inference.summed(linear, means, added), *place))
            return
        if means is None:
            means = torch.zeros(*linear.shape[:3], 0)
        if linear.dtype != added.dtype:
            linear, added = linear.float(), added.float()
        parts = [*(as_numbers(part) for part in (linear, means, added)), [inference.lap_weights[1]] * len(linear)]

        def paint(item: int, pixels, grey: bool) -> None:
            gather(*(part[item] for part in parts), *place, pixels, grey)

        show(window, paint)

    map_windows(model, one, pieces_of(model, latents.grid, band))


def _seen_by(model: NightCodec, window: Window) -> tuple[Window, Window]:
    """The cells that a window's pixels need, and those whose pixels are filtered together with them."""
    return window.grown(model.synthesis_halo), window.grown(1)


def _dequantised(
    inference: Inference, latents: Latents, window: Window, gain: Tensor
) -> tuple[Tensor, list[sparse.Listed] | None]:
    """Inference.synthesis's `y_hat` and `lists` of a window."""
    values = latents.values.window(*window.box)
    first, latent = values.shape[-1], gain.shape[-1]
    if values.is_cuda:
        return latents.all_values(window) * gain, None
    y_hat = values * gain[..., :first]
    pictures = [latents.planes(window, item) for item in range(len(values))]
    gains = gain.flatten(1).numpy()
    if inference.sparse:
        lists = [sparse.worth_listing(parts, first, of_item) for parts, of_item in zip(pictures, gains, strict=True)]
        if all(listed is not None for listed in lists):
            return y_hat, lists
    rest = torch.empty(*values.shape[:3], latent - first)
    for parts, of_item, out in zip(pictures, gains, rest.numpy(), strict=True):
        sparse.dense(parts, first, of_item, out)
    return torch.cat((y_hat, rest), -1), None


def _paint_from(blocks: Tensor, top: int, left: int) -> Callable:
    """`render`'s paint, from turned blocks of a GPU: all pictures' pixels come from there at once."""
    shown = pixels_of(blocks, False).cpu().numpy()

    def paint(item: int, pixels, grey: bool) -> None:
        height, width, channels = pixels.shape
        own = pixels_of(blocks[item : item + 1], True).cpu().numpy()[0] if grey else shown[item]
        colours = 3 if channels >= 3 else 1
        own = own[16 * top : 16 * top + height, 16 * left : 16 * left + width]
        pixels[:, :, :colours] = own[:, :, :colours]

    return paint
