"""Pictures -> .npi bitstreams: encode, its batch form, and `prepare` for whoever codes one picture at several levels.

    picture -> analysis window by window: y | hyper-analysis: z | the passes of all windows: symbols | streams | file

The steps are engine/'s (pixels to symbols) and bitstream/'s (symbols to bytes); which level meets a target is
rate_control/'s.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from codec.bitstream import alpha as alpha_plane
from codec.bitstream import container
from codec.bitstream.segments import stream_of
from codec.engine.analysis import analyse
from codec.engine.batches import cells_of, groups_of, map_groups
from codec.engine.latents import Latents
from codec.engine.passes import quantise, revalue
from codec.engine.render import render
from codec.engine.transforms import gain_factors
from codec.engine.windows import Bands, Grid, Window
from codec.errors import UnknownModel
from codec.format import LEVELS, level_of
from codec.metrics.original import Original
from codec.models import get_model
from codec.network.night_codec import NightCodec
from codec.pictures.files import Picture, open_picture, picture_from_image
from codec.rate_control.target import encode_prepared
from codec.threads import map_threads, team

SEGMENT = 64  # latent cells along a segment's side
DEFAULT_QUALITY = 75.0


class AnalysedPicture:
    """A picture after its analysis, to be coded at any number of levels.

    level: 0..1000, ten per step of quality. `code` gives the file, `reconstruct` the pixels that it decodes to (within
    1 of 255), without entropy coding. The symbols of the last level are kept for the other of the two calls.
    """

    def __init__(self, picture: Picture, model: NightCodec, grid: Grid, y: Bands, segment: int):
        image = picture.image
        self.picture, self.model, self.segment = picture, model, segment
        self.width, self.height, self.mode = image.width, image.height, image.mode
        self.achromatic = image.mode[0] == "R" and _is_achromatic(image)
        self.alpha = alpha_plane.encode(np.asarray(image.getchannel("A"))) if "A" in image.mode else b""
        self.metadata = picture.metadata
        self._grid, self._y = grid, y
        self._last: tuple[int, Latents] | None = None

    @property
    def grey(self) -> bool:
        return self.mode[0] == "L" or self.achromatic

    @cached_property
    def original(self) -> Original:
        """What is coded, to be compared with what comes back."""
        return Original(self.picture.image)

    def _latents(self, level: int) -> Latents:
        if not 0 <= level <= LEVELS:
            raise ValueError(f"level {level} is outside 0..{LEVELS}")
        if self._last is None or self._last[0] != level:
            self._last = None
            with torch.inference_mode(), team(self.model.log_gain.is_cuda):
                levels = torch.full((1,), level, device=self.model.log_gain.device)
                self._last = level, quantise(self.model, self._y, levels, self._grid)
        return self._last[1]

    def expected(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(MSE on the 0..255 scale, bits) at each level as the latent alone lets expect them: their run over the levels
        is the picture's own, their height is not. The networks are not asked; about 1500 cells are looked at."""
        cells = self._grid.height * self._grid.width
        kept = [part for part in self._y.parts if part is not None]
        rows = torch.cat([part.flatten(0, 2)[:: max(1, cells // 1500)] for part in kept]).float()
        device = self.model.log_gain.device
        mse, bits = np.empty(len(levels)), np.empty(len(levels))
        with torch.inference_mode():
            for i, level in enumerate(levels):
                at = torch.tensor([float(level)], device=device)
                scaled = rows.to(device) * gain_factors(self.model.log_gain, at).flatten()
                error = scaled - torch.copysign(torch.floor(scaled.abs() + 0.4), scaled)
                error *= gain_factors(self.model.log_inverse_gain, at).flatten()
                mse[i] = error.square().sum(1).mean().item() / 768 + 1e-6
                bits[i] = torch.log2(1 + 2 * scaled.square()).sum(1).mean().item() / 2 * cells
        return mse, bits

    def code(self, level: int) -> bytes:
        """The .npi file at that level."""
        latents = self._latents(level)
        with team(self.model.log_gain.is_cuda):
            return _sealed(self, latents, 0, level)

    def reconstruct(self, level: int) -> np.ndarray:
        """uint8 [height,width,C]: 1 for grey, 3 for RGB; a fourth or second channel where there is alpha."""
        latents = self._latents(level)
        out = np.empty((self.height, self.width, len(self.mode)), np.uint8)

        def show(window: Window, paint: Callable) -> None:
            target = out[window.top * 16 : window.bottom * 16, window.left * 16 : window.right * 16]
            painted = np.empty(target.shape, np.uint8)
            paint(0, painted, self.grey)
            target[:] = painted

        with torch.inference_mode(), team(self.model.log_gain.is_cuda):
            for band in range(self._grid.bands) if latents.has_values else revalue(self.model, latents):
                render(self.model, latents, band, show)
        if self.alpha:
            out[:, :, -1] = np.asarray(self.picture.image.getchannel("A"))
        return out


def _is_achromatic(image: Image.Image) -> bool:
    """RGB(A) whose three channels are equal everywhere. Begins with few rows, since most pictures show at once."""
    top, rows = 0, 1
    while top < image.height:
        pixels = np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))
        if not (np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2])):
            return False
        top += rows
        rows = min(2 * rows, max(1, (1 << 20) // image.width))
    return True


def _sealed(analysed: AnalysedPicture, latents: Latents, item: int, level: int) -> bytes:
    """Symbols of one picture of a batch -> file."""
    model = analysed.model
    if model.identity is None:
        raise UnknownModel("this model has no id yet: save it with codec.network.files.save_model and load it again")
    z = latents.z[item].permute(2, 0, 1).to(torch.int16).contiguous().cpu().numpy()
    jobs: list[tuple] = []
    for band in range(latents.grid.bands):
        symbols, index = (array[item] for array in latents.arrays(band))
        for window in latents.grid.windows(band):
            jobs.append((model, None if jobs else z, level, symbols, index, window))
    streams = map_threads(lambda job: stream_of(*job), jobs)
    return container.write(
        container.Bitstream(
            model.identity, level, analysed.width, analysed.height, analysed.mode, analysed.achromatic,
            analysed.segment, analysed.metadata, analysed.alpha, streams,
        )
    )  # fmt: skip


def _as_picture(source) -> Picture:
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return picture_from_image(source)
    if isinstance(source, np.ndarray):
        return picture_from_image(Image.fromarray(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return open_picture(bytes(source))
    raise TypeError(f"cannot encode a {type(source).__name__}; give bytes, a PIL image, an array or a Picture")


def prepare(picture, model: NightCodec, segment: int = SEGMENT) -> AnalysedPicture:
    """Picture (or bytes, PIL image, uint8 array) -> its analysis, to be coded at any level."""
    picture = _as_picture(picture)
    grid = Grid(*cells_of(picture.image), segment)
    with torch.inference_mode(), team(model.log_gain.is_cuda):
        y = analyse(model, [picture.image], grid)
    return AnalysedPicture(picture, model, grid, y, segment)


def encode(
    image, quality: float | None = None, *, target: str | None = None, max_bytes: int | None = None, model=None,
    device="auto", precision: str = "auto",
) -> bytes:  # fmt: skip
    """Picture -> bytes of a .npi file.

    `image`: bytes of an image file, a PIL image, a uint8 array or a Picture. At most one of `quality` (0..100, default
    75), `target` ("psnr=38" or "ms-ssim=0.98") and `max_bytes`. `model`: see models.get_model.
    Raises PictureError for what cannot be read or carried, CodecError for models, ValueError for wrong arguments.
    """
    if sum(option is not None for option in (quality, target, max_bytes)) > 1:
        raise ValueError("quality, target and max_bytes exclude each other; give one")
    level = level_of(DEFAULT_QUALITY if quality is None else quality)
    analysed = prepare(image, get_model(model, device=device, precision=precision))
    if target is None and max_bytes is None:
        return analysed.code(level)
    return encode_prepared(analysed, target=target, max_bytes=max_bytes)


def encode_batch(images: list, quality: float | list[float] | None = None, *, model=None, device="auto",
                 precision: str = "auto") -> list[bytes]:  # fmt: skip
    """Like `encode` for many pictures; those of one size (in 16-pixel cells) go through the networks together.

    `quality`: one for all, or one each. A picture's bytes decode to the same picture whatever batch it was in.
    """
    model = get_model(model, device=device, precision=precision)
    pictures = [_as_picture(image) for image in images]
    quality = DEFAULT_QUALITY if quality is None else quality
    qualities = quality if isinstance(quality, list | tuple) else [quality] * len(images)
    if len(qualities) != len(images):
        raise ValueError(f"{len(qualities)} qualities for {len(images)} pictures")
    levels = [level_of(value) for value in qualities]
    files: list[bytes] = [b""] * len(images)

    def encode_group(group: list[int]) -> None:
        grid = Grid(*cells_of(pictures[group[0]].image), SEGMENT)
        with torch.inference_mode(), team(model.log_gain.is_cuda):
            y = analyse(model, [pictures[i].image for i in group], grid)
            analysed = map_threads(lambda i: AnalysedPicture(pictures[i], model, grid, y, SEGMENT), group)
            at = torch.tensor([levels[i] for i in group], device=model.log_gain.device)
            latents = quantise(model, y, at, grid)

            def seal(item: int) -> None:
                i = group[item]
                files[i] = _sealed(analysed[item], latents, item, levels[i])

            map_threads(seal, list(range(len(group))))

    map_groups(encode_group, groups_of([cells_of(picture.image) for picture in pictures], model), model)
    return files
