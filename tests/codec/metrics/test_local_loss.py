"""The guard against local loss: what a person would miss is found wherever it lies, honest coding is not blamed."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.color import deltaE_ciede2000, rgb2lab

from codec.metrics import ms_ssim
from codec.metrics.local_loss import LARGEST_DELTA_E, LEAST_SHARE, LocalLoss, ciede2000, lab, local_loss
from codec.metrics.ssimulacra2 import ssimulacra2


def rounded(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def written(shape, places, size, contrast, background):
    """Grey [H,W]: words at places on a plain background (a number or [H,W]), darker by `contrast`."""
    mask = Image.new("L", shape[::-1], 0)
    for x, y, words in places:
        ImageDraw.Draw(mask).text((x, y), words, fill=255, font=ImageFont.load_default(size))
    return rounded(background - contrast * (np.asarray(mask) / 255))


def sky(seed=1, shape=(256, 320), noise=2.0):
    """A gradient with grain, as photographs of the sky have."""
    down = np.linspace(60, 110, shape[0])[:, None] + np.zeros(shape)
    return down + np.random.default_rng(seed).normal(0, noise, shape)


def smoothed(array, sigma):
    return rounded(gaussian_filter(array.astype(np.float64), (sigma, sigma, 0)[: array.ndim]))


def jpeg(array, quality):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(io.BytesIO(out.getvalue())))


def test_equal_pictures_have_lost_nothing():
    for picture in (data.astronaut()[:200, :300], data.camera()[:100, :77], data.chelsea()[:5, :3]):
        losses = local_loss(picture, picture)
        assert losses.worst_tile == 1 and losses.flat_colour == 0 and losses.acceptable


@pytest.mark.parametrize("contrast, size", [(8, 14), (12, 14), (20, 20), (60, 12)])
def test_faint_writing_that_is_gone_is_missed(contrast, size):
    places = [(20, 30 + 40 * line, "Notes on the harvest of 1871") for line in range(4)]
    page = written((220, 300), places, size, contrast, 245.0)
    blank = np.full_like(page, 245)
    losses = local_loss(page, blank)
    assert losses.worst_tile < 0.35 and losses.flat_colour < LARGEST_DELTA_E
    x, y, side = losses.worst_place
    assert page[y : y + side, x : x + side].min() < 245
    smeared = local_loss(page, smoothed(page, 3))
    assert smeared.worst_tile < LEAST_SHARE


def test_one_digit_on_a_page_of_writing_does_not_average_away():
    places = [(16, 10 + 30 * line, f"{line}4 pieces of slate, delivered") for line in range(8)]
    page = written((260, 320), places, 16, 150, 250.0)
    amount = written((260, 320), [*places, (270, 100, "7")], 16, 150, 250.0)
    assert ms_ssim(amount, page) > 0.99
    losses = local_loss(amount, page)
    assert losses.worst_tile < 0.2
    x, y, side = losses.worst_place
    assert 250 < x + side / 2 < 300 and 90 < y + side / 2 < 130


def test_another_digit_is_another_structure():
    one, other = (written((80, 160), [(20, 20, f"{digit}2 GB")], 24, 160, 240.0) for digit in (3, 8))
    assert local_loss(other, one).worst_tile < 0.75 and local_loss(one, other).worst_tile < 0.95
    assert local_loss(one, one).worst_tile == 1


@pytest.mark.parametrize("brightness", [25, 60, 150])
def test_a_star_in_a_grainy_sky_is_missed(brightness):
    night = sky()
    rows, columns = np.mgrid[: night.shape[0], : night.shape[1]]
    star = brightness * np.exp(-((rows - 100) ** 2 + (columns - 212) ** 2) / (2 * 0.9**2))
    losses = local_loss(rounded(night + star), rounded(night))
    assert losses.worst_tile < 0.5
    x, y, side = losses.worst_place
    assert x <= 212 < x + side and y <= 100 < y + side


def test_the_star_beside_a_brighter_one_too():
    dark = np.full((200, 200), 10.0)
    dark[100:102, 100:102] = 40
    without = rounded(dark)
    dark[100:102, 120:122] = 250
    lost = dark.copy()
    lost[100:102, 100:102] = 10
    assert local_loss(rounded(dark), rounded(lost)).worst_tile < 0.3
    assert local_loss(rounded(dark), without).worst_tile < 0.3


@pytest.mark.parametrize("scale, base", [(0.05, 180), (0.08, 190), (0.07, 3)])
def test_fog_and_dark_faces(scale, base):
    picture = rounded(data.astronaut()[:320, 100:420] * scale + base)
    assert local_loss(picture, smoothed(picture, 4)).worst_tile < LEAST_SHARE
    assert local_loss(picture, jpeg(picture, 97)).worst_tile > 0.6


def test_colour_alone_is_structure():
    mask = written((128, 256), [(20, 40, "total 1,284.00")], 26, 1, 1.0)
    plain = np.full((128, 256, 3), 200, np.uint8)
    coloured = rounded(plain + (1 - mask[:, :, None].astype(np.float64)) * np.array([14, -7, 0]))
    assert local_loss(coloured, plain).worst_tile < LEAST_SHARE


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "camera", "grass", "gravel", "rocket"])
def test_honest_coding_is_not_blamed(name):
    picture = getattr(data, name)()[:400, :400]
    for quality in (50, 80, 88, 92, 95):
        decoded = jpeg(picture, quality)
        if ssimulacra2(picture, decoded) >= 82:
            break
    losses = local_loss(picture, decoded)
    assert losses.worst_tile >= LEAST_SHARE, (quality, losses)


def test_noise_that_comes_back_otherwise_is_no_loss():
    grain = sky(1, noise=2), sky(2, noise=2)
    assert local_loss(rounded(grain[0]), rounded(gaussian_filter(grain[0], 1.5))).worst_tile >= LEAST_SHARE
    face = data.camera()[:256, :320].astype(np.float64)
    assert local_loss(rounded(face), rounded(face + grain[0] - sky(noise=0))).worst_tile > 0.8  # noise beside it


def test_what_is_below_the_threshold_does_not_count():
    page = written((120, 200), [(20, 40, "watermark")], 24, 2, 240.0)
    assert local_loss(page, np.full_like(page, 240)).worst_tile > 0.9


def test_flat_colours():
    picture = np.full((200, 300, 3), (238, 232, 220), np.uint8)
    picture[40:120, 60:200] = data.astronaut()[:80, :140]
    assert local_loss(picture, jpeg(picture, 95)).flat_colour < LARGEST_DELTA_E
    shifted = picture.copy()
    shifted[160:176, 208:224] += np.array([0, 0, 8], np.uint8)
    losses = local_loss(picture, shifted)
    assert losses.flat_place == (208, 160, 16) and not losses.acceptable
    expected = deltaE_ciede2000(*(rgb2lab(np.array([[[238, 232, blue]]]) / 255.0) for blue in (220, 228)))
    assert losses.flat_colour == pytest.approx(expected.item(), abs=1e-6)
    grey = np.full((64, 64), 232, np.uint8)
    assert local_loss(grey, grey - 6).flat_colour > 1 > local_loss(grey, grey - 1).flat_colour > 0.2


def test_texture_is_not_flat():
    noisy = rounded(np.random.default_rng(0).normal(128, 20, (64, 64, 3)))
    assert local_loss(noisy, noisy // 2).flat_colour == 0


def test_colour_difference_is_the_standard_one():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (400, 3))
    second = np.clip(first + rng.integers(-20, 21, first.shape), 0, 255)
    second[:50] = rng.integers(0, 256, (50, 3))
    first[50:60], second[50:55] = first[50:60, :1], second[50:55, :1]  # greys have no hue
    expected = deltaE_ciede2000(rgb2lab(first[None] / 255.0), rgb2lab(second[None] / 255.0))[0]
    found = [ciede2000(lab(*a), lab(*b)) for a, b in zip(first.astype(float), second.astype(float), strict=True)]
    assert np.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (70, 2), (7, 7), (64, 65), (129, 31)])
def test_any_size(shape):
    rng = np.random.default_rng(0)
    for channels in ((), (3,)):
        picture = rng.integers(0, 256, (*shape, *channels)).astype(np.uint8)
        reference = LocalLoss(picture)
        assert reference.measure(picture).worst_tile == 1
        losses = reference.measure(255 - picture)
        assert 0 < losses.worst_tile <= 1 and losses.worst_tile < 0.6 or min(shape) < 7
        assert losses.worst_place[0] < shape[1] and losses.worst_place[1] < shape[0]


def test_grey_counts_as_equal_channels_and_alpha_is_left_out():
    grey = data.camera()[:200, :200]
    lost = smoothed(grey, 1.5)
    three = [np.repeat(plane[:, :, None], 3, 2) for plane in (grey, lost)]
    alpha = [np.concatenate([plane, grey[:, :, None]], 2) for plane in three]
    assert local_loss(*three).worst_tile == pytest.approx(local_loss(grey, lost).worst_tile, abs=1e-3)
    assert local_loss(*alpha) == local_loss(*three)


def test_pictures_that_cannot_be_compared_are_refused():
    picture = data.chelsea()[:64, :64]
    with pytest.raises(ValueError, match="different shapes"):
        LocalLoss(picture).measure(picture[:, :, 0].copy())
    with pytest.raises(ValueError, match="empty"):
        LocalLoss(np.zeros((0, 5, 3), np.uint8))
