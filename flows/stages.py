"""The stages of a night as the coordinator sees them: which shards there are, what their outcome decides.

    the_listing -> fingerprint -> the_plan (look, share_budget) -> compress_all (follow_keepers) -> with_waiting

What is done to an object stands in tasks/night, one module a step that workers import; how shards get there is
run_context.py's, which stage follows which nightly.py's. Nothing here loads torch.
"""

import contextlib
from collections.abc import Iterator
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flows.console import say
from flows.jobs import Job
from flows.run_context import NightRun, as_prefect_task, do_shards, stage_of
from flows.settings import RunSettings
from tasks.night import keepers, listing, plan
from tasks.night.catalog import CATALOG_SCHEMA, read_table, table_of, write_table
from tasks.night.model_files import copy_model
from tasks.night.runs import finished_shards, read_json, read_shards, work_key
from tasks.night.shards import Step
from tasks.stores.base import NotFound

INSPECT_MEMORY = 200  # bytes of memory per byte of a file, while it is fingerprinted, at the worst
LOOK_MEMORY = 80  # bytes of memory per pixel of the larger picture, while two are compared, at the worst
FINGERPRINT = Step("fingerprint", "tasks.night.fingerprint", "inspect_object")
RATES = Step("rates", "tasks.night.rate_points", "sample", network=True)
CHECK = Step("check", "tasks.night.verify_duplicates", "check", fetch=None, network=True)
WAITING = "the deadline came before its turn; the next night takes it"
NOT_PAID = "it would come back too different from its keeper's bitstream, and the budget is spent"


def look_step(number: int) -> Step:
    """The `number`-th batch of questions whether copies are copies."""
    return Step(f"look-{number}", "tasks.night.verify_duplicates", "look", fetch=None)


def compress_step(round: int = 0) -> Step:
    """The step; later rounds (of what turned out to be no duplicate) have stages of their own."""
    return Step(f"compress-{round}" if round else "compress", "tasks.night.compress", "compress_object", network=True)


# --- listing and fingerprints ---


def the_listing(run: NightRun, catalog: pa.Table) -> pa.Table:
    """The listing that this run goes by: written down once, read again when it is taken up."""
    key = f"{run.night.folder}work/listing.parquet"
    if run.resumed:
        with contextlib.suppress(NotFound):
            return read_table(run.dest, key)
    settings = run.settings
    infos = listing.objects_of(run.source, settings.inventory)
    listed = listing.list_source(infos, settings.selects, lambda n: say(f"list: {n:,} objects so far"))
    compared = listing.compare(listed, catalog.slice(0, 0) if run.fresh else catalog, settings.max_objects)
    table = listing.with_shards(compared, settings.shard_size)
    write_table(run.dest, key, table)
    return table


def known_rows(listed: pa.Table, catalog: pa.Table, gone: np.ndarray) -> pa.Table:
    """Rows of earlier nights that stay: of objects that are there, and of those (`gone`) that were removed since."""
    here = listed["known"].to_numpy()
    here = here[here >= 0]
    rows = catalog.take(pa.array(np.concatenate([here, gone])))
    there = pa.array(np.arange(len(rows)) < len(here))
    return rows.set_column(rows.schema.get_field_index("at_source"), "at_source", there)


def retry_failures(run: NightRun) -> None:
    """After an abort for too many failures: forget the shards with failures that may have passed."""
    key = f"{run.night.folder}work/aborted.json"
    if not run.resumed or read_json(run.dest, key) is None:
        return
    for stage in ("fingerprint", "compress"):
        names = sorted(finished_shards(run.dest, run.night, stage))
        for shard, table in read_shards(run.dest, run.night, stage, names):
            if pc.any(table["retry"]).as_py():
                run.dest.delete(work_key(run.night, stage, shard))
                run.dest.delete(f"{run.night.folder}work/plan.parquet")
    run.dest.delete(key)


def by_shard(rows: pa.Table, shard: np.ndarray) -> Iterator[tuple[int, list[dict]]]:
    """(shard, rows as dicts) for the shards >= 0, in order."""
    order = np.argsort(shard, kind="stable")
    order = order[shard[order] >= 0]
    if not order.size:
        return
    for part in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
        yield int(shard[part[0]]), rows.take(pa.array(part)).to_pylist()


def fingerprint(run: NightRun, listed: pa.Table) -> pa.Table:
    """Rows of every new object that was reached, in CATALOG_SCHEMA, with the column `shard`."""
    most = INSPECT_MEMORY * run.settings.max_pixels // 10
    jobs = [
        Job(f"{shard:06d}", items, min(most, INSPECT_MEMORY * max(item["size"] for item in items)))
        for shard, items in by_shard(listed, listed["shard"].to_numpy())
    ]
    tables = do_shards(run, FINGERPRINT, jobs)
    parts = []
    for shard in sorted(tables):
        table = tables[shard]
        parts.append(table.append_column("shard", pa.array(np.full(len(table), int(shard), np.int32))))
    empty = CATALOG_SCHEMA.append(pa.field("shard", pa.int32())).empty_table()
    return pa.concat_tables(parts) if parts else empty


# --- the plan ---


def the_plan(run: NightRun, facts: pa.Table, known: pa.Table) -> pa.Table:
    """Rows with duplicates decided (and, with a budget, qualities): written down before it is acted on."""
    key = f"{run.night.folder}work/plan.parquet"
    if run.resumed:
        with contextlib.suppress(NotFound):
            return read_table(run.dest, key)
    with stage_of(run, "deduplicate", objects=facts.num_rows) as record:
        rounds = count()

        def confirm(pairs: list[tuple[dict, dict]]) -> list[plan.Answer]:
            seen = look(run, pairs, look_step(next(rounds)), "n")
            if run.settings.codec != "lossless":
                return seen
            return [one._replace(alike=False, similar=one.alike or one.similar) for one in seen]  # each keeps its own

        def decide() -> plan.Found:
            return plan.find_duplicates(facts, known, run.settings.dedup, confirm, proposed_from(run.settings))

        found = decide() if run.settings.dedup == "near" else as_prefect_task("deduplicate", "find duplicates", decide)
        record |= {
            "duplicates": sum(one is not None for one in found.changes), "succeeded": len(found.succeeded),
            "similar": sum(one is not None for one in found.similar),
        }  # fmt: skip
        similar = [{"similar_to": other} if other else None for other in found.similar]
        planned = plan.with_columns(plan.with_columns(facts, similar), found.changes)
        planned = keepers.reopened(planned, known, found.succeeded, run.night.run_id)
    if run.settings.budget:
        bring_model(run)
        planned = share_budget(run, planned)
    write_table(run.dest, key, planned)
    return planned


def proposed_from(settings: RunSettings) -> float:
    """The cosine from which embeddings propose a copy."""
    if settings.dedup_embedding is None:
        return 1.0
    from tasks.duplicates.embeddings.embedder import proposed_from

    return proposed_from(settings.dedup_embedding)


def look(run: NightRun, pairs: list[tuple[dict, dict]], step: Step, prefix: str) -> list[plan.Answer]:
    """Second looks at (keeper, member) pairs on the workers, in their order; those the deadline left out: no."""
    items = plan.look_items(pairs)
    size = max(1, min(8, len(items) // (4 * max(1, run.pool().width))))
    jobs = []
    for number, start in enumerate(range(0, len(items), size)):
        part = items[start : start + size]
        pixels = max((row["width"] or 0) * (row["height"] or 0) for i in part for row in [i["keeper"], *i["members"]])
        jobs.append(Job(f"{prefix}{number:06d}", part, LOOK_MEMORY * pixels))
    answers = {}
    for table in do_shards(run, step, jobs).values():
        for row in table.to_pylist():
            answer = plan.Answer(
                row["alike"], row["psnr"], row["keeper_turn"], row["keeper_box"], row["similar"], row["ssimulacra2"]
            )
            answers[row["keeper_key"], row["key"]] = answer
    return [answers.get((keeper["key"], member["key"]), plan.Answer(False)) for keeper, member in pairs]


def share_budget(run: NightRun, planned: pa.Table) -> pa.Table:
    """What --budget gives each picture: rate points on the workers, allocation here."""
    from tasks.night import budget

    jobs = [
        Job(f"{shard:06d}", items, max(plan.memory_of(item) for item in items))
        for shard, items in picture_shards(planned)
    ]
    tables = do_shards(run, RATES, jobs)
    points = pa.concat_tables(tables[shard] for shard in sorted(tables)) if tables else budget.SCHEMA.empty_table()
    with stage_of(run, "plan", budget=str(run.settings.budget)) as record:
        keys = planned["key"].to_pylist()
        sizes = dict(zip(keys, planned["size"].to_pylist(), strict=True))
        spent = as_prefect_task("plan", "share the budget", lambda: budget.share(points, run.settings.budget, sizes))
        record |= spent.facts
        planned = plan.with_columns(planned, [spent.changes.get(key) for key in keys])
    return waiting(planned, ~pc.is_in(planned["key"], value_set=points["key"].combine_chunks()).to_numpy())


def picture_shards(planned: pa.Table, exact_too: bool = False) -> list[tuple[int, list[dict]]]:
    """(shard, rows) of what is to be compressed: status null. exact_too: and what is `kept` so far, but may be stored
    without loss."""
    chosen = pc.is_null(planned["status"])
    if exact_too:
        kept = pc.fill_null(pc.equal(planned["status"], "kept"), False)
        chosen = pc.or_(chosen, pc.and_(kept, pc.fill_null(planned["exact_only"], False)))
    shard = np.where(chosen.to_numpy(), planned["shard"].to_numpy(), -1)
    return list(by_shard(planned.drop_columns("shard"), shard))


# --- compression ---


def compress_all(run: NightRun, planned: pa.Table, known: pa.Table) -> pa.Table:
    """Compress what stands for itself; look after the duplicates; compress those that have lost their keeper.

    Final rows of everything in `planned`, sorted by key.
    """
    pictures = picture_shards(planned, exact_too=not run.settings.budget)
    rows = planned.drop_columns("shard")
    if pictures:
        bring_model(run)
        rows = compressed(run, rows, compress_step(), [(f"{shard:06d}", items) for shard, items in pictures])
    rows = waiting(rows, np.ones(len(rows), bool))
    rows = keepers.follow(rows, known, lambda members, kept: check_near(run, members, kept))
    rows = keepers.reverted(rows, known)
    for attempt in (1, 2):
        orphans = np.flatnonzero(pc.is_null(rows["status"]).to_numpy())
        if not orphans.size:
            break
        alone = rows.take(pa.array(orphans))
        changes: list = [None] * len(rows)
        if run.settings.budget:
            found = [{"status": "kept", "reason": NOT_PAID, "retry": True}] * len(alone)
        else:
            found = plan.find_duplicates(alone, CATALOG_SCHEMA.empty_table(), "exact", lambda pairs: []).changes
        for place, change in zip(orphans.tolist(), found, strict=True):
            changes[place] = change
        rows = plan.with_columns(rows, changes)
        alone = rows.take(pa.array(orphans))
        items = alone.filter(pc.is_null(alone["status"])).to_pylist()
        size = listing.SHARD_OBJECTS[0]
        shards = [(f"{attempt}-{i // size:06d}", items[i : i + size]) for i in range(0, len(items), size)]
        if shards:
            rows = compressed(run, rows, compress_step(attempt), shards)
        rows = waiting(rows, np.ones(len(rows), bool))
        rows = keepers.follow(rows, known)
    lonely = pc.is_null(rows["status"]).to_pylist()
    change = {"status": "kept", "reason": "its keeper could not be stored; the next night decides anew", "retry": True}
    return plan.with_columns(rows, [change if alone else None for alone in lonely])


def bring_model(run: NightRun) -> None:
    """The codec's model under DEST, before the first bitstream that needs it."""
    as_prefect_task("plan", f"copy model {run.night.model}", lambda: copy_model(run.dest, run.night.model))


def compressed(run: NightRun, rows: pa.Table, step: Step, shards: list[tuple[str, list[dict]]]) -> pa.Table:
    """The rows after a round of compression; what the deadline left out is as before."""
    jobs = [Job(shard, items, max(plan.memory_of(item) for item in items)) for shard, items in shards]
    tables = do_shards(run, step, jobs)
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


def check_near(run: NightRun, members: list[dict], keepers: dict[str, dict]) -> dict:
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
    answers = look(run, pairs, CHECK, "c")
    return {mark: answers[place] for mark, place in asked.items()}


def with_waiting(run: NightRun, listed: pa.Table, decided: pa.Table) -> pa.Table:
    """The decided rows and, for new objects that the deadline left out, `kept` ones."""
    new = listed.filter(pc.greater_equal(listed["shard"], 0))
    left = new.filter(pc.invert(pc.is_in(new["key"], value_set=decided["key"].combine_chunks())))
    change = {"status": "kept", "reason": WAITING, "retry": True}
    rows = [listing.listed_row(run.night, item) | change for item in left.to_pylist()]
    return pa.concat_tables([decided, table_of(rows, CATALOG_SCHEMA)])
