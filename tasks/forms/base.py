"""What every form of a picture under DEST has in common: its interface, its errors, numbers and byte strings.

A form says how one source object is stored and what comes back of it: its `bytes`, its `pixels`, or what is `seen`
(to the night's target). Which form a picture gets is choose.py's; each form is a module of its own.
"""

from dataclasses import dataclass
from typing import Protocol

from codec.pictures.files import Picture

MAX_FILE_BYTES = 1 << 30  # of a file that a form gives back; what claims more is damaged


class Declined(Exception):
    """A form does not carry this picture; the message is the reason, in words a person can act on."""


class DamagedData(ValueError):
    """Stored bytes that are not what a form wrote."""


@dataclass(frozen=True)
class Goal:
    """How good what is `seen` has to be: the metric's name and the value to be met from above."""

    metric: str  # ssimulacra2, ms-ssim, psnr
    value: float


class Form(Protocol):
    """One way of storing a picture. Implementations hold no state; all methods may be called from many threads.

    encode   file and picture -> stored bytes, already proven by `verify`; raises Declined
    verify   raises Declined unless the stored bytes give back what `gives_back` promises
    decode   stored bytes -> the file that restore writes; raises DamagedData, never anything else for bad bytes
    """

    name: str  # the report's column `form`
    gives_back: str  # bytes, pixels or seen
    suffix: str  # of an object of its own under DEST

    def encode(self, file_bytes: bytes, picture: Picture | None, goal: Goal | None = None) -> bytes: ...

    def verify(self, data: bytes, file_bytes: bytes, picture: Picture | None) -> None: ...

    def decode(self, data: bytes) -> bytes: ...


def verify_same_bytes(form: Form, data: bytes, file_bytes: bytes) -> None:
    """Declined unless decoding gives the very bytes of the file."""
    try:
        same = form.decode(data) == file_bytes
    except DamagedData as error:
        raise Declined(f"{form.name} could not be decoded again ({error})") from error
    if not same:
        raise Declined(f"{form.name} does not give this file back to the byte")


def number(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Reads numbers and byte strings one after the other; raises DamagedData beyond the end."""

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def number(self, limit: int = MAX_FILE_BYTES) -> int:
        """A LEB128 number of at most `limit`."""
        value = shift = 0
        while True:
            if self.at >= len(self.data) or shift > 35:
                raise DamagedData("a number reaches beyond the end")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > limit:
            raise DamagedData(f"{value:,} is more than the {limit:,} that may stand there")
        return value

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise DamagedData("bytes are missing at the end")
        self.at += length
        return self.data[self.at - length : self.at]

    def string(self) -> bytes:
        """A byte string behind its length."""
        return self.take(self.number())

    def end(self) -> None:
        if self.at != len(self.data):
            raise DamagedData(f"{len(self.data) - self.at:,} bytes too many")
