"""Learned image compression: pictures <-> .npi bitstreams that decode alike on every machine.

    encode, encode_batch      picture(s) -> bytes             (encoder.py)
    decode, decode_batch      bytes -> PIL image(s)           (decoder.py)
    decode_picture            bytes -> Picture with ICC, EXIF, XMP
    info                      what a bitstream says of itself
    prepare                   one picture's analysis, to be coded at several levels
    target_level              the level at which it meets a target; parse_target reads one
    allocate                  a byte budget over many pictures, from each one's RatePoints
    open_picture, Picture     image files as upright 8-bit pictures
    CodecError and below it BadBitstream, UnknownVersion, UnknownModel, TargetUnreachable; BudgetTooSmall, a
    ValueError; PictureError for image files

Rooms: network (the networks as they are trained), engine (the same at work), entropy (symbols <-> words), bitstream
(the file), pictures (image files), rate_control, training. Names are imported at first use, so that `import codec`
does not bring in torch.
"""

from importlib import import_module

_HOMES = {
    "decoder": ("decode", "decode_batch", "decode_picture", "info"),
    "encoder": ("AnalysedPicture", "encode", "encode_batch", "prepare"),
    "errors": ("BadBitstream", "CodecError", "UnknownModel", "UnknownVersion"),
    "format": ("level_of",),
    "models": ("default_model", "find_model", "get_model"),
    "pictures.errors": ("BrokenPicture", "DamagedPicture", "NotAPicture", "PictureError", "UncarriedPicture"),
    "pictures.files": ("Picture", "open_picture", "picture_bytes", "picture_from_image", "pixel_sha256"),
    "rate_control.budget": ("Allocation", "BudgetTooSmall", "RatePoint", "SAMPLE_LEVELS", "allocate"),
    "rate_control.target": ("LocalLossRemains", "Reached", "TargetUnreachable", "parse_target", "target_level"),
    "tensors": ("model_id",),
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
