"""`nightpress similar`: the pictures of SOURCE that are most similar to one; nothing is stored in or taken from SOURCE.

How they are found stands in tasks/duplicates; here only options, comparison one by one and output.
"""

import argparse
import base64
import io
import json
import os
from pathlib import Path

from flows.commands.duplicates import add_scan_arguments, embedder_of, scanned
from flows.console import WorkFailed, WrongUsage


def register(subparsers) -> None:
    similar = subparsers.add_parser(
        "similar",
        help="find the pictures most similar to one",
        epilog="Example: nightpress similar holiday.jpg s3://photos --top 5",
    )
    similar.add_argument("image", metavar="IMAGE", type=Path)
    similar.add_argument("source", metavar="SOURCE", help="s3://bucket/prefix or a folder")
    similar.add_argument("--top", type=int, default=5, help="how many (default 5)")
    similar.add_argument(
        "--embedding",
        metavar="copy|classifier|autoencoder|FILE.onnx",
        help="nearest by this network instead of by hashes: finds crops, borders, overlays, turned pictures",
    )
    similar.add_argument("--html", type=Path, default=Path("similar.html"), help="the page (default similar.html)")
    similar.set_defaults(handler=run_similar)
    add_scan_arguments(similar)


def run_similar(args: argparse.Namespace) -> int:
    if args.top < 1:
        raise WrongUsage(f"--top {args.top}: at least 1")
    if not args.image.is_file():
        raise WrongUsage(f"IMAGE {args.image} is not a file")
    from codec.pictures.errors import PictureError
    from tasks.duplicates.agreement import original_of
    from tasks.duplicates.perceptual_hash import fingerprints
    from tasks.report.gallery import similar_page

    data = args.image.read_bytes()
    query = fingerprints([data], max_pixels=args.max_pixels)[0]
    if "error" in query:
        raise WorkFailed(f"{args.image} can't be read as a picture: {query['error']}")
    try:
        mine = original_of(data, args.max_pixels)
    except PictureError:  # 16 bits and the like: shown by its hashes, not compared pixel by pixel
        mine = None
    store, found = closest(args, query, mine)
    for row in found:
        compare(row, query, mine, store, args)
    page = similar_page(store, args.source, os.path.basename(args.image), query, thumbnail_of(mine, data), found)
    args.html.parent.mkdir(parents=True, exist_ok=True)
    args.html.write_text(page, encoding="utf-8")
    tell(args, found)
    return 0


def closest(args: argparse.Namespace, query: dict, mine) -> tuple[object, list[dict]]:
    """The store, and the rows of its pictures that are nearest: by hashes, or with --embedding by vectors."""
    from tasks.duplicates.embeddings.embedder import EmbeddingError
    from tasks.duplicates.scan import nearest

    if args.embedding and mine is None:
        raise WorkFailed(f"{args.image} is no 8-bit picture of one frame; --embedding needs one")
    embedder = embedder_of("--embedding", args.embedding)
    try:
        vector = embedder.embed([mine.image])[0] if embedder else None
    except EmbeddingError as error:
        raise WorkFailed(str(error)) from error
    store, rows = scanned(args, embedder)
    if embedder:
        return store, nearest_by_vector(vector, nearest(query, rows, len(rows)), query["sha256"])[: args.top]
    return store, nearest(query, rows, args.top)


def compare(row: dict, query: dict, mine, store, args: argparse.Namespace) -> None:
    """Sets `verdict`, `psnr` and `how` of a row: is it a copy, and how far is it away."""
    row["psnr"] = None
    if row["sha256"] == query["sha256"]:
        row["verdict"] = "the same file"
    else:
        row["verdict"], row["psnr"] = judged(row, mine, store, args)
    distances = f"pHash {row['hamming_distance']}, dHash {row['dhash_distance']}, aHash {row['ahash_distance']}"
    cosine = f"similarity {row['similarity']:.2f}; " if args.embedding else ""
    row["how"] = cosine + distances + (f"; {row['psnr']:.1f} dB" if row["psnr"] is not None else "")


def judged(row: dict, mine, store, args: argparse.Namespace) -> tuple[str, float | None]:
    """(verdict, PSNR where it is finite) by comparing pixels, and with --embedding points."""
    from codec.pictures.errors import PictureError
    from tasks.duplicates.agreement import agreement, original_of
    from tasks.duplicates.local_features import is_copy
    from tasks.stores.base import StoreError

    if mine is None:
        return "not compared", None
    try:
        other = original_of(store.read(row["key"]), args.max_pixels)
        larger, smaller = sorted((mine, other), key=lambda one: -one.image.width * one.image.height)
        look = agreement(larger, smaller)
        if not look.agrees and larger.image.size == smaller.image.size:  # whichever of the two was encoded again
            turned = agreement(smaller, larger)
            look = turned if turned.agrees else look
    except (PictureError, StoreError):
        look = None
    if look is None:
        return "not compared", None
    verdict = "a copy" if look.agrees else "not a copy"
    if args.embedding and not look.agrees and (seen := is_copy(mine.image, other.image)).copy:
        verdict = f"an altered copy: {seen.why}"
    return verdict, look.psnr if abs(look.psnr) < float("inf") else None


def thumbnail_of(mine, data: bytes) -> str:
    """The picture that is asked about, as a data URI; one that the codec does not carry as 8-bit RGB."""
    from PIL import Image

    from tasks.report.thumbnails import flat

    small = flat(mine.image) if mine is not None else Image.open(io.BytesIO(data)).convert("RGB")
    small.thumbnail((300, 224))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def tell(args: argparse.Namespace, found: list[dict]) -> None:
    names = ("key", "verdict", "hamming_distance", "dhash_distance", "ahash_distance", "psnr", "width", "height")
    names += ("similarity",) if args.embedding else ()
    if args.json:
        print(json.dumps({"similar": [{name: row[name] for name in names} for row in found], "page": str(args.html)}))
        return
    for place, row in enumerate(found, start=1):
        print(f"{place}. {row['key']}  {row['verdict']} ({row['how']})")
    if not found:
        print(f"no readable pictures in {args.source}")
    print(f"page: {args.html}")


def nearest_by_vector(mine, rows: list[dict], same: str) -> list[dict]:
    """Rows that have a vector, with `similarity` (cosine to `mine`), closest first; equal ones: sha256 `same` first."""
    scored = [row | {"similarity": float(row["vector"] @ mine)} for row in rows if "vector" in row]
    return sorted(scored, key=lambda row: (-row["similarity"], row["sha256"] != same, row["key"]))
