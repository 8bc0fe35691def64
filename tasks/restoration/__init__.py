"""Restoration: whether a picture is noisy, denoising, super-resolution; networks, their training and evaluation.

`noise_sigma`, `denoise`, `remove_impulses` and `upscale` are the library's names; each loads its module when first
used.
"""

from importlib import import_module

_HOMES = {"noise_sigma": "noise", "denoise": "apply", "remove_impulses": "apply", "upscale": "apply"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
