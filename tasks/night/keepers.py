"""After compression: duplicates take their keeper's place under DEST, or lose it and stand for themselves.

Works on tables, on the coordinator. Comparing near duplicates with their keeper's bitstream is verify_duplicates.py's,
on workers; which stage asks for that is flows/stages.py's.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.night import plan

LEAST_PSNR = (
    30.0  # dB: a duplicate that would come back worse is none  # dB: a duplicate that would come back worse is none
)
INHERITED = ("output_key", "output_offset", "output_length", "output_sha256", "codec", "model")
STANDALONE = {
    "status": None, "reason": None, "keeper_key": None, "duplicate_kind": None, "hamming_distance": None,
    "psnr_source": None, "keeper_turn": None, "keeper_box": None,
}  # fmt: skip

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
    if keeper is None or (seen and not (seen.alike and seen.psnr is not None and seen.psnr >= LEAST_PSNR)):
        return dict(STANDALONE)
    if keeper["status"] == "kept":  # restore copies the keeper's object
        return {"denoised": False, "stored_bytes": 0, "psnr_source": None, "retry": bool(keeper["retry"])}
    inherited = {name: keeper[name] for name in INHERITED}
    if seen:
        inherited["psnr_source"] = seen.psnr
    elif member["duplicate_kind"] != "near":
        inherited["psnr_source"] = keeper["psnr_source"]
    return inherited | {"denoised": False, "stored_bytes": 0}
