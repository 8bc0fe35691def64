"""What a night saved, in bytes and in money: totals, groups by folder and format, the monthly bill.

Works on the report's table alone (tasks/report/schema.py), a million rows in seconds. Sentences for people live in
summary.py, the page in page.py; prices live in prices/, one dated TOML file per state of the price list.

    before   what the bucket's originals bill alone, as if Nightpress did not exist
    now      the originals that are there, and what lies under DEST, and the nightly listing
    after    only the originals that are not removable, and what lies under DEST, and the nightly listing

An original is removable when its content is safe under DEST (`is_removable`). Originals that were
removed since stand in the manifest's `removed_at_source`: they count in `before`, and their bitstreams in `now` and
`after`. Storage classes of originals come from a column `storage_class` where the table has one (the catalog does).
"""

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.report.schema import STATUSES

GB = 2**30  # as Amazon bills storage
NIGHTS = 30  # listings a month
LIST_PAGE = 1000  # keys in one LIST answer


@dataclass(frozen=True)
class Totals:
    """Objects and bytes of one report. `counts`, `bytes_of`: per status, objects and source bytes."""

    objects: int
    counts: dict[str, int]
    bytes_of: dict[str, int]
    source_bytes: int
    stored_bytes: int  # all that lies under DEST for these keys
    remaining_bytes: int  # originals that must stay at SOURCE
    removable_objects: int
    removable_bytes: int
    stored_objects: int  # objects under DEST/objects (packs count once)

    @property
    def after_bytes(self) -> int:
        return self.stored_bytes + self.remaining_bytes

    @property
    def saved_bytes(self) -> int:
        return self.source_bytes - self.after_bytes

    @property
    def saved_share(self) -> float:
        """0..1 of the source bytes; negative where more is stored than before."""
        return self.saved_bytes / self.source_bytes if self.source_bytes else 0.0


@dataclass(frozen=True)
class Group:
    """One folder or format: objects, bytes before, bytes after (under DEST and what stays at SOURCE)."""

    name: str
    objects: int
    source_bytes: int
    after_bytes: int

    @property
    def saved_bytes(self) -> int:
        return self.source_bytes - self.after_bytes

    @property
    def saved_share(self) -> float:
        return self.saved_bytes / self.source_bytes if self.source_bytes else 0.0


@dataclass(frozen=True)
class Bill:
    """US dollars a month unless said otherwise."""

    region: str
    originals: dict[str, int]  # objects by storage class
    unpriced: tuple[str, ...]  # classes among them that the price file lacks: counted at STANDARD's prices
    dest_class: str  # of what lies under DEST
    currency: str
    prices_as_of: str
    prices_source: str
    before: float
    now: float
    after: float
    dest: float  # of now and after: what lies under DEST
    listing: float  # the nightly LIST requests, in now
    listing_after: float  # of what remains, in after
    source_padding: float  # part of `before` that only minimum object sizes and overheads cause
    dest_padding: float  # the same under DEST, in now and after
    run_requests: float  # dollars, once: what this run's reads, writes and retrievals cost, estimated
    gets: int
    puts: int
    minimum_days: int  # deleting originals younger than this bills the rest of the time
    removed_objects: int  # originals removed from SOURCE in earlier nights, in `before`

    @property
    def saved(self) -> float:
        return self.before - self.after

    @property
    def storage_class(self) -> str:
        """The originals' class or classes, most objects first."""
        return " + ".join(sorted(self.originals, key=lambda name: (-self.originals[name], name)))

    @property
    def payback_days(self) -> float | None:
        """Days after removal until the run's requests are earned back; None where nothing is saved."""
        return self.run_requests / self.saved * 30 if self.saved > 0 else None


class UnknownPrice(ValueError):
    """The price file has no such region or storage class; the message names those it has."""


@cache
def prices() -> dict:
    """The newest price file, parsed."""
    newest = max((Path(__file__).parent / "prices").glob("*.toml"), key=lambda path: path.name)
    return tomllib.loads(newest.read_text(encoding="utf-8"))


def tariff(region: str, storage_class: str) -> dict:
    """Prices and rules of one storage class in one region, defaults filled in. Raises UnknownPrice."""
    book = prices()
    if region not in book["regions"]:
        known = ", ".join(sorted(book["regions"]))
        raise UnknownPrice(f"no prices for region {region!r} (as of {book['as_of']}); there are: {known}")
    here = book["regions"][region]["prices"]
    if storage_class not in here:
        raise UnknownPrice(f"no price for class {storage_class!r} in {region}; there are: {', '.join(here)}")
    rules = {"minimum_bytes": 0, "overhead_bytes": 0, "index_bytes": 0, "minimum_days": 0}
    return rules | book["classes"][storage_class] | here[storage_class]


def tiered(gigabytes: float, tiers: list) -> float:
    """Dollars a month for `gigabytes` (2**30 bytes) over tiers [[up to GB, dollars per GB-month], …]."""
    cost, reached = 0.0, 0.0
    for bound, price in tiers:
        cost += max(0.0, min(gigabytes, bound) - reached) * price
        reached = bound
    return cost


def storage(holdings: list[tuple[np.ndarray, str]], region: str) -> tuple[float, float]:
    """Storage of objects, (int64[n] sizes in bytes, storage class) each → (dollars a month, dollars a month
    for the bare bytes). Sizes of one class share its price tiers, as on one account."""
    billed: dict[str, float] = {}
    bare: dict[str, float] = {}
    for sizes, storage_class in holdings:
        rules = tariff(region, storage_class)
        padded = np.maximum(sizes, rules["minimum_bytes"]) + rules["overhead_bytes"]
        billed[storage_class] = billed.get(storage_class, 0.0) + float(padded.sum())
        bare[storage_class] = bare.get(storage_class, 0.0) + float(sizes.sum())
        if rules["index_bytes"]:
            billed["STANDARD"] = billed.get("STANDARD", 0.0) + float(len(sizes) * rules["index_bytes"])

    def cost(held: dict[str, float]) -> float:
        return sum(tiered(total / GB, tariff(region, name)["storage"]) for name, total in held.items())

    return cost(billed), cost(bare)


def _integers(table: pa.Table, name: str) -> np.ndarray:
    return pc.fill_null(table[name], 0).to_numpy().astype(np.int64)


def is_removable(table: pa.Table) -> pa.ChunkedArray:
    """bool[n]: whether the original may go: DEST gives it back as its row promises, and nothing speaks against it."""
    return pc.and_(pc.is_valid(table["output_key"]), pc.is_null(table["not_removable"]))


def _safe(table: pa.Table) -> np.ndarray:
    """bool[n]: the row's content lies under DEST."""
    return is_removable(table).to_numpy()


def stored_sizes(table: pa.Table) -> np.ndarray:
    """int64[m]: the sizes of the objects under DEST/objects, a pack counted once, derived pictures apart."""
    held = table.filter(pc.and_(pc.equal(table["status"], "compressed"), pc.is_valid(table["output_key"])))
    stored, own = _integers(held, "stored_bytes"), _integers(held, "output_length")
    derived = pc.fill_null(held["upscaled"], False).to_numpy() & (own > 0) & (stored > own)
    keys = held["output_key"].combine_chunks().dictionary_encode()
    inside = np.where(derived, own, stored)
    packed = np.bincount(keys.indices.to_numpy(), weights=inside, minlength=len(keys.dictionary))
    return np.concatenate([packed.astype(np.int64), (stored - own)[derived]])


def totals(table: pa.Table) -> Totals:
    """Objects and bytes of a report table."""
    source, stored, safe = _integers(table, "source_bytes"), _integers(table, "stored_bytes"), _safe(table)
    masks = {status: pc.equal(table["status"], status).to_numpy() for status in STATUSES}
    return Totals(
        objects=table.num_rows,
        counts={status: int(mask.sum()) for status, mask in masks.items()},
        bytes_of={status: int(source[mask].sum()) for status, mask in masks.items()},
        source_bytes=int(source.sum()),
        stored_bytes=int(stored.sum()),
        remaining_bytes=int(source[~safe].sum()),
        removable_objects=int(safe.sum()),
        removable_bytes=int(source[safe].sum()),
        stored_objects=len(stored_sizes(table)),
    )


def _group(table: pa.Table, names: list[str], of_row: np.ndarray) -> list[Group]:
    source = _integers(table, "source_bytes")
    after = _integers(table, "stored_bytes") + np.where(_safe(table), 0, source)
    count, before, behind = (
        np.bincount(of_row, weights=weights, minlength=len(names)) for weights in (None, source, after)
    )
    groups = [
        Group(name, int(n), int(b), int(a)) for name, n, b, a in zip(names, count, before, behind, strict=True) if n
    ]
    return sorted(groups, key=lambda group: (-group.source_bytes, group.name))


def by_prefix(table: pa.Table) -> list[Group]:
    """Groups by the first folder below what all keys share, most bytes first; keys right there are './'."""
    folders = pc.replace_substring_regex(table["key"].combine_chunks(), "[^/]*$", "").dictionary_encode()
    paths = [folder.split("/")[:-1] for folder in folders.dictionary.to_pylist()]
    shared = 0
    while paths and all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    if len(paths) == 1:  # everything lies in one folder: name it
        shared = max(0, shared - 1)
    names: dict[str, int] = {}
    group_of = np.array(
        [names.setdefault("/".join(p[: shared + 1]) + "/" if p else "./", len(names)) for p in paths], np.int64
    )
    return _group(table, list(names), group_of[folders.indices.to_numpy()] if paths else np.empty(0, np.int64))


def by_format(table: pa.Table) -> list[Group]:
    """Groups by Pillow's format name, most bytes first; what was never recognised is 'not a picture'."""
    column = pc.fill_null(table["format"], "not a picture").combine_chunks().dictionary_encode()
    return _group(table, column.dictionary.to_pylist(), column.indices.to_numpy())


GIVEN_BACK = {"bytes": "to the byte", "pixels": "to the pixel", "seen": "as seen"}  # by the column gives_back


def by_form(table: pa.Table) -> list[Group]:
    """Groups by what is stored and what comes back: 'lossless, to the pixel', most bytes first; what is not stored
    stays at SOURCE."""
    safe = pc.is_valid(table["output_key"])
    form = pc.fill_null(table["form"], "npi")
    back = pc.fill_null(table["gives_back"], "seen")
    for name, words in GIVEN_BACK.items():
        back = pc.if_else(pc.equal(back, name), words, back)
    names = pc.if_else(safe, pc.binary_join_element_wise(form, back, ", "), "stays at SOURCE")
    column = names.combine_chunks().dictionary_encode()
    return _group(table, column.dictionary.to_pylist(), column.indices.to_numpy())


def given_back(table: pa.Table) -> dict[str, tuple[int, int]]:
    """Words of GIVEN_BACK -> (objects, source bytes) that restore gives back so; those that stay are left out."""
    safe = table.filter(pc.is_valid(table["output_key"]))
    back = pc.fill_null(safe["gives_back"], "seen")
    found = {}
    for name, words in GIVEN_BACK.items():
        chosen = safe.filter(pc.equal(back, name))
        if chosen.num_rows:
            found[words] = chosen.num_rows, int(pc.sum(chosen["source_bytes"]).as_py() or 0)
    return found


def _classes(table: pa.Table, storage_class: str | None) -> dict[str, np.ndarray]:
    """Storage class → bool[n], the originals in it."""
    if storage_class or "storage_class" not in table.column_names or not len(table):
        return {storage_class or "STANDARD": np.ones(table.num_rows, bool)}
    column = pc.fill_null(table["storage_class"], "STANDARD")
    return {name: pc.equal(column, name).to_numpy() for name in sorted(pc.unique(column).to_pylist())}


def bill(
    table: pa.Table,
    manifest: dict,
    *,
    region: str | None = None,
    storage_class: str | None = None,
    dest_class: str = "STANDARD",
) -> Bill:
    """The monthly bill before, now, and after removing what is removable.

    region: of both buckets (default: the manifest's `region`, else us-east-1). storage_class: of all originals
    (default: the table's `storage_class` column, else STANDARD); dest_class: of what lies under DEST (Nightpress
    itself writes STANDARD). Counted: storage with minimum object sizes and overheads, the nightly LIST requests, and
    once this run's GET, PUT and retrieval: every object decided in this run is read once to look at it and, where it
    was compressed or compared, once more. Not counted: traffic between regions, tax, discounts, the report itself
    (kilobytes), and requests of anybody else. Raises UnknownPrice.
    """
    region = region or manifest.get("region") or "us-east-1"
    tariff(region, dest_class)  # an unknown region or class is said before anything is counted
    book = prices()
    source, safe = _integers(table, "source_bytes"), _safe(table)
    found = _classes(table, storage_class)
    unpriced = () if storage_class else tuple(name for name in found if name not in book["regions"][region]["prices"])
    classes = {name: ("STANDARD" if name in unpriced else name, mask) for name, mask in found.items()}
    removed = manifest.get("removed_at_source") or {}
    gone = np.full(removed.get("objects", 0), removed.get("source_bytes", 0) / max(removed.get("objects", 0), 1))
    held = [(stored_sizes(table), dest_class)]
    if removed.get("stored_bytes"):
        held.append((np.array([removed["stored_bytes"]]), dest_class))
    there = [(source[mask], name) for name, mask in classes.values()]
    staying = [(source[mask & ~safe], name) for name, mask in classes.values()]
    before, before_bare = storage([*there, (gone, storage_class or "STANDARD")], region)
    dest, dest_bare = storage(held, region)
    listing, listing_after = (listing_dollars(n, region) for n in (table.num_rows, int((~safe).sum())))
    requests, gets, puts = run_requests(table, manifest, list(classes.values()), region, dest_class)
    return Bill(
        region=region,
        originals={name: int(mask.sum()) for name, mask in found.items()},
        unpriced=unpriced,
        dest_class=dest_class,
        currency=book["currency"],
        prices_as_of=book["as_of"],
        prices_source=book["source"],
        before=before,
        now=storage(there + held, region)[0] + listing,
        after=storage(staying + held, region)[0] + listing_after,
        dest=dest,
        listing=listing,
        listing_after=listing_after,
        source_padding=before - before_bare,
        dest_padding=dest - dest_bare,
        run_requests=requests,
        gets=gets,
        puts=puts,
        minimum_days=max(tariff(region, name)["minimum_days"] for name, _ in classes.values()),
        removed_objects=len(gone),
    )


def listing_dollars(objects: int, region: str) -> float:
    """A month's nightly listings; a bucket is listed at STANDARD's price whatever lies in it."""
    return max(1, math.ceil(objects / LIST_PAGE)) * tariff(region, "STANDARD")["put"] / 1000 * NIGHTS


def run_requests(
    table: pa.Table, manifest: dict, classes: list[tuple[str, np.ndarray]], region: str, dest_class: str
) -> tuple[float, int, int]:
    """(dollars, GETs, PUTs) of this run alone. classes: (storage class, bool[n] of the originals in it).

    Every object that was decided in it is read once to look at it and, where it was compressed or compared, once more.
    """
    source = _integers(table, "source_bytes")
    fresh = pc.fill_null(pc.equal(table["first_run"], manifest.get("run_id", "")), True).to_numpy()
    looked_again = pc.or_kleene(pc.equal(table["status"], "compressed"), pc.equal(table["duplicate_kind"], "near"))
    again = fresh & pc.fill_null(looked_again, False).to_numpy()
    puts = len(stored_sizes(table.filter(pa.array(fresh))))
    dollars = puts * tariff(region, dest_class)["put"] / 1000
    for name, mask in classes:
        rules = tariff(region, name)
        dollars += int((fresh & mask).sum() + (again & mask).sum()) * rules["get"] / 1000
        dollars += float(source[fresh & mask].sum() + source[again & mask].sum()) / GB * rules["retrieval"]
    return dollars, int(fresh.sum() + again.sum()), puts


def bills_by_class(table: pa.Table, manifest: dict, *, region: str | None = None) -> list[Bill]:
    """The same bucket with originals and bitstreams both in each class that can be read at once in the region."""
    region = region or manifest.get("region") or "us-east-1"
    tariff(region, "STANDARD")
    return [
        bill(table, manifest, region=region, storage_class=name, dest_class=name)
        for name in prices()["regions"][region]["prices"]
        if not tariff(region, name).get("archived")
    ]
