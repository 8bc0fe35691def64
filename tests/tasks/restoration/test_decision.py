"""What `auto` cleans: clear noise and impulses; no picture whose texture is its content."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tasks.restoration import denoise
from tasks.restoration.decision import decide, examine
from tasks.restoration.noise import UnsupportedPicture

spec = importlib.util.spec_from_file_location("textured", Path(__file__).with_name("textured.py"))
textured = importlib.util.module_from_spec(spec)
spec.loader.exec_module(textured)


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(skimage.data.chelsea())


def noisy(image, sigma, seed=0):
    samples = np.asarray(image, dtype=float)
    added = np.random.default_rng(seed).normal(0, sigma, samples.shape)
    return Image.fromarray(np.clip(np.rint(samples + added), 0, 255).astype(np.uint8), image.mode)


def test_clean_pictures_are_left_alone(cat):
    for name in ("chelsea", "astronaut", "coffee", "page", "grass", "gravel", "hubble_deep_field"):
        image = Image.fromarray(getattr(skimage.data, name)())
        assert not decide(image).noisy, name
        assert denoise(image) is image


@pytest.mark.slow
@pytest.mark.parametrize("family", textured.FAMILIES)
def test_texture_that_is_content_is_left_alone(family):
    for name, image in textured.textured(0, (family,)):
        decision = decide(image)
        assert not decision.noisy, f"{name}: {decision.why}"


@pytest.mark.parametrize("family", ["static", "grain", "points"])
def test_texture_that_is_content_is_left_alone_in_short(family):
    for name, image in textured.textured(7, (family,)):
        decision = decide(image)
        assert not decision.noisy, f"{name}: {decision.why}"


def test_decision_knows_jpeg_and_size(cat):
    grainy = noisy(cat, 20)
    assert decide(grainy).noisy
    assert decide(grainy, jpeg_quality=95).noisy
    coarse = decide(grainy, jpeg_quality=60)
    assert not coarse.noisy and "JPEG quality 60" in coarse.why and coarse.sigma > 15
    assert not decide(grainy.crop((0, 0, 300, 40))).noisy
    assert not decide(grainy.quantize(16)).noisy
    with pytest.raises(UnsupportedPicture, match="CMYK"):
        decide(grainy.convert("CMYK"))
    cut_out = grainy.convert("RGBA")
    cut_out.putalpha(Image.linear_gradient("L").resize(cut_out.size))
    assert not decide(cut_out).noisy
    cut_out.putalpha(255)
    assert decide(cut_out).noisy


def test_impulses_and_noise_are_told_apart_and_removed_together(cat):
    samples, rng = np.array(cat), np.random.default_rng(1)
    at = rng.integers(0, samples.shape[0], 1500), rng.integers(0, samples.shape[1], 1500)
    samples[at] = 255
    decision, mask = examine(Image.fromarray(samples))
    assert decision.noisy and decision.strength == 0 and decision.sigma < 4
    assert decision.impulses == mask.any(axis=2).sum() and 1350 < decision.impulses < 1600
    assert f"{decision.impulses:,} pixels" in decision.why and "impulses" in decision.why
    cleaned = np.asarray(denoise(Image.fromarray(samples)))
    assert (cleaned[~mask] == samples[~mask]).all()
    both = np.array(noisy(cat, 9))
    both[at] = 255
    decision, _ = examine(Image.fromarray(both))
    assert decision.impulses > 800 and decision.strength == pytest.approx(9, rel=0.15)
    error = np.asarray(denoise(Image.fromarray(both)), float) - np.asarray(cat)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 31
