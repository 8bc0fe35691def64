"""The policy: what is tried for which picture, when a lossless rival is looked at, which of two is taken."""

from itertools import product

import pytest

from tasks.forms.choose import FORMS, GIVES_BACK, LEARNED, POLICIES, better, form_of, rivals, rounds, settled
from tasks.forms.content import KINDS

LOSSY = {LEARNED, "avif", "jxl"}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_tries_what_its_promise_allows(policy):
    formats = ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "GIF", None]
    for content, format, exact_only, shown in product([*KINDS, None], formats, [True, False], [True, False]):
        groups = rounds(policy, content, format, shown=shown, exact_only=exact_only)
        tried = [name for group in groups for name in group]
        assert len(tried) == len(set(tried)) > 0
        if policy == "lossless" or exact_only or not shown:
            assert not LOSSY & set(tried)
        if format == "JPEG":
            assert "lossless" not in tried  # a JPEG's samples never take fewer bytes
            assert "jxl-jpeg" in tried
        else:
            assert "jxl-jpeg" not in tried
        if policy in ("learned", "avif", "jxl") and shown and not exact_only:
            assert LOSSY & set(tried) == {LEARNED if policy == "learned" else policy}


def test_a_photograph_costs_one_coding_and_graphics_go_lossless_first():
    assert rounds("learned", "photograph", "PNG")[0] == ("npi",)
    assert rounds("learned", "photograph", "JPEG")[0] == ("npi",)
    for kind in ("graphics", "text", "labels"):
        assert rounds("learned", kind, "PNG")[0] == ("lossless",)
    assert rounds("learned", "graphics", "JPEG")[0] == ("npi",)
    assert set(rounds("smallest", "photograph", "PNG")[0]) == {"npi", "avif", "jxl", "lossless"}


def test_what_no_lossy_form_carries_goes_without_loss():
    assert rounds("learned", None, "JPEG", shown=False) == (("jxl-jpeg",), ("exact",))
    assert rounds("learned", None, "PNG", shown=False) == (("lossless",), ("exact",))
    assert rounds("avif", None, "TIFF", shown=False) == (("exact",),)
    assert rounds("learned", None, None, shown=False) == (("exact",),)


def test_a_lossless_rival_is_looked_at_where_it_may_win():
    assert rivals("npi", 200, 1000, "PNG") == ()
    assert rivals("npi", 600, 1000, "PNG") == ("lossless",)
    assert rivals("npi", 600, 1000, "JPEG") == ()
    assert rivals("npi", 800, 1000, "JPEG") == ("jxl-jpeg",)
    assert rivals("lossless", 800, 1000, "PNG") == ()


def test_of_two_forms_the_smaller_is_taken_and_of_equal_ones_the_more_faithful():
    assert better(("npi", 100), None)
    assert better(("npi", 90_000), ("lossless", 100_000))
    assert not better(("npi", 98_000), ("lossless", 100_000))
    assert better(("lossless", 103_000), ("npi", 100_000))
    assert not better(("lossless", 110_000), ("npi", 100_000))
    assert better(("exact", 102_000), ("lossless", 100_000))
    assert better(("exact", 200), ("lossless", 100))  # what a block of any disk takes


def test_stored_bytes_say_which_form_wrote_them(scene, file_of):
    picture = file_of(scene(), "PNG", compress_level=0)
    jpeg = file_of(scene(), "JPEG", quality=90)
    assert form_of(FORMS["jxl-jpeg"].encode(jpeg, None)) == "jxl-jpeg"
    assert form_of(FORMS["lossless"].encode(picture, None)) == "lossless"
    assert form_of(FORMS["exact"].encode(file_of(scene(), "BMP"), None)) == "exact"
    assert form_of(picture) is None
    assert set(GIVES_BACK) == {"npi", *FORMS}


def test_what_takes_a_photographs_bits_without_loss_is_no_drawing():
    assert settled("lossless", 20_000, 100_000, "learned")
    assert not settled("lossless", 60_000, 100_000, "learned")
    assert settled("lossless", 60_000, 100_000, "lossless")
    assert settled("npi", 60_000, 100_000, "learned")
