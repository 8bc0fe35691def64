"""Model files by id or path, and models ready to work. Without torch until one is loaded.

What is in a file: network/files.py.
"""

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from codec.errors import UnknownModel
from codec.tensors import model_id

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "codec.safetensors"
MODEL_FOLDERS_VARIABLE = "NIGHTPRESS_MODELS"  # more folders to search for models, separated as in PATH


def choose_device(device="auto"):
    """torch.device; auto: CUDA where there is one, else the CPU."""
    import torch

    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


@functools.cache
def _identity_of(path: str, size: int, modified: int) -> str:
    return model_id(path)


def _model_files(folders) -> Iterator[Path]:
    variable = os.environ.get(MODEL_FOLDERS_VARIABLE, "")
    for folder in [WEIGHTS, *(folders or ()), *filter(None, variable.split(os.pathsep))]:
        with suppress(OSError):
            yield from sorted(Path(folder).glob("*.safetensors"))


def default_model() -> Path:
    """The model that encodes when none is named. Raises UnknownModel when the package holds none."""
    path = WEIGHTS / DEFAULT
    if not path.is_file():
        raise UnknownModel(f"no trained model in {WEIGHTS}; train one with `nightpress train codec` or pass model=FILE")
    return path


def find_model(identity: str, folders=None) -> Path:
    """The model file with that id (16 hex digits) in the package, in `folders` or in $NIGHTPRESS_MODELS.

    Raises UnknownModel naming where it looked.
    """
    for path in _model_files(folders):
        status = path.stat()
        if path.stem == identity or _identity_of(str(path), status.st_size, status.st_mtime_ns) == identity:
            return path
    places = [str(WEIGHTS), *map(str, folders or ()), os.environ.get(MODEL_FOLDERS_VARIABLE, "")]
    raise UnknownModel(
        f"model {identity} is in none of {', '.join(filter(None, places))}; name the folder that holds it (models/ of "
        f"the destination) by models=[...] or ${MODEL_FOLDERS_VARIABLE}"
    )


_loaded: dict = {}
_loading = threading.Lock()


def get_model(model=None, *, device="auto", precision: str = "auto", folders=None):
    """A NightCodec ready to work: `model` is None (the default one), an id, a path or a NightCodec (returned as it is).

    Loaded models are kept, one per file, device and precision. Raises UnknownModel; ValueError for a file that is no
    model.
    """
    if model is None:
        path = default_model()
    elif not isinstance(model, str | os.PathLike):
        return model
    elif isinstance(model, str) and len(model) == 16 and not os.path.exists(model):
        path = find_model(model, folders)
    else:
        path = Path(model)
        if not path.is_file():
            raise UnknownModel(f"there is no model file {path}")
    from codec.network.files import load_model

    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns, choose_device(device), precision)
    with _loading:
        if key not in _loaded:
            _loaded[key] = load_model(path).to(key[3]).set_precision(precision)
        return _loaded[key]
