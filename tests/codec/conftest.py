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


@pytest.fixture(scope="session")
def contextual_bytes(grouped_bytes) -> bytes:
    """As grouped, with contexts."""
    from codec.contexts_fit import with_contexts
    from codec.model import read_tensors

    packed = (DATA / "contexts.safetensors.xz").read_bytes()
    return with_contexts(grouped_bytes, read_tensors(lzma.decompress(packed), "nightpress-contexts-of-tests")[0])


@pytest.fixture(scope="session")
def contextual(contextual_bytes):
    from codec.model import load_model

    return load_model(contextual_bytes)


@pytest.fixture(scope="session", params=["tiny", "contextual"])
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


@pytest.fixture(scope="session")
def eight_bytes(grouped_bytes, tmp_path_factory) -> bytes:
    """The grouped model with plain ReLUs and quantisation steps: it can compute in 8 bits."""
    import dataclasses

    import numpy as np

    from codec.model import Config, NightCodec, float_tensors, read_model_file, save_model
    from codec.train import measure_steps

    arrays, metadata = read_model_file(grouped_bytes)
    model = NightCodec(dataclasses.replace(Config.of_json(metadata["config"]), leak=0.0))
    model.load_state_dict(float_tensors(model, arrays), strict=False)
    rng = np.random.default_rng(5)
    coarse = [rng.integers(0, 256, (7, 7, 3)).astype(np.uint8) for _ in range(4)]
    measure_steps(model, [np.kron(part, np.ones((16, 16, 1), np.uint8)) for part in coarse], 8, 96)
    path = tmp_path_factory.mktemp("eight") / "eight.safetensors"
    save_model(model, path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def eight(eight_bytes):
    from codec.model import load_model

    return load_model(eight_bytes)
