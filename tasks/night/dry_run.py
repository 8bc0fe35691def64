"""The dry run: what a night over a bucket would save, how long it would take and what it would cost, from a sample.

Here: which objects to look at (`strata_of`, `allocation`), what they say about all of them with what uncertainty
(`extrapolate`), and the words for it (`text`). What would happen to one object is asked of the night's own steps
(fingerprint.py, compress.py); nothing here writes anything anywhere.

    listing → distinct contents (equal MD5 etags and sizes fold) → strata by folder, suffix, size → sample
            → measured one by one → ratio to the bytes known from the listing, stratum by stratum → bootstrap

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

from tasks.report import savings
from tasks.report.schema import STATUSES
from tasks.report.words import duration, money, readable, share, size

SAMPLE = 120  # objects looked at unless told otherwise
REPLICATES = 2000
COVERAGE = 0.9  # of the intervals
NOMINAL = 50.0  # quality at which a budgeted night's pictures are judged
PACKED_BELOW = 128 * 1024  # bitstreams under this share an object, one per shard


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth lies with probability COVERAGE; equal ends where everything was looked at."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """What the night would do with one object. `stored_bytes` 0 unless compressed; seconds on one core."""

    status: str
    stored_bytes: int
    seconds: float
    pixels: int = 0
    reason: str | None = None
    psnr: float | None = None
    ms_ssim: float | None = None


@dataclass(frozen=True)
class Content:
    """One distinct content of the listing: the object that is read and how many copies of it there are."""

    info: object  # tasks.stores.base.ObjectInfo
    copies: int = 1

    @property
    def bytes(self) -> int:
        return self.info.size * self.copies


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
        row = blank | fingerprint.inspect_object(night, item_of(info), (data, ObjectHead(**item_of(info))))
        if row["status"] is None:
            row = compress.compress_object(night, row, data).row
        if budget_percent is not None and row["status"] == "compressed":
            row["stored_bytes"] = round(info.size * budget_percent / 100)
        pixels = (row["width"] or 0) * (row["height"] or 0)
        figures = (None, None) if budgeted else (row["psnr"], row["ms_ssim"])
        return Measured(row["status"], row["stored_bytes"], row["seconds"], pixels, row["reason"], *figures)

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
    all_bytes = np.array([content.bytes for content in contents], float)
    one_copy = np.array([content.info.size for content in contents], float)
    stratum = strata_of(contents, max(4, sample // 6))
    chosen = draw(stratum, allocation(stratum, all_bytes, sample), seed)

    def fetched(index: int):
        try:
            return read(contents[index].info)
        except Exception as error:  # any: it becomes a failed row of the estimate
            return error

    chosen = np.random.default_rng(seed).permutation(chosen)  # so that a part of it is a sample too
    results: list[Measured] = []
    with ThreadPoolExecutor(4) as pool:  # read ahead a few, not all
        waiting, ahead = deque(), iter(chosen)
        for index in chosen:
            while len(waiting) < 4 and (upcoming := next(ahead, None)) is not None:
                waiting.append(pool.submit(fetched, upcoming))
            results.append(judged(contents[index].info, waiting.popleft().result(), measure))
            if watch:
                watch(len(results), len(chosen))
            if len(results) >= 2 and time.monotonic() - begun > patience:
                break
    if len(results) < len(chosen):
        chosen = chosen[: len(results)]
        stratum = folded(stratum, chosen)

    population = np.bincount(stratum)
    weights = bootstrap_weights(stratum[chosen], population, REPLICATES, seed)
    dollars = monthly_dollars(contents, region)
    safe = np.array([result.status == "compressed" for result in results])
    stored = np.array([result.stored_bytes for result in results], float)

    def over(values: np.ndarray, known: np.ndarray) -> np.ndarray:
        # Zero-byte objects carry no weight in a ratio to bytes; one byte each keeps their counts and seconds in.
        return extrapolate(values, known, chosen, stratum, weights)

    held = over(stored, one_copy)
    remaining = over(np.where(safe, 0.0, all_bytes[chosen]), all_bytes)
    saved = all_bytes.sum() - held - remaining
    seconds = over(np.array([result.seconds for result in results]), one_copy + 1)
    ones = np.ones(len(contents))
    counts = {
        status: interval(over(np.array([float(r.status == status) for r in results]), ones)) for status in STATUSES
    }
    copies = sum(content.copies - 1 for content in contents)
    counts["duplicate"] = Interval(copies, copies, copies)
    price = savings.tariff(region, "STANDARD")
    dest = np.array([savings.tiered(max(bytes_, 0) / savings.GB, price["storage"]) for bytes_ in held])
    after = dest + over(np.where(safe, 0.0, dollars[chosen]), dollars)
    pictures = counts["compressed"].value
    large = over((stored >= PACKED_BELOW).astype(float), ones)[0]
    puts = large + math.ceil(len(contents) / shard_size)
    gets = len(contents) + pictures
    quality = [result for result in results if result.status == "compressed"]
    return Estimate(
        objects=sum(content.copies for content in contents),
        source_bytes=int(all_bytes.sum()),
        exact_copies=copies,
        exact_copy_bytes=int(all_bytes.sum() - one_copy.sum()),
        sampled=len(chosen),
        sampled_bytes=int(one_copy[chosen].sum()),
        strata=len(population),
        stored_bytes=interval(held),
        remaining_bytes=interval(remaining),
        saved_bytes=interval(saved),
        counts=counts,
        core_seconds=interval(seconds),
        wall_seconds=interval(seconds / workers),
        workers=workers,
        region=region,
        dollars_before=float(dollars.sum()),
        dollars_after=interval(after),
        dollars_saved=interval(dollars.sum() - after),
        run_dollars=float((gets * price["get"] + puts * price["put"]) / 1000),
        psnr=mean([result.psnr for result in quality]),
        ms_ssim=mean([result.ms_ssim for result in quality]),
        reasons=grouped([r.reason or r.status for r in results if r.status != "compressed"]),
        sampling_seconds=time.monotonic() - begun,
    )


def folded(stratum: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """int64[N]: strata, those with fewer than two sampled (and more to sample) put together with the largest."""
    population, seen = np.bincount(stratum), np.bincount(stratum[sampled], minlength=stratum.max() + 1)
    thin = (seen < 2) & (seen < population)
    together = np.where(thin, np.argmax(np.where(seen >= seen.max(), population, -1)), np.arange(len(population)))
    return np.unique(together[stratum], return_inverse=True)[1]


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
        similar = "" if result.ms_ssim is None else f", MS-SSIM {result.ms_ssim:.4f}"
        lines.append(f"  quality           PSNR {result.psnr:.2f} dB{similar} (mean of the sample's pictures)")
    lines += [
        "",
        f"  time              {between(result.wall_seconds, duration)} with {result.workers} workers",
        f"  bill now          {money(result.dollars_before)} a month ({result.region}, storage)",
        f"  bill after        {between(result.dollars_after, money)} a month, originals removed",
        f"  saves             {between(result.dollars_saved, money)} a month",
        f"  requests          {money(result.run_dollars)} once",
    ]
    if result.reasons:
        lines += ["", "Not compressed in the sample:"]
        lines += [f"  {count:>4}  {readable(why, 100)}" for why, count in list(result.reasons.items())[:8]]
    lines += ["", "Near duplicates are not in this estimate; they save more."]
    return "\n".join(lines)
