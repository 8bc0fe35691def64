"""AVIF and JPEG XL to a target: met from above and not by far, metadata, alpha, greys, what is declined."""

import io

import numpy as np
import pytest
from PIL import Image

from codec import metrics
from codec.metrics.ssimulacra2 import ssimulacra2
from codec.pictures.files import open_picture
from tasks.forms.base import DamagedData, Declined, Goal
from tasks.forms.choose import FORMS

TARGETS = [Goal("ssimulacra2", 80.0), Goal("psnr", 36.0), Goal("ms-ssim", 0.985)]


def value_of(goal: Goal, a, b) -> float:
    if goal.metric == "ssimulacra2":
        return ssimulacra2(a, b)
    return metrics.psnr(a, b) if goal.metric == "psnr" else metrics.ms_ssim(a, b)


@pytest.mark.parametrize("name", ["avif", "jxl"])
@pytest.mark.parametrize("goal", TARGETS, ids=lambda goal: goal.metric)
@pytest.mark.parametrize("channels", [1, 3])
def test_targets_are_met_from_above(name, goal, channels, scene, file_of):
    file = file_of(scene(200, 240, channels), "PNG")
    picture = open_picture(file)
    data = FORMS[name].encode(file, picture, goal)
    back = open_picture(FORMS[name].decode(data))
    assert back.image.mode == picture.image.mode
    assert value_of(goal, picture.image, back.image) >= goal.value
    assert len(data) < 0.7 * len(file)


def test_what_is_stored_is_an_ordinary_file(scene, file_of):
    file = file_of(scene(), "PNG")
    data = FORMS["avif"].encode(file, open_picture(file), Goal("ssimulacra2", 70.0))
    image = Image.open(io.BytesIO(data))
    image.load()
    assert (image.format, image.size) == ("AVIF", (128, 96))
    assert FORMS["jxl"].encode(file, open_picture(file), Goal("ssimulacra2", 70.0))[4:8] == b"JXL "


@pytest.mark.parametrize("name", ["avif", "jxl"])
def test_metadata_comes_back(name, scene, file_of):
    exif = Image.Exif()
    exif[0x010E] = "a caption"
    file = file_of(scene(), "JPEG", quality=97, exif=exif, comment=b"said by hand", dpi=(300, 300))
    picture = open_picture(file)
    back = Image.open(io.BytesIO(FORMS[name].decode(FORMS[name].encode(file, picture, TARGETS[0]))))
    assert back.getexif()[0x010E] == "a caption"
    assert back.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert back.info["Comment"] == "said by hand"


def test_alpha_comes_back_exactly_or_is_declined(scene, file_of):
    file = file_of(scene(channels=4), "PNG")
    picture = open_picture(file)
    back = open_picture(FORMS["jxl"].decode(FORMS["jxl"].encode(file, picture, TARGETS[1])))
    assert np.array_equal(np.asarray(back.image)[:, :, 3], np.asarray(picture.image)[:, :, 3])
    with pytest.raises(Declined, match="transparency"):
        FORMS["avif"].encode(file, picture, TARGETS[1])


def test_what_cannot_be_reached_or_shown_is_declined(file_of):
    file = file_of(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8), "PNG")
    with pytest.raises(Declined, match="can't be reached"):
        FORMS["avif"].encode(file, open_picture(file), Goal("ssimulacra2", 99.9))
    with pytest.raises(Declined):
        FORMS["jxl"].encode(file, None, TARGETS[0])


def test_damage_is_called_so():
    for name in ("avif", "jxl"):
        for data in (b"", b"nothing", bytes(100)):
            with pytest.raises(DamagedData):
                FORMS[name].decode(data)
