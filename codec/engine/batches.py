"""How the work is spread: pictures of one shape in batches, windows in pieces for the team of threads.

The threads themselves are codec/threads.py's, how a latent is cut into windows is windows.py's.
"""

from collections import defaultdict
from collections.abc import Callable

from PIL import Image

from codec.engine.windows import Grid, Window
from codec.network.night_codec import NightCodec
from codec.threads import map_threads, team, team_size


def cells_of(image: Image.Image) -> tuple[int, int]:
    """Height and width of a picture's latent."""
    return -(-image.height // 16), -(-image.width // 16)


def groups_of(shapes: list, model: NightCodec) -> list[list[int]]:
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


def map_groups(function: Callable, groups: list, model: NightCodec) -> None:
    """function(group) for all: on a CPU with several threads, so many groups at a time with one thread each."""
    if model.log_gain.is_cuda:
        for group in groups:
            function(group)
    else:
        with team():
            map_threads(function, groups)


def pieces_of(model: NightCodec, grid: Grid, band: int) -> list[Window]:
    """The windows of a band as `map_windows` works on them."""
    return grid.windows(band) if model.log_gain.is_cuda else grid.pieces(band, team_size())


def map_windows(model: NightCodec, function: Callable, windows: list[Window]) -> list:
    """[function(window)], by the team of threads where the networks are on the CPU."""
    return [function(window) for window in windows] if model.log_gain.is_cuda else map_threads(function, windows)
