"""Copies agree everywhere, near misses do not: re-encodings, reductions and turned files; digits, shades, blobs."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from tasks.duplicates.agreement import Original, agreement, needed_to_be_similar, original_of
from tasks.duplicates.recoding import coding_of, earlier_quality, ijg_tables

FILTERS = Image.Resampling


def photograph(name):
    image = Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")
    image.info.clear()
    return image


def file(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return original_of(out.getvalue())


def page(total="1,284.00", clock="09:41"):
    image = Image.new("RGB", (420, 300), (250, 250, 250))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 420, 24), fill=(40, 70, 140))
    draw.text((370, 5), clock, fill="white", font=ImageFont.load_default(13))
    for line in range(8):
        draw.text((20, 40 + 24 * line), "steel washer M8, service hour, plate", fill=(30, 30, 30))
    draw.text((280, 260), total, fill=(20, 20, 20), font=ImageFont.load_default(14))
    return image


@pytest.fixture(scope="module", params=["chelsea.png", "coffee.png", "page"])
def picture(request):
    return page() if request.param == "page" else photograph(request.param)


CODED = [("JPEG", {"quality": q}) for q in (30, 50, 75, 90, 95)]
CODED += [("JPEG", {"quality": 80, "subsampling": 0}), ("WEBP", {"quality": 50}), ("WEBP", {"quality": 80})]
CODED += [("AVIF", {"quality": 60}), ("TIFF", {}), ("GIF", {})]


@pytest.mark.parametrize(("format", "options"), CODED, ids=str)
def test_a_re_encoded_copy_agrees(picture, format, options):
    seen = agreement(file(picture, "PNG"), file(picture, format, **options))
    assert seen.agrees and seen.excess <= 1, seen
    assert seen.exact == (format == "TIFF")


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.62, 0.9, 1.5])
@pytest.mark.parametrize("filter", [FILTERS.LANCZOS, FILTERS.BICUBIC, FILTERS.BILINEAR, FILTERS.BOX])
def test_a_resized_copy_agrees(picture, scale, filter):
    keeper = file(picture, "PNG")
    other = picture.resize([round(side * scale) for side in picture.size], filter)
    for member in (file(other, "PNG"), file(other, "JPEG", quality=75)):
        seen = agreement(keeper, member)
        assert seen.agrees and seen.psnr > 15, seen


def test_copies_of_copies_agree():
    picture = photograph("coffee.png")
    through = file(picture, "JPEG", quality=60).image
    assert agreement(file(picture, "PNG"), file(through, "PNG")).agrees
    assert agreement(file(picture, "PNG"), file(through, "JPEG", quality=85)).agrees
    keeper = file(picture, "JPEG", quality=92)  # both made of a third one
    assert agreement(keeper, file(picture, "JPEG", quality=50)).agrees
    assert agreement(keeper, file(picture.resize((300, 200), FILTERS.BICUBIC), "JPEG", quality=80)).agrees


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_lying_on_its_side_is_judged_in_its_own_blocks(orientation):
    picture = photograph("chelsea.png").crop((0, 0, 203, 149))
    exif = Image.Exif()
    exif[274] = orientation
    shown = original_of(_jpeg(picture, exif)).image
    seen = agreement(file(shown, "PNG"), original_of(_jpeg(picture, exif)))
    assert seen.agrees and coding_of(_jpeg(picture, exif)).orientation == orientation


def _jpeg(picture, exif):
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=50, exif=exif)
    return out.getvalue()


def with_blob(image, radius, amount):
    values = np.asarray(image, np.float32)
    down, across = np.mgrid[: image.height, : image.width]
    blob = np.exp(-(((across - 0.6 * image.width) / radius) ** 2) - ((down - 0.4 * image.height) / radius) ** 2)
    return Image.fromarray((values + amount * blob[:, :, None]).clip(0, 255).round().astype(np.uint8))


def with_words(image, opacity):
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).text((40, 60), "© studio", fill=round(255 * opacity), font=ImageFont.load_default(32))
    out = image.copy()
    out.paste((255, 255, 255), mask=mask)
    return out


def shifted(image, by):
    return Image.fromarray((np.asarray(image, np.float32) + by).clip(0, 255).round().astype(np.uint8))


def pairs_of_near_misses():
    cat, cup = photograph("chelsea.png"), photograph("coffee.png")
    part = cat.copy()
    part.paste(cat.crop((150, 100, 190, 130)), (154, 100))
    return {
        "digit": (page(), page(total="1,284.90")),
        "clock": (page(), page(clock="09:47")),
        "lesion": (cat, with_blob(cat, 12, -14)),
        "faint wide shadow": (cup, with_blob(cup, 60, -7)),
        "bird": (cup, with_blob(cup, 2.5, 90)),
        "watermark": (cup, with_words(cup, 0.12)),
        "brighter": (cat, shifted(cat, 4)),
        "redder": (cup, shifted(cup, np.array([5, 0, 0]))),
        "moved": (cat, part),
    }


NEAR_MISSES = pairs_of_near_misses()


@pytest.mark.parametrize(("name", "pair"), list(NEAR_MISSES.items()), ids=list(NEAR_MISSES))
def test_a_near_miss_never_agrees(name, pair):
    coded = [("PNG", {}), ("JPEG", {"quality": 92}), ("JPEG", {"quality": 60}), ("WEBP", {"quality": 75})]
    for one, other in (pair, pair[::-1]):
        for format, options in coded:
            seen = agreement(file(one, "PNG"), file(other, format, **options))
            assert not seen.agrees and "differ in the block" in seen.why, (name, format, options, seen)
        small = other.resize([round(side * 0.6) for side in other.size], FILTERS.BICUBIC)
        assert not agreement(file(one, "PNG"), file(small, "JPEG", quality=85)).agrees


def test_where_they_differ_is_said_and_that_they_are_similar():
    seen = agreement(file(page(), "PNG"), file(page(total="1,284.01"), "JPEG", quality=90))
    left, top = (int(part) for part in seen.why.rsplit(" at ", 1)[1].split(", "))
    assert 280 <= left <= 360 and 250 <= top <= 280
    assert seen.similar and seen.psnr > 30
    other = agreement(file(photograph("coffee.png"), "PNG"), file(photograph("chelsea.png"), "PNG"))
    assert not other.agrees and not other.similar


def test_flat_pictures_are_not_similar_by_accident():
    plain = np.full((90, 90, 3), 128, np.uint8)
    assert needed_to_be_similar(plain) > 60 > 30 > needed_to_be_similar(np.asarray(photograph("coffee.png")))


def test_what_is_not_a_copy():
    image = photograph("astronaut.png")
    for other in (
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        image.crop((30, 30, 500, 500)),
        image.crop((1, 1, 512, 512)).resize((512, 512), FILTERS.BICUBIC),
        image.rotate(3),
        photograph("chelsea.png"),
        image.convert("L").convert("RGB"),
    ):
        assert not agreement(Original(image), Original(other)).agrees


def test_a_part_agrees_inside_its_box():
    cat = photograph("chelsea.png")
    member = file(cat.crop((61, 33, 361, 258)), "JPEG", quality=70)
    assert agreement(Original(cat), member, (61.0, 33.0, 361.0, 258.0)).agrees
    assert not agreement(Original(cat), member, (64.0, 33.0, 364.0, 258.0)).agrees
    assert not agreement(Original(cat), member).agrees


def test_a_bitstream_stands_for_a_removed_keeper():
    """Its noise explains small differences everywhere, and nothing large anywhere."""
    cup = photograph("coffee.png")
    random = np.random.default_rng(7)
    noisy = np.asarray(cup, np.float32) + random.normal(0, 2.5, (cup.height, cup.width, 3))
    keeper = Original(Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)), noise=2.5)
    assert agreement(keeper, file(cup, "JPEG", quality=75)).agrees
    assert not agreement(keeper, file(with_blob(cup, 20, -30), "JPEG", quality=75)).agrees


def test_alpha_and_depth_must_agree():
    image = photograph("chelsea.png")
    clear, holed = image.copy(), image.copy()
    clear.putalpha(255)
    holed.putalpha(Image.linear_gradient("L").resize(image.size))
    assert "alpha channel" in agreement(Original(image), Original(clear)).why
    assert "alpha channels differ" in agreement(Original(clear), Original(holed)).why
    assert agreement(Original(holed), Original(holed.copy())).exact
    half = holed.resize((225, 150), FILTERS.BICUBIC)
    assert agreement(Original(holed), file(half, "PNG")).agrees
    assert "mode I;16" in agreement(Original(image), Original(Image.new("I;16", image.size))).why


def test_grey_members_are_compared_as_grey():
    image = photograph("chelsea.png")
    assert agreement(Original(image), file(image.convert("L"), "JPEG", quality=90)).agrees


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 40), (7, 9), (17, 16)])
def test_tiny_pictures(size):
    image = Image.effect_noise(size, 60)
    assert agreement(Original(image), Original(image.copy())).exact
    assert not agreement(Original(photograph("coffee.png")), file(image, "JPEG")).agrees


def test_strips_join_without_a_seam(monkeypatch):
    from tasks.duplicates import agreement as module

    cup = photograph("coffee.png")
    small = file(cup.resize((333, 222), FILTERS.HAMMING), "JPEG", quality=70)
    whole = agreement(Original(cup), small)
    monkeypatch.setattr(module, "STRIP", 64)
    assert agreement(Original(cup), small).agrees and whole.agrees


def test_the_quality_of_an_earlier_jpeg_is_found():
    cup = photograph("coffee.png")
    pixels = np.asarray(cup)
    for quality in (35, 60, 85):
        assert earlier_quality(pixels, np.asarray(file(cup, "JPEG", quality=quality).image), None) == quality
    assert earlier_quality(pixels, np.asarray(with_blob(cup, 20, -30)), None) is None
    coded = file(cup, "JPEG", quality=64, subsampling=1).coding
    assert coded.sampling == (2, 1) and coded.tables[0].tolist() == ijg_tables(64)[0].tolist()
