"""Model files: a NightCodec's weights, sizes, entropy tables and contexts in one safetensors file.

Float tensors are float16, those of the exact network integers; FORMAT.md says what each is. Finding files: models.py.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.entropy import contexts
from codec.entropy.tables import TABLE_STRENGTH, EntropyTables, rounding_thresholds
from codec.entropy.trellis import tables_with
from codec.network.config import Config
from codec.network.exact import ACTIVATION_STEPS, WEIGHT_STEPS
from codec.network.night_codec import NightCodec
from codec.tensors import model_id, packed_tensors, read_tensors

FILE_FORMAT = "nightpress-codec-1"


def _exact_names(model: NightCodec) -> dict[str, int]:
    """Parameters of the exact network -> the integer each unit stands for."""
    return {
        f"indices.{name}": WEIGHT_STEPS if name.endswith("weight") else WEIGHT_STEPS * ACTIVATION_STEPS
        for name, _ in model.indices.named_parameters()
    }


def save_model(model: NightCodec, path: str | Path, **metadata: str) -> str:
    """Write weights, tables, contexts (its own, or such as correct nothing) and sizes. Returns the model id.

    Raises ValueError where the exact network's sums could round.
    """
    model.indices.check()
    exact = _exact_names(model)
    arrays: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        value = value.detach().float().cpu()
        if name in exact:
            arrays[name] = torch.round(value * exact[name]).numpy().astype(np.int32)
        else:
            arrays[name] = value.numpy().astype(np.float16)
    tables = model.tables()
    arrays["tables.y"] = np.concatenate(tables.y_freq).astype(np.uint16)
    arrays["tables.y_sizes"] = np.array([len(f) for f in tables.y_freq], np.int32)
    arrays["tables.z"] = np.stack([np.stack(row) for row in tables.z_freq]).astype(np.uint16)
    arrays |= model.contexts or contexts.without_weights(model.config.latent, tables_with(tables.y_freq))
    metadata = {"config": json.dumps(dataclasses.asdict(model.config)), "format": FILE_FORMAT, **metadata}
    data = packed_tensors(arrays, metadata)
    Path(path).write_bytes(data)
    return model_id(data)


def read_model_file(source: str | Path | bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a model file. Raises ValueError naming what is wrong with it."""
    try:
        return read_tensors(source, FILE_FORMAT)
    except ValueError as error:
        name = "model" if isinstance(source, bytes) else str(source)
        raise ValueError(
            f"{name} is not a Nightpress codec model: {error}; take a file that `nightpress train` wrote"
        ) from error


def float_tensors(model: NightCodec, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The file's tensors that `model` has, in its units: the exact network's integers become multiples of steps."""
    exact = _exact_names(model)
    return {
        key: torch.from_numpy(arrays[key].astype(np.float32)) / exact.get(key, 1)
        for key, value in model.state_dict().items()
        if key in arrays and arrays[key].shape == tuple(value.shape)
    }


def load_model(source: str | Path | bytes) -> NightCodec:
    """Model file -> NightCodec in float32 on the CPU, in evaluation mode, with `.identity` set to its id.

    Raises ValueError naming what is wrong with the file.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    name = "model" if isinstance(source, bytes) else str(source)
    arrays, metadata = read_model_file(source)
    try:
        model = NightCodec(Config(**json.loads(metadata["config"])))
        state = float_tensors(model, arrays)
        missing = [key for key in model.state_dict() if key not in state]
        if missing:
            raise ValueError(f"it lacks the tensor {missing[0]}")
        ends = np.cumsum(arrays["tables.y_sizes"])
        y_freq = [f.astype(np.uint32) for f in np.split(arrays["tables.y"], ends[:-1])]
        z_freq = [[f.astype(np.uint32) for f in row] for row in arrays["tables.z"]]
        contexts.of_arrays(arrays, model.config.latent)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name} does not fit this version: {error}; take a file that `nightpress train` wrote"
        ) from error
    model.load_state_dict(state)
    model.indices.check()
    model.frequencies = EntropyTables(y_freq, z_freq)
    model.thresholds.copy_(rounding_thresholds(TABLE_STRENGTH, y_freq))
    model.contexts = {key: array for key, array in arrays.items() if key.startswith("contexts.")}
    model.identity = model_id(data)
    model.metadata = metadata
    return model.eval().requires_grad_(False)
