"""Embeddings: networks and their files, training in pieces, ONNX networks, neighbours, the weights that ship."""

import csv

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps
from skimage import data

from codec.training.splits import held_out
from tasks.duplicates.embeddings import embedder, neighbours, samples
from tasks.duplicates.embeddings import train as training
from tasks.duplicates.embeddings.networks import KINDS, Config, load_network, new_network, save_network

SMALL = {
    "copy": Config("copy", 32, 4, (8, 16), (1, 1)),
    "classifier": Config("classifier", 32, 1, (8, 16), (1, 0)),
    "autoencoder": Config("autoencoder", 32, 4, (8, 16), (0, 1)),
}


def photographs() -> list[Image.Image]:
    return [Image.fromarray(array) for array in (data.chelsea(), data.astronaut(), data.coffee(), data.camera())]


# -- networks and files


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_have_length_one_and_survive_the_file(kind, tmp_path):
    torch.manual_seed(1)
    network = new_network(kind, SMALL[kind]).eval()
    save_network(network, tmp_path / "n.safetensors")
    again = load_network(tmp_path / "n.safetensors")
    x = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        first, second = network(x), again(x)
    assert first.shape == (3, 128) and again.config == SMALL[kind]
    assert torch.allclose(first.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(first, second, atol=0.02)  # stored in float16


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "n.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_network(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no embedding network"):
        load_network(path)
    with pytest.raises(ValueError, match="there are copy"):
        new_network("vgg")


# -- training


def folder_of_tiles(folder, names):
    folder.mkdir()
    with (folder / "INDEX.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file", "original"])
        for at, (name, picture) in enumerate(zip(names, photographs() * 9, strict=False)):
            picture.convert("RGB").resize((96, 64)).save(folder / f"{at}.png")
            lines.writerow([f"{at}.png", name])
    return folder


def test_held_out_originals_are_not_trained_on(tmp_path):
    names = [f"photo-{n}.jpg" for n in range(30)]
    held = [name for name in names if held_out(name)]
    assert 0 < len(held) < 15
    folder = folder_of_tiles(tmp_path / "tiles", names)
    pictures, group = samples.load_pictures([folder], 64)
    assert len(pictures) == len(set(group)) == 30 - len(held)
    assert {original for _, original, out in samples.picture_files([folder]) if out} == set(held)


@pytest.mark.parametrize("kind", KINDS)
def test_training_pauses_and_resumes(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "new_network", lambda kind: new_network(kind, SMALL[kind]))
    monkeypatch.setattr(samples, "SOURCES", 6)
    folder = folder_of_tiles(tmp_path / "tiles", [f"photo-{n}" for n in range(12)])
    rng = np.random.default_rng(1)
    labelled = {"train_x": rng.integers(0, 256, (40, 32, 32, 3), np.uint8), "train_y": rng.integers(0, 10, 40)}
    np.savez(folder / "c.npz", **labelled, test_x=labelled["train_x"][:9], test_y=labelled["train_y"][:9])
    said = []
    common = {"variant": kind, "steps": 8, "say": said.append}
    path = training.train([folder], tmp_path / "out", pause_after=3, **common)
    assert torch.load(tmp_path / "out" / f"embedding-{kind}.pt", weights_only=True)["steps"] == 3
    assert training.train([folder], tmp_path / "out", resume=True, **common) == path
    state = torch.load(tmp_path / "out" / f"embedding-{kind}.pt", weights_only=True)
    assert state["steps"] == 8 and state["seconds"] > 0
    assert load_network(path).config == SMALL[kind] and any("steps" in line for line in said)


def test_training_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no picture to train on"):
        training.train([tmp_path], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="CIFAR-10"):
        training.train([tmp_path], tmp_path / "out", variant="classifier")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        training.train([tmp_path], tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="copy, classifier, autoencoder"):
        training.train([tmp_path], tmp_path / "out", variant="vgg")


def test_copy_loss_falls_as_pairs_meet():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.nn.functional.normalize(torch.randn(8, 128, generator=generator), dim=1) for _ in range(2))
    apart, together = training.copy_loss(a, b), training.copy_loss(a, a)
    assert together[1] < 0.01 < apart[1]
    crowded = training.copy_loss(a[:1] + 0.01 * a, a[:1] + 0.01 * a)
    assert crowded[2] > together[2]  # the entropy term dislikes vectors in one place


def test_every_copy_has_the_size_asked_for():
    import random

    rng = random.Random(3)
    for picture in photographs() * 8:
        view = samples.copy_of(picture.convert("RGB"), rng, 48, strong=True)
        assert view.shape == (48, 48, 3) and view.dtype == np.uint8


# -- a network of the user's own


def onnx_file(path, shape, *, kind=TensorProto.FLOAT, metadata=None, inputs=1):
    """Mean over the picture's sides: [n,3,h,w] (or [n,h,w,3]) -> [n,3]."""
    axes = [2, 3] if shape[1] == 3 else [1, 2]
    given = [helper.make_tensor_value_info(f"x{n}", kind, shape) for n in range(inputs)]
    nodes, name = [], "x0"
    if kind == TensorProto.UINT8:
        nodes, name = [helper.make_node("Cast", ["x0"], ["f"], to=TensorProto.FLOAT)], "f"
    nodes.append(helper.make_node("ReduceMean", [name, "axes"], ["y"], keepdims=0))
    gives = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "mean", given, [helper.make_tensor_value_info("y", gives, [shape[0], 3])],
        [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("shape", [["n", 3, 16, 24], ["n", 16, 24, 3], [1, 3, 16, 24]])
def test_onnx_network_gives_unit_vectors(tmp_path, shape):
    path = onnx_file(tmp_path / "mean.onnx", shape, metadata={"mean": "0 0 0", "std": "1 1 1"})
    colours = np.array([[255, 0, 0], [10, 200, 90], [50, 50, 50]], np.uint8)
    images = [Image.new("RGB", (40, 30), tuple(colour.tolist())) for colour in colours]
    vectors = embedder.embed(images, path)
    expected = colours / np.linalg.norm(colours.astype(float), axis=1, keepdims=True)
    assert vectors.dtype == np.float32 and np.allclose(vectors, expected, atol=1e-5)
    assert embedder.open_embedder(path).size == (24, 16) and len(embedder.network_id(path)) == 16


def test_onnx_uint8_gets_bytes_and_open_sides_get_224(tmp_path):
    path = onnx_file(tmp_path / "bytes.onnx", ["n", 3, "h", "w"], kind=TensorProto.UINT8)
    assert embedder.open_embedder(path).size == (224, 224)
    assert np.allclose(embedder.embed([Image.new("RGB", (8, 8), (0, 255, 0))], path), [[0, 1, 0]])


def test_unusable_networks_say_why(tmp_path):
    (tmp_path / "text.onnx").write_text("not a network")
    cases = {
        "vgg16": "copy, classifier, autoencoder or a file",
        str(tmp_path / "none.onnx"): "is not a file",
        str(tmp_path / "text.onnx"): "can't be loaded",
        onnx_file(tmp_path / "two.onnx", ["n", 3, 8, 8], inputs=2): "takes 2 inputs",
        onnx_file(tmp_path / "four.onnx", ["n", 4, 8, 8]): r"\[n,3,h,w\] or \[n,h,w,3\]",
        onnx_file(tmp_path / "eight.onnx", [8, 3, 8, 8]): "batches of exactly 8",
        onnx_file(tmp_path / "bad.onnx", ["n", 3, 8, 8], metadata={"std": "0 1 1"}): "three numbers",
        onnx_file(tmp_path / "double.onnx", ["n", 3, 8, 8], kind=TensorProto.DOUBLE): "can be fed",
    }
    for kind, message in cases.items():
        with pytest.raises(embedder.EmbeddingError, match=message):
            embedder.open_embedder(kind)


# -- neighbours


def test_candidates_are_the_pairs_above_the_least():
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    new, known = vectors[:40], vectors[40:]
    i, j, similarity = neighbours.embedding_candidates(new, known, least=0.4, top=60)
    cosine = vectors @ vectors.T
    expected = {(a, b) for a in range(40) for b in range(a + 1, 60) if cosine[a, b] >= 0.4}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected and len(i) == len(expected)
    assert np.allclose(similarity, cosine[i, j], atol=1e-5)
    within = neighbours.embedding_candidates(new, least=0.4, top=60)
    assert set(zip(*(part.tolist() for part in within[:2]), strict=True)) == {p for p in expected if p[1] < 40}


def test_no_pictures_no_candidates():
    none = np.empty((0, 8), np.float32)
    assert all(part.size == 0 for part in neighbours.embedding_candidates(none, none, least=0.5))
    one = np.ones((1, 8), np.float32) / np.sqrt(8)
    assert all(part.size == 0 for part in neighbours.embedding_candidates(one, none, least=0.5))
    with pytest.raises(ValueError, match="same network"):
        neighbours.nearest(one, np.ones((1, 9), np.float32), 3)


def test_search_in_cells_finds_close_copies():
    rng = np.random.default_rng(6)
    known = rng.standard_normal((4000, 32)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    queries = np.tile(known, (2, 1)) + 0.02 * rng.standard_normal((8000, 32)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, all_compared = neighbours.nearest(queries, known, 3)
    _, index = neighbours.nearest(queries, known, 3, exact=1000)
    assert (all_compared[:, 0] == np.tile(np.arange(4000), 2)).all()
    assert (index[:, 0] == all_compared[:, 0]).mean() >= 0.95 and (index != all_compared).any()
    _, few = neighbours.nearest(queries[:100], known, 3, exact=1000)  # making cells would cost more than all pairs
    assert np.array_equal(few, all_compared[:100])


# -- the weights that ship


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_networks_know_a_picture_from_others(kind):
    pictures = photographs()
    smaller = [picture.resize((picture.width // 2, picture.height // 2)) for picture in pictures]
    cosine = embedder.embed(pictures, kind) @ embedder.embed(smaller, kind).T
    assert (cosine.argmax(1) == np.arange(4)).all()
    assert (embedder.WEIGHTS / f"embedding-{kind}.safetensors").stat().st_size < 3_000_000


def test_copy_network_sees_through_a_flip_and_a_frame():
    pictures = photographs()
    altered = [ImageOps.expand(ImageOps.mirror(picture.convert("RGB")), 30, (0, 0, 0)) for picture in pictures]
    cosine = embedder.embed(pictures) @ embedder.embed(altered).T
    assert (cosine.argmax(1) == np.arange(4)).all()


def test_alpha_is_seen_over_white():
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (embedder.squeezed(clear, (4, 4)) == 255).all()
    assert embedder.embed([], "copy").shape == (0, 128)


def test_similar_by_embedding_names_altered_copies(tmp_path, capsys):
    import json

    from flows.cli import main

    source = tmp_path / "source"
    source.mkdir()
    cat = Image.fromarray(data.chelsea())
    cat.save(tmp_path / "cat.png")
    ImageOps.mirror(cat).crop((60, 40, 400, 290)).save(source / "part.jpg", quality=60)
    for name, picture in zip(("astronaut", "coffee", "camera"), photographs()[1:], strict=True):
        picture.save(source / f"{name}.png")
    page = tmp_path / "similar.html"
    command = ["similar", str(tmp_path / "cat.png"), str(source), "--html", str(page), "--json"]
    assert main([*command, "--top", "4", "--embedding", "copy"]) == 0
    found = {row["key"]: row for row in json.loads(capsys.readouterr().out)["similar"]}
    assert found["part.jpg"]["verdict"].startswith("an altered copy: a mirror image")
    assert {found[key]["verdict"] for key in found if key != "part.jpg"} == {"not a copy"}
    assert page.exists()
    assert main([*command, "--embedding", "vgg16"]) == 2
