"""What encoding, decoding and the search for models raise. Errors of image files: pictures/errors.py."""


class CodecError(Exception):
    """What encoding and decoding raise for bitstreams and models; one of the classes below."""


class BadBitstream(CodecError):
    """Not a .npi file, or a truncated, damaged or forged one."""


class UnknownVersion(CodecError):
    """A .npi file of a format version that this program does not know."""


class UnknownModel(CodecError):
    """The model that a bitstream (or the caller) names is in none of the folders searched."""
