"""After compression: duplicates take their keeper's place under DEST, or lose it and stand for themselves.

A keeper of an earlier night that a better original is to succeed has its row taken up again (`reopened`), with all of
its duplicates'; where the new keeper does not serve every one of them, they stay what they were (`reverted`).

Works on tables, on the coordinator. Comparing near duplicates with their keeper's bitstream is verify_duplicates.py's,
on workers; which stage asks for that is flows/stages.py's.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.night import plan

INHERITED = (
    "output_key", "output_offset", "output_length", "output_sha256", "form", "codec", "model", "not_removable",
)  # fmt: skip
STANDALONE = {
    "status": None, "reason": None, "keeper_key": None, "duplicate_kind": None, "hamming_distance": None,
    "psnr_source": None, "ssimulacra2": None, "worst_tile": None, "keeper_turn": None, "keeper_box": None,
}  # fmt: skip
OWN_FIGURES = ("quality", "bpp", "psnr", "ms_ssim", "ssimulacra2", "worst_tile", "derived_key", "derived_bytes")

Check = Callable[[list[dict], dict[str, dict]], dict[tuple[str, str], plan.Answer]]


def follow(rows: pa.Table, known: pa.Table, check: Check | None = None) -> pa.Table:
    """Duplicates take their keeper's place under DEST; without a keeper, or too far from its bitstream, status null.

    rows: of this night; known: of earlier nights. check(duplicates, keepers by key) compares near duplicates with their
    keepers' bitstreams and answers by (keeper key, sha256); None: that was done before.
    """
    copies = np.flatnonzero(pc.fill_null(pc.equal(rows["status"], "duplicate"), False).to_numpy())
    if not copies.size:
        return rows
    members = rows.take(pa.array(copies)).to_pylist()
    keepers = standing_keepers(members, known, rows)
    agreement = check(members, keepers) if check else {}
    changes: list = [None] * len(rows)
    for place, member in zip(copies.tolist(), members, strict=True):
        seen = agreement.get((member["keeper_key"], member["sha256"]))
        changes[place] = outcome(member, keepers.get(member["keeper_key"]), seen)
    return plan.with_columns(rows, changes)


def standing_keepers(members: list[dict], *tables: pa.Table) -> dict[str, dict]:
    """Key -> row of the duplicates' keepers, compressed or kept; a later table goes before an earlier one."""
    names = pa.array(sorted({member["keeper_key"] for member in members}))
    found: dict[str, dict] = {}
    for table in tables:
        stands = pc.is_in(table["status"], pa.array(["compressed", "kept"]))
        rows = table.filter(pc.and_(pc.is_in(table["key"], value_set=names), stands)).to_pylist()
        found |= {row["key"]: row for row in rows}
    return found


def outcome(member: dict, keeper: dict | None, seen: plan.Answer | None) -> dict:
    """The columns of a duplicate once its keeper is decided. seen: the second look at the keeper's bitstream."""
    if keeper is None:
        return dict(STANDALONE)
    if seen and not seen.alike:  # a copy, but its keeper's bitstream does not give it back as was asked for
        return STANDALONE | {"similar_to": keeper["key"]}
    if keeper["status"] == "kept":  # restore copies the keeper's object
        return {"denoised": False, "stored_bytes": 0, "psnr_source": None, "retry": bool(keeper["retry"])}
    inherited = {name: keeper[name] for name in INHERITED}
    if seen:
        inherited |= {"psnr_source": seen.psnr, "ssimulacra2": seen.ssimulacra2}
    elif member["duplicate_kind"] != "near":
        inherited["psnr_source"] = keeper["psnr_source"]
    inherited["gives_back"] = as_copy(keeper["gives_back"], member["duplicate_kind"])
    return inherited | {"denoised": False, "stored_bytes": 0}


def as_copy(gives_back: str | None, kind: str) -> str | None:
    """What restore gives for a duplicate whose keeper's form gives back so much."""
    if kind == "exact":
        return gives_back
    return "seen" if kind == "near" or gives_back == "seen" else "pixels"


def reopened(planned: pa.Table, known: pa.Table, succeeded: dict[str, dict], run_id: str) -> pa.Table:
    """`planned` with the rows of earlier nights that a better original is to succeed, as its duplicates.

    succeeded: plan.Found's. known: rows of earlier nights. The rows are of no shard.
    """
    if not succeeded:
        return planned
    rows = known.filter(pc.is_in(known["key"], value_set=pa.array(sorted(succeeded))))
    blank = dict.fromkeys((*OWN_FIGURES, *INHERITED)) | {
        "first_run": run_id,
        "stored_bytes": 0,
        "upscaled": False,
        "similar_to": None,
    }
    rows = plan.with_columns(rows, [blank | succeeded[key] for key in rows["key"].to_pylist()])
    rows = rows.append_column("shard", pa.array(np.full(len(rows), -1, np.int32)))
    merged = pa.concat_tables([planned, rows.select(planned.schema.names).cast(planned.schema)])
    return merged.take(pc.sort_indices(merged, [("key", "ascending")]))


def reverted(rows: pa.Table, known: pa.Table) -> pa.Table:
    """`rows` without those reopened ones whose new keeper does not serve them, nor those that belong together with one.

    They stay what earlier nights decided: their bitstreams are there. rows: after `follow`.
    """
    before = known.filter(pc.is_in(known["key"], value_set=rows["key"].combine_chunks()))
    before = {row["key"]: row["keeper_key"] or row["key"] for row in before.select(["key", "keeper_key"]).to_pylist()}
    mine = rows.filter(pc.is_in(rows["key"], value_set=pa.array(sorted(before), pa.string()))).select(
        ["key", "status", "output_key"]
    )
    lost = {before[row["key"]] for row in mine.to_pylist() if row["status"] != "duplicate" or row["output_key"] is None}
    back = pa.array(sorted(key for key, keeper in before.items() if keeper in lost), pa.string())
    return rows.filter(pc.invert(pc.is_in(rows["key"], value_set=back)))
