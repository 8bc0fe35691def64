"""Pictures made for the tests of forms: functions as fixtures."""

import io

import numpy as np
import pytest
from PIL import Image


def _scene(height=96, width=128, channels=3, seed=0) -> np.ndarray:
    """Smooth, with some noise: uint8 [H,W,C]."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    planes = [128 + 80 * np.sin(x / (9 + c)) * np.cos(y / (7 + c)) + rng.normal(0, 3, x.shape) for c in range(channels)]
    return np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8)


def _file_of(pixels: np.ndarray, format: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, format, **options)
    return out.getvalue()


@pytest.fixture(scope="session")
def scene():
    return _scene


@pytest.fixture(scope="session")
def file_of():
    return _file_of
