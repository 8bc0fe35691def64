"""Bitstreams (.npi) -> pictures: decode, its batch form, and `info`.

    file -> z | bins of the first pass: its symbols | bins of the second: its symbols | ... | synthesis -> picture

The steps are bitstream/'s (bytes to symbols) and engine/'s (symbols to pixels); here they follow each other over bands
of windows, so that memory stays bounded and threads stay busy.
"""

import functools
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec.bitstream import alpha as alpha_plane
from codec.bitstream import container
from codec.bitstream.container import Bitstream
from codec.bitstream.segments import coding_of, order_of_passes, scores_of, z_block
from codec.engine import passes, render
from codec.engine.batches import groups_of, map_groups, map_windows, pieces_of
from codec.engine.checkerboard import pack
from codec.engine.latents import Latents, scatter, scatter_parity
from codec.engine.transforms import inference_of
from codec.engine.windows import Grid, Window
from codec.entropy import rans
from codec.entropy.context_kernels import Scores
from codec.errors import BadBitstream, UnknownModel
from codec.format import EVEN, ODD, VERSION, Z_MAX, z_group
from codec.models import get_model
from codec.network.night_codec import NightCodec
from codec.pictures.files import Picture
from codec.threads import map_threads, team, team_size


class _GroupDecoder:
    """Bitstreams of one grid and model -> images.

    Bands go through three stages, one behind the other: the first pass; the other passes, which look at the bands
    beside; pixels, which do too. In each pass bins come first; then streams are read, beside which means are computed.
    """

    def __init__(self, model: NightCodec, streams: list[Bitstream]):
        for stream in streams:
            _check_size(model, stream)
        self.model, self.streams, self.inference = model, streams, inference_of(model)
        self.grid = Grid(*streams[0].cells, streams[0].segment)
        self.decoders = self._open_streams()
        self.z = self._read_z()
        device = model.log_gain.device
        z = torch.from_numpy(self.z).to(device).float().permute(0, 2, 3, 1).contiguous()
        levels = torch.tensor([stream.level for stream in streams], device=device)
        self.latents = Latents.empty(self.grid, levels, z)
        self.first, *self.later = model.config.slices
        self.order = order_of_passes(model.config)
        self.scores: dict[tuple, Scores] = {}  # of the segments that are being read
        self.of_index: dict[Window, Tensor] = {}  # features of two bands at most, from the first pass for the others
        self.of_mean: dict[Window, Tensor] = {}
        self.means: dict[Window, Tensor] = {}  # of the pass that is being read
        self.canvases: list[_Canvas] = []
        # While the last group of a picture of few segments is read, some threads have nothing to do.
        self.idle = self.grid.bands == 1 and len(self.grid.windows(0)) * len(streams) < team_size()

    def _open_streams(self) -> dict[tuple[int, int], list]:
        """By band and column of segments."""
        decoders, number = {}, 0
        for band in range(self.grid.bands):
            for column, window in enumerate(self.grid.windows(band)):
                states = rans.state_count(window.shape[0] * window.shape[1])
                decoders[band, column] = [rans.Decoder(stream.streams[number], states) for stream in self.streams]
                number += 1
        return decoders

    def _read_z(self) -> np.ndarray:
        """int16 [B,hyper,hz,wz]"""
        size = -(-self.grid.height // 4), -(-self.grid.width // 4)
        z = np.zeros((len(self.streams), self.model.config.hyper, *size), np.int16)

        def read(item: int) -> None:
            self.decoders[0, 0][item].read(z_block(self.model, z[item], self.streams[item].level))

        map_threads(read, list(range(len(self.streams))))
        if np.abs(z).max() > Z_MAX:
            raise BadBitstream("a hyper-latent symbol out of range")
        return z

    def images(self) -> list[Image.Image]:
        for step in range(self.grid.bands + 2):
            if step < self.grid.bands:
                self._first_pass(step)
            if 0 <= step - 1 < self.grid.bands:
                self._other_passes(step - 1)
            if 0 <= step - 2 < self.grid.bands:
                self._show(step - 2)
        return [canvas.image for canvas in self.canvases]

    def _first_pass(self, band: int) -> None:
        self.latents.open_band(self.model, band)
        pieces = pieces_of(self.model, self.grid, band)
        map_windows(self.model, self._first_indices, pieces)
        self._read(band, 0, self._first_means)
        for window in pieces:
            passes.add_mean(self.latents, window, self.means.pop(window), EVEN)

    def _other_passes(self, band: int) -> None:
        pieces = pieces_of(self.model, self.grid, band)
        map_windows(self.model, self._second_indices, pieces)
        self._read(band, 1, self._second_means)
        for window in pieces:
            passes.add_mean(self.latents, window, self.means.pop(window), ODD)
        for number in range(1, len(self.later) + 1):
            map_windows(self.model, functools.partial(self._later_indices, number), pieces)
            self._read(band, number + 1, functools.partial(self._later_means, number))
        for window in pieces:
            del self.of_index[window], self.of_mean[window]

    def _show(self, band: int) -> None:
        # only now, when the first symbols have proved themselves, is memory taken for all pixels
        self.canvases = self.canvases or [_Canvas(stream) for stream in self.streams]

        def show(window: Window, paint: Callable) -> None:
            for item, canvas in enumerate(self.canvases):
                canvas.paint(window, item, paint)

        render.render(self.model, self.latents, band, show)
        if band > 0:  # what the next band looks at stays
            for bands in (self.latents.symbols, self.latents.index, self.latents.values):
                bands.parts[band - 1] = None

    # -- bins before a pass, means beside it

    def _first_indices(self, window: Window) -> None:
        self.of_index[window] = passes.index_features(self.inference, self.latents, window)
        bins = self.inference.indices.bins_first(pack(self.of_index[window], EVEN))
        scatter_parity(self.latents.index, window, self.first, bins, EVEN)

    def _first_means(self, window: Window) -> None:
        self.of_mean[window] = passes.mean_features(self.inference, self.latents, window)
        self.means[window] = self.inference.mean_first(pack(self.of_mean[window], EVEN))

    def _second_indices(self, window: Window) -> None:
        bins = passes.second_index(self.inference, self.latents, window, self.of_index[window])
        scatter_parity(self.latents.index, window, self.first, bins, ODD)

    def _second_means(self, window: Window) -> None:
        self.means[window] = passes.second_mean(self.inference, self.latents, window, self.of_mean[window])

    def _later_indices(self, number: int, window: Window) -> None:
        if number > 1:
            passes.add_group_mean(self.latents, window, self.later[number - 2], self.means.pop(window))
        bins = passes.later_index(self.inference, self.latents, window, number, self.of_index[window])
        scatter(self.latents.index, window, self.later[number - 1], bins)

    def _later_means(self, number: int, window: Window) -> None:
        if number < len(self.later):
            self.means[window] = passes.later_mean(self.inference, self.latents, window, number, self.of_mean[window])
        elif self.idle and self.inference.sparse:
            render.begin(self.model, self.latents, window)

    # -- streams

    def _read(self, band: int, number: int, beside: Callable) -> None:
        """Pass `number` of a band's segments, and beside(window) for its pieces, which does not need these symbols;
        after the last pass the streams must end."""
        symbols, index = self.latents.arrays(band)
        segments = enumerate(self.grid.windows(band))
        items = range(len(self.streams))
        jobs = [
            functools.partial(self._read_segment, symbols[i], index[i], band, number, column, window, i)
            for column, window in segments for i in items
        ]  # fmt: skip
        more = [functools.partial(beside, window) for window in pieces_of(self.model, self.grid, band)]
        if self.model.log_gain.is_cuda:
            for job in more:
                job()  # the device works while the streams are read
            more = []
        map_threads(lambda job: job(), jobs + more)

    def _read_segment(
        self, symbols: np.ndarray, index: np.ndarray, band: int, number: int, column: int, window: Window, item: int
    ) -> None:
        part, cells = self.order[number]
        segment, decoder = (band, column, item), self.decoders[band, column][item]
        if number == 0:
            self.scores[segment] = scores_of(self.model, self.streams[item].level, window)
        place = (0, window.bottom - window.top, window.left, window.right)
        states_of_band = self.latents.states.parts[band]
        assert states_of_band is not None, "a decoder's latents know them while their band is read"
        states = states_of_band[item, :, :, 0].numpy()
        given = rans.Pass(symbols[part], index[part], states, place, cells, self.scores[segment], part.start)
        decoder.read_pass(given, coding_of(self.model).y)
        if number == len(self.order) - 1:
            del self.scores[segment]
            parts = [symbols[:, :, window.left : window.right]]
            if band == column == 0:
                parts.insert(0, self.z[item])
            decoder.finish(rans.checksum(*parts))
            self.decoders[band, column][item] = None


class _Canvas:
    """The picture that a bitstream becomes, window by window."""

    def __init__(self, stream: Bitstream):
        self.stream = stream
        self.grey = stream.mode[0] == "L" or stream.achromatic
        self.alpha = None
        if "A" in stream.mode:
            self.alpha = alpha_plane.decode(stream.alpha, stream.height, stream.width)
        self.image = Image.new(stream.mode, (stream.width, stream.height))

    def paint(self, window: Window, item: int, paint: Callable) -> None:
        """A window of the picture, by `render`'s function for it."""
        top, left = window.top * 16, window.left * 16
        bottom, right = min(window.bottom * 16, self.stream.height), min(window.right * 16, self.stream.width)
        pixels = np.empty((bottom - top, right - left, len(self.stream.mode)), np.uint8)
        paint(item, pixels, self.grey)
        if self.alpha is not None:
            pixels[:, :, -1] = self.alpha[top:bottom, left:right]
        self.image.paste(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), (left, top))


def _check_size(model: NightCodec, stream: Bitstream) -> None:
    """Refuse a picture so large that its own hyper-latent could not fit its first stream at the fewest bits."""
    height, width = stream.cells
    columns = -(-height // 4) * -(-width // 4)
    least = 0.995 * columns * coding_of(model).z_least_bits[z_group(stream.level)] - 64
    if least > 8 * len(stream.streams[0]):
        length = len(stream.streams[0])
        raise BadBitstream(f"{length} bytes cannot hold the outline of {stream.width}x{stream.height} pixels")


def _decode_parsed(model: NightCodec, streams: list[Bitstream]) -> list[Image.Image]:
    try:
        with torch.inference_mode(), team(model.log_gain.is_cuda):
            return _GroupDecoder(model, streams).images()
    except rans.EntropyError as error:
        raise BadBitstream(str(error)) from error


def _model_for(stream: Bitstream, model, device, precision, folders) -> NightCodec:
    if isinstance(model, NightCodec):
        if model.identity != stream.model:
            raise UnknownModel(f"the bitstream needs model {stream.model}, given is {model.identity}")
        return model
    found = get_model(stream.model if model is None else model, device=device, precision=precision, folders=folders)
    if found.identity != stream.model:
        raise UnknownModel(f"the bitstream needs model {stream.model}; {model} is {found.identity}")
    return found


def decode_picture(data, *, model=None, models=None, device="auto", precision: str = "auto",
                   max_pixels: int = 200_000_000) -> Picture:  # fmt: skip
    """Bytes of a .npi file -> Picture, with its metadata.

    `models`: folders to search for the file's model beside the package's own; `model`: the model itself (or its path).
    Raises BadBitstream, UnknownVersion or UnknownModel (all CodecError) and nothing else for any bytes.
    """
    stream = container.read(data, max_pixels)
    (image,) = _decode_parsed(_model_for(stream, model, device, precision, models), [stream])
    return Picture(image, "NPI", image.mode, stream.metadata)


def _with_info(picture: Picture) -> Image.Image:
    image = picture.image
    if picture.icc:
        image.info["icc_profile"] = picture.icc
    if picture.exif:
        image.info["exif"] = b"Exif\0\0" + picture.exif
    if picture.xmp:
        image.info["xmp"] = picture.xmp
    return image


def decode(data, **options) -> Image.Image:
    """Bytes of a .npi file -> PIL image (L, LA, RGB or RGBA) with ICC, EXIF and XMP in its `info`.

    Options and errors: see decode_picture.
    """
    return _with_info(decode_picture(data, **options))


def decode_batch(files: list, *, model=None, models=None, device="auto", precision: str = "auto",
                 max_pixels: int = 200_000_000) -> list[Image.Image]:  # fmt: skip
    """Like `decode` for many files; pictures of one size and model go through the networks together. Raises the error
    of the first that cannot be decoded."""
    streams = [container.read(data, max_pixels) for data in files]
    images: list = [None] * len(files)
    members = defaultdict(list)
    for i, stream in enumerate(streams):
        members[_model_for(stream, model, device, precision, models)].append(i)
    for network, mine in members.items():

        def decode_group(group: list[int], network=network, mine=mine) -> None:
            places = [mine[i] for i in group]
            for i, image in zip(places, _decode_parsed(network, [streams[i] for i in places]), strict=True):
                images[i] = _with_info(Picture(image, "NPI", image.mode, streams[i].metadata))

        map_groups(decode_group, groups_of([(*streams[i].cells, streams[i].segment) for i in mine], network), network)
    return images


def info(data) -> dict:
    """What a .npi file says about itself, without decoding it; its checksum is verified.

    Raises BadBitstream or UnknownVersion.
    """
    stream = container.read(data, max_pixels=container.MAX_SIDE**2)
    size = len(memoryview(data).cast("B"))
    return {
        "format": "npi",
        "version": VERSION,
        "model": stream.model,
        "quality": stream.level / 10,
        "width": stream.width,
        "height": stream.height,
        "mode": stream.mode,
        "achromatic": stream.achromatic,
        "bytes": size,
        "bpp": 8 * size / (stream.width * stream.height),
        "segments": len(stream.streams),
        "segment_pixels": stream.segment * 16,
        "alpha_bytes": len(stream.alpha),
        **{f"{kind}_bytes": stream.metadata.size(kind) for kind in ("icc", "exif", "xmp")},
        "metadata_bytes": len(stream.metadata.to_bytes()),
    }
