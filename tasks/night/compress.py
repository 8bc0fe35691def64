"""Restore, compress and verify: each picture in its best form, decoded again and measured, packed by shard.

    object -> rounds of forms (tasks/forms/choose.py) -> the smallest that gains enough -> its row and stored bytes

What was denoised is encoded clean; what is small may get an enlarged picture beside its bitstream. What no form makes
smaller by --min-gain is `kept`. Finding the level for a target is codec/rate_control's, for a budget rate_points.py's;
which pictures come here is plan.py's.

Under DEST, per shard: stored bytes under PACKED_BELOW one after the other, in order of key, in
objects/<run id>/<shard>.pack; larger ones as objects/<run id>/<shard>-<n>.npi (.jxl ...); enlarged pictures as
objects/derived/<run id>/<shard>-<n>.webp. All of it depends on the shard's inputs alone, so that a shard that is
done again after a crash writes the same bytes to the same places.
"""

import dataclasses
import hashlib
import io
import math
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from codec import decoder, encoder, metrics, models
from codec.errors import CodecError
from codec.format import level_of
from codec.metrics.original import Original
from codec.metrics.ssimulacra2 import MIN_SIDE as SSIMULACRA2_MIN_SIDE
from codec.pictures.errors import PictureError, UncarriedPicture
from codec.pictures.files import Picture, open_picture
from codec.pictures.metadata import same_facts
from codec.rate_control import target as rate
from tasks.forms import choose
from tasks.forms.base import Declined, Goal
from tasks.night.catalog import CATALOG_SCHEMA, table_of
from tasks.night.fingerprint import MAX_BYTES, failure
from tasks.night.model_files import NoModel, codec_model, local_copy
from tasks.night.runs import Night, store_of
from tasks.night.shards import Stopwatch
from tasks.restoration import apply as restoration
from tasks.stores.base import Changed, StoreError

PACKED_BELOW = 128 << 10  # bytes: infrequent-access classes bill at least this for an object
ENLARGED_BELOW = 512  # pixels of the longer side
SCALE = 2
DERIVED_QUALITY = 90  # WebP
FINER = "coded finer than the target asks, so that no part of the picture loses its own structure"


CONTENT_TYPES = {".jxl": "image/jxl", ".avif": "image/avif"}  # by suffix of what is stored; all others are our own


class KeepOriginal(Exception):
    """The picture is better left at SOURCE; the message is the row's reason."""


@dataclass(frozen=True)
class CompressedObject:
    """One picture's row and what is to be written for it (None: nothing)."""

    row: dict
    bitstream: bytes | None = None
    derived: bytes | None = None


def fetch(night: Night, item: dict) -> bytes:
    return store_of(night.source).read(item["key"], etag=item["etag"], max_bytes=MAX_BYTES)


def opened(night: Night, row: dict, fetched) -> Picture | None:
    """The picture that was fingerprinted; None of one that no lossy form carries and that 8 bits do not show.

    Raises StoreError, PictureError.
    """
    if isinstance(fetched, StoreError):
        raise fetched
    if row["sha256"] and hashlib.sha256(fetched).hexdigest() != row["sha256"]:
        raise Changed(f"{row['key']}: other bytes than when it was fingerprinted; the next run takes it up")
    if not row["exact_only"]:
        return open_picture(fetched, night.max_pixels, checked=False)  # fingerprint.py has looked at these bytes
    try:
        return open_picture(fetched, night.max_pixels)
    except UncarriedPicture:
        return None


def clean(picture: Picture, row: dict) -> Picture:
    """The picture to be encoded: cleaned where that was decided. What restore gives is measured against `picture`."""
    if not row["denoised"]:
        return picture
    return dataclasses.replace(picture, image=restoration.denoise(picture.image))


def compress_object(night: Night, item: dict, fetched) -> CompressedObject:
    """Row, bitstream and enlarged picture of one object; never raises for what is wrong with the object.

    item: its row so far; `stored_bytes` is set where a budget gave it that many bytes.
    """
    watch = Stopwatch()
    network(night)  # outside of what is one object's own fault
    spent = item["seconds"] or 0.0
    row, bitstream, derived = dict(item), None, None
    try:
        picture = opened(night, row, fetched)
        bitstream, measured = in_best_form(night, row, fetched, picture)
        if picture and wants_enlarging(night, picture) and not row["exact_only"]:
            derived = enlarged(row, picture)
        row |= measured | {"status": "compressed", "upscaled": derived is not None}
        row["stored_bytes"] = len(bitstream) + len(derived or b"")
    except KeepOriginal as reason:
        row |= unstored("kept", str(reason))
    except StoreError as error:
        row |= unstored("failed") | failure(error, str(error)) | {"retry": True}
    except Exception as error:  # one bad picture never ends a night
        row |= unstored("failed") | failure(error, cause(error)) | {"retry": not isinstance(error, PictureError)}
    if row["status"] != "compressed":
        bitstream = derived = None
    row["seconds"] = spent + watch.seconds
    return CompressedObject(row, bitstream, derived)


def unstored(status: str, reason: str | None = None) -> dict:
    return {
        "status": status, "reason": reason, "stored_bytes": 0, "quality": None, "bpp": None, "psnr": None,
        "ms_ssim": None, "psnr_source": None, "ssimulacra2": None, "worst_tile": None, "not_removable": None,
        "denoised": False, "upscaled": False, "form": None, "gives_back": None,
    }  # fmt: skip


# --- forms ---


def in_best_form(night: Night, row: dict, source: bytes, picture: Picture | None) -> tuple[bytes, dict]:
    """Stored bytes in the form that suits the picture best, and the columns that say so. Raises KeepOriginal."""
    refused: dict[str, str] = {}
    rounds: tuple[tuple[str, ...], ...] = ((choose.LEARNED,),)  # what shares a budget
    if not row["stored_bytes"]:
        shown, exact_only = picture is not None, bool(row["exact_only"])
        rounds = choose.rounds(night.codec, row["content"], row["format"], shown=shown, exact_only=exact_only)
    best = None
    for names in rounds:
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            try:
                found = in_form(name, night, row, source, picture)
            except (KeepOriginal, Declined) as reason:
                refused[name] = str(reason)
                continue
            size = len(found[0])
            if best is None or choose.better((name, size), (best[1]["form"], len(best[0]))):
                best = found
            rivals = choose.rivals(name, size, row["size"], row["format"])
            waiting += [rival for rival in rivals if rival not in (*names, *refused)]
        pixels = (row["width"] or 0) * (row["height"] or 0)
        if best and (row["exact_only"] or choose.settled(best[1]["form"], len(best[0]), pixels, night.codec)):
            break
    if best is None:
        raise KeepOriginal(why_kept(row, refused))
    if choose.GIVES_BACK[best[1]["form"]] != "seen":
        lossy = (reason for name, reason in refused.items() if choose.GIVES_BACK[name] == "seen")
        why = row["reason"] if row["exact_only"] else next(lossy, None)
        best[1]["reason"] = f"stored without loss: {why}" if why else None
    return best


def in_form(name: str, night: Night, row: dict, source: bytes, picture: Picture | None) -> tuple[bytes, dict]:
    """Stored bytes in one form, verified, and their columns. Raises KeepOriginal, Declined."""
    if name == choose.LEARNED:
        data, columns = encode_verified(night, row, picture, network(night))
    elif choose.GIVES_BACK[name] == "seen":
        data, columns = open_format_verified(name, night, row, source, picture)
    else:
        data = choose.FORMS[name].encode(source, picture)
        refuse_small_gain(len(data), row["size"], night.min_gain)
        columns = without_loss(name, row, data)
    return data, columns | {"form": name, "gives_back": choose.GIVES_BACK[name]}


def open_format_verified(name: str, night: Night, row: dict, source: bytes, picture: Picture) -> tuple[bytes, dict]:
    """AVIF or JPEG XL to the night's target, and its columns. Raises KeepOriginal, Declined."""
    form, image = choose.FORMS[name], clean(picture, row)
    data = form.encode(source, image, Goal(night.metric, night.target))
    refuse_small_gain(len(data), row["size"], night.min_gain)
    back = open_picture(form.decode(data), night.max_pixels, checked=False)
    refuse_silence(back, picture)
    decoded, original = back.image, Original(image.image)
    return data, {
        "reason": row["reason"] if row["denoised"] else None, "not_removable": None, "quality": None, "model": None,
        "bpp": metrics.bpp(len(data), image.width, image.height), "codec": f"{name}/1",
        "output_sha256": hashlib.sha256(data).hexdigest(),
        **measures(original, Original(picture.image) if row["denoised"] else original, decoded),
    }  # fmt: skip


def without_loss(name: str, row: dict, data: bytes) -> dict:
    """Columns of what gives back the file's bytes or pixels: equal by proof, so that nothing is measured."""
    width, height = row["width"] or 0, row["height"] or 0
    side = min(width, height)
    return {
        "reason": None, "not_removable": None, "quality": None, "model": None, "denoised": False,
        "bpp": metrics.bpp(len(data), width, height) if side else None, "codec": f"{name}/1",
        "output_sha256": hashlib.sha256(data).hexdigest(), "psnr": math.inf, "psnr_source": math.inf,
        "ms_ssim": 1.0 if side >= metrics.MS_SSIM_MIN_SIDE else None,
        "ssimulacra2": 100.0 if side >= SSIMULACRA2_MIN_SIDE else None, "worst_tile": 1.0,
    }  # fmt: skip


def why_kept(row: dict, refused: dict[str, str]) -> str:
    """Why no lossy form takes the picture, and what those without loss gain."""
    lossy = [reason for name, reason in refused.items() if choose.GIVES_BACK[name] == "seen"]
    others = [reason for name, reason in refused.items() if choose.GIVES_BACK[name] != "seen"]
    first = row["reason"] if row["exact_only"] else lossy[0] if lossy else None
    gains = next((reason for reason in others if "--min-gain" in reason), others[-1] if others else None)
    return "; without loss: ".join(reason for reason in (first, gains) if reason)


# --- the learned codec ---


def encode_verified(night: Night, row: dict, picture: Picture, model) -> tuple[bytes, dict]:
    """Bitstream that decodes to what it should, and the columns that say so. Raises KeepOriginal."""
    image = clean(picture, row)
    prepared = encoder.prepare(image, model)
    original, reached = prepared.original, None
    if row["stored_bytes"]:
        bitstream = in_budget(prepared, row["stored_bytes"])
    elif night.quality is not None:
        bitstream = prepared.code(level_of(night.quality))
    else:
        reached = on_target(prepared, night)
        bitstream = reached.bitstream
    del prepared
    refuse_small_gain(len(bitstream), row["size"], night.min_gain)
    back = decoder.decode_picture(bitstream, model=model, max_pixels=night.max_pixels)
    decoded = back.image
    refuse_silence(back, picture)
    if image.image.mode != decoded.mode or not same_alpha(image.image, decoded):
        raise CodecError("the bitstream decodes to another mode or alpha plane than was encoded")
    if reached:
        refuse_miss(reached.metric, floor_of(night, reached.metric), original, decoded)
    losses = original.losses(decoded)
    return bitstream, {
        "reason": row["reason"] if row["denoised"] else FINER if reached and reached.finer else None,
        "not_removable": None if losses.acceptable else losses.in_words(),
        **measures(original, Original(picture.image) if row["denoised"] else original, decoded),
        **bitstream_columns(bitstream, image),
    }  # fmt: skip


def measures(encoded: Original, source: Original, decoded: Image.Image) -> dict:
    """How near the decoded bitstream comes to what was encoded, and to the source (the same unless it was denoised)."""
    return {
        "psnr": encoded.psnr(decoded), "ms_ssim": encoded.ms_ssim(decoded), "psnr_source": source.psnr(decoded),
        "ssimulacra2": source.ssimulacra2(decoded), "worst_tile": source.losses(decoded).worst_tile,
    }  # fmt: skip


def bitstream_columns(bitstream: bytes, image: Picture) -> dict:
    facts = decoder.info(bitstream)
    return {
        "quality": facts["quality"], "bpp": metrics.bpp(len(bitstream), image.width, image.height),
        "codec": f"npi/{facts['version']}", "model": facts["model"],
        "output_sha256": hashlib.sha256(bitstream).hexdigest(),
    }  # fmt: skip


def network(night: Night):
    """The night's codec, loaded once per process: the installation's, or its copy under DEST. Raises NoModel."""
    own = codec_model()
    try:
        if own.identity == night.model:
            return models.get_model(own.path, device=night.device)
        folder = local_copy(store_of(night.dest), f"models/{night.model}.safetensors").parent
        return models.get_model(night.model, device=night.device, folders=[str(folder)])
    except (CodecError, ValueError, KeyError, RuntimeError) as error:
        raise NoModel(f"the codec's model {night.model} ({own.path}) can't be used: {error}") from error


def on_target(prepared: encoder.AnalysedPicture, night: Night) -> rate.Reached:
    try:
        return rate.target_level(prepared, night.metric, night.target, everywhere=True)
    except rate.LocalLossRemains as error:
        raise KeepOriginal(str(error)) from None
    except rate.TargetUnreachable as error:
        raise KeepOriginal(f"the target can't be reached: {error}") from None


def in_budget(prepared: encoder.AnalysedPicture, share: int) -> bytes:
    try:
        return rate.target_level(prepared, "bytes", share).bitstream
    except rate.TargetUnreachable as error:
        raise KeepOriginal(f"its share of the budget, {share:,} bytes, can't be kept: {error}") from None


def floor_of(night: Night, metric: str) -> float:
    """What the metric that was aimed at must reach: pictures that are too small for it take PSNR instead."""
    return night.target if metric == night.metric else rate.SMALL_PICTURE_PSNR


def refuse_small_gain(stored: int, source: int, min_gain: float) -> None:
    """Kept, where the bitstream saves less than `min_gain` percent."""
    gain = 100 * (1 - stored / max(source, 1))
    if gain < min_gain:
        saves = f"saves {gain:.1f} %" if gain > 0 else f"is {-gain:.1f} % larger"
        raise KeepOriginal(
            f"the bitstream {saves} ({stored:,} of {source:,} bytes); --min-gain asks for {min_gain:g} %"
        )


def refuse_miss(metric: str, floor: float, original: Original, decoded: Image.Image) -> None:
    """Kept, where the decoded bitstream is below its target."""
    value = {"psnr": original.psnr, "ms-ssim": original.ms_ssim, "ssimulacra2": original.ssimulacra2}[metric](decoded)
    if value < floor:
        raise KeepOriginal(f"the target {metric}={floor:g} can't be reached: the decoded bitstream has {value:.5g}")


def same_alpha(a: Image.Image, b: Image.Image) -> bool:
    return "A" not in a.mode or a.getchannel("A").tobytes() == b.getchannel("A").tobytes()


# --- enlarged pictures ---


def refuse_silence(back: Picture, picture: Picture) -> None:
    """CodecError, where what comes back does not say all that the file said beside its pixels."""
    if not same_facts(back.metadata, picture.metadata):
        raise CodecError("what comes back does not say all that the file said (EXIF, ICC, XMP, text ...)")


def wants_enlarging(night: Night, picture: Picture) -> bool:
    return night.superres and max(picture.image.size) <= ENLARGED_BELOW


def enlarged(row: dict, picture: Picture) -> bytes:
    """WebP of the picture at SCALE times its size; its XMP says whose it is and that its detail is synthetic."""
    image = restoration.upscale(clean(picture, row).image, SCALE)
    about = {"parentSha256": row["sha256"], "upscaler": restoration.upscaler_id(SCALE), "scale": SCALE}
    told = "".join(f' np:{name}="{value}"' for name, value in (about | {"syntheticDetail": "true"}).items())
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:np="urn:nightpress:derived"{told}/></rdf:RDF></x:xmpmeta>'
    )
    out = io.BytesIO()
    options = {"icc_profile": picture.icc} if picture.icc else {}
    image.save(out, "WEBP", quality=DERIVED_QUALITY, method=4, xmp=xmp.encode(), **options)
    return out.getvalue()


# --- the end ---


def cause(error: Exception) -> str:
    """Why a picture failed, in words."""
    if isinstance(error, PictureError):
        return error.reason
    return f"compressing it failed: {type(error).__name__}: {error}"


def killed_row(night: Night, item: dict, why: str) -> CompressedObject:
    error = f"KilledWorker: {why}"
    return CompressedObject(dict(item) | unstored("failed", why) | {"error": error, "retry": False})


def gather(night: Night, shard: str, results: list[CompressedObject]) -> pa.Table:
    """Write the shard's bitstreams, packed, and enlarged pictures; the rows with their places."""
    dest = store_of(night.dest)
    pack, parts, rows, offset = f"objects/{night.run_id}/{shard}.pack", [], [], 0
    for number, result in enumerate(results):
        row, data = result.row, result.bitstream
        if data is not None and len(data) < PACKED_BELOW:
            row |= {"output_key": pack, "output_offset": offset, "output_length": len(data)}
            parts.append(data)
            offset += len(data)
        elif data is not None:
            suffix = choose.SUFFIXES[row["form"]]
            key = f"objects/{night.run_id}/{shard}-{number}{suffix}"
            dest.write(key, data, content_type=CONTENT_TYPES.get(suffix, "application/octet-stream"))
            row |= {"output_key": key, "output_offset": 0, "output_length": len(data)}
        if result.derived is not None:
            key = f"objects/derived/{night.run_id}/{shard}-{number}.webp"
            about = {"parent-sha256": row["sha256"], "scale": str(SCALE), "synthetic-detail": "true"}
            about["upscaler"] = restoration.upscaler_id(SCALE)
            dest.write(key, result.derived, content_type="image/webp", metadata=about)
            row |= {"derived_key": key, "derived_bytes": len(result.derived)}
        rows.append(row)
    if parts:
        dest.write(pack, b"".join(parts), content_type="application/octet-stream")
    return table_of(rows, CATALOG_SCHEMA)
