"""The night: which step follows which, on Prefect for the record and on Dask for the work.

    list -> fingerprint -> deduplicate -> plan -> compress (restore, encode, verify, pack) -> check duplicates -> report
    -> commit

Here: the order, resumption, limits (deadline, failures, lease) and what Prefect shows of them. Prefect tasks are
coarse, one a stage and chunk of shards; inside them shards go to Dask workers (cluster.py). What is done to an object
stands in tasks/, one module a step; what is written where and how a run is taken up again in tasks/night/runs.py.

A run that is killed loses the shards in flight. Everything that it decides on the whole bucket (listing, plan) is
written down before it is acted on, and each shard's outcome depends on its inputs alone, so the run that takes it
up again ends as the undisturbed one would have.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler

from flows.cluster import Job
from flows.console import WorkFailed, WrongUsage, say
from flows.prefect_server import PrefectServer
from flows.run_context import NightRun, as_prefect_task, do_shards, stage_of
from flows.settings import RunSettings, deadline_after
from tasks.night import listing, plan, publish
from tasks.night.catalog import CATALOG_SCHEMA, read_catalog, read_table, table_of, write_table
from tasks.night.model_files import NoModel, codec_model, copy_model, embedding_identity, embedding_of
from tasks.night.runs import (
    Night,
    clear_work,
    finished_shards,
    latest_manifest,
    new_run_id,
    read_json,
    read_shards,
    unfinished_run,
    work_key,
    write_json,
)
from tasks.night.shards import Step
from tasks.report import summary
from tasks.stores.base import AlreadyExists, NotFound, ObjectInfo, Store, StoreError
from tasks.stores.lease import Lease, LeaseHeld, LeaseLost
from tasks.stores.open import open_store

LEAST_PSNR = 30.0  # dB: a duplicate that would come back worse is none
INSPECT_MEMORY = 200  # bytes of memory per byte of a file, while it is fingerprinted, at the worst
FINGERPRINT = Step("fingerprint", "tasks.night.fingerprint", "inspect_object")
RATES = Step("rates", "tasks.night.rate_points", "sample", network=True)
CHECK = Step("check", "tasks.night.verify_duplicates", "check", fetch=None, network=True)
WAITING = "the deadline came before its turn; the next night takes it"


def look_step(number: int) -> Step:
    """The `number`-th batch of questions whether copies are copies."""
    return Step(f"look-{number}", "tasks.night.verify_duplicates", "look", fetch=None)


def compress_step(round: int = 0) -> Step:
    """The step; later rounds (of what turned out to be no duplicate) have stages of their own."""
    return Step(f"compress-{round}" if round else "compress", "tasks.night.compress", "compress_object", network=True)


@flow(name="nightpress", flow_run_name="night of {source}", validate_parameters=False, retries=0)
def nightly(
    source: str,
    dest: str,
    quality: float | None = None,
    target: str | None = None,
    budget: str | None = None,
    dedup: str = "near",
    dedup_embedding: str | None = None,
    denoise: str = "auto",
    superres: str = "off",
    min_gain: float = 10.0,
    max_pixels: int = 200_000_000,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    max_objects: int | None = None,
    deadline: str | None = None,
    max_failed: float = 50.0,
    workers: int | None = None,
    device: str = "auto",
    dask: str | None = None,
    shard_size: int | None = None,
    inventory: str | None = None,
    fresh: bool = False,
    strict: bool = False,
) -> dict:
    """One night: SOURCE pressed into DEST. Parameters are the options of `nightpress run`; returns the manifest."""
    settings = RunSettings.from_parameters(dict(locals()), "the flow's parameters")
    store, origin = open_store(settings.dest), open_store(settings.source)
    lease = Lease(store, "a run that is just starting", on_wait=say_waiting)
    try:
        lease.acquire()
    except LeaseHeld as error:
        raise WorkFailed(f"another night is under way: {error}") from None
    except StoreError as error:
        raise WorkFailed(f"{error}. Nothing was begun") from error
    with contextlib.ExitStack() as stack:
        stack.callback(lease.release)
        if lease.warning:
            say(f"nightpress: {lease.warning}")
        try:
            course = begin(settings, origin, store, lease, stack)
        except StoreError as error:
            raise WorkFailed(f"{error}. Nothing was begun") from error
        try:
            return conduct(course)
        except (LeaseLost, NoModel) as error:
            raise WorkFailed(f"{error}; nothing was committed") from None
        except StoreError as error:
            course.log("failed", error=f"{type(error).__name__}: {error}")
            raise WorkFailed(f"{error}. Nothing was committed; the same command again goes on here") from error


def say_waiting(seconds: float, holder: dict) -> None:
    say(
        f"nightpress: run {holder.get('run', '?')} held the lease {20 - seconds:.0f} s ago; "
        f"waiting up to {seconds:.0f} s to see whether it still lives"
    )


def begin(settings: RunSettings, source: Store, dest: Store, lease: Lease, stack: contextlib.ExitStack) -> NightRun:
    """Find the state to build on and the run to go on with, or begin a new one."""
    base = latest_manifest(dest)
    if base and base.get("source", "").rstrip("/") != source.url.rstrip("/"):
        raise WrongUsage(
            f"{dest.url} holds the nights of {base.get('source')}, and SOURCE is {source.url} now: "
            "give each source a DEST of its own"
        )
    model = codec_model()
    embedding = the_embedding(settings, dest)
    fingerprint = settings.fingerprint(model.identity, *embedding_identity(embedding))
    base_id = base["run_id"] if base else None
    begun = None if settings.fresh else unfinished_run(dest, fingerprint, base_id)
    resumed = begun is not None
    if not resumed:
        begun = {
            "run_id": new_run_id(), "fingerprint": fingerprint, "base": base_id, "fresh": settings.fresh,
            "source": source.url, "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "settings": settings.parameters(),
        }  # fmt: skip
        write_json(dest, f"runs/{begun['run_id']}/work/settings.json", begun)
    lease.owner = begun["run_id"]
    night = night_of(settings, begun["run_id"], model.identity, embedding)
    deadline = deadline_after(settings.deadline).astimezone(UTC) if settings.deadline else None
    course = NightRun(
        settings, source, dest, night, lease, stack, base, bool(begun.get("fresh")), resumed, begun["started"], deadline
    )
    if resumed:
        with contextlib.suppress(NotFound):
            course.events = dest.read(f"{night.folder}log.jsonl").decode().splitlines()
        say(f"nightpress: going on with the unfinished run {night.run_id}")
    course.log("resumed" if resumed else "begun", run=night.run_id, base=base_id, source=source.url, dest=dest.url)
    return course


def the_embedding(settings: RunSettings, dest: Store) -> str | None:
    """Night.embedding: what --dedup-embedding asks for, tried before anything is read."""
    if settings.dedup_embedding is None:
        return None
    from tasks.duplicates.embeddings import EmbeddingError

    try:
        return embedding_of(dest, settings.dedup_embedding)
    except EmbeddingError as error:
        raise WrongUsage(f"--dedup-embedding: {error}") from None


def night_of(settings: RunSettings, run_id: str, model: str, embedding: str | None) -> Night:
    """What workers need to know of the settings. model: id of the codec's model; embedding: `the_embedding`'s."""
    target = settings.target
    return Night(
        run_id=run_id, source=open_store(settings.source).url, dest=open_store(settings.dest).url,
        quality=settings.quality, metric=target.metric if target else None, target=target.value if target else None,
        dedup=settings.dedup, denoise=settings.denoise == "auto", superres=settings.superres == "auto",
        min_gain=settings.min_gain, max_pixels=settings.max_pixels, device=settings.device,
        model=model, embedding=embedding,
    )  # fmt: skip


# --- the night ---


def conduct(course: NightRun) -> dict:
    """All stages in order; the manifest."""
    night, dest = course.night, course.dest
    with stage_of(course, "list") as record:
        catalog = as_prefect_task("list", "read the catalog", lambda: read_catalog(dest, course.base))
        listed = as_prefect_task("list", f"list {night.source}", lambda: the_listing(course, catalog))
        record |= {"objects": listed.num_rows, "new": int((listed["shard"].to_numpy() >= 0).sum())}
    course.total = listed.num_rows
    gone = listing.vanished(listed, catalog)
    known = listed["known"].to_numpy()
    known = catalog.take(pa.array(np.concatenate([known[known >= 0], gone])))
    say(
        f"nightpress: run {night.run_id}: {listed.num_rows:,} objects, {record['new']:,} of them new or changed"
        + (f", {len(gone):,} removed at SOURCE that come back from DEST" if len(gone) else "")
    )
    decided = CATALOG_SCHEMA.empty_table()
    if record["new"]:
        retry_failures(course)
        facts = fingerprint(course, listed)
        planned = the_plan(course, facts, known)
        decided = compress_all(course, planned, known)
        decided = with_waiting(course, listed, decided)
    return finish(course, listed, decided, catalog, gone)


def the_listing(course: NightRun, catalog: pa.Table) -> pa.Table:
    """The listing that this run goes by: written down once, read again when it is taken up."""
    key = f"{course.night.folder}work/listing.parquet"
    if course.resumed:
        with contextlib.suppress(NotFound):
            return read_table(course.dest, key)
    settings = course.settings
    infos = infos_of(settings, course.source)
    listed = listing.list_source(infos, settings.selects, lambda n: say(f"list: {n:,} objects so far"))
    compared = listing.compare(listed, catalog.slice(0, 0) if course.fresh else catalog, settings.max_objects)
    table = listing.with_shards(compared, settings.shard_size)
    write_table(course.dest, key, table)
    return table


def infos_of(settings: RunSettings, source: Store) -> Iterable[ObjectInfo]:
    """What SOURCE, or the inventory that stands for it, lists."""
    if not settings.inventory:
        return source.list()
    from tasks.stores.inventory import read_inventory

    return read_inventory(settings.inventory, source)


def retry_failures(course: NightRun) -> None:
    """After an abort for too many failures: forget the shards with failures that may have passed."""
    key = f"{course.night.folder}work/aborted.json"
    if not course.resumed or read_json(course.dest, key) is None:
        return
    for stage in ("fingerprint", "compress"):
        names = sorted(finished_shards(course.dest, course.night, stage))
        for shard, table in read_shards(course.dest, course.night, stage, names):
            if pc.any(table["retry"]).as_py():
                course.dest.delete(work_key(course.night, stage, shard))
                course.dest.delete(f"{course.night.folder}work/plan.parquet")
    course.dest.delete(key)


def by_shard(rows: pa.Table, shard: np.ndarray) -> Iterator[tuple[int, list[dict]]]:
    """(shard, rows as dicts) for the shards >= 0, in order."""
    order = np.argsort(shard, kind="stable")
    order = order[shard[order] >= 0]
    if not order.size:
        return
    for part in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
        yield int(shard[part[0]]), rows.take(pa.array(part)).to_pylist()


def fingerprint(course: NightRun, listed: pa.Table) -> pa.Table:
    """Rows of every new object that was reached, in CATALOG_SCHEMA, with the column `shard`."""
    most = INSPECT_MEMORY * course.settings.max_pixels // 10
    jobs = [
        Job(f"{shard:06d}", items, min(most, INSPECT_MEMORY * max(item["size"] for item in items)))
        for shard, items in by_shard(listed, listed["shard"].to_numpy())
    ]
    tables = do_shards(course, FINGERPRINT, jobs)
    parts = []
    for shard in sorted(tables):
        table = tables[shard]
        parts.append(table.append_column("shard", pa.array(np.full(len(table), int(shard), np.int32))))
    empty = CATALOG_SCHEMA.append(pa.field("shard", pa.int32())).empty_table()
    return pa.concat_tables(parts) if parts else empty


def the_plan(course: NightRun, facts: pa.Table, known: pa.Table) -> pa.Table:
    """Rows with duplicates decided (and, with a budget, qualities): written down before it is acted on."""
    key = f"{course.night.folder}work/plan.parquet"
    if course.resumed:
        with contextlib.suppress(NotFound):
            return read_table(course.dest, key)
    with stage_of(course, "deduplicate", objects=facts.num_rows) as record:
        rounds = iter(range(1_000_000))

        def confirm(pairs: list[tuple[dict, dict]]) -> list[plan.Answer]:
            return look(course, pairs, look_step(next(rounds)), "n")

        def decide() -> list[dict | None]:
            return plan.find_duplicates(facts, known, course.settings.dedup, confirm, proposed_from(course.settings))

        found = (
            decide() if course.settings.dedup == "near" else as_prefect_task("deduplicate", "find duplicates", decide)
        )
        record["duplicates"] = sum(one is not None for one in found)
        planned = plan.with_columns(facts, found)
    if course.settings.budget:
        bring_model(course)
        planned = share_budget(course, planned)
    write_table(course.dest, key, planned)
    return planned


def proposed_from(settings: RunSettings) -> float:
    """The cosine from which embeddings propose a copy."""
    if settings.dedup_embedding is None:
        return 1.0
    from tasks.duplicates.embeddings import proposed_from

    return proposed_from(settings.dedup_embedding)


def look(course: NightRun, pairs: list[tuple[dict, dict]], step: Step, prefix: str) -> list[plan.Answer]:
    """Second looks at (keeper, member) pairs on the workers, in their order; those the deadline left out: no."""
    items = plan.look_items(pairs)
    size = max(1, min(8, len(items) // (4 * max(1, course.pool().width))))
    jobs = []
    for number, start in enumerate(range(0, len(items), size)):
        part = items[start : start + size]
        pixels = max((row["width"] or 0) * (row["height"] or 0) for i in part for row in [i["keeper"], *i["members"]])
        jobs.append(Job(f"{prefix}{number:06d}", part, 40 * pixels))
    answers = {}
    for table in do_shards(course, step, jobs).values():
        for row in table.to_pylist():
            answer = plan.Answer(row["alike"], row["psnr"], row["keeper_turn"], row["keeper_box"])
            answers[row["keeper_key"], row["key"]] = answer
    return [answers.get((keeper["key"], member["key"]), plan.Answer(False)) for keeper, member in pairs]


def share_budget(course: NightRun, planned: pa.Table) -> pa.Table:
    """What --budget gives each picture: rate points on the workers, allocation here."""
    from tasks.night import budget

    jobs = [
        Job(f"{shard:06d}", items, max(plan.memory_of(item) for item in items))
        for shard, items in picture_shards(planned)
    ]
    tables = do_shards(course, RATES, jobs)
    points = pa.concat_tables(tables[shard] for shard in sorted(tables)) if tables else budget.SCHEMA.empty_table()
    with stage_of(course, "plan", budget=str(course.settings.budget)) as record:
        keys = planned["key"].to_pylist()
        sizes = dict(zip(keys, planned["size"].to_pylist(), strict=True))
        spent = as_prefect_task("plan", "share the budget", lambda: budget.share(points, course.settings.budget, sizes))
        record |= spent.facts
        planned = plan.with_columns(planned, [spent.changes.get(key) for key in keys])
    return waiting(planned, ~pc.is_in(planned["key"], value_set=points["key"].combine_chunks()).to_numpy())


def picture_shards(planned: pa.Table) -> list[tuple[int, list[dict]]]:
    """(shard, rows) of what is to be compressed: status null."""
    shard = np.where(pc.is_null(planned["status"]).to_numpy(), planned["shard"].to_numpy(), -1)
    return list(by_shard(planned.drop_columns("shard"), shard))


def compress_all(course: NightRun, planned: pa.Table, known: pa.Table) -> pa.Table:
    """Compress what stands for itself; look after the duplicates; compress those that have lost their keeper.

    Final rows of everything in `planned`, sorted by key.
    """
    pictures = picture_shards(planned)
    rows = planned.drop_columns("shard")
    if pictures:
        bring_model(course)
        rows = compressed(course, rows, compress_step(), [(f"{shard:06d}", items) for shard, items in pictures])
    rows = waiting(rows, np.ones(len(rows), bool))
    rows = follow_keepers(course, rows, known, checked=False)
    for attempt in (1, 2):
        orphans = np.flatnonzero(pc.is_null(rows["status"]).to_numpy())
        if not orphans.size:
            break
        alone = rows.take(pa.array(orphans))
        changes: list = [None] * len(rows)
        if course.settings.budget:
            found = [{"status": "kept", "reason": NOT_PAID, "retry": True}] * len(alone)
        else:
            found = plan.find_duplicates(alone, CATALOG_SCHEMA.empty_table(), "exact", lambda pairs: [])
        for place, change in zip(orphans.tolist(), found, strict=True):
            changes[place] = change
        rows = plan.with_columns(rows, changes)
        alone = rows.take(pa.array(orphans))
        items = alone.filter(pc.is_null(alone["status"])).to_pylist()
        size = listing.SHARD_OBJECTS[0]
        shards = [(f"{attempt}-{i // size:06d}", items[i : i + size]) for i in range(0, len(items), size)]
        if shards:
            rows = compressed(course, rows, compress_step(attempt), shards)
        rows = waiting(rows, np.ones(len(rows), bool))
        rows = follow_keepers(course, rows, known, checked=True)
    lonely = pc.is_null(rows["status"]).to_pylist()
    change = {"status": "kept", "reason": "its keeper could not be stored; the next night decides anew", "retry": True}
    return plan.with_columns(rows, [change if alone else None for alone in lonely])


def bring_model(course: NightRun) -> None:
    """The codec's model under DEST, before the first bitstream that needs it."""
    as_prefect_task("plan", f"copy model {course.night.model}", lambda: copy_model(course.dest, course.night.model))


NOT_PAID = "it would come back too different from its keeper's bitstream, and the budget is spent"


def compressed(course: NightRun, rows: pa.Table, step: Step, shards: list[tuple[str, list[dict]]]) -> pa.Table:
    """The rows after a round of compression; what the deadline left out is as before."""
    jobs = [Job(shard, items, max(plan.memory_of(item) for item in items)) for shard, items in shards]
    tables = do_shards(course, step, jobs)
    if not tables:
        return rows
    done = pa.concat_tables(tables[shard] for shard in sorted(tables))
    others = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=done["key"].combine_chunks())))
    merged = pa.concat_tables([others, done])
    return merged.take(pc.sort_indices(merged, [("key", "ascending")]))


def waiting(rows: pa.Table, among: np.ndarray) -> pa.Table:
    """Rows without a status, where `among` says so, become `kept` until the next night."""
    left = pc.is_null(rows["status"]).to_numpy() & among
    change = {"status": "kept", "reason": WAITING, "retry": True, "denoised": False, "stored_bytes": 0}
    return plan.with_columns(rows, [change if one else None for one in left.tolist()]) if left.any() else rows


INHERITED = ("output_key", "output_offset", "output_length", "output_sha256", "codec", "model")
STANDALONE = {
    "status": None, "reason": None, "keeper_key": None, "duplicate_kind": None, "hamming_distance": None,
    "psnr_source": None, "keeper_turn": None, "keeper_box": None,
}  # fmt: skip


def follow_keepers(course: NightRun, rows: pa.Table, known: pa.Table, checked: bool) -> pa.Table:
    """Duplicates take their keeper's place under DEST; without a keeper, or too far from its bitstream, status null.

    `checked`: near duplicates have been compared with their keepers' bitstreams before.
    """
    copies = np.flatnonzero(pc.fill_null(pc.equal(rows["status"], "duplicate"), False).to_numpy())
    if not copies.size:
        return rows
    members = rows.take(pa.array(copies)).to_pylist()
    names = pa.array(sorted({member["keeper_key"] for member in members}))
    keepers: dict[str, dict] = {}
    for table in (known, rows):  # a key that is new again tonight replaces the one that was known
        kept = table.filter(
            pc.and_(
                pc.is_in(table["key"], value_set=names), pc.is_in(table["status"], pa.array(["compressed", "kept"]))
            )
        )
        keepers |= {keeper["key"]: keeper for keeper in kept.to_pylist()}
    agreement = {} if checked else check_near(course, members, keepers)
    changes: list = [None] * len(rows)
    for place, member in zip(copies.tolist(), members, strict=True):
        keeper = keepers.get(member["keeper_key"])
        seen = agreement.get((member["keeper_key"], member["sha256"]))
        if keeper is None or (seen and not (seen.alike and seen.psnr is not None and seen.psnr >= LEAST_PSNR)):
            changes[place] = dict(STANDALONE)
        elif keeper["status"] == "compressed":
            inherited = {name: keeper[name] for name in INHERITED}
            if seen:
                inherited["psnr_source"] = seen.psnr
            elif member["duplicate_kind"] != "near":
                inherited["psnr_source"] = keeper["psnr_source"]
            changes[place] = inherited | {"denoised": False, "stored_bytes": 0}
        else:
            bytes_of_its_own = {"denoised": False, "stored_bytes": 0, "psnr_source": None}  # restore copies its object
            changes[place] = bytes_of_its_own | {"retry": bool(keeper["retry"])}
    return plan.with_columns(rows, changes)


def check_near(course: NightRun, members: list[dict], keepers: dict[str, dict]) -> dict:
    """(keeper key, sha256) -> second look for near duplicates of compressed keepers, each content once."""
    pairs, asked = [], {}
    for member in members:
        keeper = keepers.get(member["keeper_key"])
        mark = (member["keeper_key"], member["sha256"])
        if member["duplicate_kind"] == "near" and keeper and keeper["status"] == "compressed" and mark not in asked:
            asked[mark] = len(pairs)
            pairs.append((keeper, member))
    if not pairs:
        return {}
    answers = look(course, pairs, CHECK, "c")
    return {mark: answers[place] for mark, place in asked.items()}


def with_waiting(course: NightRun, listed: pa.Table, decided: pa.Table) -> pa.Table:
    """The decided rows and, for new objects that the deadline left out, `kept` ones."""
    new = listed.filter(pc.greater_equal(listed["shard"], 0))
    left = new.filter(pc.invert(pc.is_in(new["key"], value_set=decided["key"].combine_chunks())))
    change = {"status": "kept", "reason": WAITING, "retry": True}
    rows = [listing.listed_row(course.night, item) | change for item in left.to_pylist()]
    return pa.concat_tables([decided, table_of(rows, CATALOG_SCHEMA)])


# --- the end ---


def finish(course: NightRun, listed: pa.Table, decided: pa.Table, catalog: pa.Table, gone: np.ndarray) -> dict:
    """Report, page, artifacts, then the manifest."""
    night, dest = course.night, course.dest
    with stage_of(course, "report") as record:
        rows, whole = publish.whole_state(listed, decided, catalog, gone)
        publish.check_state(whole)
        about = as_prefect_task(
            "report", "report and catalog", lambda: publish.write_tables(dest, night.run_id, rows, whole, course.source)
        )
        record["objects"] = rows.num_rows
    report = publish.report_table(rows)
    manifest = publish.manifest_of(
        run_id=night.run_id, source=night.source, started=course.started,
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"), config=configuration(course.settings), rows=rows,
        state=whole, removable=about, base=course.base["run_id"] if course.base else None,
        models=sorted(set(filter(None, pc.unique(whole["model"]).to_pylist()))), stages=course.stages,
        workers=course.workers.width if course.workers else 0, deadline_reached=course.late,
    )  # fmt: skip
    with stage_of(course, "page"):
        as_prefect_task("report", "HTML page", lambda: write_page(course, report, manifest))
        show_in_prefect(course, report, manifest)
    course.lease.check()
    manifest["finished"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    try:
        as_prefect_task("commit", f"commit {night.run_id}", lambda: publish.commit(dest, manifest))
    except AlreadyExists:
        raise WorkFailed(f"run {night.run_id} was committed by somebody else; nothing was overwritten") from None
    course.log("committed", **{name: manifest[name] for name in ("objects", "source_bytes", "stored_bytes", "counts")})
    course.save_log()
    with contextlib.suppress(StoreError):  # what is left over is only litter
        clear_work(dest, night)
    if course.settings.strict and manifest["counts"]["failed"]:
        raise FailedRows(manifest)
    return manifest


class FailedRows(Exception):
    """The run is complete and committed, but --strict does not want its failed rows."""

    def __init__(self, manifest: dict):
        failed = manifest["counts"]["failed"]
        super().__init__(f"--strict: {failed} objects failed; run {manifest['run_id']} is complete otherwise")
        self.manifest = manifest


def configuration(settings: RunSettings) -> dict:
    """Every option's value, for the manifest."""
    values = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    return {
        name: value if isinstance(value, str | int | float | bool | None) else
        list(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }  # fmt: skip


def write_page(course: NightRun, report: pa.Table, manifest: dict) -> None:
    """The HTML page; drawn by a worker where there are any, since that loads the codec."""
    from tasks.report import page

    html, parts = None, (report, manifest, course.source, course.dest)
    if course.workers and not course.workers.gpus:
        from distributed import KilledWorker

        with contextlib.suppress(KilledWorker):
            html = course.workers.client.submit(page.build, *parts, pure=False).result()
    publish.write_page(course.dest, manifest["run_id"], html or page.build(*parts))


def show_in_prefect(course: NightRun, report: pa.Table, manifest: dict) -> None:
    """Summary, the ten largest savings and the link, as artifacts of the flow run."""
    words = summary.text(report, manifest)
    create_markdown_artifact(f"```\n{words}\n```", key="nightpress-summary", description=f"run {manifest['run_id']}")
    columns = ("key", "status", "source_bytes", "stored_bytes", "saved_bytes")
    top = [{name: row.get(name) for name in columns} for row in summary.largest(report, 10)]
    create_table_artifact(top, key="nightpress-largest-savings", description="The ten largest savings")
    place = course.dest.place(f"{course.night.folder}report.html")
    link = place if "://" in place else f"file://{place}"
    create_link_artifact(link, key="nightpress-report", link_text="HTML report", description=place)


# --- from the command line ---


def run_night(settings: RunSettings) -> dict:
    """The flow on a Prefect server of its own (or the one that PREFECT_API_URL names); the manifest.

    Raises WorkFailed, WrongUsage, FailedRows.
    """
    with PrefectServer() as server:
        return night_on(server, settings)


def night_on(server: PrefectServer, settings: RunSettings) -> dict:
    """The flow, recorded by a server that may still be starting."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server.url()}):
        try:
            return nightly(**settings.parameters())
        finally:  # what was recorded has to reach the server before it stops
            APILogHandler().flush()
            EventsWorker.drain_all()
