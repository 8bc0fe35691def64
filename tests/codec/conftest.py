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
def grouped():
    """As tiny, but its latent is coded in three groups of channels."""
    from codec.model import load_model

    return load_model(lzma.decompress((DATA / "grouped.safetensors.xz").read_bytes()))


@pytest.fixture(scope="session", params=["tiny", "grouped"])
def either(request):
    """Each of the two models in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def golden() -> Path:
    return DATA / "golden"
