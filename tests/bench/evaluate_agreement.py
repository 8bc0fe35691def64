"""How often near misses and true copies are taken for copies, by kind, and what the question costs.

    tests/bench/evaluate_agreement.py [--seed N] [--per-kind N]

Pairs are near_miss.py's, each asked of agreement.py alone, without hashes before it: near misses both ways round where
their sizes are equal, copies with the first as keeper. `excess` is 1 at the bound: a near miss's lowest, a copy's
highest. Seconds are this process's CPU time per megapixel of the member.
"""

import argparse
import importlib.util
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tasks.duplicates.agreement import agreement, original_of


def generator():
    """tests/near_miss.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("near_miss", Path(__file__).parents[1] / "near_miss.py")
    module = sys.modules["near_miss"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judged(pairs: Iterable, both_ways: bool) -> tuple[dict[str, list], float]:
    """({kind: [Agreement]}, seconds per megapixel)."""
    found, seconds, pixels = defaultdict(list), 0.0, 0
    for pair in pairs:
        first, second = original_of(pair.first), original_of(pair.second)
        asked = [(first, second)]
        if both_ways and first.image.size == second.image.size:
            asked.append((second, first))
        elif both_ways and first.image.width < second.image.width:
            asked = [(second, first)]
        kind = pair.kind
        if not both_ways and pair.quality is not None:
            kind += " q ≥ 50" if pair.quality >= 50 else " q < 50"
        for keeper, member in asked:
            begun = time.process_time()
            found[kind].append(agreement(keeper, member))
            seconds += time.process_time() - begun
            pixels += member.image.width * member.image.height
    return found, 1e6 * seconds / max(1, pixels)


def table(found: dict[str, list], copies: bool) -> list[str]:
    lines = []
    for kind, seen in sorted(found.items()):
        excess = [one.excess for one in seen if one.psnr < float("inf")]
        edge = (max if copies else min)(excess, default=0.0)
        lines.append(f"| {kind} | {len(seen)} | {sum(one.agrees for one in seen)} | {edge:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-kind", type=int, default=17, help="near misses of each kind (default 17)")
    args = parser.parse_args()
    pairs = generator()
    for title, some, copies in (
        ("near misses", pairs.near_misses(args.seed, args.per_kind), False),
        ("true copies", pairs.true_copies(args.seed), True),
    ):
        found, cost = judged(some, not copies)
        print(f"\n| {title} | asked | taken for copies | excess |\n|---|---|---|---|")
        print("\n".join(table(found, copies)))
        total, taken = sum(map(len, found.values())), sum(one.agrees for seen in found.values() for one in seen)
        print(f"\n{taken} of {total} taken for copies; {cost:.2f} s per megapixel", flush=True)


if __name__ == "__main__":
    main()
