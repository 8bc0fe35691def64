"""`nightpress dedup` and `nightpress similar`: duplicates on their own; nothing is stored in or taken from SOURCE.

What they do stands in tasks/duplicates/scan.py; here only options, progress and output.
"""

import argparse
import json
import os
from pathlib import Path

from flows.console import Progress, WorkFailed, WrongUsage, say
from tasks.report.words import size


def register(subparsers) -> None:
    dedup = subparsers.add_parser(
        "dedup",
        help="find duplicate pictures and show them; deletes nothing",
        epilog="Example: nightpress dedup s3://photos/2024 --out duplicates/",
    )
    dedup.add_argument("source", metavar="SOURCE", help="s3://bucket/prefix or a folder")
    dedup.add_argument("--out", type=Path, help="write groups.parquet and duplicates.html to this folder")
    dedup.add_argument("--kind", choices=("exact", "near"), default="near", help="equal bytes only, or copies too")
    dedup.add_argument("--distance", type=int, default=7, help="pHash bits that a copy may differ in (default 7)")
    dedup.add_argument(
        "--dedup-embedding",
        metavar="copy|classifier|autoencoder|FILE.onnx",
        help="also show altered copies (crops, frames, overlays, turned pictures), proposed by this network",
    )
    dedup.set_defaults(handler=run_dedup)

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

    for command in (dedup, similar):
        command.add_argument("--threads", type=int, help="objects read at a time (default 4 a core)")
        command.add_argument("--max-pixels", type=int, default=200_000_000, help="larger pictures are left out")
        command.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def embedder_of(option: str, kind: str | None):
    """The network that an option names, None where it is not given."""
    from tasks.duplicates.embeddings.embedder import EmbeddingError, open_embedder

    try:
        return open_embedder(kind) if kind else None
    except EmbeddingError as error:
        raise WrongUsage(f"{option} {error}") from error


def _surveyed(args: argparse.Namespace, embedder=None):
    """The store and a row per object, with its vector where there is an embedder; progress on stderr."""
    from tasks.duplicates.embeddings.embedder import EmbeddingError
    from tasks.duplicates.scan import scan_store
    from tasks.stores.base import StoreError
    from tasks.stores.open import open_store

    if args.threads is not None and args.threads < 1:
        raise WrongUsage(f"--threads {args.threads}: at least 1")
    try:
        store = open_store(args.source)
        objects = sorted(store.list(), key=lambda info: info.key)
    except ValueError as error:
        raise WrongUsage(f"SOURCE {error}") from error
    except StoreError as error:
        raise WorkFailed(f"can't list {args.source}: {error}") from error
    rows = []
    found = scan_store(store, objects, threads=args.threads, max_pixels=args.max_pixels, embedder=embedder)
    try:
        with Progress("fingerprint", len(objects)) as progress:
            for row in found:
                rows.append(row)
                progress.advance(bytes=row.get("source_bytes") or 0)
    except EmbeddingError as error:
        raise WorkFailed(str(error)) from error
    return store, rows


def run_dedup(args: argparse.Namespace) -> int:
    if not 0 <= args.distance <= 16:
        raise WrongUsage(f"--distance {args.distance}: pHash copies are within 0 to 16 bits; 7 is a good choice")
    if args.dedup_embedding and args.kind != "near":
        raise WrongUsage(
            f"--kind {args.kind} and --dedup-embedding {args.dedup_embedding} exclude each other: "
            "embeddings propose altered copies; use --kind near or leave --dedup-embedding out"
        )
    from tasks.duplicates.embeddings.embedder import proposed_from
    from tasks.duplicates.scan import altered, freed, group, groups_table

    store, rows = _surveyed(args, embedder_of("--dedup-embedding", args.dedup_embedding))
    unreadable = [row for row in rows if "error" in row]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    groups = group(store, rows, kind=args.kind, distance=args.distance, max_pixels=args.max_pixels)
    others = []
    if args.dedup_embedding:
        least = proposed_from(args.dedup_embedding)
        others = altered(
            store, rows, groups, least, max_pixels=args.max_pixels,
            looked=lambda n: say(f"confirm: {n:,} proposed pairs so far"),
        )  # fmt: skip
    kinds: dict[str, int] = {}
    for members in groups + others:
        for row in members[1:]:
            kinds[row["duplicate_kind"]] = kinds.get(row["duplicate_kind"], 0) + 1
    bytes_freed = sum(map(freed, groups))
    summary = {
        "objects": len(rows),
        "unreadable": len(unreadable),
        "groups": len(groups),
        "duplicates": kinds,
        "freed_bytes": bytes_freed,
    }
    if args.out:
        import pyarrow.parquet as pq

        from tasks.report.gallery import groups_page

        pq.write_table(groups_table(groups + others), args.out / "groups.parquet")
        page = groups_page(store, args.source, groups, others, len(rows), len(unreadable))
        (args.out / "duplicates.html").write_text(page, encoding="utf-8")
        summary |= {"groups_file": str(args.out / "groups.parquet"), "page": str(args.out / "duplicates.html")}
    if args.json:
        lists = {"group_list": [listed(members) for members in groups]}
        if args.dedup_embedding:
            lists["altered_list"] = [listed(members) for members in others]
        print(json.dumps(summary | lists, indent=1))
        return 0
    for row in unreadable[:10]:
        say(f"not read as a picture: {row['key']}: {row['error']}")
    if len(unreadable) > 10:
        say(f"… and {len(unreadable) - 10} more that are no readable pictures")
    for members in groups[: 20 if args.out else None]:
        print(f"{members[0]['key']}  stays; {size(freed(members))} could be freed")
        for row in members[1:]:
            near = f", distance {row['hamming_distance']}, {row['psnr']:.1f} dB" if row["psnr"] is not None else ""
            print(f"  {row['key']}  {row['duplicate_kind']}{near}; {row['reason']}")
    if args.out and len(groups) > 20:
        print(f"… and {len(groups) - 20} more groups in {summary['groups_file']}")
    for members in others[: 20 if args.out else None]:
        print(f"{members[0]['key']}  has altered copies, which stay")
        for row in members[1:]:
            print(f"  {row['key']}  similarity {row['similarity']:.2f}; {row['reason']}")
    if args.out and len(others) > 20:
        print(f"… and {len(others) - 20} more groups of altered copies in {summary['groups_file']}")
    found = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"
    print(
        f"{len(rows)} objects, {len(groups)} groups, duplicates: {found}; {size(bytes_freed)} could be freed "
        "(nothing was deleted)"
    )
    if args.out:
        print(f"page: {summary['page']}")
    return 0


def listed(members: list[dict]) -> dict:
    """A group in JSON."""
    from tasks.duplicates.scan import freed

    names = ("key", "duplicate_kind", "hamming_distance", "psnr", "reason", "source_bytes")
    if members[1]["duplicate_kind"] == "altered":
        names = (*names, "similarity", "inliers")
    return {
        "keeper": members[0]["key"],
        "freed_bytes": freed(members),
        "members": [{name: row.get(name) for name in names} for row in members[1:]],
    }


def run_similar(args: argparse.Namespace) -> int:
    import base64
    import io

    from codec.pictures.errors import PictureError
    from tasks.duplicates.agreement import agreement, original_of
    from tasks.duplicates.embeddings.embedder import EmbeddingError
    from tasks.duplicates.perceptual_hash import fingerprints
    from tasks.duplicates.scan import nearest
    from tasks.report.gallery import similar_page
    from tasks.report.thumbnails import flat
    from tasks.stores.base import StoreError

    if args.top < 1:
        raise WrongUsage(f"--top {args.top}: at least 1")
    if not args.image.is_file():
        raise WrongUsage(f"IMAGE {args.image} is not a file")
    data = args.image.read_bytes()
    query = fingerprints([data], max_pixels=args.max_pixels)[0]
    if "error" in query:
        raise WorkFailed(f"{args.image} can't be read as a picture: {query['error']}")
    try:
        mine = original_of(data, args.max_pixels)
        picture = mine.image
    except PictureError:  # 16 bits and the like: shown by its hashes, not compared pixel by pixel
        mine = picture = None
    if args.embedding and picture is None:
        raise WorkFailed(f"{args.image} is no 8-bit picture of one frame; --embedding needs one")
    embedder = embedder_of("--embedding", args.embedding)
    try:
        vector = embedder.embed([picture])[0] if embedder else None
    except EmbeddingError as error:
        raise WorkFailed(str(error)) from error
    store, rows = _surveyed(args, embedder)
    found = nearest(query, rows, len(rows) if embedder else args.top)
    if embedder:
        found = nearest_by_vector(vector, found, query["sha256"])[: args.top]
    for row in found:
        if row["sha256"] == query["sha256"]:
            row["verdict"], psnr = "the same file", None
        else:
            try:
                other = original_of(store.read(row["key"]), args.max_pixels)
                pair = sorted((mine, other), key=lambda one: -one.image.width * one.image.height) if mine else None
                look = agreement(*pair) if pair else None
            except (PictureError, StoreError):
                look = None
            row["verdict"] = "not compared" if look is None else "a copy" if look.agrees else "not a copy"
            if args.embedding and look is not None and not look.agrees:
                from tasks.duplicates.local_features import is_copy

                seen = is_copy(picture, other.image)
                row["verdict"] = f"an altered copy: {seen.why}" if seen.copy else row["verdict"]
            psnr = look.psnr if look is not None and abs(look.psnr) < float("inf") else None
        row["psnr"] = psnr
        distances = f"pHash {row['hamming_distance']}, dHash {row['dhash_distance']}, aHash {row['ahash_distance']}"
        cosine = f"similarity {row['similarity']:.2f}; " if args.embedding else ""
        row["how"] = cosine + distances + (f"; {psnr:.1f} dB" if psnr is not None else "")
    thumbnail = flat(picture) if picture is not None else flat_of(data)
    thumbnail.thumbnail((300, 224))
    out = io.BytesIO()
    thumbnail.save(out, "WEBP", quality=82)
    uri = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    page = similar_page(store, args.source, os.path.basename(args.image), query, uri, found)
    args.html.parent.mkdir(parents=True, exist_ok=True)
    args.html.write_text(page, encoding="utf-8")
    names = ("key", "verdict", "hamming_distance", "dhash_distance", "ahash_distance", "psnr", "width", "height")
    names += ("similarity",) if args.embedding else ()
    if args.json:
        print(json.dumps({"similar": [{name: row[name] for name in names} for row in found], "page": str(args.html)}))
        return 0
    for place, row in enumerate(found, start=1):
        print(f"{place}. {row['key']}  {row['verdict']} ({row['how']})")
    if not found:
        print(f"no readable pictures in {args.source}")
    print(f"page: {args.html}")
    return 0


def nearest_by_vector(mine, rows: list[dict], same: str) -> list[dict]:
    """Rows that have a vector, with `similarity` (cosine to `mine`), closest first; equal ones: sha256 `same` first."""
    scored = [row | {"similarity": float(row["vector"] @ mine)} for row in rows if "vector" in row]
    return sorted(scored, key=lambda row: (-row["similarity"], row["sha256"] != same, row["key"]))


def flat_of(data: bytes):
    """A picture that the codec does not carry, as 8-bit RGB for its thumbnail."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")
