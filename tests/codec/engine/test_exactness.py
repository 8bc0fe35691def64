"""Indices and symbols are the same to the bit in whatever way they are computed; pixels within one grey step.

The ways and the comparison are tests/bench/exactness.py's, which prints the whole table; each way runs in a process
of its own here as there.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "exactness.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("exactness", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(rows: list[dict]) -> None:
    for row in rows:
        assert row["outcome"] == "same" and row["mismatches"] == 0, row
        assert row["symbols"] > 10_000
        assert abs(row["dB"]) < 0.02, row
        if "bfloat16" not in row["way"]:
            assert row["largest pixel difference"] <= 1, row


@pytest.mark.slow
def test_symbols_do_not_depend_on_the_way(bench, small_bytes, small, tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(small_bytes)
    files, originals = bench.make_files(small, None, 4, [0.0, 50.0, 100.0])
    here = [name for name, way in bench.WAYS.items() if way.get("device") != "cuda" or torch.cuda.is_available()]
    check(bench.compare(str(path), files, originals, here))
