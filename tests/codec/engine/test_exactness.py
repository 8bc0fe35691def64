"""Indices and symbols are the same to the bit in whatever way they are computed; pixels within one grey step.

The ways and the comparison are tests/bench/exactness.py's, which prints the whole table; each way runs in a process
of its own here as there.
"""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "exactness.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("exactness", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_path(small_bytes, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    path.write_bytes(small_bytes)
    return str(path)


def check(rows: list[dict]) -> None:
    for row in rows:
        if row["outcome"] == "no CUDA here":
            continue
        assert row["outcome"] == "same" and row["mismatches"] == 0, row
        assert row["symbols"] > 10_000
        assert abs(row["dB"]) < 0.02, row
        if "bfloat16" not in row["way"] and "8-bit" not in row["way"]:
            assert row["largest pixel difference"] <= 1, row


@pytest.mark.slow
def test_symbols_do_not_depend_on_threads_or_batches(bench, model_path, small):
    files, originals = bench.make_files(small, None, 3, [10.0, 90.0])
    check(bench.compare(model_path, files, originals, ["1 thread", "batch of 8, 2 threads", "float64"]))


@pytest.mark.slow
def test_symbols_do_not_depend_on_eight_bits(bench, small_bytes, small, tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(small_bytes)
    files, originals = bench.make_files(small, None, 4, [0.0, 60.0])
    names = ["1 thread", "float64", *(name for name in bench.WAYS if "8-bit" in name)]
    rows = bench.compare(str(path), files, originals, names)
    check(rows)
    assert len(rows) == 4


@pytest.mark.slow
def test_symbols_do_not_depend_on_the_way(bench, model_path, small):
    files, originals = bench.make_files(small, None, 4, [0.0, 50.0, 100.0])
    check(bench.compare(model_path, files, originals, list(bench.WAYS)))
