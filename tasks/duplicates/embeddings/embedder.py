"""Pictures as vectors of length 1: one of our networks (copy, classifier, autoencoder), or a user's own in ONNX.

Weights lie beside this file. Networks: networks.py; training: train.py; which vectors are neighbours: neighbours.py.
"""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = ("copy", "classifier", "autoencoder")
WEIGHTS = Path(__file__).parent / "weights"
# Cosine from which a neighbour is worth confirming: 1 in 190 to 470 different pictures reach it (weights/EMBEDDINGS.md)
PROPOSED = {"copy": 0.3, "classifier": 0.98, "autoencoder": 0.9}
PROPOSED_ONNX = 0.8
BATCH = 32
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation most ONNX networks expect


class EmbeddingError(ValueError):
    """A network that can't be used, or pictures that it can't take; the message says which and what to do."""


@dataclass(frozen=True)
class Embedder:
    """A network ready to use. id: 16 hex digits of its file's sha256; dimensions: length of a vector."""

    kind: str
    id: str
    dimensions: int
    size: tuple[int, int]  # width, height that pictures are squeezed to
    run: object = field(repr=False)  # uint8 [B,H,W,3] -> float [B,dimensions]

    def embed(self, images: Iterable[Image.Image]) -> np.ndarray:
        """float32 [n,dimensions], each of length 1. Pictures of any size and 8-bit mode; alpha over white."""
        parts, batch = [], []
        for image in images:
            batch.append(squeezed(image, self.size))
            if len(batch) == BATCH:
                parts.append(self._unit(np.stack(batch)))
                batch = []
        if batch:
            parts.append(self._unit(np.stack(batch)))
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)

    def _unit(self, batch: np.ndarray) -> np.ndarray:
        vectors = np.asarray(self.run(batch), dtype=np.float32).reshape(len(batch), -1)
        if not np.isfinite(vectors).all():
            raise EmbeddingError(
                f"{self.kind}: the network gave values that are not finite; check what input it expects"
            )
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def squeezed(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H,W,3]: the whole picture at the network's size, proportions not kept."""
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def open_embedder(kind: str) -> Embedder:
    """The network named copy, classifier or autoencoder, or in a file FILE.onnx.

    A network of one's own takes one input [n,3,h,w] or [n,h,w,3] (float or uint8; 224 x 224 where the file leaves the
    sides open) and its first output is taken as the vector, flattened. Floats are fed as (v / 255 - mean) / deviation
    with ImageNet's figures, unless the file's metadata has `mean` and `std` (three numbers each, space between, on
    the scale 0..1). Raises EmbeddingError.
    """
    if kind in KINDS:
        return _own(kind)
    path = Path(kind)
    if path.suffix != ".onnx":
        raise EmbeddingError(f"no embedding {kind!r}: name {', '.join(KINDS)} or a file that ends in .onnx")
    if not path.is_file():
        raise EmbeddingError(f"{kind} is not a file")
    return _onnx(str(path.resolve()), path.stat().st_mtime_ns)


def embed(images: Iterable[Image.Image], kind: str = "copy") -> np.ndarray:
    """float32 [n,128] (or what FILE.onnx gives), each of length 1. Raises EmbeddingError."""
    return open_embedder(kind).embed(images)


def network_id(kind: str) -> str:
    """16 hex digits that change when the network does; vectors of different ids can't be compared."""
    return open_embedder(kind).id


def proposed_from(kind: str) -> float:
    """The cosine from which a neighbour by this network is worth confirming."""
    return PROPOSED.get(kind, PROPOSED_ONNX)


@functools.cache
def _own(kind: str) -> Embedder:
    import torch

    from tasks.duplicates.embeddings.networks import DIMENSIONS, file_id, load_network

    path = WEIGHTS / f"embedding-{kind}.safetensors"
    if not path.is_file():
        raise EmbeddingError(
            f"the weights of {kind!r} are not installed: {path} is missing; `nightpress train embedding`"
        )
    network = load_network(path).to(memory_format=torch.channels_last)

    def run(batch: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255.0
        with torch.inference_mode():
            return network(x).numpy()

    return Embedder(kind, file_id(path), DIMENSIONS, (network.config.size,) * 2, run)


@functools.lru_cache(maxsize=4)
def _onnx(path: str, modified: int) -> Embedder:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen exception classes without a common base
        raise EmbeddingError(f"{path} can't be loaded as an ONNX network: {error}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise EmbeddingError(
            f"{path} takes {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); one is expected"
        )
    given, shape = inputs[0], list(inputs[0].shape)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    if given.type not in kinds:
        raise EmbeddingError(f"{path}: input {given.name} is {given.type}; {', '.join(kinds)} can be fed")
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise EmbeddingError(f"{path}: input {given.name} has shape {shape}; [n,3,h,w] or [n,h,w,3] is expected")
    first = shape[1] == 3
    height, width = (
        side if isinstance(side, int) and side > 0 else 224 for side in (shape[2:] if first else shape[1:3])
    )
    single = isinstance(shape[0], int) and shape[0] > 0
    if single and shape[0] != 1:
        raise EmbeddingError(
            f"{path}: input {given.name} wants batches of exactly {shape[0]}; export it with an open one"
        )
    facts = session.get_modelmeta().custom_metadata_map
    mean, deviation = (_three(path, facts, name, usual) for name, usual in zip(("mean", "std"), IMAGENET, strict=True))
    output = session.get_outputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        if kinds[given.type] is not np.uint8:
            batch = ((batch.astype(np.float32) / 255.0 - mean) / deviation).astype(kinds[given.type])
        if first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        pieces = [batch[at : at + 1] for at in range(len(batch))] if single else [batch]
        try:
            return np.concatenate([session.run([output], {given.name: piece})[0] for piece in pieces])
        except Exception as error:
            raise EmbeddingError(f"{path} failed on pictures of {width} x {height}: {error}") from error

    tried = run(np.zeros((1, height, width, 3), np.uint8))
    if tried.shape[0] != 1 or tried.size < 2:
        raise EmbeddingError(f"{path}: output {output} has shape {tried.shape} for one picture; no vector")
    identity = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    return Embedder(path, identity, tried.size, (width, height), run)


def _three(path: str, facts: dict, name: str, usual: tuple) -> np.ndarray:
    try:
        values = np.array(facts[name].replace(",", " ").split() if name in facts else usual, dtype=np.float32)
    except ValueError:
        values = np.empty(0, np.float32)
    if values.shape != (3,) or (name == "std" and not (values > 0).all()):
        raise EmbeddingError(f"{path}: metadata {name} is {facts.get(name)!r}; three numbers are expected")
    return values
