"""Fixtures of the codec's tests: the frozen small models that the golden files were made with."""

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
def grouped_bytes() -> bytes:
    return lzma.decompress((DATA / "grouped.safetensors.xz").read_bytes())


@pytest.fixture(scope="session")
def grouped(grouped_bytes):
    """As tiny, but its latent is coded in three groups of channels."""
    from codec.model import load_model

    return load_model(grouped_bytes)


@pytest.fixture(scope="session", params=["tiny", "grouped"])
def which(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def either(request, which):
    """Each of the two models in turn."""
    return request.getfixturevalue(which)


@pytest.fixture(scope="session")
def either_bytes(request, which) -> bytes:
    return request.getfixturevalue(f"{which}_bytes")


@pytest.fixture(scope="session")
def golden() -> Path:
    return DATA / "golden"
