"""Learned image compression: pictures <-> .npi bitstreams that decode alike on every machine.

    encode, encode_batch      picture(s) -> bytes             (coder.py)
    decode, decode_batch      bytes -> PIL image(s)           (coder.py)
    decode_picture            bytes -> Picture with ICC, EXIF, XMP
    info                      what a bitstream says of itself
    allocate                  a byte budget over many pictures, from each one's RatePoints (rate.py)
    target_level              the level at which a prepared picture meets a target; parse_target reads one
    open_picture, Picture     image files as upright 8-bit pictures (pixels.py)
    CodecError and below it BadBitstream, UnknownVersion, UnknownModel, TargetUnreachable; BudgetTooSmall, a
    ValueError; PictureError for image files

Names are imported at first use, so that `import codec.pixels` does not bring in torch.
"""

from importlib import import_module

_HOMES = {
    "coder": (
        "Prepared", "decode", "decode_batch", "decode_picture", "encode", "encode_batch", "get_model", "info",
        "prepare",
    ),
    "container": ("BadBitstream", "CodecError", "UnknownModel", "UnknownVersion"),
    "pixels": (
        "BrokenPicture", "NotAPicture", "Picture", "PictureError", "UncarriedPicture", "open_picture", "picture_bytes",
        "picture_from_image", "pixel_sha256",
    ),
    "rate": (
        "Allocation", "BudgetTooSmall", "RatePoint", "Reached", "SAMPLE_LEVELS", "TargetUnreachable", "allocate",
        "parse_target", "target_level",
    ),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'codec' has no attribute {name!r}")
    value = getattr(import_module(f"codec.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
