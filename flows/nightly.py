"""The night: which step follows which, on Prefect for the record and on Dask for the work.

    list -> fingerprint -> deduplicate -> plan -> compress (restore, encode, verify, pack) -> check duplicates -> report
    -> commit

Here: the order, the lease, the state to build on. Each stage's part on the coordinator is stages.py's, limits
(deadline, failures) and what Prefect shows of them run_context.py's, the end finish.py's. What is done to an object
stands in tasks/night, one module a step; what is written where and how a run is taken up again in tasks/night/runs.py.

A run that is killed loses the shards in flight. Everything that it decides on the whole bucket (listing, plan) is
written down before it is acted on, and each shard's outcome depends on its inputs alone, so the run that takes it
up again ends as the undisturbed one would have.
"""

import contextlib
from datetime import UTC, datetime

from prefect import flow
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler

from flows import stages
from flows.console import WorkFailed, WrongUsage, say
from flows.finish import finish
from flows.goals import deadline_after
from flows.prefect_server import PrefectServer
from flows.run_context import NightRun, as_prefect_task, stage_of
from flows.settings import RunSettings
from tasks.night import listing
from tasks.night.catalog import CATALOG_SCHEMA, read_catalog
from tasks.night.duplicate_metadata import keep_metadata
from tasks.night.model_files import NoModel, codec_model, embedding_identity, embedding_of
from tasks.night.runs import latest_manifest, new_run_id, unfinished_run, write_json
from tasks.stores.base import NotFound, Store, StoreError
from tasks.stores.lease import Lease, LeaseHeld, LeaseLost
from tasks.stores.open import open_store


@flow(name="nightpress", flow_run_name="night of {source}", validate_parameters=False, retries=0)
def nightly(
    source: str,
    dest: str,
    quality: float | None = None,
    target: str | None = None,
    budget: str | None = None,
    dedup: str = "near",
    dedup_embedding: str | None = None,
    denoise: str = "off",
    superres: str = "off",
    codec: str = "learned",
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
    """One night over SOURCE, into DEST. Parameters are the options of `nightpress run`; returns the manifest."""
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
            run = begin(settings, origin, store, lease, stack)
        except StoreError as error:
            raise WorkFailed(f"{error}. Nothing was begun") from error
        try:
            return conduct(run)
        except (LeaseLost, NoModel) as error:
            raise WorkFailed(f"{error}; nothing was committed") from None
        except StoreError as error:
            run.log("failed", error=f"{type(error).__name__}: {error}")
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
    night = settings.night(begun["run_id"], model.identity, embedding)
    deadline = deadline_after(settings.deadline).astimezone(UTC) if settings.deadline else None
    run = NightRun(
        settings, source, dest, night, lease, stack, base, bool(begun.get("fresh")), resumed, begun["started"], deadline
    )
    if resumed:
        with contextlib.suppress(NotFound):
            run.events = dest.read(f"{night.folder}log.jsonl").decode().splitlines()
        say(f"nightpress: going on with the unfinished run {night.run_id}")
    run.log("resumed" if resumed else "begun", run=night.run_id, base=base_id, source=source.url, dest=dest.url)
    return run


def the_embedding(settings: RunSettings, dest: Store) -> str | None:
    """Night.embedding: what --dedup-embedding asks for, tried before anything is read."""
    if settings.dedup_embedding is None:
        return None
    from tasks.duplicates.embeddings.embedder import EmbeddingError

    try:
        return embedding_of(dest, settings.dedup_embedding)
    except EmbeddingError as error:
        raise WrongUsage(f"--dedup-embedding: {error}") from None


def conduct(run: NightRun) -> dict:
    """All stages in order; the manifest."""
    night, dest = run.night, run.dest
    with stage_of(run, "list") as record:
        catalog = as_prefect_task("list", "read the catalog", lambda: read_catalog(dest, run.base))
        listed = as_prefect_task("list", f"list {night.source}", lambda: stages.the_listing(run, catalog))
        record |= {"objects": listed.num_rows, "new": int((listed["shard"].to_numpy() >= 0).sum())}
    run.total = listed.num_rows
    gone = listing.vanished(listed, catalog)
    known = stages.known_rows(listed, catalog, gone)
    say(
        f"nightpress: run {night.run_id}: {listed.num_rows:,} objects, {record['new']:,} of them new or changed"
        + (f", {len(gone):,} removed at SOURCE that come back from DEST" if len(gone) else "")
    )
    decided = CATALOG_SCHEMA.empty_table()
    if record["new"]:
        stages.retry_failures(run)
        facts = stages.fingerprint(run, listed)
        planned = stages.the_plan(run, facts, known)
        decided = stages.compress_all(run, planned, known)
        decided = keep_metadata(run.dest, run.night, decided, known)
        decided = stages.with_waiting(run, listed, decided)
    return finish(run, listed, decided, catalog, gone)


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
