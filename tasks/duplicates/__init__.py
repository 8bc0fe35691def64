"""Duplicates: perceptual hashes, pairs within a Hamming distance, groups with a keeper, second looks, embeddings.

`fingerprints` and `pairs_within` are the library's names for the first two; they load their modules when first used.
"""

from importlib import import_module

_HOMES = {"fingerprints": "perceptual_hash", "pairs_within": "hamming_pairs"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
