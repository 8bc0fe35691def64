"""Local confirmation of copies: attacks that it sees through, pictures that it must tell apart."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from skimage import data

from tasks.duplicates.local_features import compare, features, is_copy


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.fromarray(data.chelsea())


def framed(image):
    return ImageOps.expand(image, (40, 70), (200, 30, 30))


def captioned(image):
    image = image.copy()
    ImageDraw.Draw(image).rectangle((40, 180, 400, 240), fill=(255, 255, 0))
    return image


@pytest.mark.parametrize(
    "alter",
    [
        lambda i: i.crop((90, 60, 330, 260)),
        framed,
        captioned,
        lambda i: i.rotate(25, Image.Resampling.BICUBIC, expand=True),
        lambda i: i.transpose(Image.Transpose.ROTATE_270),
        ImageOps.flip,
        lambda i: i.resize((i.width // 4, i.height // 4)),
        lambda i: i.filter(ImageFilter.GaussianBlur(3)).convert("L"),
    ],
    ids=["crop", "border", "overlay", "rotate", "turn", "flip", "small", "blurred grey"],
)
def test_altered_copies_are_confirmed(cat, alter):
    seen = is_copy(cat, alter(cat))
    assert seen.copy, seen.why
    assert seen.correlation > 0.8


def test_overlap_of_a_crop_and_of_a_frame(cat):
    crop = is_copy(cat, cat.crop((90, 60, 330, 260)))
    assert np.allclose(crop.to_keeper, [[1, 0, 90], [0, 1, 60]], atol=1.5)
    assert crop.covered > 0.98
    frame = is_copy(cat, framed(cat))
    assert np.allclose(frame.box, (40, 70, 40 + cat.width, 70 + cat.height), atol=4)
    assert frame.covered == pytest.approx(cat.width * cat.height / (cat.width + 80) / (cat.height + 140), abs=0.03)


def test_mirror_image_maps_back(cat):
    mirrored = ImageOps.mirror(cat).crop((100, 0, 400, 300))
    seen = is_copy(cat, mirrored)
    assert seen.copy and seen.why.startswith("a mirror image")
    # the member's left edge is column 100 of the mirror image, column width - 1 - 100 of the original
    assert np.allclose(seen.to_keeper @ [0, 0, 1], [cat.width - 1 - 100, 0], atol=2)
    assert not compare(features(cat), features(mirrored)).copy  # without the mirrored features


def test_different_pictures_are_told_apart(cat):
    others = [data.astronaut(), data.coffee(), data.camera()]
    pictures = [cat] + [Image.fromarray(other) for other in others]
    for at, one in enumerate(pictures):
        for other in pictures[at + 1 :]:
            assert not is_copy(one, other).copy


def test_same_words_on_different_pictures_are_no_copy(cat):
    caption = Image.fromarray(data.page()).crop((0, 0, 300, 90)).convert("RGB")
    pair = []
    for image in (cat, Image.fromarray(data.coffee())):
        image = image.resize((600, 400))
        image.paste(caption, (40, 40))
        pair.append(image)
    seen = is_copy(*pair)
    assert not seen.copy, seen.why


def test_blank_pictures_are_not_confirmed():
    grey = Image.new("RGB", (200, 100), (90, 90, 90))
    seen = is_copy(grey, grey)
    assert not seen.copy and "too few points" in seen.why
    assert not is_copy(Image.new("L", (1, 1)), Image.new("RGBA", (3000, 2))).copy


def test_repeats(cat):
    member = cat.rotate(10, expand=True)
    first, second = is_copy(cat, member), is_copy(cat, member)
    assert first.inliers == second.inliers and np.array_equal(first.to_keeper, second.to_keeper)
