"""Sharing a budget: how many bytes each picture may take, from what it costs at several rates.

The curves come from rate_points.py, the allocation is codec.rate_control's. compress.py keeps each picture to its share
(at most that, at least 98 % of it), so that the night lands within 2 % below its budget whatever the interpolation
between the samples got wrong.
"""

from dataclasses import dataclass

import pyarrow as pa

from codec.rate_control.budget import SAMPLE_LEVELS as LEVELS
from codec.rate_control.budget import RatePoint, allocate

AIM = 0.999  # of the budget; each picture stays below its share

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),  # null: has a curve
        ("reason", pa.string()),
        ("error", pa.string()),
        ("retry", pa.bool_()),
        ("bytes", pa.list_(pa.int64())),  # at the first of LEVELS, as many as gain enough
        ("mse", pa.list_(pa.float64())),
        ("derived_bytes", pa.int64()),  # of the enlarged picture beside it
        ("pixels", pa.int64()),
        ("seconds", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Shares:
    """changes: by key, the columns to set. `stored_bytes` is what the picture may take. facts: for the log."""

    changes: dict[str, dict]
    facts: dict


def share(points: pa.Table, budget, sizes: dict[str, int]) -> Shares:
    """Bytes for each picture. budget: flows' Budget (limit(source_bytes) -> bytes); sizes: source bytes by key.

    Where even the lowest rates cost more than the budget, the pictures that save least are kept at SOURCE.
    """
    changes, curves = {}, []
    for row in points.to_pylist():
        if row["status"] is None:
            curves.append(row)
        else:
            changes[row["key"]] = {name: row[name] for name in ("status", "reason", "error", "retry")}
    curves.sort(key=lambda row: (row["bytes"][0] / max(sizes[row["key"]], 1), row["key"]))

    def room(rows: list[dict]) -> float:
        enlarged = sum(row["derived_bytes"] or 0 for row in rows)
        return budget.limit(sum(sizes[row["key"]] for row in rows)) - enlarged

    left = len(curves)
    while left and sum(row["bytes"][0] for row in curves[:left]) > AIM * room(curves[:left]):
        left -= 1
    for row in curves[left:]:
        reason = "the budget cannot pay for it even at the lowest quality; raise --budget"
        changes[row["key"]] = {"status": "kept", "reason": reason, "retry": True}
    paid = sorted(curves[:left], key=lambda row: row["key"])
    limit = room(paid) if paid else 0
    if paid:
        samples = [[RatePoint(*point) for point in zip(LEVELS, row["bytes"], row["mse"], strict=False)] for row in paid]
        given = allocate(samples, [row["pixels"] for row in paid], limit, aim=AIM)
        for row, size in zip(paid, given.bytes.tolist(), strict=True):
            changes[row["key"]] = {"stored_bytes": max(int(size), row["bytes"][0])}
    spent = sum(change.get("stored_bytes", 0) for change in changes.values())
    return Shares(changes, {"budget_bytes": limit, "shared_bytes": spent, "pictures": left})
