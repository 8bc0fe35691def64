"""Views: crops, mirror images and turns of real photographs come back from their keepers, other pictures do not."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tasks.duplicates import alignment
from tasks.duplicates.agreement import Original, original_of
from tasks.duplicates.alignment import View, find_view, given_back, seen_through

FOLDER = Path(skimage.data.__file__).parent
CROP = (61, 33, 361, 258)


def photograph(name):
    return Image.open(FOLDER / name).convert("RGB")


def as_jpeg(image, quality=85):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=0)
    return original_of(out.getvalue())


def view_of(keeper, member):
    """find_view of images, or of what a file gave."""
    return find_view(*(Original(one) if isinstance(one, Image.Image) else one for one in (keeper, member)))


@pytest.fixture(scope="module")
def cat():
    return photograph("chelsea.png")


def test_a_crop_is_found_to_the_pixel(cat):
    view, look = view_of(cat, cat.crop(CROP))
    assert view == View(1, CROP) and look.exact
    view, look = view_of(cat, as_jpeg(cat.crop(CROP)))
    assert view == View(1, CROP) and look.psnr > 33


@pytest.mark.parametrize("turn", [turn for turn in alignment.TURNS if turn > 1])
def test_every_turn_is_found(cat, turn):
    view, look = view_of(cat, as_jpeg(alignment.turned(cat, turn)))
    assert view.turn == turn and look.agrees
    size = alignment.turned(cat, turn).size
    assert np.abs(np.array(view.box) - (0, 0, *size)).max() < 0.5


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.4])
def test_a_resized_mirrored_crop_is_found(cat, scale):
    part = cat.crop(CROP).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    part = part.resize([round(side * scale) for side in part.size], Image.Resampling.BICUBIC)
    view, look = view_of(cat, as_jpeg(part, 92))
    assert view.turn == 2 and look.psnr > 32
    expected = (cat.width - CROP[2], CROP[1], cat.width - CROP[0], CROP[3])
    assert np.abs(np.array(view.box) - expected).max() < 1.0


def test_the_picture_inside_a_frame_comes_back_from_the_framed_one(cat):
    framed = Image.new("RGB", (cat.width + 50, cat.height + 40), "white")
    framed.paste(cat, (20, 30))
    view, look = view_of(framed, cat)
    assert view == View(1, (20, 30, 20 + cat.width, 30 + cat.height)) and look.exact
    assert view_of(cat, framed) is None, "the frame is not in the keeper"


def test_what_no_view_gives_back(cat):
    other = photograph("coffee.png").resize(cat.size)
    assert view_of(cat, other) is None
    assert view_of(cat, cat.rotate(12, Image.Resampling.BICUBIC)) is None
    written_on = cat.crop(CROP)
    written_on.paste((255, 255, 255), (60, 60, 240, 120))
    assert view_of(cat, written_on) is None
    assert view_of(Image.new("RGB", (300, 200)), cat) is None


def test_alpha_on_one_side_only_is_no_view(cat):
    clear = cat.copy()
    clear.putalpha(255)
    assert view_of(clear, cat.crop(CROP)) is None
    assert view_of(cat, clear.crop(CROP)) is None
    assert view_of(clear, clear.crop(CROP)) is not None


def test_given_back_by_row(cat):
    row = {"keeper_turn": None, "keeper_box": None}
    assert given_back(cat, row, (90, 60), "RGB").size == (90, 60)
    row = {"keeper_turn": 6, "keeper_box": [10.0, 20.0, 110.0, 220.0]}
    part = cat.transpose(Image.Transpose.ROTATE_270).crop((10, 20, 110, 220))
    assert given_back(cat, row, (100, 200), "RGB").tobytes() == part.tobytes()
    assert given_back(cat, row, (100, 200), "L").mode == "L"
    assert given_back(cat, row | {"keeper_box": [10.5, 20.0, 110.0, 220.0]}, (50, 100), "RGB").size == (50, 100)


@pytest.mark.parametrize("box", [(-1, 0, 10, 10), (0, 0, 10, 10_000), (10, 0, 10, 10)])
def test_a_box_outside_is_refused(cat, box):
    with pytest.raises(ValueError, match="lies outside of a keeper of 451 x 300"):
        seen_through(cat, View(1, box), (10, 10), "RGB")
