"""Hashes, second look and groups against truth sets of near duplicates.

    tests/bench/evaluate_duplicates.py FOLDER [--out FILE.json]

FOLDER is searched for groups.json (lists of file paths that show the same picture; only their names count) and for
ukbench files (`ukbench00120_resize.jpg` is an altered `ukbench00120.jpg`). Pairs of different groups are the
negatives. For each hash: precision and recall over pairs at a few distances, alone and after the second look at the
pixels, then for the stars that grouping makes of them (a pair counts when both have one keeper). The second look is
meant to refuse what re-encoding or resizing does not explain: rotated and mirrored copies are misses here on purpose.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np

from codec.pictures.errors import PictureError
from tasks.duplicates.agreement import agreement, original_of
from tasks.duplicates.groups import choose_keepers
from tasks.duplicates.hamming_pairs import pairs_within
from tasks.duplicates.perceptual_hash import HASHES, fingerprints, hex_to_codes
from tasks.duplicates.rules import keeper_rank


def truth(folder: Path) -> dict[str, dict[Path, object]]:
    """Sets: name -> file -> what it shows."""
    sets: dict[str, dict[Path, object]] = {}
    for listing in sorted(folder.rglob("groups.json")):
        files = {}
        for number, group in enumerate(json.loads(listing.read_text())):
            files |= {listing.parent / Path(name).name: number for name in group}
        sets[listing.parent.name] = {path: number for path, number in files.items() if path.is_file()}
    scenes = {path: path.name[:12] for path in sorted(folder.rglob("ukbench?????*.*")) if path.suffix == ".jpg"}
    if scenes:
        sets["ukbench"] = scenes
    return sets


def scores(found: set, right: set) -> dict:
    hits = len(found & right)
    return {"precision": hits / len(found) if found else None, "recall": hits / len(right), "found": len(found)}


def evaluate(files: dict[Path, object], distances: tuple[int, ...]) -> dict:
    facts, images, shows = [], [], []
    for path, what in files.items():
        data = path.read_bytes()
        row = fingerprints([data])[0]
        try:
            images.append(original_of(data))
        except PictureError:
            continue
        facts.append(row | {"key": path.name, "source_bytes": len(data)})
        shows.append(what)
    n = len(facts)
    right = {(a, b) for a, b in combinations(range(n), 2) if shows[a] == shows[b]}
    looks: dict[tuple[int, int], bool] = {}
    rank = [keeper_rank(row) for row in facts]

    def alike(a: int, b: int) -> bool:
        keeper, member = (a, b) if rank[a] <= rank[b] else (b, a)
        if (keeper, member) not in looks:
            looks[keeper, member] = agreement(images[keeper], images[member]).agrees
        return looks[keeper, member]

    result = {"pictures": n, "pairs": len(right)}
    for name in HASHES:
        codes = hex_to_codes([row[name] for row in facts])
        for distance in distances:
            pairs = pairs_within(codes, distance)
            close = set(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
            keeper = choose_keepers(
                n, rank, pairs, lambda k, m: np.array([alike(a, b) for a, b in zip(k, m, strict=True)])
            )
            home = [row if keeper[row] < 0 else int(keeper[row]) for row in range(n)]
            result[f"{name} {distance}"] = {
                "hash": scores(close, right),
                "looked": scores({pair for pair in close if alike(*pair)}, right),
                "groups": scores({(a, b) for a, b in combinations(range(n), 2) if home[a] == home[b]}, right),
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--distances", default="0,4,7,10")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    distances = tuple(int(distance) for distance in args.distances.split(","))
    results = {}
    for name, files in truth(args.folder).items():
        results[name] = result = evaluate(files, distances)
        print(f"\n{name}: {result['pictures']} pictures, {result['pairs']} true pairs (precision / recall)")
        print("hash   distance        alone      + second look        groups")
        for way, row in result.items():
            if isinstance(row, dict):
                cells = [
                    f"{'   -' if s['precision'] is None else format(s['precision'], '.2f')} / {s['recall']:.2f}"
                    for s in row.values()
                ]
                print(f"{way:12} " + "".join(f"{cell:>18}" for cell in cells))
    if not results:
        raise SystemExit(f"no groups.json and no ukbench files under {args.folder}")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
