"""Finds the contexts (entropy/contexts.py) of a finished model and writes it anew with them: another file, another id.

    python -m codec.training.fit_contexts --data DIR [DIR ...] --model FILE --out FILE

Scores are derivatives of the logarithms of the tables, by the bin and by a Gaussian's mean in standard deviations. The
weights are what least squares weighted by Fisher's information gives, for each channel and kind of pass: the optimum of
the likelihood's second-order expansion. The K channels of the same cell are chosen one by one, each time the one that
gains most. Then tables are counted as the contexts choose them.

With --search-tables the tables that the trellis's search goes by (entropy/trellis.safetensors) are measured instead, on
purpose only: they are every model's.
"""

import argparse
import itertools
import math
import multiprocessing
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from codec.bitstream.segments import order_of_passes
from codec.entropy import contexts, trellis, trellis_cpu
from codec.entropy.context_kernels import corrected_pass, empty_scores
from codec.entropy.contexts import LATER, NEIGHBOURS, OFFSETS, PLACES, REACH, TABLES
from codec.entropy.tables import integer_frequencies, tally, unsigned
from codec.entropy.trellis import COSTS
from codec.format import BINS, EVEN, FIRST_BIN, LEVELS, ODD, ODD_STATES, PRECISION, bin_scales
from codec.network.files import load_model, read_model_file
from codec.network.reference import quantised
from codec.tensors import packed_tensors
from codec.training.samples import batch, load_pictures

CHANNELS = 8  # K
SHARES = 4  # of the pictures, each of which one process may take
RANGES = 3  # of levels, with weights of their own
SHARE = 0.3  # of what is known of its neighbours counts for a range too
SCALE_PLACES = 32  # scores are in that part of a bit per bin,
LOCATION_PLACES = 16  # and in that part of a standard deviation
RIDGE = 60.0  # in units of Fisher's information, added to every weight's
SMALLEST, LARGEST = 128, 512  # pixels of a picture's sides: what is left out, and what is looked at


def scores_of(tables: list) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tables (as trellis.tables_with gives them) -> scale scores, location scores, int8 [TABLES,REACH], and what
    location scores predict: float [TABLES,REACH] d log2 p / d mean, and its mean square [TABLES]."""
    bits, sigma = trellis.costs_of(tables).astype(np.float64), bin_scales()
    scale, location, slope = (np.zeros((TABLES, REACH)) for _ in range(3))
    for number in range(1, TABLES):
        odd, bin_ = divmod(number, ODD_STATES)
        low, high = (1, FIRST_BIN - 1) if bin_ < FIRST_BIN else (FIRST_BIN, BINS - 1)
        if bin_ == 0 or (odd and bin_ < FIRST_BIN):
            continue
        below, above = max(low, bin_ - 1), min(high, bin_ + 1)
        scale[number] = (bits[odd * ODD_STATES + below] - bits[odd * ODD_STATES + above])[:REACH] / (above - below)
        value = np.maximum(np.arange(REACH) - 0.5 * odd, 0)
        location[number] = np.minimum(value / math.sqrt(sigma[bin_] ** 2 + 1 / 12), 4)
        up, down = shifted_ratio(number, 0.1, REACH), shifted_ratio(number, -0.1, REACH)
        slope[number] = np.log2(up / down) / 0.2
    scale = np.clip(np.rint(scale * SCALE_PLACES), -127, 127)
    location = np.clip(np.rint(location * LOCATION_PLACES), -127, 127)
    squares = np.array([(chance(table, REACH) * row**2).sum() for table, row in zip(tables, slope, strict=True)])
    return scale.astype(np.int8), location.astype(np.int8), slope, squares


def shifted_ratio(number: int, mean: float, count: int) -> np.ndarray:
    """[count]: by what the chance of symbols 0, 1, .. of a table changes where the bin's Gaussian has its mean not at 0
    but that many standard deviations from there."""
    odd, bin_ = divmod(number, ODD_STATES)
    k, sigma = np.arange(count), bin_scales()[bin_] * math.sqrt(2)
    low, high = k - 0.5 - 0.5 * odd, k + 0.5 - 0.5 * odd
    if odd:
        low, high = np.where(k == 0, -0.25, np.where(k == 1, 0.25, low)), np.where(k == 0, 0.25, high)
    shift = mean * bin_scales()[bin_]

    def mass(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([math.erfc(x / sigma) - math.erfc(y / sigma) for x, y in zip(a, b, strict=True)])

    moved, still = mass(low - shift, high - shift), mass(low, high)
    known = (still > 1e-12) & (moved > 1e-12)
    last = int(np.argmin(known)) - 1 if not known.all() else count - 1
    ratio = np.where(known, moved / np.maximum(still, 1e-300), 1.0)
    ratio[last + 1 :] = ratio[last]
    return ratio


def chance(table: np.ndarray | None, count: int) -> np.ndarray:
    """[count]: of magnitudes in a table."""
    p = np.zeros(count)
    if table is not None:
        middle = (len(table) - 2) // 2
        part = table[middle:-1][:count].astype(np.float64)
        part[1:] *= 2
        p[: len(part)] = part / part.sum()
    return p


def gathered(model, pictures: list[np.ndarray], per_picture: int, rng: random.Random):
    """Yields (level, symbols int16, tables uint8 [latent,h,w]) of pictures at random levels."""
    for picture in pictures:
        height, width = (min(side, LARGEST) // 16 * 16 for side in picture.shape[:2])
        x = torch.from_numpy(picture[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            y = model.analysis(x)
            for _ in range(per_picture):
                level = rng.randint(0, LEVELS)
                _, symbols, tables, _ = quantised(model, y, level)
                yield level, symbols[0].numpy(), tables[0].numpy()


def _beside(scores: np.ndarray, chosen: np.ndarray, kind: int) -> np.ndarray:
    """Scores [h,w] of a channel -> [NEIGHBOURS, chosen cells]: what contexts sum of it, in their weights' order."""
    seen = scores * _colours(*scores.shape, EVEN) if kind == contexts.FIRST_PASS else scores
    parts = [_plane_shifted(seen, *offset) for offset in OFFSETS[kind]]
    if kind == LATER:
        odd = np.arange(scores.shape[1]) % 2 == 1
        halves = [_plane_shifted(seen, *offset) * odd for offset in OFFSETS[contexts.LATER_ODD]]
        parts = [*(part * ~odd for part in parts), *halves]
    none = np.zeros(scores.shape, np.float32)
    parts += [none] * (NEIGHBOURS - len(parts))
    for place, offset in enumerate(OFFSETS[kind]):
        if not offset.any():
            parts[place] = none
    return np.stack([part[chosen] for part in parts])


def _colours(height: int, width: int, colour: int) -> np.ndarray:
    """bool [h,w]: the checkerboard's cells of that colour."""
    return (np.arange(height)[:, None] + np.arange(width)[None]) % 2 == colour


def _plane_shifted(plane: np.ndarray, below: int, right: int) -> np.ndarray:
    """[h,w]: what stands there from each cell, 0 outside."""
    height, width = plane.shape
    padded = np.zeros((height + 4, width + 4), np.float32)
    padded[2:-2, 2:-2] = plane
    return padded[2 + below : 2 + below + height, 2 + right : 2 + right + width]


def units_of(groups: tuple[int, ...]) -> list[tuple[int, int]]:
    """(channel, kind of pass) of all that have weights of their own."""
    first, latent = groups[0], sum(groups)
    return [(c, kind) for c in range(first) for kind in (EVEN, ODD)] + [(c, LATER) for c in range(first, latent)]


class Sums:
    """Normal equations of every unit's two sets of weights."""

    def __init__(self, groups: tuple[int, ...], tables: list):
        self.units = units_of(groups)
        self.scale_scores, self.location_scores, self.slope, self.squares = scores_of(tables)
        self.information = np.array(
            [(chance(t, REACH) * row**2).sum() for t, row in zip(tables, self.scale_scores / SCALE_PLACES, strict=True)]
        )
        sizes = [(c + NEIGHBOURS, NEIGHBOURS) for c, _ in self.units]
        self.tables = tables
        self.scale = [[(np.zeros((n, n)), np.zeros(n)) for n, _ in sizes] for _ in range(RANGES)]
        self.location = [[(np.zeros((n, n)), np.zeros(n)) for _, n in sizes] for _ in range(RANGES)]

    def add(self, level: int, symbols: np.ndarray, tables: np.ndarray) -> None:
        of_scale, of_location = (part[level * RANGES // (LEVELS + 1)] for part in (self.scale, self.location))
        size, sign = np.minimum(np.abs(symbols.astype(np.int32)), REACH - 1), np.sign(symbols)
        coded = tables > 0
        scale = self.scale_scores[tables, size] * coded
        location = self.location_scores[tables, size] * sign * coded
        slope, squares = self.slope[tables, size] * sign, self.squares[tables] * coded
        information = self.information[tables] * coded
        flat = scale.reshape(len(scale), -1)
        for number, (c, kind) in enumerate(self.units):
            chosen = coded[c] if kind == LATER else coded[c] & _colours(*symbols.shape[1:], kind)
            if not chosen.any():
                continue
            place = chosen.ravel()
            parts = [_beside(scores, chosen, kind) for scores in (scale[c], location[c])]
            x = np.concatenate((flat[:c, place].astype(np.float32), parts[0]))
            weight = information[c][chosen].astype(np.float32)
            of_scale[number][0][:] += (x * weight) @ x.T
            of_scale[number][1][:] += x @ (scale[c][chosen].astype(np.float32) / SCALE_PLACES)
            x, weight = parts[1], squares[c][chosen].astype(np.float32)
            of_location[number][0][:] += (x * weight) @ x.T
            of_location[number][1][:] += x @ slope[c][chosen].astype(np.float32)

    def join(self, other: "Sums") -> None:
        """Adds what another has."""
        for mine, others in ((self.scale, other.scale), (self.location, other.location)):
            for pair, more in zip(itertools.chain(*mine), itertools.chain(*others), strict=True):
                pair[0][:] += more[0]
                pair[1][:] += more[1]

    def weights(self, latent: int) -> list[contexts.Contexts]:
        """The best, in units of 2^-PLACES, for each range of levels."""
        channels = np.zeros((RANGES, 2, latent, CHANNELS), np.int16)
        scale = np.zeros((RANGES, 2, latent, CHANNELS + NEIGHBOURS), np.int32)
        location = np.zeros((RANGES, 2, latent, NEIGHBOURS), np.int32)
        for at, (number, (c, kind)) in itertools.product(range(RANGES), enumerate(self.units)):
            place = at, int(kind == ODD), c
            square, target = shared(self.scale, at, number)
            chosen, found = selected(square, target, c, RIDGE * SCALE_PLACES**2)
            channels[place][: len(chosen)] = chosen
            found = np.rint(found / math.log(2) * (1 << PLACES))
            scale[place][: len(chosen)], scale[place][CHANNELS:] = found[: len(chosen)], found[len(chosen) :]
            square, target = shared(self.location, at, number)
            found = np.linalg.solve(square + np.eye(NEIGHBOURS) * RIDGE * LOCATION_PLACES**2, target)
            location[place] = np.rint(found / math.log(2) * (1 << PLACES))
        parts = self.scale_scores, self.location_scores
        return [contexts.Contexts(*of_range, *parts) for of_range in zip(channels, scale, location, strict=True)]


def shared(sums: list, at: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A unit's normal equations in a range of levels, with a share of the next ranges'."""
    parts = [(SHARE if other != at else 1.0, sums[other][number]) for other in range(RANGES) if abs(other - at) <= 1]
    return tuple(sum(weight * part[i] for weight, part in parts) for i in (0, 1))


def selected(square: np.ndarray, target: np.ndarray, c: int, ridge: float) -> tuple[list[int], np.ndarray]:
    """Of the first c unknowns the CHANNELS that gain most, one after the other, and the solution for these and for all
    after the first c."""
    square = square + np.eye(len(target)) * ridge
    rest, chosen = list(range(c, len(target))), []
    while True:
        taken = chosen + rest
        found = np.linalg.solve(square[np.ix_(taken, taken)], target[taken])
        gain = (target - square[:, taken] @ found) ** 2 / np.diag(square)
        gain[c:] = gain[chosen] = 0
        if len(chosen) == min(CHANNELS, c) or gain.max() <= 0:
            return chosen, found
        chosen.append(int(gain.argmax()))


def prior_tables(tables: list) -> list:
    """Frequencies of all SHIFTS * TABLES tables, as a Gaussian's mean would change those given."""
    found = list(tables)
    for mean in contexts.SHIFT_MEANS[1:]:
        for number, table in enumerate(tables):
            if table is None:
                found.append(None)
                continue
            radius = (len(table) - 2) // 2
            left, right = (shifted_ratio(number, sign * mean, radius + 1) for sign in (-1, 1))
            ratio = np.concatenate((left[:0:-1], right, [1]))
            found.append(integer_frequencies(table * ratio))
    return found


def counted(model, found: list[contexts.Contexts], prior: list, pieces) -> tuple[list, float, float]:
    """Tables as the contexts choose them; and bits by `prior` without contexts and with them."""
    counts = [None if table is None else np.zeros(len(table)) for table in prior]
    before = after = 0.0
    costs = trellis.costs_of(prior[:TABLES])
    for level, symbols, tables in pieces:
        before += costs[tables, np.minimum(np.abs(symbols.astype(np.int32)), COSTS - 1)][tables > 0].sum()
        scores = empty_scores(contexts.contexts_at(found, level), *symbols.shape[1:])
        for part, cells in order_of_passes(model.config):
            coded = corrected_pass(symbols[part], tables[part], scores, part.start, cells, cells)
            tally(counts, coded[1], coded[0])
    tables = []
    for number, (count, table) in enumerate(zip(counts, prior, strict=True)):
        if table is None or number == 0:
            tables.append(None)
            continue
        after += (count * (PRECISION - np.log2(table))).sum()
        if number < TABLES:
            count = unsigned(count)  # what is not shifted prefers no sign
        tables.append(integer_frequencies(count + table * (2000.0 / (1 << PRECISION))))
    return tables, before, after


def summed(model, pictures: list[np.ndarray], levels: int, seed: int) -> Sums:
    """Of these pictures (uint8 [H,W,3]) at so many levels each."""
    sums = Sums(model.config.groups, trellis.tables_with(model.tables().y_freq))
    for piece in gathered(model, pictures, levels, random.Random(seed)):
        sums.add(*piece)
    return sums


def fitted(model, sums: Sums, pictures: list[np.ndarray], levels: int, seed: int = 12) -> dict[str, np.ndarray]:
    """The tensors that a model file takes, their tables counted on these pictures."""
    found, prior = sums.weights(model.config.latent), prior_tables(sums.tables)
    tables, before, after = counted(model, found, prior, gathered(model, pictures, levels, random.Random(seed)))
    saved = f"{before / 8:.0f} bytes, with contexts {after / 8:.0f}: {100 * (after / before - 1):+.2f} %"
    print(saved, file=sys.stderr)
    return contexts.as_arrays(found, tables)


def with_contexts(model_file: Path | bytes, found: dict[str, np.ndarray]) -> bytes:
    """A model file and `fitted`'s tensors -> the file that has both."""
    arrays, metadata = read_model_file(model_file)
    arrays = {name: array for name, array in arrays.items() if not name.startswith("contexts.")}
    return packed_tensors({**arrays, **found}, metadata)


def add(model_file: Path, data: list[Path], out: Path, count: int, levels: int, processes: int = 1) -> str:
    """Writes `out`, the model with contexts found on up to `count` pictures in these folders; returns its id. The work
    is cut into SHARES, so that the number of processes changes nothing."""
    jobs = [(model_file, data, count, levels, share) for share in range(SHARES)]
    if processes > 1:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            first, *others = pool.map(_share, jobs)
    else:
        first, *others = map(_share, jobs)
    for other in others:
        first.join(other)
    found = fitted(load_model(model_file), first, sampled(data, count)[: -(-count // 2)], levels)
    out.write_bytes(with_contexts(model_file, found))
    return load_model(out).identity


def sampled(data: list[Path], count: int) -> list[np.ndarray]:
    pictures = load_pictures(data, SMALLEST)
    return random.Random(11).sample(pictures, min(count, len(pictures)))


def _share(job: tuple) -> Sums:
    model_file, data, count, levels, share = job
    return summed(load_model(model_file), sampled(data, count)[share::SHARES], levels, share)


# -- the tables of the search


def measure_search_tables(model, pictures: list[np.ndarray], crops: int, rng: random.Random) -> bytes:
    """The file of trellis.search_tables. Tables and what the search chooses by them depend on each other: three rounds,
    the first with Gaussian bins' and an eighth of the crops."""
    tables = prior = trellis.gaussian_tables()
    for part in (crops // 8, crops // 4, crops):
        bits, counts = trellis.costs_of(tables), [None if table is None else np.zeros(len(table)) for table in prior]

        def search(residual, bins, states, _, bits=bits):
            return trellis_cpu.viterbi_quantise(residual, bins, states, model.thresholds, bits)

        for _ in range(part // 4):
            y = model.analysis(batch(pictures, 4, 256, rng))
            for level in (rng.randint(0, LEVELS) for _ in range(4)):
                _, symbols, numbers, _ = quantised(model, y, level, search)
                tally(counts, numbers.numpy() * (numbers.numpy() % ODD_STATES >= FIRST_BIN), symbols.numpy())
        weight = 200.0 / (1 << PRECISION)  # of the prior: 200 symbols
        tables = [
            None if table is None else integer_frequencies(unsigned(count) + table * weight)
            for count, table in zip(counts, prior, strict=True)
        ]
    coded = [table for table in tables if table is not None]
    arrays = {
        "frequencies": np.concatenate(coded).astype(np.uint16),
        "sizes": np.array([len(table) for table in coded], np.int32),
    }
    return packed_tensors(arrays, {"format": trellis.FILE_FORMAT})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--levels", type=int, default=4, help="of each picture")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--search-tables", metavar="CROPS", type=int, help="measure these on so many samples instead")
    a = parser.parse_args()
    if a.search_tables:
        model, pictures = load_model(a.model), load_pictures(a.data, 256)
        a.out.write_bytes(measure_search_tables(model, pictures, a.search_tables, random.Random(11)))
        return 0
    print(f"{a.out}: model {add(a.model, a.data, a.out, a.pictures, a.levels, a.processes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
