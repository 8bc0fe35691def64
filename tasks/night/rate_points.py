"""What each picture costs at several rates: one analysis, several codings. Sharing a budget by it is budget.py's."""

import pyarrow as pa

from codec.encoder import prepare
from codec.metrics import psnr
from codec.pictures.errors import PictureError
from tasks.night import compress
from tasks.night.budget import LEVELS, SCHEMA
from tasks.night.catalog import table_of
from tasks.night.fingerprint import failure
from tasks.night.runs import Night
from tasks.night.shards import Stopwatch
from tasks.stores.base import StoreError

fetch = compress.fetch


def sample(night: Night, item: dict, fetched) -> dict:
    """Bytes and MSE of one picture along its levels, as far as they gain --min-gain."""
    watch, model = Stopwatch(), compress.network(night)
    row = {"key": item["key"], "retry": False}
    try:
        picture = compress.opened(night, item, fetched)
        image = compress.clean(picture, item)
        prepared = prepare(image, model)
        most = item["size"] * (1 - night.min_gain / 100)
        points = []
        for level in LEVELS:
            size = len(prepared.code(level))
            if size > most:
                break
            points.append((size, 255.0**2 / 10 ** (min(psnr(image.image, prepared.reconstruct(level)), 100.0) / 10)))
        if not points:
            compress.refuse_small_gain(size, item["size"], night.min_gain)
        row |= {"bytes": [p[0] for p in points], "mse": [p[1] for p in points], "pixels": image.width * image.height}
        if compress.wants_enlarging(night, picture):
            row["derived_bytes"] = len(compress.enlarged(item, picture))
    except compress.KeepOriginal as reason:
        row |= {"status": "kept", "reason": str(reason)}
    except StoreError as error:
        row |= failure(error, str(error)) | {"retry": True}
    except Exception as error:  # one bad picture never ends a night
        row |= failure(error, compress.cause(error)) | {"retry": not isinstance(error, PictureError)}
    return row | {"seconds": watch.seconds}


def killed_row(night: Night, item: dict, why: str) -> dict:
    return {"key": item["key"], "status": "failed", "reason": why, "error": f"KilledWorker: {why}", "retry": False}


def gather(night: Night, shard: str, rows: list[dict]) -> pa.Table:
    return table_of(rows, SCHEMA)
