"""The first step: what is at SOURCE, what of it is new, and how the new is cut into shards.

Here: listing, the comparison with the state that earlier nights left, shards. Shards are fixed once, when the
listing is written down: a run that is taken up again neither lists nor cuts again. How a store lists is
tasks/stores's, S3 Inventory stores/inventory.py's.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.night.runs import Night
from tasks.stores.base import ObjectInfo, Store

LISTING_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("modified", pa.timestamp("us", "UTC")),
        ("version", pa.string()),
        ("storage_class", pa.string()),
        ("known", pa.int64()),  # row of the catalog that is carried forward, -1: new or changed
        ("shard", pa.int32()),  # -1: carried forward
    ]
)
CHUNK = 50_000  # entries turned into columns at once: strings in Arrow take a tenth of Python's memory
SHARD_OBJECTS = (8, 64)  # fewest and most objects in a shard when the bucket's size decides
SHARDS_WANTED = 64  # a bucket is cut into about this many, so that the last ones to finish don't keep the rest waiting
SHARD_BYTES = 64 << 20  # source bytes after which a shard is closed: a shard is what a crash costs


def objects_of(source: Store, inventory: str | None) -> Iterable[ObjectInfo]:
    """What SOURCE, or the inventory (the URL of its manifest.json) that stands for it, lists."""
    if not inventory:
        return source.list()
    from tasks.stores.inventory import read_inventory

    return read_inventory(inventory, source)


def list_source(
    infos: Iterable[ObjectInfo], selects: Callable[[str], bool], watch: Callable[[int], None] | None = None
) -> pa.Table:
    """The listing as a table sorted by key (LISTING_SCHEMA, nothing known, no shards), folder markers left out.

    `watch(n)` is called now and then with the number of entries seen. Memory: about 200 bytes an entry.
    """
    schema = pa.schema(list(LISTING_SCHEMA)[:6] + [("selected", pa.bool_())])
    chunks: list[pa.Table] = []
    rows: list[tuple] = []
    seen = 0

    def flush() -> None:
        columns = [pa.array(column, one.type) for column, one in zip(zip(*rows, strict=True), schema, strict=True)]
        chunks.append(pa.Table.from_arrays(columns, schema=schema))
        rows.clear()

    for info in infos:
        seen += 1
        if watch and seen % 10_000 == 0:
            watch(seen)
        if info.key.endswith("/") and not info.size:
            continue
        rows.append(
            (info.key, info.size, info.etag, info.modified, info.version, info.storage_class, selects(info.key))
        )
        if len(rows) == CHUNK:
            flush()
    if rows:
        flush()
    table = pa.concat_tables(chunks) if chunks else schema.empty_table()
    return table.take(pc.sort_indices(table, [("key", "ascending")]))


def compare(listed: pa.Table, catalog: pa.Table, max_objects: int | None = None) -> pa.Table:
    """Which objects are known: key, size, etag (and version, where both sides have one) are as the catalog says.

    listed: of list_source; catalog: state.CATALOG_SCHEMA, empty for a fresh start. Known objects are carried
    forward even where --include leaves them out (that only chooses new work); new ones that are left out have no
    row. Rows marked `retry`, and duplicates whose keeper has changed, or whose kept keeper is gone, are decided
    anew. At most `max_objects` new ones are taken, in order of key; the others have no row until their night
    comes. Returns LISTING_SCHEMA with `shard` 0 for what is new.
    """
    place = pc.index_in(listed["key"], value_set=catalog["key"].combine_chunks())
    known = pc.fill_null(place, -1).to_numpy().astype(np.int64)
    present = np.flatnonzero(known >= 0)
    same = np.zeros(len(known), bool)
    if present.size:
        rows = catalog.select(["size", "etag", "version", "retry"]).take(pa.array(known[present]))
        here = listed.select(["size", "etag", "version"]).take(pa.array(present))
        equal = pc.and_(pc.equal(rows["size"], here["size"]), pc.equal(rows["etag"], here["etag"]))
        version = pc.fill_null(pc.equal(rows["version"], here["version"]), True)
        retry = pc.fill_null(rows["retry"], False)
        same[present] = pc.fill_null(pc.and_(pc.and_(equal, version), pc.invert(retry)), False).to_numpy()
    carried = np.where(same, known, -1)
    carried = without_orphans(carried, known, catalog)
    new = carried < 0
    chosen = new & listed["selected"].to_numpy()
    if max_objects is not None:
        chosen &= np.cumsum(chosen) <= max_objects
    taken = np.flatnonzero(~new | chosen)
    table = listed.drop_columns("selected").take(pa.array(taken))
    carried = carried[taken]
    shard = np.where(carried < 0, 0, -1).astype(np.int32)
    return table.append_column("known", pa.array(carried)).append_column("shard", pa.array(shard))


def without_orphans(carried: np.ndarray, known: np.ndarray, catalog: pa.Table) -> np.ndarray:
    """`carried` with -1 for duplicates that cannot stay what they are.

    Their keeper is at SOURCE with other content now, or was only kept there and is gone. A keeper whose bitstream
    lies under DEST and whose original was removed is as good as ever.
    """
    keepers = pc.index_in(catalog["keeper_key"], value_set=catalog["key"].combine_chunks())
    keepers = pc.fill_null(keepers, -1).to_numpy().astype(np.int64)
    if not len(keepers):
        return carried
    stays, there = np.zeros(len(catalog), bool), np.zeros(len(catalog), bool)
    stays[carried[carried >= 0]] = True
    there[known[known >= 0]] = True
    compressed = pc.fill_null(pc.equal(catalog["status"], "compressed"), False).to_numpy()
    good = stays | (~there & compressed)
    duplicate = pc.is_valid(catalog["keeper_key"]).to_numpy()
    orphan = duplicate & ~np.where(keepers >= 0, good[keepers], False)
    return np.where((carried >= 0) & orphan[carried], -1, carried)


def with_shards(table: pa.Table, shard_size: int | None = None) -> pa.Table:
    """Number the shards of what is new, in order of key: at most `shard_size` objects and SHARD_BYTES each."""
    new = np.flatnonzero(table["shard"].to_numpy() >= 0)
    fewest, most = SHARD_OBJECTS
    limit = shard_size or max(fewest, min(most, -(-len(new) // SHARDS_WANTED)))
    sizes = table["size"].to_numpy()
    shards = np.full(table.num_rows, -1, np.int32)
    number, count, held = -1, limit, 0
    for row in new:
        if count >= limit or (held + sizes[row] > SHARD_BYTES and count):
            number, count, held = number + 1, 0, 0
        shards[row] = number
        count, held = count + 1, held + int(sizes[row])
    return table.set_column(table.schema.get_field_index("shard"), "shard", pa.array(shards))


def listed_row(night: Night, item: dict) -> dict:
    """What the listing alone says about an object, as the beginning of its row."""
    names = ("key", "size", "etag", "modified", "version", "storage_class")
    row = {name: item[name] for name in names}
    return row | {
        "first_run": night.run_id, "source_bytes": item["size"], "stored_bytes": 0, "at_source": True, "retry": False,
        "denoised": False, "upscaled": False,
    }  # fmt: skip


def new_objects(table: pa.Table) -> Iterator[ObjectInfo]:
    """The new and changed objects of `compare`, as listed."""
    names = ["key", "size", "etag", "modified", "version", "storage_class"]
    for row in table.filter(pc.greater_equal(table["shard"], 0)).select(names).to_pylist():
        yield ObjectInfo(**row)


def vanished(table: pa.Table, catalog: pa.Table) -> np.ndarray:
    """Rows of the catalog (int64) whose object is not at SOURCE any more but comes back from what lies under DEST."""
    gone = pc.invert(pc.is_in(catalog["key"], value_set=table["key"].combine_chunks()))
    return np.flatnonzero(pc.and_(gone, pc.is_valid(catalog["output_key"])).to_numpy()).astype(np.int64)
