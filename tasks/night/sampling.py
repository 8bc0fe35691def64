"""A sample of a bucket and what it says about all of it: strata, how many of each, ratio estimates, their uncertainty.

    listing → distinct contents (equal MD5 etags and sizes fold) → strata by folder, suffix, size → sample
            → ratio to the bytes known from the listing, stratum by stratum → bootstrap

Knows listings and numbers alone; what is measured on the sample is dry_run.py's.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

REPLICATES = 2000
COVERAGE = 0.9  # of the intervals


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth lies with probability COVERAGE; equal ends where everything was looked at."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Content:
    """One distinct content of the listing: the object that is read and how many copies of it there are."""

    info: object  # tasks.stores.base.ObjectInfo
    copies: int = 1

    @property
    def bytes(self) -> int:
        return self.info.size * self.copies


def distinct_contents(infos: Iterable, fold: bool = True) -> list[Content]:
    """Fold objects with the same single-part MD5 etag and size into one, the oldest; order of keys."""
    groups: dict[object, list] = defaultdict(list)
    for info in infos:
        etag = (info.etag or "").strip('"').lower()
        known = fold and info.size > 0 and re.fullmatch(r"[0-9a-f]{32}", etag)
        groups[(etag, info.size) if known else info.key].append(info)
    contents = [Content(min(group, key=lambda i: (i.modified, i.key)), len(group)) for group in groups.values()]
    return sorted(contents, key=lambda content: content.info.key)


def strata_of(contents: Sequence[Content], limit: int) -> np.ndarray:
    """int64[n]: each content's stratum, by first folder, suffix and size (factors of four), at most about `limit`.

    The strata with most bytes keep all three; the rest go by suffix and size, then by suffix, then together.
    """
    folders = [content.info.key.split("/")[:-1] for content in contents]
    shared = 0
    while folders and all(len(f) > shared and f[shared] == folders[0][shared] for f in folders):
        shared += 1

    def labels(index: int) -> tuple:
        info = contents[index].info
        name = info.key.rpartition("/")[2]
        suffix = name.rpartition(".")[2].lower() if "." in name else ""
        octave = int(math.log2(info.size + 1)) // 2
        folder = folders[index][shared] if len(folders[index]) > shared else ""
        return (folder, suffix, octave), (suffix, octave), (suffix,), ()

    ladder = [labels(index) for index in range(len(contents))]
    weights = np.array([content.bytes + 1 for content in contents])
    chosen: list[tuple | None] = [None] * len(contents)
    for level, room in enumerate((limit // 2, limit // 4, limit // 4, 1)):
        total: Counter = Counter()
        for index, label in enumerate(chosen):
            if label is None:
                total[ladder[index][level]] += int(weights[index])
        kept = {label for label, _ in total.most_common(max(1, room))}
        for index, label in enumerate(chosen):
            if label is None and ladder[index][level] in kept:
                chosen[index] = (level, *ladder[index][level])
    numbers = {label: number for number, label in enumerate(sorted(set(chosen), key=str))}
    return np.array([numbers[label] for label in chosen], np.int64)


def allocation(stratum: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """int64[strata]: objects to look at in each, about `n` together, by bytes, two at least (one where there is one).

    Raises nothing: with n no smaller than the population it is all of it.
    """
    population = np.bincount(stratum)
    if n >= len(stratum):
        return population
    mass = np.bincount(stratum, weights=weights)
    least = np.minimum(population, 2)
    wanted = np.maximum(least, np.minimum(population, np.floor(n * mass / max(mass.sum(), 1)).astype(np.int64)))
    while wanted.sum() > n and (wanted > least).any():
        wanted[np.argmax(np.where(wanted > least, wanted, -1))] -= 1
    while wanted.sum() < n:  # what full strata left over goes where most bytes stand behind each sample
        behind = np.where(wanted < population, mass / np.maximum(wanted, 1), -1.0)
        wanted[np.argmax(behind)] += 1
    return wanted


def draw(stratum: np.ndarray, wanted: np.ndarray, seed: int = 1) -> np.ndarray:
    """Sorted indices of the sample: simple random without replacement within each stratum."""
    random = np.random.default_rng(seed)
    chosen = [
        random.choice(np.flatnonzero(stratum == number), count, replace=False) for number, count in enumerate(wanted)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def bootstrap_weights(stratum: np.ndarray, population: np.ndarray, replicates: int, seed: int = 1) -> np.ndarray:
    """float64[1 + replicates, n]: row 0 all ones, then the rescaled bootstrap's weights of the n sampled objects.

    Rao, Wu and Yue (Survey Methodology 18, 1992): m - 1 draws from the m of a stratum, weights stretched by
    m / (m - 1) and shrunk towards 1 by sqrt(1 - m / M), so that strata looked at wholly do not vary.
    """
    random = np.random.default_rng(seed)
    weights = np.ones((1 + replicates, len(stratum)))
    for number, whole in enumerate(population):
        members = np.flatnonzero(stratum == number)
        count = len(members)
        if count < 2 or count >= whole:
            continue
        times = random.multinomial(count - 1, np.full(count, 1 / count), size=replicates)
        shrink = math.sqrt(1 - count / whole)
        weights[1:, members] = 1 + shrink * (times * count / (count - 1) - 1)
    return weights


def extrapolate(
    values: np.ndarray, known: np.ndarray, sampled: np.ndarray, stratum: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """float64[1 + replicates]: totals over the population of a value known for the sample only.

    Separate ratio estimator: in each stratum the sample's values over its `known`, times the stratum's `known`.
    values: float64[n] of the sampled; known, stratum: [N] of all contents; sampled: indices [n].
    """
    totals = np.zeros(len(weights))
    inside = stratum[sampled]
    for number, mass in enumerate(np.bincount(stratum, weights=known)):
        members = inside == number
        below = weights[:, members] @ known[sampled][members]
        above = weights[:, members] @ values[members]
        totals += mass * np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return totals


def interval(totals: np.ndarray) -> Interval:
    low, high = np.quantile(totals[1:], [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]) if len(totals) > 1 else totals[[0, 0]]
    return Interval(float(totals[0]), float(min(low, totals[0])), float(max(high, totals[0])))


def folded(stratum: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """int64[N]: strata, those with fewer than two sampled (and more to sample) put together with the largest."""
    population, seen = np.bincount(stratum), np.bincount(stratum[sampled], minlength=stratum.max() + 1)
    thin = (seen < 2) & (seen < population)
    together = np.where(thin, np.argmax(np.where(seen >= seen.max(), population, -1)), np.arange(len(population)))
    return np.unique(together[stratum], return_inverse=True)[1]
