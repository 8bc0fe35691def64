"""Options: their forms, their layers, their clashes, and what an unfinished run is recognised by."""

import argparse
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta, timezone

import pytest

from flows.console import WrongUsage
from flows.goals import Budget, Target, deadline_after
from flows.settings import RunSettings, add_arguments


def parsed(*words: str) -> RunSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return RunSettings.from_args(parser.parse_args(["s3://photos", "s3://pressed", *words]))


def test_defaults_are_the_contracts():
    settings = parsed()
    assert settings.target == Target("ssimulacra2", 80.0) and settings.quality is None and settings.budget is None
    assert (settings.dedup, settings.dedup_embedding, settings.denoise, settings.superres) == (
        "near",
        None,
        "off",
        "off",
    )
    assert (settings.min_gain, settings.max_pixels, settings.max_failed) == (10, 200_000_000, 50)
    assert settings == RunSettings("s3://photos", "s3://pressed")


@pytest.mark.parametrize(
    "text, bytes_, percent",
    [
        ("1500000", 1_500_000, None),
        ("1.5MB", 1_500_000, None),
        ("2 GiB", 2**31, None),
        ("500kB", 500_000, None),
        ("3TB", 3 * 10**12, None),
        (".5kb", 500, None),
        (20_000, 20_000, None),
        ("12%", None, 12.0),
        ("0.5 %", None, 0.5),
    ],
)
def test_budgets(text, bytes_, percent):
    budget = Budget.parse(text)
    assert (budget.bytes, budget.percent) == (bytes_, percent)
    assert Budget.parse(str(budget)) == budget
    assert budget.limit(1_000_000) == (bytes_ if percent is None else 10_000 * percent)


@pytest.mark.parametrize("text", ["", "12 parsecs", "-5MB", "0%", "101%", "MB", "0", "1e9x", "nan"])
def test_impossible_budgets_are_refused(text):
    with pytest.raises(WrongUsage, match="--budget"):
        parsed(f"--budget={text}")


def test_targets():
    assert parsed("--target", "psnr=38.5").target == Target("psnr", 38.5)
    assert parsed("--target", "MS-SSIM=0.993").target == Target("ms-ssim", 0.993)
    for text in ("psnr=0.98", "ms-ssim=98", "ssim=0.9", "psnr", "psnr=", "ms-ssim=nan"):
        with pytest.raises(WrongUsage, match="--target"):
            parsed("--target", text)
    for target in (Target("psnr", 38.5), Target("ms-ssim", 0.98123)):
        assert Target.parse(str(target)) == target


def test_ranges_name_the_flag_and_the_value():
    for words, message in {
        ("--quality", "101"): r"--quality: 101 is outside 0\.\.100",
        ("--dedup", "fuzzy"): "--dedup: 'fuzzy' is not one of off, exact, near",
        ("--codec", "heic"): "--codec: 'heic' is not one of learned, lossless, avif, jxl, smallest",
        ("--workers", "0"): "--workers: 0 is outside",
        ("--shard-size", "2.5"): "--shard-size: '2.5' is not a whole number",
        ("--dedup-embedding", "vgg"): "--dedup-embedding: 'vgg' is neither",
        ("--deadline", "25:00"): "--deadline: .*no time of day",
        ("--deadline", "dawn"): "--deadline: 'dawn' is neither HH:MM",
        ("--max-pixels", "many"): "--max-pixels",
    }.items():
        with pytest.raises(WrongUsage, match=message):
            parsed(*words)
    assert parsed("--max-pixels", "200,000,000").max_pixels == 200_000_000
    assert parsed("--max-objects", "1e6").max_objects == 1_000_000
    assert parsed("--min-gain", "5%").min_gain == 5


def test_clashes_name_both_arguments():
    for words, both in [
        (("--quality", "50", "--target", "psnr=40"), "--quality and --target"),
        (("--target", "psnr=40", "--budget", "5%"), "--target and --budget"),
        (("--workers", "2", "--dask", "tcp://x:1"), "--workers and --dask"),
        (("--dedup", "exact", "--dedup-embedding", "copy"), "--dedup exact and --dedup-embedding copy"),
        (("--dry-run", "--fresh"), "--dry-run and --fresh"),
        (("--codec", "avif", "--quality", "50"), "--codec avif and --quality"),
        (("--codec", "lossless", "--budget", "5%"), "--codec lossless and --budget"),
    ]:
        with pytest.raises(WrongUsage, match=both):
            parsed(*words)


def test_config_file_lies_under_the_flags(tmp_path):
    config = tmp_path / "night.toml"
    config.write_text(
        'budget = "5GB"\nmin-gain = 4\nexclude = ["*.gif", "tmp/*"]\nstrict = true\ndeadline = 06:30:00\n'
    )
    settings = parsed("--config", str(config))
    assert settings.budget == Budget(bytes=5 * 10**9) and settings.target is None
    assert settings.min_gain == 4 and settings.exclude == ("*.gif", "tmp/*") and settings.strict
    assert settings.deadline == "06:30"
    over = parsed("--config", str(config), "--quality", "40", "--exclude", "*.bmp")
    assert over.quality == 40 and over.budget is None and over.exclude == ("*.bmp",) and over.min_gain == 4

    config.write_text('quality = 50\ntarget = "psnr=40"\n')
    with pytest.raises(WrongUsage, match=r"quality in .*night\.toml and target in .*night\.toml exclude"):
        parsed("--config", str(config))
    config.write_text("qualty = 50\n")
    with pytest.raises(WrongUsage, match=r"qualty in .*night\.toml: no such option; did you mean quality\?"):
        parsed("--config", str(config))
    config.write_text("quality == 50\n")
    with pytest.raises(WrongUsage, match="is not TOML"):
        parsed("--config", str(config))
    with pytest.raises(WrongUsage, match="No such file"):
        parsed("--config", str(tmp_path / "absent.toml"))
    config.write_text('strict = "yes"\n')
    with pytest.raises(WrongUsage, match="neither true nor false"):
        parsed("--config", str(config))


def test_parameters_round_trip():
    for settings in (
        parsed(),
        parsed("--budget", "12%", "--include", "*.jpg", "--include", "2021/*", "--deadline", "06:00", "--strict"),
        parsed("--quality", "33.5", "--workers", "3", "--dedup-embedding", "copy", "--superres", "auto"),
    ):
        parameters = settings.parameters()
        assert RunSettings.from_parameters(parameters) == settings
        assert pickle.loads(pickle.dumps(settings)) == settings
    spelled = {
        "source": "s3://photos",
        "dest": "s3://pressed",
        "min-gain": 3,
        "quality": None,
        "max_objects": 10,
    }
    assert RunSettings.from_parameters(spelled).min_gain == 3
    with pytest.raises(WrongUsage, match="dest is missing"):
        RunSettings.from_parameters({"source": "s3://photos"})


def test_fingerprint_holds_what_decides_the_results():
    base = parsed()
    same = parsed("--workers", "7", "--deadline", "05:00", "--strict", "--max-failed", "3", "--device", "cpu")
    assert same.fingerprint() == base.fingerprint() == dataclasses.replace(base, fresh=True).fingerprint()
    others = [
        parsed("--quality", "50"),
        parsed("--target", "ms-ssim=0.981"),
        parsed("--min-gain", "9"),
        parsed("--denoise", "auto"),
        parsed("--exclude", "*.gif"),
        parsed("--shard-size", "10"),
        dataclasses.replace(base, source="s3://other"),
    ]
    prints = [settings.fingerprint() for settings in (base, *others)] + [base.fingerprint("another model")]
    assert len(set(prints)) == len(prints)


def test_the_users_own_network_counts_by_content(tmp_path):
    network = tmp_path / "net.onnx"
    network.write_bytes(b"one")
    first = parsed("--dedup-embedding", str(network)).fingerprint()
    network.write_bytes(b"two")
    assert parsed("--dedup-embedding", str(network)).fingerprint() != first


def test_deadlines():
    now = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
    assert deadline_after("06:15 UTC", now) == datetime(2026, 3, 2, 6, 15, tzinfo=UTC)
    assert deadline_after("23:45 UTC", now) == datetime(2026, 3, 1, 23, 45, tzinfo=UTC)
    assert deadline_after("23:30 UTC", now) == datetime(2026, 3, 2, 23, 30, tzinfo=UTC)
    assert deadline_after("06:00 Asia/Tokyo", now) == datetime(2026, 3, 2, 21, 0, tzinfo=UTC)
    # The night in which Lisbon's clocks go forward is an hour shorter.
    spring = datetime(2026, 3, 28, 23, 0, tzinfo=UTC)
    assert deadline_after("06:00 Europe/Lisbon", spring) - spring == timedelta(hours=6)
    assert deadline_after("2026-03-02T06:00+02:00", now) == datetime(2026, 3, 2, 6, tzinfo=timezone(timedelta(hours=2)))
    assert timedelta(0) < deadline_after("06:00") - datetime.now(UTC) <= timedelta(hours=25)
    with pytest.raises(ValueError, match="no time zone"):
        deadline_after("06:00 Middle/Earth")


def test_globs():
    settings = parsed("--include", "2021/*.jpg", "--include", "*.PNG", "--exclude", "*/tmp/*")
    chosen = [
        key for key in ("2021/a.jpg", "2021/b/c.jpg", "x.PNG", "x.png", "2021/tmp/a.jpg") if settings.selects(key)
    ]
    assert chosen == ["2021/a.jpg", "2021/b/c.jpg", "x.PNG"]
    assert parsed().selects("anything at all")


def test_overlapping_places_are_refused(tmp_path):
    for source, dest in [
        ("s3://photos", "s3://photos/pressed"),
        ("s3://photos/a/b", "s3://photos/a"),
        (str(tmp_path), str(tmp_path / "out")),
    ]:
        with pytest.raises(WrongUsage, match="overlap"):
            RunSettings.from_parameters({"source": source, "dest": dest})


@pytest.mark.parametrize("place", ["ftp://photos", "gs://photos", "s3://"])
def test_places_that_are_none_are_wrong_usage(place):
    for places in ({"source": place, "dest": "pressed"}, {"source": "photos", "dest": place}):
        with pytest.raises(WrongUsage, match="://"):
            RunSettings.from_parameters(places)


@pytest.mark.parametrize("words", [("--workers", "inf"), ("--budget", "9" * 400)])
def test_numbers_without_end_are_wrong_usage(words):
    with pytest.raises(WrongUsage, match=words[0]):
        parsed(*words)
