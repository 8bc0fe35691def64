"""Pictures <-> .npi bitstreams: encode, decode, info, their batch forms, and `prepare` for rate control.

Order of work (transforms and index networks are model.py's, symbols to bytes entropy.py's, the file container.py's):

    encode   analysis window by window -> y | hyper-analysis -> z | the passes of all windows | streams
    decode   z | indices of the first pass -> its symbols | indices of the second -> its symbols | ... | synthesis

A picture's latent is cut into segments (windows.py), which are coded independently; the steps before and after the
streams go over it window by window (latents.py).
"""

import contextlib
import dataclasses
import functools
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec import alpha as alpha_plane
from codec import container, contexts, entropy, trellis
from codec.container import BadBitstream, Bitstream, CodecError, UnknownModel
from codec.inference import inference_of
from codec.latents import (
    Latents,
    add_group_mean,
    add_mean,
    analyse,
    begin_rendering,
    factors,
    fill,
    index_features,
    later_index,
    later_mean,
    mean_features,
    over,
    pieces_of,
    put,
    quantise,
    refined,
    render,
    revalue,
    second_index,
    second_mean,
)  # fmt: skip
from codec.model import LEVELS, Z_GROUPS, Z_MAX, NightCodec, load_model, model_id
from codec.modelfiles import WEIGHTS, default_file
from codec.packed import EVEN, ODD, pack
from codec.pixels import Picture, open_picture, picture_from_image
from codec.threads import each, team, team_size
from codec.windows import Bands, Grid, Window

MAX_EFFORT = 9  # times that a latent may be refined; without a post-filter more than 3 gain little
SEGMENT = 64  # latent cells along a segment's side
DEFAULT_QUALITY = 75.0
MODEL_FOLDERS_VARIABLE = "NIGHTPRESS_MODELS"  # more folders to search for models, separated as in PATH


# -- models


@dataclasses.dataclass(frozen=True)
class _Coding:
    """What the entropy coder takes from a model."""

    y: entropy.TableSet
    trellis: entropy.TableSet  # of y too
    contexts: list[contexts.Contexts] | None  # by range of levels
    corrected: entropy.TableSet | None  # what they choose from
    z: list[entropy.TableSet]  # per level group; table c + 1 belongs to channel c
    z_least_bits: list[float]  # per level group: fewest bits that one column of z can cost


def _coding(model: NightCodec) -> _Coding:
    coding = getattr(model, "_coding", None)
    if coding is None:
        tables = model.tables()
        z = [entropy.TableSet([None, *row]) for row in tables.z_freq]
        least = [sum(one.least_bits(c + 1) for c in range(model.config.hyper)) for one in z]
        with_trellis = entropy.TableSet(trellis.with_own(tables.y_freq))
        nearby, corrected = model.contexts or (None, None)
        coding = model._coding = _Coding(
            entropy.TableSet([None, *tables.y_freq[1:]]), with_trellis, nearby, corrected and _of_contexts(corrected),
            z, least,
        )  # fmt: skip
    return coding


def _of_contexts(tables: list) -> entropy.TableSet:
    return entropy.TableSet([None, *(tables[1] if table is None else table for table in tables[1:])])


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """auto: CUDA where there is one, else the CPU."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


@functools.cache
def _identity_of(path: str, size: int, modified: int) -> str:
    return model_id(path)


def _model_files(folders) -> Iterator[Path]:
    variable = os.environ.get(MODEL_FOLDERS_VARIABLE, "")
    for folder in [WEIGHTS, *(folders or ()), *filter(None, variable.split(os.pathsep))]:
        with contextlib.suppress(OSError):
            yield from sorted(Path(folder).glob("*.safetensors"))


def default_model() -> Path:
    """The model that encodes when none is named: modelfiles.default_file of the package's weights.

    Raises UnknownModel when the package holds none.
    """
    found = default_file(WEIGHTS)
    if found is None:
        raise UnknownModel(f"no trained model in {WEIGHTS}; train one with `nightpress train codec` or pass model=FILE")
    return found


def find_model(identity: str, folders=None) -> Path:
    """The model file with that id (16 hex digits) in the package, in `folders` or in $NIGHTPRESS_MODELS.

    Raises UnknownModel naming where it looked.
    """
    for path in _model_files(folders):
        status = path.stat()
        if path.stem == identity or _identity_of(str(path), status.st_size, status.st_mtime_ns) == identity:
            return path
    places = [str(WEIGHTS), *map(str, folders or ()), os.environ.get(MODEL_FOLDERS_VARIABLE, "")]
    raise UnknownModel(
        f"model {identity} is in none of {', '.join(filter(None, places))}; name the folder that holds it (models/ of "
        f"the destination) by models=[...] or ${MODEL_FOLDERS_VARIABLE}"
    )


_loaded: dict = {}
_loading = threading.Lock()


def get_model(model=None, *, device: str | torch.device = "auto", precision: str = "auto", folders=None) -> NightCodec:
    """A model ready to work: `model` is None (the default one), an id, a path or a NightCodec (returned as it is).

    Loaded models are kept, one per file, device and precision. Raises UnknownModel; ValueError for a file that is no
    model.
    """
    if isinstance(model, NightCodec):
        return model
    if model is None:
        path = default_model()
    elif isinstance(model, str) and len(model) == 16 and not os.path.exists(model):
        path = find_model(model, folders)
    else:
        path = Path(model)
        if not path.is_file():
            raise UnknownModel(f"there is no model file {path}")
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns, choose_device(device), precision)
    with _loading:
        if key not in _loaded:
            _loaded[key] = load_model(path).to(key[3]).set_precision(precision)
        return _loaded[key]


# -- streams


@functools.lru_cache(8)
def _z_index(channels: int, height: int, width: int) -> np.ndarray:
    """uint8 [channels,height,width]: table c + 1 for channel c."""
    index = np.arange(1, channels + 1, dtype=np.uint8)[:, None, None]
    return np.broadcast_to(index, (channels, height, width)).copy()


def _z_group(level: int) -> int:
    return min(level // 100, Z_GROUPS - 1)


def _z_block(model: NightCodec, z: np.ndarray, level: int) -> entropy.Block:
    return entropy.Block(z, _z_index(*z.shape), _coding(model).z[_z_group(level)])


def _order_of_passes(model: NightCodec) -> list[tuple[slice, int]]:
    """(channels, which cells) of each pass."""
    first, *later = model.config.slices
    return [(first, entropy.EVEN), (first, entropy.ODD), *((part, entropy.EVERYWHERE) for part in later)]


def format_version(model: NightCodec) -> int:
    """The format's, that encoders write with a model."""
    return (3 if model.contexts else 2) if trellis.applies(model.config) else 1


def _tables(model: NightCodec, version: int) -> entropy.TableSet:
    """What codes y's symbols."""
    coding = _coding(model)
    return {1: coding.y, 2: coding.trellis, 3: coding.corrected}[version]


def _nearby(model: NightCodec, version: int, level: int, window: Window) -> contexts.Nearby | None:
    """For a segment's stream, where it has contexts."""
    if version < 3:
        return None
    return contexts.nearby(contexts.at_level(_coding(model).contexts, level), *window.shape)


def _stream_of(
    model: NightCodec, version: int, z: np.ndarray | None, level: int, symbols, index, window: Window
) -> bytes:
    """One segment -> its stream. symbols, index [latent,rows,w] of its band; z only for the first segment."""
    place = (0, symbols.shape[1], window.left, window.right)
    tables, near = _tables(model, version), _nearby(model, version, level, window)
    blocks = [
        entropy.Block(symbols[part], index[part], tables, place, parity, None, near, part.start)
        for part, parity in _order_of_passes(model)
    ]
    parts = [symbols[:, :, window.left : window.right]]
    if z is not None:
        blocks.insert(0, _z_block(model, z, level))
        parts.insert(0, z)
    height, width = window.shape
    return entropy.encode(blocks, entropy.checksum(*parts), entropy.state_count(height * width))


# -- encoding


class Postfilter(Protocol):
    """What may follow the decoder where a picture is taken out (tasks/restoration.py has one): the encoder can aim at
    what it gives. `model`: id of the codec's model that it is for; `identity`: its own."""

    model: str
    identity: str

    def __call__(self, image: Image.Image, facts: dict) -> Image.Image:
        """A decoded picture and what `info` says of its bitstream (`model` and `quality` count) -> the mended one."""

    def mend(self, shown: Tensor, levels: Tensor) -> Tensor:
        """The same on float32 [B,3,H,W] in 0..1, H and W multiples of 16, levels [B] in 0..1000, integers; what it
        gives may lie outside 0..1; with a gradient."""


class Prepared:
    """A picture after its analysis, to be coded at any number of levels.

    level: 0..1000, ten per step of quality. `code` gives the file, `reconstruct` the pixels that it decodes to (within
    1 of 255), or what the post-filter makes of those if there is one, without entropy coding. The symbols of the last
    level are kept for the other of the two calls.
    """

    def __init__(
        self, picture: Picture, model: NightCodec, grid: Grid, y: Bands, segment: int, effort: int = 0,
        postfilter: Postfilter | None = None,
    ):  # fmt: skip
        image = picture.image
        self.postfilter = postfilter
        self.picture, self.model, self.segment, self.effort = picture, model, segment, effort
        self.width, self.height, self.mode = image.width, image.height, image.mode
        self.colourless = image.mode[0] == "R" and _is_colourless(image)
        self.alpha = alpha_plane.encode(np.asarray(image.getchannel("A"))) if "A" in image.mode else b""
        side = {"icc": picture.icc, "exif": picture.exif, "xmp": picture.xmp, "colour": picture.colour}
        self.side = {kind: part for kind, part in side.items() if part}
        self._grid, self._y = grid, y
        self._last: tuple[int, Latents] | None = None

    @property
    def grey(self) -> bool:
        return self.mode[0] == "L" or self.colourless

    def _latents(self, level: int) -> Latents:
        if not 0 <= level <= LEVELS:
            raise ValueError(f"level {level} is outside 0..{LEVELS}")
        if self._last is None or self._last[0] != level:
            self._last = None
            with torch.inference_mode(), team(self.model.log_gain.is_cuda):
                levels = torch.full((1,), level, device=self.model.log_gain.device)
                latents = quantise(self.model, self._y, levels, self._grid)
                y = self._y
                for _ in range(self.effort):
                    y = refined(self.model, [(self.picture.image, self.grey)], y, latents, self.postfilter)
                    latents = quantise(self.model, y, levels, self._grid)
            self._last = (level, latents)
        return self._last[1]

    def expected(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(MSE on the 0..255 scale, bits) at each level as the latent alone lets expect them: their run over the levels
        is the picture's own, their height is not. The networks are not asked; about 1500 cells are looked at."""
        cells = self._grid.height * self._grid.width
        rows = torch.cat([part.flatten(0, 2)[:: max(1, cells // 1500)] for part in self._y.parts]).float()
        device = self.model.log_gain.device
        mse, bits = np.empty(len(levels)), np.empty(len(levels))
        with torch.inference_mode():
            for i, level in enumerate(levels):
                at = torch.tensor([float(level)], device=device)
                scaled = rows.to(device) * factors(self.model.log_gain, at).flatten()
                error = scaled - torch.copysign(torch.floor(scaled.abs() + 0.4), scaled)
                error *= factors(self.model.log_inverse_gain, at).flatten()
                mse[i] = error.square().sum(1).mean().item() / 768 + 1e-6
                bits[i] = torch.log2(1 + 2 * scaled.square()).sum(1).mean().item() / 2 * cells
        return mse, bits

    def code(self, level: int) -> bytes:
        """The .npi file at that level."""
        latents = self._latents(level)
        with team(self.model.log_gain.is_cuda):
            return _seal(self, latents, 0, level)

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
            known = all(part is not None for part in latents.values.parts)
            for band in range(self._grid.bands) if known else revalue(self.model, latents):
                render(self.model, latents, band, show)
        if self.alpha:
            out[:, :, -1] = np.asarray(self.picture.image.getchannel("A"))
        if self.postfilter:
            image = Image.fromarray(out[:, :, 0] if out.shape[2] == 1 else out, self.mode)
            image = self.postfilter(image, {"model": self.model.identity, "quality": 100 * level / LEVELS})
            out = np.array(image).reshape(out.shape)
        return out


def _is_colourless(image: Image.Image) -> bool:
    """RGB(A) whose three channels are equal everywhere. Begins with few rows, since most pictures show at once."""
    top, rows = 0, 1
    while top < image.height:
        pixels = np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))
        if not (np.array_equal(pixels[..., 0], pixels[..., 1]) and np.array_equal(pixels[..., 1], pixels[..., 2])):
            return False
        top += rows
        rows = min(2 * rows, max(1, (1 << 20) // image.width))
    return True


def _seal(prepared: Prepared, latents: Latents, item: int, level: int) -> bytes:
    """Symbols of one picture of a batch -> file."""
    model = prepared.model
    if model.identity is None:
        raise UnknownModel("this model has no id yet: save it with codec.model.save_model and load it again")
    z = latents.z[item].permute(2, 0, 1).to(torch.int16).contiguous().cpu().numpy()
    version, jobs = format_version(model), []
    for band in range(latents.grid.bands):
        symbols, index = (array[item] for array in latents.arrays(band))
        for window in latents.grid.windows(band):
            jobs.append((model, version, None if jobs else z, level, symbols, index, window))
    streams = each(lambda job: _stream_of(*job), jobs)
    return container.write(
        Bitstream(
            model.identity, level, prepared.width, prepared.height, prepared.mode, prepared.colourless,
            prepared.segment, prepared.side, prepared.alpha, streams, version,
        )
    )  # fmt: skip


def _cells(image: Image.Image) -> tuple[int, int]:
    return -(-image.height // 16), -(-image.width // 16)


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


def prepare(
    picture, model: NightCodec, segment: int = SEGMENT, effort: int = 0, postfilter: Postfilter | None = None
) -> Prepared:
    """Picture (or bytes, PIL image, uint8 array) -> Prepared, after its analysis. effort, postfilter: see `encode`.

    Raises ValueError for another effort and for a post-filter of another model.
    """
    if postfilter is not None and postfilter.model != model.identity:
        raise ValueError(
            f"the post-filter is for model {postfilter.model}, the picture would be coded with {model.identity}"
        )
    picture = _as_picture(picture)
    grid = Grid(*_cells(picture.image), segment)
    with torch.inference_mode(), team(model.log_gain.is_cuda):
        y = analyse(model, [picture.image], grid)
    return Prepared(picture, model, grid, y, segment, checked_effort(effort), postfilter)


def checked_effort(effort: int) -> int:
    """Raises ValueError outside 0..MAX_EFFORT."""
    if effort not in range(MAX_EFFORT + 1):
        raise ValueError(f"effort {effort} is not one of 0..{MAX_EFFORT}")
    return int(effort)


def level_of(quality: float) -> int:
    """Quality 0..100 -> level 0..1000. Raises ValueError outside."""
    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality} is outside 0..100")
    return round(quality * LEVELS / 100)


def encode(
    image, quality: float | None = None, *, target: str | None = None, max_bytes: int | None = None, model=None,
    device="auto", precision: str = "auto", effort: int = 0, postfilter: Postfilter | None = None,
) -> bytes:  # fmt: skip
    """Picture -> bytes of a .npi file.

    `image`: bytes of an image file, a PIL image, a uint8 array or a Picture. At most one of `quality` (0..100, default
    75), `target` ("psnr=38" or "ms-ssim=0.98") and `max_bytes`. `model`: see get_model. effort: how often (0..9) the
    latent is improved with the decoder's own gradient before it is coded, for two and a half to six times the time:
    1 to 2 % fewer bytes with codec-1 to codec-5; later encoders have learned from the symbols that are coded, and lose
    2 % by it. Decoding is the same. postfilter: what the reader will use after decoding; `target` then counts what it
    gives, and `effort` works towards that (4 to 6 % fewer bytes with codec-4; with codec-7 1 to 4 % from quality 60 on,
    and more bytes below; some 10 seconds a megapixel and core).
    Raises PictureError for what cannot be read or carried, CodecError for models, ValueError for wrong arguments, and
    what the post-filter raises.
    """
    if sum(option is not None for option in (quality, target, max_bytes)) > 1:
        raise ValueError("quality, target and max_bytes exclude each other; give one")
    level = level_of(DEFAULT_QUALITY if quality is None else quality)
    prepared = prepare(
        image, get_model(model, device=device, precision=precision), effort=effort, postfilter=postfilter
    )
    if target is None and max_bytes is None:
        return prepared.code(level)
    from codec import rate  # imports this module's Prepared only by its methods

    return rate.encode_prepared(prepared, target=target, max_bytes=max_bytes)


def _groups(shapes: list, model: NightCodec) -> list[list[int]]:
    """Positions of equal shapes (height, width in cells, ...), in groups that the networks may take at once.

    As many as keep the device busy within bounded memory; on CPUs at most 15, since from 16 on a torch without oneDNN
    hands convolutions to NNPACK, whose Winograd transforms round.
    """
    on_cuda = model.log_gain.is_cuda
    pixels, most = (1 << 25, 256) if on_cuda else (1 << 20, 15)
    by_shape = defaultdict(list)
    for position, shape in enumerate(shapes):
        by_shape[shape].append(position)
    groups = []
    for shape, positions in by_shape.items():
        size = max(1, min(most, pixels // (shape[0] * shape[1] * 256)))
        groups += [positions[i : i + size] for i in range(0, len(positions), size)]
    return groups


def _each_group(function, groups: list, model: NightCodec) -> None:
    """function(group) for all: on a CPU with several threads, so many groups at a time with one thread each."""
    if model.log_gain.is_cuda:
        for group in groups:
            function(group)
    else:
        with team():
            each(function, groups)


def encode_batch(images: list, quality: float | list[float] | None = None, *, model=None, device="auto",
                 precision: str = "auto", effort: int = 0) -> list[bytes]:  # fmt: skip
    """Like `encode` for many pictures; those of one size (in 16-pixel cells) go through the networks together.

    `quality`: one for all, or one each; effort: as there. A picture's bytes decode to the same picture whatever batch
    it was in.
    """
    model = get_model(model, device=device, precision=precision)
    pictures = [_as_picture(image) for image in images]
    quality = DEFAULT_QUALITY if quality is None else quality
    qualities = quality if isinstance(quality, list | tuple) else [quality] * len(images)
    if len(qualities) != len(images):
        raise ValueError(f"{len(qualities)} qualities for {len(images)} pictures")
    levels = [level_of(value) for value in qualities]
    checked_effort(effort)
    files: list[bytes] = [b""] * len(images)

    def encode_group(group: list[int]) -> None:
        grid = Grid(*_cells(pictures[group[0]].image), SEGMENT)
        with torch.inference_mode(), team(model.log_gain.is_cuda):
            y = analyse(model, [pictures[i].image for i in group], grid)
            prepared = each(lambda i: Prepared(pictures[i], model, grid, y, SEGMENT), group)
            at = torch.tensor([levels[i] for i in group], device=model.log_gain.device)
            latents = quantise(model, y, at, grid)
            for _ in range(effort):
                y = refined(model, [(one.picture.image, one.grey) for one in prepared], y, latents)
                latents = quantise(model, y, at, grid)

            def seal(item: int) -> None:
                i = group[item]
                files[i] = _seal(prepared[item], latents, item, levels[i])

            each(seal, list(range(len(group))))

    _each_group(encode_group, _groups([_cells(picture.image) for picture in pictures], model), model)
    return files


# -- decoding


def _check_size(model: NightCodec, stream: Bitstream) -> None:
    """Refuse a picture so large that its own hyper-latent could not fit its first stream at the fewest bits."""
    height, width = stream.cells
    columns = -(-height // 4) * -(-width // 4)
    least = 0.995 * columns * _coding(model).z_least_bits[_z_group(stream.level)] - 64
    if least > 8 * len(stream.streams[0]):
        length = len(stream.streams[0])
        raise BadBitstream(f"{length} bytes cannot hold the outline of {stream.width}x{stream.height} pixels")


def _decode_group(model: NightCodec, streams: list[Bitstream]) -> list[Image.Image]:
    """Bitstreams of one grid, model and version -> images."""
    device = model.log_gain.device
    first = streams[0]
    grid = Grid(*first.cells, first.segment)
    levels = torch.tensor([stream.level for stream in streams], device=device)
    if first.trellis and not trellis.applies(model.config):
        raise BadBitstream(f"format version {first.version} is not for model {model.identity}, which has no groups")
    if first.contexts and not model.contexts:
        raise BadBitstream(f"format version {first.version} is not for model {model.identity}, which has no contexts")
    for stream in streams:
        _check_size(model, stream)
    tables = _tables(model, first.version)
    z = np.zeros((len(streams), model.config.hyper, -(-grid.height // 4), -(-grid.width // 4)), np.int16)
    decoders: dict[tuple[int, int], list[entropy.Decoder]] = {}
    nearby: dict[tuple[int, int, int], contexts.Nearby | None] = {}  # of the segments that are being read
    for band in range(grid.bands):
        for column, window in enumerate(grid.windows(band)):
            number = band * (len(grid.columns) - 1) + column
            states = entropy.state_count(window.shape[0] * window.shape[1])
            decoders[band, column] = [entropy.Decoder(stream.streams[number], states) for stream in streams]
    each(lambda i: decoders[0, 0][i].read(_z_block(model, z[i], streams[i].level)), list(range(len(streams))))
    if np.abs(z).max() > Z_MAX:
        raise BadBitstream("a hyper-latent symbol out of range")
    of_z = torch.from_numpy(z).to(device).float().permute(0, 2, 3, 1).contiguous()
    latents = Latents.empty(grid, levels, of_z, first.trellis)
    inference = inference_of(model)
    canvases: list[_Canvas] = []
    of_index: dict[Window, Tensor] = {}  # features of two bands at most, from the first pass for the others
    of_mean: dict[Window, Tensor] = {}
    means: dict[Window, Tensor] = {}
    passes = _order_of_passes(model)
    first_group, *later = model.config.slices

    def read(band: int, number: int, beside: Callable) -> None:
        """Pass `number` of a band's segments, and beside(window) for its pieces, which does not need these symbols;
        after the last pass the streams must end."""
        symbols, index = latents.arrays(band)
        part, parity = passes[number]

        def one(column: int, window: Window, item: int) -> None:
            place = (0, window.bottom - window.top, window.left, window.right)
            decoder = decoders[band, column][item]
            states = latents.states and latents.states.parts[band][item, :, :, 0].numpy()
            segment = band, column, item
            if number == 0:
                nearby[segment] = _nearby(model, first.version, streams[item].level, window)
            block = symbols[item][part], index[item][part], tables, place, parity, states, nearby[segment], part.start
            decoder.read(entropy.Block(*block))
            if number == len(passes) - 1:
                del nearby[segment]
                parts = [symbols[item][:, :, window.left : window.right]]
                if band == column == 0:
                    parts.insert(0, z[item])
                decoder.finish(entropy.checksum(*parts))
                decoders[band, column][item] = None

        items = range(len(streams))
        jobs = [functools.partial(one, *place, i) for place in enumerate(grid.windows(band)) for i in items]
        more = [functools.partial(beside, window) for window in pieces_of(model, grid, band)]
        if device.type == "cuda":
            for job in more:
                job()  # the device works while the streams are read
            more = []
        each(lambda job: job(), jobs + more)

    def first_indices(window: Window) -> None:
        of_index[window] = index_features(inference, latents, window)
        put(latents.index, window, first_group, inference.indices.bins_first(pack(of_index[window], EVEN)), EVEN)

    def first_means(window: Window) -> None:
        of_mean[window] = mean_features(inference, latents, window)
        means[window] = inference.mean_first(pack(of_mean[window], EVEN))

    def second_indices(window: Window) -> None:
        put(latents.index, window, first_group, second_index(inference, latents, window, of_index[window]), ODD)

    def second_means(window: Window) -> None:
        means[window] = second_mean(inference, latents, window, of_mean[window])

    def later_indices(number: int, window: Window) -> None:
        if number > 1:
            add_group_mean(latents, window, later[number - 2], means.pop(window))
        index = later_index(inference, latents, window, number, of_index[window])
        fill(latents.index, window, later[number - 1], index)

    # While the last group of a picture of few segments is read, some threads have nothing to do.
    idle = grid.bands == 1 and len(grid.windows(0)) * len(streams) < team_size()

    def later_means(number: int, window: Window) -> None:
        if later[number - 1].stop <= model.config.valued:
            means[window] = later_mean(inference, latents, window, number, of_mean[window])
        elif idle and inference.sparse:
            begin_rendering(model, latents, window)

    def show(window: Window, paint: Callable) -> None:
        for item, canvas in enumerate(canvases):
            canvas.paint(window, item, paint)

    for step in range(grid.bands + 2):
        if step < grid.bands:
            latents.open_band(model, step)
            pieces = pieces_of(model, grid, step)
            over(model, first_indices, pieces)
            read(step, 0, first_means)
            for window in pieces:
                add_mean(latents, window, means.pop(window), EVEN)
        band = step - 1
        if 0 <= band < grid.bands:
            pieces = pieces_of(model, grid, band)
            over(model, second_indices, pieces)
            read(band, 1, second_means)
            for window in pieces:
                add_mean(latents, window, means.pop(window), ODD)
            for number in range(1, len(later) + 1):
                over(model, functools.partial(later_indices, number), pieces)
                read(band, number + 1, functools.partial(later_means, number))
            if later and model.config.last_means:
                over(model, lambda window: add_group_mean(latents, window, later[-1], means.pop(window)), pieces)
            for window in pieces:
                del of_index[window], of_mean[window]
            if latents.states is None:
                latents.index.parts[band] = None
        band = step - 2
        if 0 <= band < grid.bands:
            # only now, when the first symbols have proved themselves, is memory taken for all pixels
            canvases = canvases or [_Canvas(stream) for stream in streams]
            render(model, latents, band, show)
            if band > 0:  # what the next band looks at stays
                for bands in (latents.symbols, latents.index, latents.values):
                    bands.parts[band - 1] = None
    return [canvas.image for canvas in canvases]


class _Canvas:
    """The picture that a bitstream becomes, window by window."""

    def __init__(self, stream: Bitstream):
        self.stream = stream
        self.grey = stream.mode[0] == "L" or stream.colourless
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


def _decode_parsed(model: NightCodec, streams: list[Bitstream]) -> list[Image.Image]:
    try:
        with torch.inference_mode(), team(model.log_gain.is_cuda):
            return _decode_group(model, streams)
    except entropy.EntropyError as error:
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
                   max_pixels: int = 200_000_000, verify: bool = True) -> Picture:  # fmt: skip
    """Bytes of a .npi file -> Picture, with its ICC, EXIF and XMP.

    `models`: folders to search for the file's model beside the package's own; `model`: the model itself (or its path).
    Raises BadBitstream, UnknownVersion or UnknownModel (all CodecError) and nothing else for any bytes.
    """
    stream = container.read(data, max_pixels, verify)
    (image,) = _decode_parsed(_model_for(stream, model, device, precision, models), [stream])
    return Picture(image, "NPI", image.mode, **stream.side)


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
                 max_pixels: int = 200_000_000, errors: str = "raise") -> list:  # fmt: skip
    """Like `decode` for many files; pictures of one size and model go through the networks together.

    errors: "raise" the first file's that cannot be decoded; with "return" its CodecError stands in the list where its
    image would, and all other files are decoded (those that shared a batch with it one by one).
    """
    if errors not in ("raise", "return"):
        raise ValueError(f"errors is {errors!r}; it can be 'raise' or 'return'")
    outcomes: list = [None] * len(files)
    streams: dict[int, Bitstream] = {}
    members = defaultdict(list)  # by model

    def attempt(function: Callable, places: list[int]) -> bool:
        try:
            function(places)
        except CodecError as error:
            if errors == "raise":
                raise
            outcomes[places[0]] = error
            return False
        return True

    def open_file(places: list[int]) -> None:
        (i,) = places
        stream = container.read(files[i], max_pixels)
        members[_model_for(stream, model, device, precision, models)].append(i)
        streams[i] = stream

    def shape_of(i: int) -> tuple:
        return *streams[i].cells, streams[i].segment, streams[i].version

    for i in range(len(files)):
        attempt(open_file, [i])
    for network, mine in members.items():

        def decode_places(places: list[int], network=network) -> None:
            for i, image in zip(places, _decode_parsed(network, [streams[i] for i in places]), strict=True):
                outcomes[i] = _with_info(Picture(image, "NPI", image.mode, **streams[i].side))

        def decode_group(group: list[int], mine=mine, decode_places=decode_places) -> None:
            places = [mine[i] for i in group]
            if not attempt(decode_places, places) and len(places) > 1:
                for i in places:
                    attempt(decode_places, [i])

        _each_group(decode_group, _groups([shape_of(i) for i in mine], network), network)
    return outcomes


def info(data) -> dict:
    """What a .npi file says about itself, without decoding it; its checksum is verified.

    Raises BadBitstream or UnknownVersion.
    """
    stream = container.read(data, max_pixels=container.MAX_SIDE**2)
    size = len(memoryview(data).cast("B"))
    return {
        "format": "npi",
        "version": stream.version,
        "model": stream.model,
        "quality": stream.level / 10,
        "width": stream.width,
        "height": stream.height,
        "mode": stream.mode,
        "colourless": stream.colourless,
        "bytes": size,
        "bpp": 8 * size / (stream.width * stream.height),
        "segments": len(stream.streams),
        "segment_pixels": stream.segment * 16,
        "alpha_bytes": len(stream.alpha),
        **{f"{kind}_bytes": len(stream.side.get(kind, b"")) for kind in container.SIDE_KINDS},
    }


__all__ = [
    "BadBitstream", "CodecError", "Prepared", "UnknownModel", "choose_device", "decode", "decode_batch",
    "decode_picture", "default_model", "encode", "encode_batch", "find_model", "get_model", "info", "level_of",
    "prepare",
]  # fmt: skip
