"""Second looks on workers: is a member really a copy of its keeper, and does it come back from the keeper's bitstream?

Two steps over pairs grouped by keeper. LOOK compares originals before anything is compressed and confirms what the
hashes propose; for what embeddings propose it also looks for a view: a part of the keeper, or the keeper turned.
CHECK decodes the keeper's bitstream and asks whether what each member comes back as has kept what it was to keep: the
night's target, against the keeper's original as the member shows it. The rules are agreement.py's and alignment.py's,
which pairs are asked about is plan.py's.
"""

import math

import pyarrow as pa
from PIL import Image

from codec import metrics
from codec.metrics.ssimulacra2 import MIN_SIDE, ssimulacra2
from codec.pictures.errors import PictureError
from codec.rate_control.target import SMALL_PICTURE_PSNR
from tasks.duplicates.agreement import Agreement, Original, agreement, original_of
from tasks.duplicates.alignment import View, find_view, given_back
from tasks.night.catalog import table_of
from tasks.night.fingerprint import MAX_BYTES
from tasks.night.model_files import local_copy
from tasks.night.runs import Night, store_of
from tasks.stores.base import StoreError

LEAST_PSNR = 30.0  # dB: where no target was asked for, what comes back worse than this is compressed itself
UNKNOWN_PSNR = 34.0  # dB: of a bitstream whose row does not say

PAIRS_SCHEMA = pa.schema(
    [
        ("keeper_key", pa.string()),
        ("key", pa.string()),
        ("alike", pa.bool_()),
        ("similar", pa.bool_()),  # no copy, but much the same on the whole
        ("psnr", pa.float64()),  # dB, keeper at the member's size against the member's pixels; null: not compared
        ("ssimulacra2", pa.float64()),  # the same by SSIMULACRA2; of bitstreams alone
        ("why", pa.string()),
        ("keeper_turn", pa.int32()),  # the view through which the keeper shows the member; null: the whole
        ("keeper_box", pa.list_(pa.float64())),
    ]
)


def original(night: Night, row: dict) -> Original:
    """The upright picture at SOURCE, if it is still the one that was listed. Raises StoreError, PictureError."""
    data = store_of(night.source).read(row["key"], etag=row["etag"], max_bytes=MAX_BYTES)
    return original_of(data, night.max_pixels)


def standing_for_it(night: Night, row: dict) -> Original:
    """The picture by its bitstream, since the original was removed. Raises StoreError, CodecError."""
    psnr = UNKNOWN_PSNR if row["psnr_source"] is None else row["psnr_source"]
    return Original(restored(night, row), noise=255 / 10 ** (psnr / 20))


def restored(night: Night, row: dict) -> Image.Image:
    """The picture that the row's bitstream under DEST decodes to. Raises StoreError, CodecError."""
    dest = store_of(night.dest)
    if row.get("output_length") is not None:
        data = dest.read_range(row["output_key"], row["output_offset"], row["output_length"])
    else:
        data = dest.read(row["output_key"])
    return decoded(night, data)


def decoded(night: Night, data: bytes) -> Image.Image:
    """The picture of stored bytes of any form; a .npi file's model comes from the package, or from DEST/models where
    an older one is needed."""
    from codec import info
    from codec.errors import UnknownModel
    from tasks.forms.stored import picture_of

    try:
        return picture_of(data, device=night.device, max_pixels=night.max_pixels).image
    except UnknownModel:
        model = local_copy(store_of(night.dest), f"models/{info(data)['model']}.safetensors")
        return picture_of(data, device=night.device, max_pixels=night.max_pixels, models=[str(model.parent)]).image


def look(night: Night, item: dict, fetched) -> list[dict]:
    """Keeper and members by their originals (the keeper by its bitstream where the original was removed)."""
    row = item["keeper"]
    try:
        keeper = original(night, row) if row["at_source"] else standing_for_it(night, row)
    except Exception as error:  # whatever is wrong with the keeper, its members then stand for themselves
        return answers(item, Agreement(False, f"the keeper could not be compared: {type(error).__name__}: {error}"))
    rows = []
    for member in item["members"]:
        one = item | {"members": [member]}
        try:
            own, view = original(night, member), None
            seen = agreement(keeper, own)
            if not seen.agrees and member["by_embedding"] and (found := find_view(keeper, own)):
                view, seen = found
            rows += answers(one, seen, view)
        except (StoreError, PictureError) as error:
            rows += answers(one, Agreement(False, f"could not be compared: {error}"))
    return rows


def check(night: Night, item: dict, fetched) -> list[dict]:
    """What each member comes back as from its keeper's bitstream: whether that kept enough of the keeper's original,
    and how close it is to the member's own pixels (psnr, ssimulacra2)."""
    row = item["keeper"]
    try:
        keeper = restored(night, row)
        source = original(night, row).image if row["at_source"] else None
    except Exception as error:  # the members are then compressed themselves: the safe side
        return answers(item, Agreement(False, f"the keeper could not be compared: {type(error).__name__}: {error}"))
    rows = []
    for member in item["members"]:
        one = item | {"members": [member]}
        try:
            own = original(night, member).image
            given = given_back(keeper, member, own.size, own.mode)
            meant = own if source is None else given_back(source, member, own.size, own.mode)
            kept, words = kept_enough(night, meant, given)
            seen = Agreement(kept, words, metrics.psnr(given, own))
            rows += answers(one, seen, ssimulacra2=ssimulacra2_of(own, given))
        except (StoreError, PictureError) as error:
            rows += answers(one, Agreement(False, f"could not be compared: {error}"))
    return rows


def kept_enough(night: Night, meant: Image.Image, given: Image.Image) -> tuple[bool, str]:
    """Whether `given` reaches the night's target against `meant`, both as a member shows them; in words."""
    metric, least = night.metric, night.target or 0.0
    value = None
    if metric == "ssimulacra2":
        value = ssimulacra2_of(meant, given)
    elif metric == "ms-ssim":
        value = metrics.ms_ssim(meant, given)
    if value is None:  # asked for by quality or bytes, by PSNR, or too small for the other measures
        least = least if metric == "psnr" else SMALL_PICTURE_PSNR if metric else LEAST_PSNR
        metric, value = "psnr", metrics.psnr(meant, given)
    return value >= least, f"comes back with {metric} {value:.5g}, {least:g} was asked for"


def ssimulacra2_of(original: Image.Image, given: Image.Image) -> float | None:
    """None under its smallest side."""
    return ssimulacra2(original, given) if min(original.size) >= MIN_SIDE else None


def answers(item: dict, seen: Agreement, view: View | None = None, ssimulacra2: float | None = None) -> list[dict]:
    answer = {
        "keeper_key": item["keeper"]["key"], "alike": seen.agrees, "similar": seen.similar, "why": seen.why,
        "psnr": None if math.isnan(seen.psnr) else seen.psnr, "ssimulacra2": ssimulacra2,
    }  # fmt: skip
    answer |= {"keeper_turn": view.turn, "keeper_box": list(view.box)} if view else {}
    return [answer | {"key": member["key"]} for member in item["members"]]


def killed_row(night: Night, item: dict, why: str) -> list[dict]:
    return answers(item, Agreement(False, why))


def gather(night: Night, shard: str, results: list[list[dict]]) -> pa.Table:
    return table_of([row for rows in results for row in rows], PAIRS_SCHEMA)
