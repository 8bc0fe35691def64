"""Training: it learns, stops on time, goes on from its checkpoint, exports a model that works."""

import dataclasses
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from codec import train_part
from codec.crops import DeviceCrops
from codec.model import Config, NightCodec, float_tensors, lambda_of, load_model, read_model_file, save_model
from codec.splits import held_out, picture_files
from codec.starts import grown, narrowed_decoder, narrowed_encoder, regrouped, revive, slimmed, thinned
from codec.train import batch, crop, load_pictures, main, measure_steps, rendered_page, train

SMALL = Config(
    channels=16, latent=40, hyper=8, encoder_blocks=1, decoder_blocks=1, mean_channels=16, index_channels=16,
    groups=(6, 10, 24), encoder_inner=0, decoder_inner=6, leak=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from skimage import data

    path = tmp_path_factory.mktemp("pictures")
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(data, name)()).save(path / f"{name}.png")
    (path / "broken.png").write_bytes(b"no picture")
    return path


def test_pictures_are_found_and_broken_ones_left_out(folder):
    assert len(load_pictures([folder], 128)) == 3
    with pytest.raises(FileNotFoundError, match="no picture of at least 5000 pixels"):
        load_pictures([folder], 5000)


def test_samples_are_varied_and_in_range(folder):
    rng = random.Random(0)
    x = batch(load_pictures([folder], 128), 6, 64, rng)
    assert x.shape == (6, 3, 64, 64) and 0 <= x.min() and x.max() <= 1 and x.std() > 0.05
    assert rendered_page(64, rng).std() > 0
    assert crop([np.zeros((64, 64, 3), np.uint8)], 64, rng).shape == (64, 64, 3)


@pytest.mark.slow
def test_training_learns_resumes_and_exports(folder, tmp_path):
    common = dict(batch_size=4, size=64, config=SMALL, say=lambda line: None, table_crops=32)
    train([folder], tmp_path, minutes=0.3, **common)
    path = train([folder], tmp_path, minutes=0.2, resume=True, **common)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 4
    assert lines[-1]["bpp"] < 0.9 * lines[0]["bpp"]
    assert all(np.isfinite(line["loss"]) for line in lines)
    model = load_model(path)
    assert model.config == SMALL and int(model.metadata["steps"]) >= lines[-1]["step"]
    assert model.has_eight_bits
    x = batch(load_pictures([folder], 64), 16, 64, random.Random(1))
    torch.manual_seed(1)
    assert cost(model, x) < cost(NightCodec(SMALL), x)


@torch.no_grad()
def cost(model: NightCodec, x: torch.Tensor) -> float:
    """What training minimises, on pictures x at levels all over the range."""
    level = torch.linspace(0, 999, len(x))
    x_hat, y_bits, z_bits = model.training_pass(x, level)
    weight = lambda_of(level)
    error = (x_hat - x).square().mean((1, 2, 3)) * 255.0**2
    return float((((y_bits + z_bits) / x[0, 0].numel() + weight * error) / weight.sqrt()).mean())


def test_held_out_originals_are_not_trained_on(tmp_path):
    names = [f"original-{i}.jpg" for i in range(60)]
    held = [name for name in names if held_out(name)]
    assert 0 < len(held) < 20
    (tmp_path / "tiles").mkdir()
    lines = ["file,original"]
    for i, name in enumerate(names):
        for tile in ("a", "b"):
            shade = np.full((40, 40, 3), 255 if name in held else 90, np.uint8)
            Image.fromarray(shade).save(tmp_path / "tiles" / f"{i}{tile}.png")
            lines.append(f"{i}{tile}.png,{name}")
    (tmp_path / "tiles" / "INDEX.csv").write_text("\n".join(lines))
    Image.new("RGB", (40, 40)).save(tmp_path / "unlisted.png")
    pictures = load_pictures([tmp_path], 32)
    assert len(pictures) == 2 * (60 - len(held)) + 1 and max(p.max() for p in pictures) == 90
    assert sum(out for _, out in picture_files([tmp_path])) == 2 * len(held)


def test_a_thinner_model_starts_from_a_trained_one(tmp_path):
    whole = NightCodec(dataclasses.replace(SMALL, decoder_blocks=7, encoder_blocks=2))
    save_model(whole, tmp_path / "whole.safetensors")
    arrays, _ = read_model_file(tmp_path / "whole.safetensors")
    thin = thinned(arrays, dataclasses.replace(SMALL, decoder_blocks=3, encoder_blocks=2))
    name = "synthesis_network.blocks.{}.narrow.weight"
    for new, old in ((0, 0), (1, 3), (2, 6)):
        assert np.array_equal(thin[name.format(new)], arrays[name.format(old)])
    assert name.format(3) not in thin and len(arrays) - len(thin) == 4 * 9
    block = "synthesis_network.blocks.0"
    widen = arrays[f"{block}.widen.weight"].copy()
    widen[:, [1, 4]] = 0  # what gives nothing to the picture goes first
    arrays[f"{block}.widen.weight"] = widen
    thin = thinned(arrays, dataclasses.replace(SMALL, decoder_blocks=7, encoder_blocks=2, decoder_inner=4))
    assert np.array_equal(thin[f"{block}.widen.weight"], arrays[f"{block}.widen.weight"][:, [0, 2, 3, 5]])
    assert thin[f"{block}.spatial.weight"].shape == (4, 4, 3, 3) and thin[f"{block}.narrow.bias"].shape == (4,)
    model = NightCodec(dataclasses.replace(SMALL, decoder_blocks=7, encoder_blocks=2, decoder_inner=4))
    assert len(float_tensors(model, thin)) == len(model.state_dict())
    assert thinned(arrays, dataclasses.replace(SMALL, decoder_blocks=9, encoder_blocks=2)).keys() == arrays.keys()


def test_a_larger_model_starts_where_a_smaller_one_ended(tmp_path):
    small = NightCodec(dataclasses.replace(SMALL, encoder_blocks=2, decoder_blocks=2, leak=0.1))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_model(small, tmp_path / "small.safetensors")
    arrays, _ = read_model_file(tmp_path / "small.safetensors")
    small = load_model(tmp_path / "small.safetensors")
    config = dataclasses.replace(SMALL, encoder_blocks=5, decoder_blocks=4, leak=0.1)
    large = NightCodec(config)
    large.load_state_dict(float_tensors(large, grown(arrays, config)), strict=False)
    x, level = torch.rand(2, 3, 64, 64), torch.tensor([200, 800])
    y = small.analysis(x)
    assert torch.allclose(large.analysis(x), y, atol=1e-4)
    assert torch.allclose(large.synthesis(y, level), small.synthesis(y, level), atol=1e-4)
    ends = (0, 0), (1, 4)  # (the small one's block, the large one's)
    for old, new in ends:
        kept = large.analysis_network.blocks[new].narrow.weight.detach().numpy()
        assert np.array_equal(kept, arrays[f"analysis_network.blocks.{old}.narrow.weight"].astype(np.float32))
    assert grown(arrays, small.config).keys() == arrays.keys()


def moved(config: Config, path) -> NightCodec:
    """A model whose every parameter does something, as a file of it gives it."""
    torch.manual_seed(3)
    model = NightCodec(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_model(model, path)
    return load_model(path)


def test_narrower_transforms_keep_what_matters(folder, tmp_path):
    """Of 16 channels of which the last six repeat others, ten are enough."""
    model = moved(dataclasses.replace(SMALL, encoder_blocks=2, decoder_blocks=2), tmp_path / "model.safetensors")
    for network in (model.analysis_network, model.synthesis_network):
        for layer in (network.enter, *(block.widen for block in network.blocks)):
            layer.weight[10:], layer.bias[10:] = layer.weight[:6], layer.bias[:6]
    for gain in (model.synthesis_network.enter_gain, model.synthesis_network.middle_gain):
        gain.copy_(0.1 * torch.randn(16))  # of all levels
        gain[:, 10:] = gain[:, :6]
    x = batch(load_pictures([folder], 128), 3, 96, random.Random(2))
    y, level = model.analysis(x), torch.tensor([100, 500, 900])
    config = dataclasses.replace(model.config, encoder_channels=10, encoder_inner=8, decoder_channels=10)
    narrow = NightCodec(config)
    latents = [(int(one), part[None]) for one, part in zip(level, y, strict=True)]
    new = narrowed_encoder(model, list(x.split(1)), 10) | narrowed_decoder(model, latents, 10)
    assert not set(new) - set(narrow.state_dict())
    narrow.load_state_dict(model.state_dict() | {name: torch.from_numpy(part) for name, part in new.items()})
    assert torch.allclose(narrow.analysis(x), y, atol=1e-2)
    assert torch.allclose(narrow.synthesis(y, level), model.synthesis(y, level), atol=1e-4)
    fewer = narrowed_decoder(model, latents, 9)
    assert fewer["synthesis_network.leave.weight"].shape == (192, 9, 1, 1)


SMALLER = {
    "encoder": {"encoder_channels": 12, "encoder_inner": 4},
    "decoder": {"decoder_channels": 12, "decoder_inner": 4},
    "entropy": {
        "mean_channels": 12, "mean_joined": 20, "index_channels": 12, "index_seen": 8, "index_joined": 24,
        "expanded": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("part", train_part.PARTS)
def test_one_part_learns_alone(folder, tmp_path, part):
    start = tmp_path / "start.safetensors"
    moved(SMALL, start)
    config = dataclasses.replace(SMALL, **SMALLER[part])
    lines = []
    given = dict(batch_size=2, size=64, levels=1, table_crops=8, steps=60, say=lines.append)
    path = train_part.train(part, [folder], start, tmp_path, 1, config, **given)
    new, old = load_model(path), load_model(start)
    networks = {"encoder": new.analysis_network, "decoder": new.synthesis_network}
    assert new.config == config and (part not in networks or all(block.measured for block in networks[part].blocks))
    others = [name for name in old.state_dict() if not name.startswith(train_part.TENSORS[part])]
    assert all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in others if "step_" not in name)
    assert lines[0].startswith("4 latents in") and path.name in lines[-1]
    pictures = load_pictures([folder], 64)
    samples = train_part.samples_of(old, part, pictures, 64, 1, 5)
    arrays = read_model_file(start)[0]
    given = train_part.batch(samples, 8, 4, random.Random(1))
    begun = train_part.started(arrays, SMALL, config, part, samples)
    found = []
    for one in (begun, new):
        torch.manual_seed(1)
        with torch.no_grad():
            found.append(float(train_part.losses(one, part, *given).mean()))
    assert found[1] < found[0]
    with pytest.raises(ValueError, match="has other sizes than those wanted"):
        train_part.train(part, [folder], start, tmp_path, 0.01, dataclasses.replace(config, hyper=9))


def test_a_smaller_entropy_model_keeps_what_weighs_most():
    """Units that nothing reads are those that go: then nothing changes."""
    torch.manual_seed(4)
    model = NightCodec(SMALL).requires_grad_(False)
    config = dataclasses.replace(SMALL, **SMALLER["entropy"])
    readers = {
        "means.features": 16, "means.first": 12, "indices.features": 16, "indices.first": 12, "indices.neighbours": 8,
        "indices.second": 24, "means.second": 20, "indices.groups.0.last": 24, "indices.groups.1.last": 24,
    }  # fmt: skip
    state = model.state_dict()
    for name, kept in readers.items():
        state[f"{name}.weight"][:, kept:] = 0
    for network, kept in (("means", config.mean_channels), ("indices", config.index_channels)):
        for name in ("join", *(f"groups.{i}.join" for i in range(2) if f"{network}.groups.{i}.join.weight" in state)):
            weight = state[f"{network}.{name}.weight"]
            for half in weight.chunk(2, 1):
                half[:, kept:] = 0
    model.load_state_dict(state)
    small = NightCodec(config).requires_grad_(False)
    arrays = slimmed({name: part.numpy() for name, part in state.items()}, config)
    small.load_state_dict({name: torch.from_numpy(part) for name, part in arrays.items()})
    z = torch.randint(-3, 4, (1, 8, 2, 2)).float()
    symbols = torch.randint(-3, 4, (1, 40, 8, 8))
    assert torch.equal(small.bins_of(z, 400, symbols), model.bins_of(z, 400, symbols))
    assert torch.allclose(
        small.reconstruct_latent(z, symbols, 400), model.reconstruct_latent(z, symbols, 400), atol=1e-5
    )


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_dead_units_are_revived(folder, leak):
    torch.manual_seed(3)
    model = NightCodec(dataclasses.replace(SMALL, encoder_blocks=2, leak=leak))
    block, pictures = model.blocks[0], load_pictures([folder], 64)
    with torch.no_grad():
        model.analysis_network.leave.weight.normal_(std=0.05)
        block.narrow.bias[:3], block.spatial.bias[2:6] = -60.0, torch.tensor([60.0, -60.0, -60.0, 60.0])
    x = batch(pictures, 4, 64, random.Random(0))
    before = model.analysis(x).detach()
    samples = batch(pictures, 8, 64, random.Random(9))
    assert revive(model, samples) >= 7
    assert block.narrow.bias[:3].min() > -50 and block.spatial.bias[2:6].abs().max() < 50
    assert (model.analysis(x) - before).square().mean() < 0.05 * before.square().mean()
    assert revive(model, samples) == 0


def test_leaky_relus_lose_their_slope_by_and_by(folder, tmp_path, monkeypatch):
    revived = []
    monkeypatch.setattr("codec.train.revive", lambda model, x: revived.append(model.blocks[0].leak) or 0)
    leaky = dataclasses.replace(SMALL, leak=0.1)
    save_model(NightCodec(leaky), tmp_path / "leaky.safetensors")
    path = train(
        [folder], tmp_path / "out", minutes=0.1, batch_size=2, size=64, config=SMALL, say=lambda line: None,
        start=tmp_path / "leaky.safetensors", table_crops=8,
    )  # fmt: skip
    saved = torch.load(tmp_path / "out" / "trunk.pt", weights_only=True)
    assert saved["leak"] == 0.0  # all of it is gone by the time that the rate falls
    assert revived == [0.1]  # judged with the slope that they were trained with
    assert load_model(path).config.leak == 0.0


def test_a_finish_alone_trains_what_follows_the_symbols_and_the_steps(folder, tmp_path):
    model = NightCodec(dataclasses.replace(SMALL, lapped=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    measure_steps(model, load_pictures([folder], 64), crops=4, size=64)
    save_model(model, tmp_path / "start.safetensors")
    path = train(
        [folder], tmp_path / "out", minutes=0.1, batch_size=2, size=64, rate=0.05, decay=1.0, finish=1.0,
        start=tmp_path / "start.safetensors", say=lambda line: None, table_crops=8,
    )  # fmt: skip
    old, new = load_model(tmp_path / "start.safetensors").state_dict(), load_model(path).state_dict()
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    block = "synthesis_network.blocks.0."
    names = {block + "step_filtered", block + "step_narrowed", block + "narrow.weight"}
    assert names | {"linear_synthesis", "lap_synthesis"} <= changed
    frozen = ("analysis", "hyper", "means", "linear_analysis", "lap_analysis", "log_gain")
    assert not [name for name in changed if name.startswith(frozen)]
    steps = torch.cat([value for name, value in new.items() if "step_" in name])
    assert steps.min() > 0


def test_a_joint_finish_trains_the_encoder_too(folder, tmp_path):
    model = NightCodec(SMALL)
    measure_steps(model, load_pictures([folder], 64), crops=4, size=64)
    save_model(model, tmp_path / "start.safetensors")
    path = train(
        [folder], tmp_path / "out", minutes=0.05, batch_size=2, size=64, rate=0.05, decay=1.0, finish=1.0, joint=True,
        start=tmp_path / "start.safetensors", say=lambda line: None, table_crops=8,
    )  # fmt: skip
    old, new = load_model(tmp_path / "start.safetensors").state_dict(), load_model(path).state_dict()
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert {"linear_analysis", "linear_synthesis", "means.first.weight", "hyper_leave.weight"} <= changed
    assert not [name for name in changed if name.startswith("analysis_network") and "step_" in name]


def test_steps_are_measured_anew_where_more_than_the_finish_was_trained(folder, tmp_path):
    model = NightCodec(SMALL)
    measure_steps(model, load_pictures([folder], 64), crops=4, size=64)
    for block in model.blocks:
        block.step_narrowed.mul_(30.0)
    save_model(model, tmp_path / "start.safetensors")
    path = train(
        [folder], tmp_path / "out", minutes=0.1, batch_size=2, size=64, rate=1e-9, decay=0.1, finish=0.5,
        start=tmp_path / "start.safetensors", say=lambda line: None, table_crops=8,
    )  # fmt: skip
    name = "analysis_network.blocks.0.step_narrowed"
    old, new = (load_model(p).state_dict()[name] for p in (tmp_path / "start.safetensors", path))
    assert new.mean() < 0.2 * old.mean()  # 30 times too large; at that rate training moves nothing


def test_a_latent_in_groups_starts_from_one_in_the_order_of_colours(tmp_path):
    old = NightCodec(dataclasses.replace(SMALL, groups=()))
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_model(old, tmp_path / "old.safetensors")
    old = load_model(tmp_path / "old.safetensors")
    arrays = regrouped(read_model_file(tmp_path / "old.safetensors")[0], old.config, SMALL)
    new = NightCodec(SMALL)
    new.load_state_dict(float_tensors(new, arrays), strict=False)
    x = torch.rand(1, 3, 64, 64)
    y, of_old = new.analysis(x), old.analysis(x)
    assert torch.allclose(y, of_old[:, SMALL.order], atol=1e-4)
    assert torch.allclose(new.synthesis(y, 300), old.synthesis(of_old, 300), atol=1e-4)
    assert torch.allclose(new.hyper_analysis(y, 300), old.hyper_analysis(of_old, 300), atol=1e-3)
    z = torch.round(old.hyper_analysis(of_old, 300))
    first = SMALL.order[: SMALL.groups[0]]
    mean = old.mean_first(old.mean_features(z, 4, 4))[:, first]
    assert torch.allclose(new.mean_first(new.mean_features(z, 4, 4)), mean, atol=1e-4)
    assert regrouped(arrays, SMALL, SMALL) is arrays


@pytest.mark.slow
def test_sizes_are_options(folder, tmp_path):
    save_model(NightCodec(dataclasses.replace(SMALL, decoder_blocks=3)), tmp_path / "start.safetensors")
    sizes = {**dataclasses.asdict(SMALL), "decoder_blocks": 2}
    for name in ("lapped", "last_means"):
        del sizes[name]
    groups = map(str, sizes.pop("groups"))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    options += ["--lapped", "--no-last-means"]
    options += ["--groups", *groups]
    files = ["--data", str(folder), "--out", str(tmp_path), "--start", str(tmp_path / "start.safetensors")]
    main([*files, *options, "--minutes=0.05", "--batch=2", "--size=64", "--device=cpu", "--table-crops=8"])
    config = load_model(tmp_path / "codec.safetensors").config
    assert config == dataclasses.replace(SMALL, decoder_blocks=2, lapped=True, last_means=False)


def test_training_needs_torch_numpy_and_pillow_alone():
    code = "import sys, codec.train; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numba", "scipy", "skimage", "pyarrow", "constriction", "prefect", "boto3"} & set(loaded)


def test_a_device_cuts_the_same_kinds_of_samples():
    torch.manual_seed(4)
    places = np.stack(np.meshgrid(np.arange(90), np.arange(70), indexing="ij"), 2)  # each pixel says where it is
    first = np.concatenate((places, np.full((90, 70, 1), 200)), 2).astype(np.uint8)
    second = np.full((40, 33, 3), 7, np.uint8)
    page = np.full((64, 64, 3), 99, np.uint8)
    crops = DeviceCrops([first, second], [page], 0.25, 0.0, "cpu")
    x = (crops.batch(400, 32) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert x.shape == (400, 32, 32, 3)
    kinds = x[:, 0, 0, 2]
    assert (kinds == 99).sum() in (100, 101) and 100 < (kinds == 200).sum() < 200 and (kinds == 7).sum() > 100
    ways = set()
    for piece in x[kinds == 200].astype(int):
        steps = piece[1, 0, :2] - piece[0, 0, :2], piece[0, 1, :2] - piece[0, 0, :2]
        ways.add(tuple(np.concatenate(steps)))
        grid = piece[0, 0, :2] + np.arange(32)[:, None, None] * steps[0] + np.arange(32)[None, :, None] * steps[1]
        assert np.array_equal(piece[..., :2], grid) and grid.min() >= 0 and (grid.max((0, 1)) < (90, 70)).all()
    assert len(ways) == 8

    reduced = DeviceCrops([first, second], [], 0.0, 1.0, "cpu").batch(50, 32)
    assert reduced.shape == (50, 3, 32, 32) and 0 <= reduced.min() and reduced.max() <= 1
    smooth = reduced[(reduced[:, 2, 0, 0] * 255).round() == 200]
    assert (smooth[:, 2] * 255 - 200).abs().max() < 1  # what is even stays even


def test_training_takes_samples_cut_on_the_device(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("codec.train.PAGES", 4)
    common = dict(batch_size=4, size=64, config=SMALL, say=str, table_crops=8)
    path = train([folder], tmp_path, minutes=0.1, on_device=True, **common)
    assert int(load_model(path).metadata["steps"]) > 0
