"""Recall of copies at precision 0.99, by attack: hashes, embeddings, the copy network with local confirmation.

    tests/bench/bench_copies.py --kodak FOLDER --tiles FOLDER [FOLDER ...] [--truth FOLDER] [--out DIR]

Without folders: the photographs that scikit-image's wheel carries, which shows that it runs and no more.

Originals: the pictures of --kodak and the tiles under --tiles whose original is held out from training (by hash of
INDEX.csv's `original`; not where training saw the same photograph in another file). From each of --sources of them
every attack makes one copy. Each copy is looked up among all originals and all other held-out tiles; hard negatives are
the other tiles of the same photographs, and that the same words and frames stand on copies of different pictures.

A pair (copy, original) is right or wrong; each method has one threshold for all attacks, the loosest at which 99 % of
the pairs it accepts are right. Not counted are pairs that show the same area although neither was made of the other:
overlapping tiles of one original, and tiles of two files of one photograph, whose names differ in the eight digits of
the file's hash only. The copy network with confirmation looks at the 10 nearest and counts what
tasks/duplicates/local_features.py confirms, once ranked by points that agree, and once, `its own rule`, whatever it
confirms. Wrong pairs that it confirms are printed, and laid side by side under --out, so that labels can be checked by
eye.

Truth sets (--truth): groups.json and ukbench files as evaluate_duplicates.py reads them, images4 pairs by file name;
pairs of one group against all others. Results: copies.json and copies.md under --out.
"""

import argparse
import csv
import io
import json
import re
import time
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from codec.training.splits import picture_files
from tasks.duplicates.agreement import Original, agreement
from tasks.duplicates.embeddings.embedder import KINDS, embed, network_id
from tasks.duplicates.local_features import compare, features
from tasks.duplicates.perceptual_hash import fingerprints, hex_to_codes

PRECISION = 0.99
NEAREST = 10
CONFIRMED = "copy + confirmation"
COSINES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def resized(image: Image.Image, percent: int) -> Image.Image:
    return image.resize([max(8, side * percent // 100) for side in image.size], Image.Resampling.BICUBIC)


def cropped(image: Image.Image, percent: int, rng) -> Image.Image:
    """`percent` of width and height are cut away, somewhere."""
    width, height = (side * (100 - percent) // 100 for side in image.size)
    x, y = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


def with_noise(image: Image.Image, sigma: float, rng) -> Image.Image:
    values = np.asarray(image, np.float32)
    return Image.fromarray(np.clip(values + sigma * rng.standard_normal(values.shape), 0, 255).astype(np.uint8))


def with_text(image: Image.Image, share: float) -> Image.Image:
    image, size = image.copy(), int(min(image.size) * share)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(("Summer sale", "only today!")):
        place = (image.width // 10, image.height // 4 + row * int(1.4 * size))
        draw.text(place, line, fill=(255, 255, 255), stroke_width=2, stroke_fill=(0, 0, 0),
                  font=ImageFont.load_default(size))  # fmt: skip
    return image


def framed(image: Image.Image, percent: int, colour) -> Image.Image:
    return ImageOps.expand(image, tuple(side * percent // 100 for side in image.size), colour)


ATTACKS = {
    **{f"jpeg q{q}": lambda i, rng, q=q: through_jpeg(i, q) for q in (5, 20, 75)},
    **{f"resize {p} %": lambda i, rng, p=p: resized(i, p) for p in (25, 50, 200, 400)},
    **{f"crop {p} %": lambda i, rng, p=p: cropped(i, p, rng) for p in (10, 25, 50)},
    **{f"rotate {a}°": lambda i, rng, a=a: i.rotate(a, Image.Resampling.BICUBIC, expand=True) for a in (5, 20, 45)},
    "rotate 90°": lambda i, rng: i.transpose(Image.Transpose.ROTATE_90),
    "flip": lambda i, rng: ImageOps.mirror(i),
    **{f"blur {s}": lambda i, rng, s=s: i.filter(ImageFilter.GaussianBlur(s)) for s in (2, 5)},
    **{f"noise {s}": lambda i, rng, s=s: with_noise(i, s, rng) for s in (15, 40)},
    "colour": lambda i, rng: ImageEnhance.Color(ImageEnhance.Brightness(i).enhance(1.35)).enhance(0.4),
    "contrast": lambda i, rng: ImageEnhance.Contrast(i).enhance(0.5),
    "grey": lambda i, rng: i.convert("L").convert("RGB"),
    "text": lambda i, rng: with_text(i, 0.13),
    "border 8 %": lambda i, rng: framed(i, 8, (255, 255, 255)),
    "border 25 %": lambda i, rng: framed(i, 25, (0, 0, 0)),
    "crop + text + jpeg": lambda i, rng: through_jpeg(with_text(cropped(i, 20, rng), 0.1), 30),
}


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PPM")
    return out.getvalue()


def codes(images: list[Image.Image]) -> dict[str, np.ndarray]:
    rows = fingerprints([png(image) for image in images], fast=False)
    return {name: hex_to_codes([row[name] for row in rows]) for name in ("phash", "dhash")}


def described(images: list[Image.Image]) -> dict[str, np.ndarray]:
    """Method -> what it compares: codes uint64 [n] or vectors float32 [n,128]."""
    return codes(images) | {kind: embed(images, kind) for kind in ("autoencoder", "classifier", "copy")}


def similarities(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Method -> float [n,m], larger is closer."""
    return {
        name: (one @ b[name].T).astype(float)
        if one.ndim == 2
        else -np.bitwise_count(one[:, None] ^ b[name][None]).astype(float)
        for name, one in a.items()
    }


def threshold_at(scores: np.ndarray, right: np.ndarray) -> float:
    """The lowest score from which PRECISION of the pairs are right; inf: none."""
    scores, right = scores[np.isfinite(scores)], right[np.isfinite(scores)]
    if not scores.size:
        return float("inf")
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    last_of_equal = np.r_[np.diff(scores) != 0, True]
    good = np.flatnonzero((precision >= PRECISION) & last_of_equal)
    return float(scores[good[-1]]) if good.size else float("inf")


def photograph(original: str) -> str:
    """The photograph's name without the hash of the file it came in: Tunnel-20987970.jpg -> Tunnel.jpg."""
    return re.sub(r"-[0-9a-f]{8}(?=\.\w+$)", "", original)


def shares_area(a: dict, b: dict) -> bool:
    """Whether two tiles of one photograph overlap, by their lines of INDEX.csv; positions are in pixels of each one's
    reduced photograph. Of two files of a photograph nothing says how they lie to each other: taken to overlap."""
    if a["original"] != b["original"]:
        return True
    spans = []
    for row in (a, b):
        scale, x, y, w, h = (float(row[name]) for name in ("downscale", "x", "y", "w", "h"))
        spans.append((scale * x, scale * y, scale * (x + w), scale * (y + h)))
    (l1, t1, r1, b1), (l2, t2, r2, b2) = spans
    return l1 < r2 and l2 < r1 and t1 < b2 and t2 < b1


def held_out_tiles(folders: list[Path]) -> list[tuple[Path, str, dict]]:
    """(file, its photograph, its line of INDEX.csv) of the tiles whose photograph training did not see."""
    lines: dict[Path, dict] = {}
    for index in (p for folder in folders for p in sorted(folder.rglob("INDEX.csv"))):
        with index.open(newline="", encoding="utf-8") as file:
            lines |= {index.parent / row["file"]: row for row in csv.DictReader(file)}
    tiles = [(path, photograph(original), held) for path, original, held in picture_files(folders)]
    trained = {name for _, name, held in tiles if not held}
    return [(path, name, lines[path]) for path, name, held in tiles if held and name not in trained]


def pictures_of(folder: Path | None) -> list[Path]:
    """The *.png of a folder; without one, photographs that scikit-image carries."""
    if folder is None:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
        names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "motorcycle_left.png")
        return [folder / name for name in names if (folder / name).is_file()]
    return sorted(folder.glob("*.png"))


def confirmation(cosine: np.ndarray, copies: list, originals: list, kept: dict) -> np.ndarray:
    """float [n,m]: points that agree, where the original is among the NEAREST and is confirmed; else -inf."""
    confirmed = np.full(cosine.shape, -np.inf)
    for place, copy in enumerate(copies):
        mine, mirrored = features(copy), features(copy, mirrored=True)
        for other in np.argsort(-cosine[place])[:NEAREST].tolist():
            if other not in kept:
                kept[other] = features(originals[other])
            seen = compare(kept[other], mine, mirrored)
            if seen.copy:
                confirmed[place, other] = seen.inliers
    return confirmed


def side_by_side(a: Image.Image, b: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (a.width + 8 + b.width, max(a.height, b.height)), "white")
    sheet.paste(a, (0, 0))
    sheet.paste(b, (a.width + 8, 0))
    return sheet


def reach(cosines: dict, own: np.ndarray, counted: np.ndarray, confirmed: dict | None) -> list[dict]:
    """What proposing from a cosine on gives, a row each of COSINES: share of the copies (own) and of the other pairs
    that reach it; with `confirmed` also recall and precision of what is then confirmed."""
    rows = []
    for least in COSINES:
        near = {name: values >= least for name, values in cosines.items()}
        row = {"cosine": least, "copies": float(np.mean([close[own].mean() for close in near.values()])),
               "others": float(np.mean([close[counted & ~own].mean() for close in near.values()]))}  # fmt: skip
        if confirmed:
            found = [np.isfinite(confirmed[name]) & near[name] & counted for name in near]
            hits, accepted = (int(sum(part.sum() for part in parts)) for parts in ([f & own for f in found], found))
            row |= {"recall": hits / (int(own.sum()) * len(near)), "precision": hits / accepted if accepted else None}
        rows.append(row)
    return rows


def attacked(args) -> dict:
    """The main table: recall by attack and method."""
    rng = np.random.default_rng(args.seed)
    kodak = [(path, path.name, None) for path in pictures_of(args.kodak)]
    tiles = held_out_tiles(args.tiles)
    known = kodak + tiles
    originals = [Image.open(path).convert("RGB") for path, *_ in known]
    photographs = list(dict.fromkeys(original for _, original, _ in tiles))
    first_tile = [next(i for i, row in enumerate(known) if row[1] == name) for name in photographs]
    chosen = list(range(len(kodak)))[: args.sources] + first_tile[: args.sources]
    print(f"{len(known)} known pictures, {len(chosen)} attacked, {len(ATTACKS)} attacks", flush=True)
    uncounted = np.zeros((len(chosen), len(known)), bool)
    for place, source in enumerate(chosen):
        for other, (_, original, line) in enumerate(known):
            if other != source and original == known[source][1]:
                uncounted[place, other] = shares_area(known[source][2], line)
    wrong: list[dict] = []
    kept = {}
    facts = described(originals)
    scores: dict[str, dict[str, np.ndarray]] = {}
    started = time.perf_counter()
    for name, attack in ATTACKS.items():
        copies = [attack(originals[source], rng) for source in chosen]
        found = similarities(described(copies), facts)
        if not args.without_confirmation:
            found[CONFIRMED] = points = confirmation(found["copy"], copies, originals, kept)
            for place, other in np.argwhere(np.isfinite(points) & ~uncounted).tolist():
                if other != chosen[place]:
                    pair = [str(Path(*known[at][0].parts[-2:])) for at in (chosen[place], other)]
                    wrong.append({"attack": name, "copy_of": pair[0], "taken_for": pair[1],
                                  "inliers": int(points[place, other])})  # fmt: skip
                    print(f"  wrong: {json.dumps(wrong[-1])}", flush=True)
                    if args.out:
                        (args.out / "wrong").mkdir(parents=True, exist_ok=True)
                        sheet = side_by_side(copies[place], originals[other])
                        sheet.save(args.out / "wrong" / f"{len(wrong):03d}.webp")
        for method, values in found.items():
            scores.setdefault(method, {})[name] = values
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    counted = ~uncounted
    own = np.zeros(counted.shape, bool)
    own[np.arange(len(chosen)), chosen] = True
    if CONFIRMED in scores:  # by its own rule: whatever is confirmed, however many points agree
        scores[f"{CONFIRMED}, its own rule"] = {
            name: np.where(np.isfinite(points), 1.0, -np.inf) for name, points in scores[CONFIRMED].items()
        }
    table, overall, thresholds, in_reach = {}, {}, {}, {}
    for method, by_attack in scores.items():
        flat = np.concatenate([values[counted] for values in by_attack.values()])
        right = np.concatenate([own[counted]] * len(by_attack))
        thresholds[method] = at = 1.0 if method.endswith("its own rule") else threshold_at(flat, right)
        table[method] = {name: float((values[own] >= at).mean()) for name, values in by_attack.items()}
        overall[method] = float(np.mean(list(table[method].values())))
        accepted = np.isfinite(flat) & (flat >= at)
        in_reach[method] = {"accepted": int(accepted.sum()), "wrong": int((accepted & ~right).sum())}
    near = np.concatenate([
        (np.argsort(-values, axis=1)[:, :NEAREST] == np.array(chosen)[:, None]).any(1)
        for values in scores["copy"].values()
    ])  # fmt: skip
    return {
        "known": len(known), "attacked": len(chosen), "recall": table, "mean": overall, "thresholds": thresholds,
        "pairs": in_reach, "copy_in_nearest": float(near.mean()), "left_out": int(uncounted.sum()), "wrong": wrong,
        "reach": {kind: reach(scores[kind], own, counted, scores.get(CONFIRMED) if kind == "copy" else None)
                  for kind in ("copy", "classifier", "autoencoder")},
        "models": {kind: network_id(kind) for kind in KINDS},
    }  # fmt: skip


# -- truth sets


def truth(folder: Path) -> dict[str, dict[Path, object]]:
    """Set -> file -> what it shows."""
    sets: dict[str, dict[Path, object]] = {}
    for listing in sorted(folder.rglob("groups.json")):
        files = {}
        for number, group in enumerate(json.loads(listing.read_text())):
            files |= {listing.parent / Path(name).name: number for name in group}
        sets[listing.parent.name] = files
    scenes = {path: path.name[:12] for path in sorted(folder.rglob("ukbench?????*.jpg"))}
    if scenes:
        sets["imagededup (ukbench)"] = scenes
    forum = [p for name in ("euclidean", "resample", "rotate") for p in sorted(folder.rglob(f"images4_pairs/{name}/*"))]
    if forum:  # one photograph in all of them; blank pictures, which every hash takes for each other, are negatives
        files = {path: path.name if "uniform" in path.name else "forum" for path in forum}
        sets["images4"] = files | {path: "sky" for path in sorted(folder.rglob("images4_pairs/custom/*"))}
    return {name: {path: what for path, what in files.items() if path.is_file()} for name, files in sets.items()}


def on_truth(files: dict[Path, object], thresholds: dict[str, float]) -> dict:
    images, shows = [], []
    for path, what in files.items():
        try:
            images.append(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        except OSError:
            continue
        shows.append(what)
    pairs = np.array(list(combinations(range(len(images)), 2)))
    right = np.array([shows[a] == shows[b] for a, b in pairs])
    out = {"pictures": len(images), "pairs": int(right.sum()), "methods": {}}
    facts = described(images)
    every = {method: values[pairs[:, 0], pairs[:, 1]] for method, values in similarities(facts, facts).items()}
    straight = [features(image) for image in images]
    mirrored = [features(image, mirrored=True) for image in images]
    near = np.argsort(-(facts["copy"] @ facts["copy"].T), axis=1)[:, 1 : NEAREST + 1]
    confirmed = np.full(len(pairs), -np.inf)
    for place, (a, b) in enumerate(pairs.tolist()):
        if b in near[a] or a in near[b]:
            seen = compare(straight[a], straight[b], mirrored[b])
            confirmed[place] = seen.inliers if seen.copy else -np.inf
    every[CONFIRMED] = confirmed
    every[f"{CONFIRMED}, its own rule"] = np.where(np.isfinite(confirmed), 1.0, -np.inf)
    for method, values in every.items():
        if method not in thresholds:
            continue
        own = threshold_at(values, right)
        accepted = np.isfinite(values) & (values >= thresholds[method])
        hits = int((accepted & right).sum())
        out["methods"][method] = {
            "recall_at_own_0.99": float((values[right] >= own).mean()),
            "recall": hits / int(right.sum()),
            "precision": hits / int(accepted.sum()) if accepted.any() else None,
        }
    both = [(Original(images[a]), Original(images[b])) for a, b in pairs[right].tolist()]
    restorable = [agreement(a, b).agrees or agreement(b, a).agrees for a, b in both]
    out["restorable"] = float(np.mean(restorable))
    return out


def markdown(result: dict) -> str:
    methods = list(result["recall"])
    lines = [f"Recall at precision {PRECISION}, {result['attacked']} originals per attack among {result['known']}.", ""]
    lines += ["| attack | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    for name in ATTACKS:
        lines.append(f"| {name} | " + " | ".join(f"{result['recall'][method][name]:.2f}" for method in methods) + " |")
    lines.append("| **mean** | " + " | ".join(f"**{result['mean'][method]:.3f}**" for method in methods) + " |")
    for method in methods:
        if method.endswith("hash"):
            lines.append("")
            lines.append(f"{method}: distance at most {-result['thresholds'][method]:.0f}.")
    pairs = ", ".join(f"{method} {facts['accepted']} ({facts['wrong']})" for method, facts in result["pairs"].items())
    at = ", ".join(f"{method} {value:.3g}" for method, value in result["thresholds"].items()
                   if value > 0 and not method.endswith("its own rule"))  # fmt: skip
    lines += ["", f"Accepted pairs (wrong ones): {pairs}. Thresholds (cosine, points): {at}.", ""]
    lines += [f"The copy network has the original among its {NEAREST} nearest for {result['copy_in_nearest']:.1%}.", ""]
    lines += ["Proposed from a cosine on: copies, and pairs of different pictures, that reach it; by the copy network "
              "also recall and precision of what is then confirmed.", "",
              "| cosine | " + " | ".join(result["reach"]) + " |", "|---|" + "---|" * len(result["reach"])]  # fmt: skip
    for rows in zip(*result["reach"].values(), strict=True):
        cells = [f"{row['copies']:.1%}, {row['others']:.3%}" for row in rows]
        if rows[0].get("precision"):
            cells[0] += f"; {rows[0]['recall']:.3f} at {rows[0]['precision']:.3f}"
        lines.append(f"| {rows[0]['cosine']} | " + " | ".join(cells) + " |")
    if result.get("truth"):
        lines += ["", "Truth sets: recall (precision) at the thresholds above; in brackets recall at the set's own "
                  "precision 0.99.", "", "| set | " + " | ".join(methods) + " | restorable |",
                  "|---|" + "---|" * (len(methods) + 1)]  # fmt: skip
        for name, facts in result["truth"].items():
            cells = []
            for method in methods:
                m = facts["methods"][method]
                precise = "-" if m["precision"] is None else f"{m['precision']:.2f}"
                cells.append(f"{m['recall']:.2f} ({precise}) [{m['recall_at_own_0.99']:.2f}]")
            lines.append(f"| {name}: {facts['pictures']} pictures, {facts['pairs']} pairs | " + " | ".join(cells)
                         + f" | {facts['restorable']:.2f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kodak", type=Path)
    parser.add_argument("--tiles", type=Path, nargs="+", default=[])
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--sources", type=int, default=24, help="originals attacked of each kind (default 24)")
    parser.add_argument("--without-confirmation", action="store_true", help="hashes and vectors alone: much quicker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    result = attacked(args)
    keep(result, args.out)
    if args.truth:
        result["truth"] = {}
        for name, files in truth(args.truth).items():
            result["truth"][name] = on_truth(files, result["thresholds"])
            keep(result, args.out)
    print(markdown(result))


def keep(result: dict, out: Path | None) -> None:
    """What there is so far, as JSON and Markdown."""
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "copies.json").write_text(json.dumps(result, indent=1))
        (out / "copies.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
