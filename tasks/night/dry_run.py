"""The dry run: what a night over a bucket would save, how long it would take and what it would cost, from a sample.

Here: what a sample's objects make of the whole bucket, and the words for it (`text`). Which objects are looked at, and
with what uncertainty they stand for all, is sampling.py's. What would happen to one object is asked of the night's own
steps (fingerprint.py, compress.py); nothing here writes anything anywhere.

Near duplicates need pairs, and a sample has few of the pairs that a bucket has: they are not in the estimate, so that
it errs on the low side where there are many.
"""

import math
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace

import numpy as np

from tasks.night.sampling import (
    COVERAGE,
    REPLICATES,
    Content,
    Interval,
    allocation,
    bootstrap_weights,
    distinct_contents,
    draw,
    extrapolate,
    folded,
    interval,
    strata_of,
)
from tasks.report import savings
from tasks.report.schema import STATUSES
from tasks.report.words import duration, money, readable, share, size

SAMPLE = 120  # objects looked at unless told otherwise
NOMINAL = 50.0  # quality at which a budgeted night's pictures are judged
AHEAD = 4  # objects being read while one is measured
TARGETS = (70.0, 80.0, 85.0, 90.0)  # SSIMULACRA2: what else the night might be asked for
PACKED_BELOW = 128 * 1024  # bitstreams under this share an object, one per shard


@dataclass(frozen=True)
class AtTarget:
    """What a night of another target would do with one object. `stored_bytes` 0 unless compressed."""

    stored_bytes: int
    compressed: bool
    worst_tile: float | None


@dataclass(frozen=True)
class Measured:
    """What the night would do with one object. `stored_bytes` 0 unless compressed; seconds on one core, of the night's
    own target; `at_targets` in the order of TARGETS, empty where no target is asked for or nothing depends on it."""

    status: str
    stored_bytes: int
    seconds: float
    pixels: int = 0
    reason: str | None = None
    psnr: float | None = None
    ms_ssim: float | None = None
    ssimulacra2: float | None = None
    at_targets: tuple[AtTarget, ...] = ()


@dataclass(frozen=True)
class TargetEstimate:
    """The bucket at one of TARGETS. `compressed`: objects; `worst_tile`: the lowest of the sample."""

    target: float
    stored_bytes: Interval
    saved_bytes: Interval
    compressed: Interval
    worst_tile: float | None


@dataclass(frozen=True)
class Estimate:
    """A night foretold. Bytes, seconds, US dollars (a month, but `run_dollars` once)."""

    objects: int
    source_bytes: int
    exact_copies: int
    exact_copy_bytes: int
    sampled: int
    sampled_bytes: int
    strata: int
    stored_bytes: Interval
    remaining_bytes: Interval  # originals that must stay
    saved_bytes: Interval  # source - stored - remaining, once what is removable is removed
    counts: dict[str, Interval]
    core_seconds: Interval
    wall_seconds: Interval
    workers: int
    region: str
    dollars_before: float
    dollars_after: Interval
    dollars_saved: Interval
    run_dollars: float
    psnr: float | None  # mean over the sample's compressed pictures
    ms_ssim: float | None
    ssimulacra2: float | None
    targets: list[TargetEstimate]  # empty under a budget
    reasons: dict[str, int]  # of the sample's objects that are not compressed
    sampling_seconds: float

    def as_dict(self) -> dict:
        """For --json; intervals as {"value", "low", "high"}."""
        return asdict(self)


def foretell(
    night,
    infos: Iterable,
    *,
    budget_bytes: int | None = None,
    budget_percent: float | None = None,
    sample: int = SAMPLE,
    workers: int = 1,
    shard_size: int = 64,
    region: str = "us-east-1",
    patience: float = 300.0,
    watch: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Foretell the night (tasks.night.runs.Night; its DEST is not touched) over the listed objects.

    Under a budget the bytes are what the budget says, and which quality it buys is not foretold: what can be
    compressed is then judged at NOMINAL quality. Other arguments as in `estimate`.
    """
    from tasks.night import compress, fingerprint
    from tasks.night.catalog import CATALOG_SCHEMA
    from tasks.night.runs import store_of
    from tasks.stores.base import ObjectHead

    budgeted = budget_bytes is not None or budget_percent is not None
    if budgeted:
        night = replace(night, quality=NOMINAL)
    source, limit = store_of(night.source), fingerprint.MAX_BYTES
    blank = dict.fromkeys(CATALOG_SCHEMA.names)

    def item_of(info) -> dict:
        return {name: getattr(info, name) for name in ("key", "size", "etag", "modified", "version", "storage_class")}

    def read(info) -> bytes:
        return source.read(info.key, etag=info.etag, max_bytes=limit)

    def measure(info, data: bytes) -> Measured:
        row = blank | fingerprint.inspect_object(night, item_of(info), (data, ObjectHead(**item_of(info)))).row
        targets = ()
        if row["status"] is None:
            before, row = row, compress.compress_object(night, row, data).row
            targets = () if budgeted else tuple(at_target(before, data, row, value) for value in TARGETS)
        elif row["exact_only"] and not budgeted:
            row = compress.compress_object(night, row, data).row
            found = AtTarget(row["stored_bytes"], row["status"] == "compressed", row["worst_tile"])
            targets = (found,) * len(TARGETS)
        if budget_percent is not None and row["status"] == "compressed":
            row["stored_bytes"] = round(info.size * budget_percent / 100)
        pixels = (row["width"] or 0) * (row["height"] or 0)
        figures = (None,) * 3 if budgeted else (row["psnr"], row["ms_ssim"], row["ssimulacra2"])
        return Measured(row["status"], row["stored_bytes"], row["seconds"], pixels, row["reason"], *figures, targets)

    def at_target(before: dict, data: bytes, own: dict, value: float) -> AtTarget:
        if (night.metric, night.target) == ("ssimulacra2", value):
            row = own
        else:
            asked = replace(night, quality=None, metric="ssimulacra2", target=value)
            row = compress.compress_object(asked, dict(before), data).row
        return AtTarget(row["stored_bytes"], row["status"] == "compressed", row["worst_tile"])

    result = estimate(
        infos, read, measure, sample=sample, workers=workers, shard_size=shard_size, region=region, patience=patience,
        fold=night.dedup != "off", watch=watch,
    )  # fmt: skip
    return result if budget_bytes is None else capped(result, budget_bytes)


def capped(result: Estimate, budget: int) -> Estimate:
    """The estimate with no more than `budget` bytes stored; bytes saved and money follow."""
    price = savings.tariff(result.region, "STANDARD")["storage"]

    def less(given: Interval) -> Interval:
        return Interval(*(min(end, budget) for end in (given.value, given.low, given.high)))

    def dollars(stored: float) -> float:
        return savings.tiered(max(stored, 0) / savings.GB, price)

    stored, freed = less(result.stored_bytes), result.stored_bytes.value - less(result.stored_bytes).value
    cheaper = dollars(result.stored_bytes.value) - dollars(stored.value)
    return replace(
        result,
        stored_bytes=stored,
        saved_bytes=Interval(*(end + freed for end in astuple(result.saved_bytes))),
        dollars_after=Interval(*(end - cheaper for end in astuple(result.dollars_after))),
        dollars_saved=Interval(*(end + cheaper for end in astuple(result.dollars_saved))),
    )


def monthly_dollars(contents: Sequence[Content], region: str) -> np.ndarray:
    """float64[n]: what each content's copies bill a month, at their class's mean price over the bucket."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for index, content in enumerate(contents):
        by_class[content.info.storage_class or "STANDARD"].append(index)
    dollars = np.zeros(len(contents))
    for name, members in by_class.items():
        try:
            rules = savings.tariff(region, name)
        except savings.UnknownPrice:  # a class without a price of its own (INTELLIGENT_TIERING, another server's)
            name, rules = "STANDARD", savings.tariff(region, "STANDARD")
        padded = [max(contents[i].info.size, rules["minimum_bytes"]) + rules["overhead_bytes"] for i in members]
        billed = np.array(padded, float) * [contents[i].copies for i in members]
        whole, _ = savings.storage(
            [(np.repeat([contents[i].info.size for i in members], [contents[i].copies for i in members]), name)], region
        )
        dollars[members] = whole * billed / max(billed.sum(), 1)
    return dollars


def estimate(
    infos: Iterable,
    read: Callable,
    measure: Callable,
    *,
    sample: int = SAMPLE,
    workers: int = 1,
    shard_size: int = 64,
    region: str = "us-east-1",
    seed: int = 1,
    patience: float = math.inf,
    fold: bool = True,
    watch: Callable[[int, int], None] | None = None,
) -> Estimate:
    """Look at about `sample` of the listed objects and foretell the night.

    infos: ObjectInfo of everything that would be taken; read(info) gives what measure(info, data) needs
    to say what the night would make of it (a Measured); raising is a failure of that object. After `patience` seconds
    what was looked at by then has to do. fold: exact copies are stored once. watch(done, of) follows progress.
    Raises ValueError for an empty listing.
    """
    begun = time.monotonic()
    contents = distinct_contents(infos, fold)
    if not contents:
        raise ValueError("nothing to estimate: the listing holds no object that would be taken")
    stratum = strata_of(contents, max(4, sample // 6))
    mass = np.array([content.bytes for content in contents], float)
    chosen = draw(stratum, allocation(stratum, mass, sample), seed)
    chosen = np.random.default_rng(seed).permutation(chosen)  # so that a part of it is a sample too
    results = look([contents[i].info for i in chosen], read, measure, begun + patience, watch)
    if len(results) < len(chosen):
        chosen = chosen[: len(results)]
        stratum = folded(stratum, chosen)
    looked = Looked(contents, results, chosen, stratum, seed)
    return looked.estimate(workers, shard_size, region, begun)


def look(infos: list, read: Callable, measure: Callable, until: float, watch: Callable | None) -> list[Measured]:
    """What the night would make of each, in order, some being read ahead; at least two, then until the time is up."""

    def fetched(info):
        try:
            return read(info)
        except Exception as error:  # any: it becomes a failed row of the estimate
            return error

    results: list[Measured] = []
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting, ahead = deque(), iter(infos)
        for info in infos:
            while len(waiting) < AHEAD and (upcoming := next(ahead, None)) is not None:
                waiting.append(pool.submit(fetched, upcoming))
            results.append(judged(info, waiting.popleft().result(), measure))
            if watch:
                watch(len(results), len(infos))
            if len(results) >= 2 and time.monotonic() > until:
                break
    return results


class Looked:
    """The distinct contents of a listing, and what a sample of them became.

    results: of contents[chosen]; stratum: int64[N], of all contents.
    """

    def __init__(self, contents: list[Content], results: list[Measured], chosen: np.ndarray, stratum: np.ndarray, seed):
        self.contents, self.results, self.chosen, self.stratum = contents, results, chosen, stratum
        self.all_bytes = np.array([content.bytes for content in contents], float)
        self.one_copy = np.array([content.info.size for content in contents], float)
        self.population = np.bincount(stratum)
        self.weights = bootstrap_weights(stratum[chosen], self.population, REPLICATES, seed)
        self.stored = np.array([result.stored_bytes for result in results], float)
        self.safe = np.array([result.status == "compressed" for result in results])

    def over(self, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        """float64[1 + replicates]: totals over all contents of what is known of the sample."""
        return extrapolate(values, known, self.chosen, self.stratum, self.weights)

    def counts(self) -> dict[str, Interval]:
        """Objects by status; copies that fold are duplicates, all others are not looked for."""
        ones = np.ones(len(self.contents))
        counts = {
            status: interval(self.over(np.array([float(r.status == status) for r in self.results]), ones))
            for status in STATUSES
        }
        copies = sum(content.copies - 1 for content in self.contents)
        return counts | {"duplicate": Interval(copies, copies, copies)}

    def targets(self) -> list[TargetEstimate]:
        """The bucket at each of TARGETS, where the sample was measured at them."""
        if not any(result.at_targets for result in self.results):
            return []
        return [self.at_target(number, value) for number, value in enumerate(TARGETS)]

    def at_target(self, number: int, value: float) -> TargetEstimate:
        fixed = [AtTarget(r.stored_bytes, r.status == "compressed", None) for r in self.results]
        each = [r.at_targets[number] if r.at_targets else f for r, f in zip(self.results, fixed, strict=True)]
        safe = np.array([one.compressed for one in each])
        held = self.over(np.array([one.stored_bytes for one in each], float), self.one_copy)
        remaining = self.over(np.where(safe, 0.0, self.all_bytes[self.chosen]), self.all_bytes)
        compressed = self.over(safe.astype(float), np.ones(len(self.contents)))
        tiles = [one.worst_tile for one in each if one.worst_tile is not None]
        saved = interval(self.all_bytes.sum() - held - remaining)
        return TargetEstimate(value, interval(held), saved, interval(compressed), min(tiles, default=None))

    def run_dollars(self, price: dict, pictures: float, shard_size: int) -> float:
        """What the night's requests cost: each object read, each bitstream read again; packs and large ones written."""
        large = self.over((self.stored >= PACKED_BELOW).astype(float), np.ones(len(self.contents)))[0]
        puts = large + math.ceil(len(self.contents) / shard_size)
        gets = len(self.contents) + pictures
        return float((gets * price["get"] + puts * price["put"]) / 1000)

    def estimate(self, workers: int, shard_size: int, region: str, begun: float) -> Estimate:
        held = self.over(self.stored, self.one_copy)
        remaining = self.over(np.where(self.safe, 0.0, self.all_bytes[self.chosen]), self.all_bytes)
        # Zero-byte objects carry no weight in a ratio to bytes; one byte each keeps their seconds in.
        seconds = self.over(np.array([result.seconds for result in self.results]), self.one_copy + 1)
        counts = self.counts()
        price = savings.tariff(region, "STANDARD")
        dollars = monthly_dollars(self.contents, region)
        dest = np.array([savings.tiered(max(total, 0) / savings.GB, price["storage"]) for total in held])
        after = dest + self.over(np.where(self.safe, 0.0, dollars[self.chosen]), dollars)
        compressed = [result for result in self.results if result.status == "compressed"]
        return Estimate(
            objects=sum(content.copies for content in self.contents),
            source_bytes=int(self.all_bytes.sum()),
            exact_copies=int(counts["duplicate"].value),
            exact_copy_bytes=int(self.all_bytes.sum() - self.one_copy.sum()),
            sampled=len(self.chosen),
            sampled_bytes=int(self.one_copy[self.chosen].sum()),
            strata=len(self.population),
            stored_bytes=interval(held),
            remaining_bytes=interval(remaining),
            saved_bytes=interval(self.all_bytes.sum() - held - remaining),
            counts=counts,
            core_seconds=interval(seconds),
            wall_seconds=interval(seconds / workers),
            workers=workers,
            region=region,
            dollars_before=float(dollars.sum()),
            dollars_after=interval(after),
            dollars_saved=interval(dollars.sum() - after),
            run_dollars=self.run_dollars(price, counts["compressed"].value, shard_size),
            psnr=mean([result.psnr for result in compressed]),
            ms_ssim=mean([result.ms_ssim for result in compressed]),
            ssimulacra2=mean([result.ssimulacra2 for result in compressed]),
            targets=self.targets(),
            reasons=grouped([r.reason or r.status for r in self.results if r.status != "compressed"]),
            sampling_seconds=time.monotonic() - begun,
        )


def judged(info, data, measure: Callable) -> Measured:
    """measure's word on one object; whatever it raises is a failed object, as in the night."""
    begun = time.monotonic()
    if isinstance(data, Exception):
        return Measured("failed", 0, 0.0, reason=f"{type(data).__name__}: {data}")
    try:
        return measure(info, data)
    except Exception as error:  # any: one bad picture never ends a run
        return Measured("failed", 0, time.monotonic() - begun, reason=f"{type(error).__name__}: {error}")


def grouped(reasons: list[str]) -> dict[str, int]:
    """How often each reason occurs, most frequent first; those that differ in figures only count as the first."""
    first: dict[str, str] = {}
    count = Counter(first.setdefault(re.sub(r"[\d.,]*\d", "#", reason), reason) for reason in reasons)
    return dict(count.most_common())


def mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None and math.isfinite(value)]
    return sum(there) / len(there) if there else None


def target_lines(result: Estimate) -> list[str]:
    """What other targets would save, so that one is chosen with open eyes."""
    head = f"  {'SSIMULACRA2 at least':<22}{'saved':>8}{'stored':>12}{'compressed':>12}{'worst tile':>12}"
    lines = ["By target (70 high, 80 very high, 90 visually lossless):", head]
    for one in result.targets:
        tile = "" if one.worst_tile is None else f"{one.worst_tile:.2f}"
        lines.append(
            f"  {one.target:<22g}{share(one.saved_bytes.value, result.source_bytes):>8}"
            f"{size(one.stored_bytes.value):>12}{one.compressed.value:>12,.0f}{tile:>12}"
        )
    return lines


def text(result: Estimate) -> str:
    """The estimate for the terminal."""

    def between(given: Interval, words: Callable[[float], str]) -> str:
        if words(given.low) == words(given.high):
            return words(given.value)
        return f"{words(given.value)}  ({words(given.low)} to {words(given.high)})"

    whole = result.source_bytes
    lines = [
        f"Dry run: {result.sampled:,} of {result.objects:,} objects looked at ({size(result.sampled_bytes)} of "
        f"{size(whole)}, {result.strata} strata) in {duration(result.sampling_seconds)}; nothing was written.",
        f"In brackets: where the truth lies with {COVERAGE:.0%} probability, by the sample.",
        "",
        f"  source            {size(whole)} in {result.objects:,} objects",
        f"  exact copies      {result.exact_copies:,} objects, {size(result.exact_copy_bytes)} (by etag)",
        f"  stored under DEST {between(result.stored_bytes, size)}",
        f"  must stay         {between(result.remaining_bytes, size)}",
        f"  saved             {between(result.saved_bytes, lambda n: share(n, whole))} of the source, "
        f"{size(result.saved_bytes.value)}",
        "",
    ]
    for status, given in result.counts.items():
        if given.value or given.high:
            lines.append(f"  {status:<17} {between(given, lambda n: f'{n:,.0f}')} objects")
    if result.psnr is not None:
        seen = "" if result.ssimulacra2 is None else f"SSIMULACRA2 {result.ssimulacra2:.1f}, "
        similar = "" if result.ms_ssim is None else f", MS-SSIM {result.ms_ssim:.4f}"
        lines.append(f"  quality           {seen}PSNR {result.psnr:.2f} dB{similar} (mean of the sample's pictures)")
    lines += [
        "",
        f"  time              {between(result.wall_seconds, duration)} with {result.workers} workers",
        f"  bill now          {money(result.dollars_before)} a month ({result.region}, storage)",
        f"  bill after        {between(result.dollars_after, money)} a month, originals removed",
        f"  saves             {between(result.dollars_saved, money)} a month",
        f"  requests          {money(result.run_dollars)} once",
    ]
    if result.targets:
        lines += ["", *target_lines(result)]
    if result.reasons:
        lines += ["", "Not compressed in the sample:"]
        lines += [f"  {count:>4}  {readable(why, 100)}" for why, count in list(result.reasons.items())[:8]]
    lines += ["", "Near duplicates are not in this estimate; they save more."]
    return "\n".join(lines)
