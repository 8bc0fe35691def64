"""Measures the tables of trellis-coded quantisation, which are part of the format: run on purpose only.

    python -m codec.trellis_tables --data DIR [DIR ...] --model codec/weights/codec-4.safetensors --out FILE

Tables and what the search chooses by them depend on each other: three rounds, the first with Gaussian bins'.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np

from codec import trellis, trellis_search
from codec.model import LEVELS, PRECISION, integer_frequencies, load_model, packed_tensors, tally, unsigned
from codec.train import batch, load_pictures


def counted(model, pictures: list[np.ndarray], crops: int, rng: random.Random, bits, like: list) -> list:
    """How often each entry of tables `like` occurs in `crops` crops of 256x256 pixels, at all levels."""
    counts = [None if table is None else np.zeros(len(table)) for table in like]

    def search(residual, bins, states, uniform):
        return trellis_search.settle(residual, bins, states, model.thresholds, bits)

    for _ in range(crops // 4):
        y = model.analysis(batch(pictures, 4, 256, rng))
        for level in (rng.randint(0, LEVELS) for _ in range(4)):
            _, symbols, tables, _ = trellis.quantised(model, y, level, search)
            numbers = tables.numpy()
            tally(counts, numbers * (numbers >= trellis.FIRST_BIN), symbols.numpy())
    return counts


def measured(counts: list, prior: list, weight: float = 200.0) -> list:
    """Frequencies from counts, with `weight` symbols of the prior; a sign is as likely as the other."""
    tables: list = []
    for count, table in zip(counts, prior, strict=True):
        if count is None:
            tables.append(None)
            continue
        tables.append(integer_frequencies(unsigned(count) + table * (weight / (1 << PRECISION))))
    return tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=256)
    args = parser.parse_args()
    model, pictures, rng = load_model(args.model), load_pictures(args.data, 256), random.Random(11)
    prior = tables = trellis.parametric()
    for crops in (args.crops // 8, args.crops // 4, args.crops):
        bits = trellis.costs_of(tables)
        counts = counted(model, pictures, crops, rng, bits, prior)
        tables = measured(counts, prior)
        symbols = sum(c.sum() for c in counts if c is not None)
        spent = sum((c * (PRECISION - np.log2(t))).sum() for c, t in zip(counts, tables, strict=True) if c is not None)
        print(f"{symbols:.0f} symbols, {spent / symbols:.4f} bits each")
    coded = [table for table in tables if table is not None]
    arrays = {
        "frequencies": np.concatenate(coded).astype(np.uint16),
        "sizes": np.array([len(table) for table in coded], np.int32),
    }
    args.out.write_bytes(packed_tensors(arrays, {"format": "nightpress-trellis-1"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
