"""Tensors on the CPU that pose as a GPU's, so that the code for GPUs runs where there is none.

Within `gpu()` what is put on "cuda" says that it is there, refuses to become a numpy array and to meet the CPU's
tensors in one operation, as a GPU's would; it is computed by the CPU. What only a GPU shows, its own kernels and their
rounding, is for tests/bench/exactness.py.
"""

import contextlib

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 99)  # none that is there: what is kept by device is not kept for a real one
ACROSS = {"copy_", "__setitem__", "__getitem__", "_foreach_copy_"}  # take tensors of both
PROPERTIES = {
    torch.Tensor.device.__get__: lambda posing: GPU if posing else torch.device("cpu"),
    torch.Tensor.is_cuda.__get__: lambda posing: posing,
    torch.Tensor.is_cpu.__get__: lambda posing: not posing,
}


class Posing(Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


class _Everywhere(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


def _on_gpu(device) -> bool:
    return torch.device(device).type == "cuda"


def _moved(given: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """Tensor.to."""
    rest, named = list(args), dict(kwargs)
    target = named.pop("device", None)
    named.pop("non_blocking", None)
    if rest and isinstance(rest[0], str | torch.device):
        target = rest.pop(0)
    elif rest and isinstance(rest[0], Tensor):
        target, rest[0] = "cuda" if isinstance(rest[0], Posing) else "cpu", rest[0].dtype
    rest = [part for part in rest if part is not None and not isinstance(part, bool)]
    posing = isinstance(given, Posing)
    out = given.to(*rest, **named) if rest or named else given
    wanted = posing if target is None else _on_gpu(target)
    if wanted == posing:
        return out if out is given else out.as_subclass(Posing if wanted else Tensor)
    return out.clone().as_subclass(Posing if wanted else Tensor)


def _called(function, args: tuple, kwargs: dict):
    with torch._C.DisableTorchFunctionSubclass():
        for known, answer in PROPERTIES.items():
            if function == known:
                return answer(isinstance(args[0], Posing))
        name = getattr(function, "__name__", str(function))
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        posing = [part for part in tensors if isinstance(part, Posing)]
        others = [part for part in tensors if not isinstance(part, Posing) and part.dim()]
        if name == "_has_compatible_shallow_copy_type":  # else modules would keep their parameters' tensors
            return not (posing and others)
        if posing and name in ("numpy", "__array__"):
            raise TypeError("a tensor of the GPU is no array")
        if name == "to":
            return _moved(args[0], args[1:], kwargs)
        if name == "cpu":
            return _moved(args[0], ("cpu",), {})
        if posing and others and name not in ACROSS and name not in ("__get__", "__set__"):
            shapes = [tuple(part.shape) for part in others]
            raise RuntimeError(f"{name}: tensors of both devices, the CPU's are {shapes}")
        given, wanted = {id(part) for part in tensors}, bool(posing)
        if kwargs.get("device") is not None:
            wanted, kwargs = _on_gpu(kwargs["device"]), {**kwargs, "device": "cpu"}
        out = function(*args, **kwargs)

        def posed(part):
            new = wanted and isinstance(part, Tensor) and not isinstance(part, Posing) and id(part) not in given
            return part.as_subclass(Posing) if new else part

        return tree_map(posed, out)


@contextlib.contextmanager
def gpu(monkeypatch):
    """Within it "cuda" is a device."""
    with monkeypatch.context() as patched, _Everywhere():
        patched.setattr(torch.cuda, "_lazy_init", lambda: None)
        yield
