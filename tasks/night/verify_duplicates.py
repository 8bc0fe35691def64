"""Second looks on workers: is a member really a copy of its keeper, and what would it come back as?

Two steps over pairs grouped by keeper. LOOK compares originals before anything is compressed and confirms what the
hashes propose; for what embeddings propose it also looks for a view: a part of the keeper, or the keeper turned. CHECK
compares the keeper's decoded bitstream with each member's own pixels, which is what restore will give back; who fails
there is compressed itself. The rules are duplicates/rules.py's and duplicates/alignment.py's, which pairs are asked
about is plan.py's.
"""

import math

import pyarrow as pa
from PIL import Image

from codec.metrics import psnr
from codec.pixels import PictureError, open_picture
from tasks.duplicates.alignment import View, find_view, given_back
from tasks.duplicates.rules import look_alike
from tasks.night.catalog import table_of
from tasks.night.fingerprint import MAX_BYTES
from tasks.night.model_files import local_copy
from tasks.night.runs import Night, store_of
from tasks.stores.base import StoreError

PAIRS_SCHEMA = pa.schema(
    [
        ("keeper_key", pa.string()),
        ("key", pa.string()),
        ("alike", pa.bool_()),
        ("psnr", pa.float64()),  # dB, keeper at the member's size against the member's pixels; null: not compared
        ("why", pa.string()),
        ("keeper_turn", pa.int32()),  # the view through which the keeper shows the member; null: the whole
        ("keeper_box", pa.list_(pa.float64())),
    ]
)


def original(night: Night, row: dict) -> Image.Image:
    """The upright picture at SOURCE, if it is still the one that was listed. Raises StoreError, PictureError."""
    data = store_of(night.source).read(row["key"], etag=row["etag"], max_bytes=MAX_BYTES)
    return open_picture(data, night.max_pixels).image


def restored(night: Night, row: dict) -> Image.Image:
    """The picture that the row's bitstream under DEST decodes to. Raises StoreError, CodecError."""
    dest = store_of(night.dest)
    if row.get("output_length") is not None:
        data = dest.read_range(row["output_key"], row["output_offset"], row["output_length"])
    else:
        data = dest.read(row["output_key"])
    return decoded(night, data)


def decoded(night: Night, data: bytes) -> Image.Image:
    """A bitstream's picture; the model comes from the package, or from DEST/models where an older one is needed."""
    from codec import decode, info
    from codec.container import UnknownModel

    try:
        return decode(data, device=night.device)
    except UnknownModel:
        model = local_copy(store_of(night.dest), f"models/{info(data)['model']}.safetensors")
        return decode(data, device=night.device, models=[str(model.parent)])


def look(night: Night, item: dict, fetched) -> list[dict]:
    """Keeper and members by their originals (the keeper by its bitstream where the original was removed)."""
    keeper_row = item["keeper"]
    try:
        keeper = original(night, keeper_row) if keeper_row["at_source"] else restored(night, keeper_row)
    except Exception as error:  # whatever is wrong with the keeper, its members then stand for themselves
        return answers(item, False, f"the keeper could not be compared: {type(error).__name__}: {error}")
    rows = []
    for member in item["members"]:
        try:
            own, view = original(night, member), None
            seen = look_alike(keeper, own)
            if not seen.alike and member["by_embedding"] and (found := find_view(keeper, own)):
                view, seen = found
            rows += answers(item | {"members": [member]}, seen.alike, seen.why, seen.psnr, view)
        except (StoreError, PictureError) as error:
            rows += answers(item | {"members": [member]}, False, f"could not be compared: {error}")
    return rows


def check(night: Night, item: dict, fetched) -> list[dict]:
    """What each member would come back as from its keeper's bitstream: PSNR against the member's own pixels."""
    try:
        keeper = restored(night, item["keeper"])
    except Exception as error:  # the members are then compressed themselves: the safe side
        return answers(item, False, f"the keeper's bitstream could not be read: {type(error).__name__}: {error}")
    rows = []
    for member in item["members"]:
        one = item | {"members": [member]}
        try:
            own = original(night, member)
            value = psnr(given_back(keeper, member, own.size, own.mode), own)
            rows += answers(one, True, f"comes back at {value:.1f} dB", value)
        except (StoreError, PictureError) as error:
            rows += answers(one, False, f"could not be compared: {error}")
    return rows


def answers(item: dict, alike: bool, why: str, value: float | None = None, view: View | None = None) -> list[dict]:
    value = None if value is None or math.isnan(value) else value
    answer = {"keeper_key": item["keeper"]["key"], "alike": alike, "psnr": value, "why": why}
    answer |= {"keeper_turn": view.turn, "keeper_box": list(view.box)} if view else {}
    return [answer | {"key": member["key"]} for member in item["members"]]


def killed_row(night: Night, item: dict, why: str) -> list[dict]:
    return answers(item, False, why)


def gather(night: Night, shard: str, results: list[list[dict]]) -> pa.Table:
    return table_of([row for rows in results for row in rows], PAIRS_SCHEMA)
