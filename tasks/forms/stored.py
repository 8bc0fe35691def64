"""Stored bytes of any form given back: as the file that restore writes, as the picture that is shown.

Which form it is the bytes themselves say, so whoever has an object under DEST needs no catalog to open it. Models of
.npi files are looked for in `models` (folders) and in the package.
"""

from collections.abc import Sequence

from codec.pictures.files import Picture, open_picture
from tasks.forms.base import DamagedData
from tasks.forms.choose import FORMS, LEARNED, form_of
from tasks.forms.npi import Npi


def file_of(data: bytes, *, models: Sequence[str] = (), device: str = "auto") -> bytes:
    """The file that comes back: the original's own bytes, or a PNG. Raises DamagedData, CodecError."""
    name = form_of(data)
    if name is None:
        raise DamagedData("it begins like no form's data")
    return Npi(models=models, device=device).decode(data) if name == LEARNED else FORMS[name].decode(data)


def picture_of(
    data: bytes, *, models: Sequence[str] = (), device: str = "auto", max_pixels: int = 200_000_000
) -> Picture:
    """The picture as shown, 8 bits a sample. Raises DamagedData, CodecError; PictureError where the file that comes
    back is no such picture (16 bits, several frames)."""
    from codec.decoder import decode_picture

    name = form_of(data)
    if name in (None, LEARNED):
        return decode_picture(data, models=list(models), device=device, max_pixels=max_pixels)
    return open_picture(FORMS[name].decode(data), max_pixels, checked=False)
