"""Networks and their way onto pictures: tiles against whole, merged kernels, files, memory, bad values, training."""

import dataclasses
import json
import random

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from tasks.restoration import apply as restoration
from tasks.restoration import networks
from tasks.restoration import samples as restoration_samples
from tasks.restoration import train as training


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cat():
    return Image.fromarray(skimage.data.chelsea())


SMALL = {
    ("denoise", "night"): networks.NightDenoiserConfig(channels=(16, 24, 32), down=(1, 1, 1), up=(1, 1)),
    ("denoise", "dncnn"): networks.DncnnConfig(depth=5, width=16),
    ("superres", "night"): networks.NightUpscalerConfig(width=16, depth=3),
    ("superres", "fsrcnn"): networks.FsrcnnConfig(),
    ("superres", "srcnn"): networks.SrcnnConfig(widths=(16, 8)),
}


def random_network(task, name, scale=2):
    """Small, untrained, but with a strong effect on every pixel of its field."""
    torch.manual_seed(3)
    kind = networks.NETWORKS[task][name]
    config = SMALL[task, name]
    if task == "superres":
        config = kind.config_class(**{**config.__dict__, "scale": scale})
    network = kind(config).eval()
    inputs = {
        "denoise": (torch.rand(1, 3, 48, 48), torch.full((1, 1, 1, 1), 0.1)),
        "superres": (torch.rand(1, 1, 48, 48),),
    }[task]
    linear = ("tail", "enlarge", "last", "layers.11.")
    last = [p for key, p in network.named_parameters() if key.startswith(linear) and not key.endswith("expand")]
    with torch.no_grad():
        full = network(*inputs)
        for p in last:
            p.zero_() if p.dim() == 1 else p.mul_(0.5)
        effect = 2 * (full - network(*inputs)).std()
        for p in last:
            p.mul_(2 * 0.1 / effect)
    return network.requires_grad_(False)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A weights folder with one small untrained network of each kind, x2 and x3."""
    for task, name in SMALL:
        for scale in (2, 3) if task == "superres" else (1,):
            suffix = f"-x{scale}" if task == "superres" else ""
            network = random_network(task, name, scale)
            networks.save_network(network, task, name, tmp_path / f"{task}-{name}{suffix}.safetensors")
    monkeypatch.setattr(restoration, "WEIGHTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("task, name", SMALL)
def test_tiled_equals_whole(weights, cat, task, name):
    """Odd sizes, and a field that is really as wide as `halo` says: half the halo gives visible seams."""
    picture = cat.crop((0, 0, 331, 203))
    network = restoration.network_for(task, 2, name).network
    tile = 2 * network.halo + max(24, 3 * network.multiple)
    run = {
        "denoise": lambda t: restoration.denoise(picture, 25, method=name, tile=t),
        "superres": lambda t: restoration.upscale(picture, 2, method=name, tile=t),
    }[task]
    whole, tiled = np.asarray(run(1024), np.int16), np.asarray(run(tile), np.int16)
    assert np.abs(whole - tiled).max() <= 1
    assert whole.shape[:2] == ((406, 662) if task == "superres" else (203, 331))
    plain = picture if task != "superres" else picture.resize((662, 406), Image.Resampling.BICUBIC)
    assert np.abs(whole - np.asarray(plain, np.int16)).mean() > 1


def test_halo_is_the_radius_that_a_pixel_sees(cat):
    """The gradient of one output pixel reaches no further than the halo, and nearly as far."""
    network = random_network("denoise", "night")
    x = torch.rand(1, 3, 256, 256, requires_grad=True)
    centre = 128 - 128 % network.multiple
    network(x, torch.full((1, 1, 1, 1), 0.1))[0, 0, centre, centre].backward()
    rows = torch.nonzero(x.grad[0].abs().sum((0, 2)))[:, 0]
    assert centre - network.halo <= rows.min() and rows.max() <= centre + network.halo
    assert max(centre - rows.min(), rows.max() - centre) > 0.6 * network.halo


@pytest.mark.parametrize("length", [8, 200, 201, 400, 1000, 1001, 4099])
def test_spans_cover_each_row_once_with_a_full_halo(length):
    length += -length % 8
    spans = restoration._spans(length, 40, 8, 256)
    assert len({end - begin for begin, end, _, _ in spans}) == 1
    assert spans[0][2] == 0 and spans[-1][3] == length
    for (_, end, _, last), (begin, _, first, _) in zip(spans, spans[1:], strict=False):
        assert last == first and first - begin >= 40 and end - last >= 40
    for begin, end, _, _ in spans:
        assert begin % 8 == 0 and 0 <= begin and end <= length and end - begin <= 256 + 8


def test_memory_halves_the_tile(cat):
    shapes = []

    def hungry(piece):
        shapes.append(piece.shape[:2])
        if piece.shape[0] * piece.shape[1] > 10_000:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return piece / 255.0

    samples = np.asarray(cat)
    assert (restoration.run_tiled(hungry, samples, 8, 4, 512) == samples).all()
    assert shapes[0] == (300, 452) and shapes[-1][0] < 128

    def starving(piece):
        raise MemoryError

    with pytest.raises(restoration.RestorationError, match="451x300 picture even in tiles of 20"):
        restoration.run_tiled(starving, samples, 8, 4, 512)
    with pytest.raises(RuntimeError, match="something else"):
        restoration.run_tiled(lambda piece: (_ for _ in ()).throw(RuntimeError("something else")), samples, 8, 4, 512)


def test_values_that_are_not_finite_are_an_error(weights, cat):
    restoration.network_for("denoise").network.tail.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(restoration.RestorationError, match="not finite at rows 0-304"):
        restoration.denoise(cat, 20)
    restoration._loaded.cache_clear()


def test_networks_keep_grey_alpha_and_metadata(weights, cat):
    picture = cat.crop((3, 5, 120, 96)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.info["icc_profile"] = b"profile"
    clean = restoration.denoise(picture, 20)
    assert clean.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
    assert clean.info == picture.info and clean.tobytes() != picture.tobytes()
    large = restoration.upscale(picture, 3)
    assert large.size == (351, 273) and large.mode == "RGBA" and large.info == picture.info
    grey = cat.crop((0, 0, 90, 70)).convert("L")
    for run in (lambda i: restoration.denoise(i, 20), lambda i: restoration.upscale(i, 2)):
        single, triple = np.asarray(run(grey)), np.asarray(run(grey.convert("RGB")))
        assert (triple == single[:, :, None]).all()
    one = Image.new("RGB", (1, 1), (200, 100, 50))
    assert restoration.denoise(one, 20).size == (1, 1) and restoration.upscale(one, 2).size == (2, 2)


def test_colours_are_added_to_the_luma_and_rounded_once(weights, cat):
    """An 8-bit result's luma is within one channel's rounding of what the network gave."""
    picture = cat.crop((0, 0, 96, 64))
    large = restoration.upscale_luma(restoration.luma_of(picture), 2)
    result = np.asarray(restoration.upscale(picture, 2))
    inner = (result > 0).all(axis=2) & (result < 255).all(axis=2)  # clipped colours change the luma
    assert inner.mean() > 0.8
    difference = (restoration.luma_of(Image.fromarray(result)) - large)[inner]
    assert np.abs(difference).max() < 0.51 and difference.std() < 0.25  # (0.45 / 12) ** 0.5 = 0.19
    assert restoration.upscale_luma(restoration.luma_of(picture), 2, method="bicubic").shape == (128, 192)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_colours_under_full_transparency_show_nowhere(weights, cat, mode):
    """Two pictures that look alike give the same enlargement, whatever lies hidden."""
    alpha = np.zeros((60, 80), np.uint8)
    alpha[10:50, 10:60] = 90
    alpha[15:45, 15:55] = 255
    picture = np.asarray(cat.crop((40, 40, 120, 100)).convert(mode))
    results = []
    for garbage in (0, 255):
        samples = picture.copy()
        samples[:, :, -1] = alpha
        samples[alpha == 0, :-1] = garbage
        before = samples.copy()
        results.append(np.asarray(restoration.upscale(Image.fromarray(samples, mode), 2)))
        assert (samples == before).all()
    assert (results[0] == results[1]).all()
    edge = results[0][24:96, 24:30, :-1].astype(int), picture[12:48, 12:15, :-1].astype(int)  # where alpha is 90
    assert abs(edge[0].mean() - edge[1].mean()) < 12
    nothing = Image.fromarray(np.where(np.arange(picture.shape[2]) == picture.shape[2] - 1, 0, picture), mode)
    assert np.asarray(restoration.upscale(nothing, 2))[:, :, -1].max() == 0


def test_ids_name_the_network_or_the_filter(weights, tmp_path, monkeypatch):
    assert restoration.denoiser_id().startswith("night-") and len(restoration.denoiser_id()) == 6 + 16
    assert restoration.upscaler_id(2) != restoration.upscaler_id(3)
    assert restoration.upscaler_id(4) == "bicubic"
    assert restoration.provenance("ab12", 2)["nightpress-synthetic-detail"] == "true"
    with pytest.raises(ValueError, match="no weights for superres x4"):
        restoration.upscale(Image.new("L", (8, 8)), 4, method="fsrcnn")
    monkeypatch.setattr(restoration, "WEIGHTS", tmp_path / "none")
    assert (restoration.denoiser_id(), restoration.upscaler_id(2)) == ("nlm", "bicubic")


def test_merged_kernels_compute_the_same():
    torch.manual_seed(0)
    network = networks.NightUpscaler(networks.NightUpscalerConfig(scale=3, width=12, depth=3))
    luma = torch.rand(2, 1, 17, 23)
    merged = network.merge()
    torch.testing.assert_close(network(luma), merged(luma), atol=1e-5, rtol=1e-4)
    count = sum(p.numel() for p in merged.parameters())
    assert count < sum(p.numel() for p in network.parameters()) / 2


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_linear_path_starts_as_pillows_bicubic(cat, scale):
    small = cat.convert("L").resize((60, 40))
    wanted = np.asarray(small.convert("F").resize((60 * scale, 40 * scale), Image.Resampling.BICUBIC))
    luma = torch.from_numpy(np.asarray(small, np.float32))[None, None]
    got = networks._enlarge(luma, networks.bicubic_phases(scale), scale)[0, 0].numpy()
    inside = slice(3 * scale, -3 * scale)
    np.testing.assert_allclose(got[inside, inside], wanted[inside, inside], atol=0.01)


def test_denoiser_has_no_bias():
    """Scaling picture and noise level scales the result: it works at levels it was not trained for."""
    network = random_network("denoise", "night")
    x, sigma = torch.rand(1, 3, 32, 32), torch.full((1, 1, 1, 1), 0.1)
    torch.testing.assert_close(network(2 * x, 2 * sigma), 2 * network(x, sigma), atol=1e-4, rtol=1e-4)


def test_files_round_trip_and_refuse_others(tmp_path):
    path = tmp_path / "d.safetensors"
    network = random_network("denoise", "night")
    identity = networks.save_network(network, "denoise", "night", path, steps="7")
    loaded = networks.load_network(path)
    assert loaded.identity == identity and loaded.card["steps"] == "7" and loaded.network.config == network.config
    for key, value in loaded.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[key].half().float())
    from safetensors.numpy import load_file

    assert set(load_file(path)) == set(network.state_dict())
    for damaged in (b"", path.read_bytes()[:500], b"\xff" * 600, path.read_bytes()[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a Nightpress restoration model"):
            networks.load_network(path)
    with torch.no_grad():
        network.tail.weight[0] = 1e6
    with pytest.raises(ValueError, match="tail.weight is not finite"):
        networks.save_network(network, "denoise", "night", path)


def test_macs_are_counted():
    config = networks.NightUpscalerConfig(width=16, depth=2)
    wanted = 9 * (16 + 2 * 16 * 16 + 16 * 4) + 4 * 25
    assert networks.macs_per_pixel(networks.NightUpscaler(config), "superres") == wanted
    fsrcnn = networks.Fsrcnn()
    assert networks.macs_per_pixel(fsrcnn, "superres") == pytest.approx(25 * 56 + 2 * 56 * 12 + 4 * 9 * 144 + 81 * 56)


@pytest.mark.parametrize(
    "kind", [restoration_samples.gaussian, restoration_samples.poisson_gaussian, restoration_samples.camera]
)
def test_noise_kinds_keep_range_and_tell_a_sigma(cat, kind):
    rng = np.random.default_rng(0)
    clean = np.asarray(cat, np.float32)[:96, :96] / 255
    for _ in range(8):
        noisy, target, sigma = kind(clean, rng)
        assert noisy.shape == target.shape == clean.shape and np.isfinite(noisy).all()
        true = np.sqrt(np.mean((noisy - target) ** 2))
        assert 0.2 * true <= sigma <= 5 * true + 0.02


def test_camera_noise_grows_with_fewer_electrons(cat):
    clean = np.asarray(cat, np.float32)[:128, :128] / 255
    errors = []
    for electrons in (100, 1000, 100_000):
        rng = np.random.default_rng(5)
        noisy, target = restoration_samples.camera_pair(clean, rng, electrons, read=2.0, mosaic=True, blur=0.0)
        errors.append(np.sqrt(np.mean((noisy - target) ** 2)))
    assert errors[0] > 2 * errors[1] > 8 * errors[2]
    assert np.sqrt(np.mean((target - clean) ** 2)) < 0.05


@pytest.fixture
def folder(tmp_path, cat):
    (tmp_path / "pictures").mkdir()
    cat.crop((0, 0, 256, 256)).save(tmp_path / "pictures" / "cat.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    "task, variant, size",
    [
        ("denoise", "night", 32),
        ("denoise", "dncnn", 24),
        ("superres", "night-x3", 16),
        ("superres", "fsrcnn-x2", 16),
        ("superres", "srcnn-x4", 12),
    ],
)
def test_training_writes_usable_weights_and_resumes(folder, tmp_path, task, variant, size):
    name, scale = training.variant_parts(task, variant)
    config = {k: v for k, v in SMALL[task, name].__dict__.items() if k not in ("scale", "merged")}
    recipe = training.Recipe(batch=2, size=size)
    options = {"recipe": recipe, "config": config, "say": lambda line: None}
    path = training.train(task, [folder], tmp_path / "out", variant, steps=12, **options)
    loaded = networks.load_network(path)
    assert (loaded.task, loaded.name, loaded.scale) == (task, name, scale) and loaded.card["steps"] == "12"
    said = []
    del options["config"]  # then the sizes are those of the checkpoint
    again = training.train(
        task, [folder], tmp_path / "out", variant, steps=6, resume=True, **{**options, "say": said.append}
    )
    assert any("going on from" in line for line in said)
    assert int(networks.load_network(again).card["steps"]) > 0
    if variant == "dncnn":
        with pytest.raises(ValueError, match="'network': 'dncnn'.*not of.*'network': 'night'"):
            training.train("denoise", [folder], tmp_path / "out", resume=True)
    third = training.train(task, [folder], tmp_path / "new", variant, steps=3, start=again, **options)
    sizes = networks.load_network(third).network.config  # and here those of the file
    assert sizes == networks.load_network(again).network.config


@pytest.mark.slow
def test_training_lowers_the_loss(folder, tmp_path):
    options = {"recipe": training.Recipe(batch=2, size=32, decay=0.2), "config": SMALL["denoise", "night"].__dict__}
    training.train("denoise", [folder], tmp_path / "out", steps=300, say=lambda line: None, **options)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 2 and lines[-1]["loss"] < lines[0]["loss"] - 0.3
    assert {"psnr_gaussian", "psnr_camera", "rate", "seconds", "step"} <= set(lines[0])


def test_the_log_counts_steps_that_were_lost():
    tally = training.Tally()
    for loss, norm in ((1.0, 2.0), (float("nan"), float("inf")), (3.0, 4.0)):
        tally.add(torch.tensor(loss), torch.full((2,), 0.01 * loss), None, torch.tensor(norm))
    assert tally.means() == {"psnr": pytest.approx(17.614, abs=0.01), "loss": 2.0, "norm": 3.0, "lost": 1}


def test_rendered_pages_lie_among_the_photographs(folder):
    pictures = training.load_pictures([folder], 32)
    plain, more = (restoration_samples.ReducedPatches(pictures, 4, 16, 1, 2, (1.0,), pages) for pages in (0, 3))
    assert len(more.pairs) == len(plain.pairs) + 3 and more.weights[-1] == 1.0
    small, large = more.pairs[-1]
    assert large.shape == (384, 384) and small.shape == (192, 192) and large.astype(float).std() > 0.02
    assert (
        restoration_samples.turned_page(64, random.Random(5)) == restoration_samples.turned_page(64, random.Random(5))
    ).all()


def test_start_takes_the_function_over(tmp_path):
    source = random_network("superres", "night")
    networks.save_network(source.merge(), "superres", "night", tmp_path / "s.safetensors")
    fresh = networks.NightUpscaler(source.config)
    training.take_over(fresh, tmp_path / "s.safetensors")
    deeper = networks.NightUpscaler(dataclasses.replace(source.config, depth=source.config.depth + 2))
    training.take_over(deeper, tmp_path / "s.safetensors")
    luma = torch.rand(1, 1, 20, 20)
    for network in (fresh, deeper):
        torch.testing.assert_close(network(luma), source(luma), atol=2e-2, rtol=2e-2)


def test_variants_are_named_in_errors():
    assert training.variant_parts("superres", None) == ("night", 2)
    assert training.variant_parts("superres", "fsrcnn-x4") == ("fsrcnn", 4)
    for task, variant in (("denoise", "night-x2"), ("denoise", "unet"), ("superres", "night-x5")):
        with pytest.raises(ValueError, match="choose one of night"):
            training.variant_parts(task, variant)
