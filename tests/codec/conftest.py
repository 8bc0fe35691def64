"""Fixtures of the codec's tests: the frozen tiny model that the golden files were made with."""

import lzma
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def tiny_bytes() -> bytes:
    return lzma.decompress((DATA / "tiny.safetensors.xz").read_bytes())


@pytest.fixture(scope="session")
def tiny(tiny_bytes):
    from codec.model import load_model

    return load_model(tiny_bytes)


@pytest.fixture(scope="session")
def golden() -> Path:
    return DATA / "golden"
