"""Fixtures of the codec's tests: the frozen small model that the golden files were made with."""

import lzma
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def small_bytes() -> bytes:
    return lzma.decompress((DATA / "small.safetensors.xz").read_bytes())


@pytest.fixture(scope="session")
def small(small_bytes):
    from codec.network.files import load_model

    return load_model(small_bytes)


@pytest.fixture(scope="session")
def golden() -> Path:
    return DATA / "golden"
