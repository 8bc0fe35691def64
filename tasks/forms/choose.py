"""Which form a picture gets: all forms there are, and for each policy what is tried, in which order.

    policy, kind of picture, format -> rounds of forms; of the first round in which a form gains enough, the smallest

    learned   the learned codec (npi) for what is seen; lossless for graphics, text and labels, and where the target is
              out of reach; jxl-jpeg, lossless, exact for what no lossy form carries
    avif,jxl  the same with an open lossy format in the learned codec's place
    lossless  nothing visible changes: jxl-jpeg, lossless, exact
    smallest  all compete

Nothing is tried that cannot win: a JPEG's samples never take fewer bytes without loss, a photograph's hardly ever.
Encoding by the learned codec, measuring and the guard against local loss are tasks/night/compress.py's.
"""

from tasks.forms.base import Form
from tasks.forms.content import FLAT_KINDS
from tasks.forms.exact import Exact
from tasks.forms.jxl_jpeg import JxlJpeg
from tasks.forms.lossless import Lossless
from tasks.forms.open_lossy import OpenLossy

POLICIES = ("learned", "lossless", "avif", "jxl", "smallest")
LEARNED = "npi"
FORMS: dict[str, Form] = {
    form.name: form for form in (JxlJpeg(), Lossless(), Exact(), OpenLossy("avif"), OpenLossy("jxl"))
}
SUFFIXES = {LEARNED: ".npi"} | {name: form.suffix for name, form in FORMS.items()}
GIVES_BACK = {LEARNED: "seen"} | {name: form.gives_back for name, form in FORMS.items()}
_JPEGS = ("JPEG", "MPO")
_LOSSY = (*_JPEGS, "AVIF")  # whose samples never take fewer bytes without loss
_UNPACKED = ("BMP", "PPM", "TGA", "TIFF", "SGI")  # often not compressed at all: their own bytes shrink as well
# Shares of the source's bytes above which a lossy form may lose against one without loss: JPEG XL takes 8 to 22 % off
# a JPEG, and a third off a photograph's PNG
_DOUBTFUL_JPEG, _DOUBTFUL_OTHER = 0.72, 0.5
_PLAIN_BPP = 3.0  # bits a pixel: text, line art and screenshots take 0.1 to 2 without loss, photographs 5 and more


def rounds(
    policy: str, content: str | None, format: str | None, *, shown: bool = True, exact_only: bool = False
) -> tuple[tuple[str, ...], ...]:
    """Names of forms to be tried together, round by round.

    content: one of content.KINDS, None where there is no picture to tell it by. format: as Pillow names it. shown:
    whether 8-bit grey or RGB with alpha holds all of the picture. exact_only: whether lossy forms may not take it.
    """
    without_loss = _without_loss(format, shown)
    if policy == "lossless" or exact_only or not shown:
        return without_loss
    if policy == "smallest":
        return ((LEARNED, "avif", "jxl", *without_loss[0]), *without_loss[1:])
    lossy = LEARNED if policy == "learned" else policy
    if content in FLAT_KINDS and format not in _LOSSY:
        return (without_loss[0], (lossy,), *without_loss[1:])
    return ((lossy,), *without_loss)


def _without_loss(format: str | None, shown: bool) -> tuple[tuple[str, ...], ...]:
    if format in _JPEGS:
        return (("jxl-jpeg",), ("exact",))
    if format in _UNPACKED:
        return (("exact", "lossless"),) if shown else (("exact",),)
    return (("exact",),) if format == "AVIF" or not (shown or format == "PNG") else (("lossless",), ("exact",))


def rivals(form: str, size: int, source_size: int, format: str | None) -> tuple[str, ...]:
    """Forms without loss that may be smaller than what a lossy one made of a picture: worth a look before it counts."""
    if GIVES_BACK[form] != "seen":
        return ()
    doubtful = _DOUBTFUL_JPEG if format in _JPEGS else _DOUBTFUL_OTHER
    if size <= doubtful * source_size or format == "AVIF":
        return ()
    return _without_loss(format, shown=True)[0]


def settled(form: str, size: int, pixels: int, policy: str) -> bool:
    """Whether a round ends the search: not where a form without loss came first and took as many bits as a photograph
    does; then the lossy form is tried as well, whatever the picture was taken for."""
    return policy in ("lossless", "smallest") or GIVES_BACK[form] == "seen" or 8 * size <= _PLAIN_BPP * pixels


def better(new: tuple[str, int], old: tuple[str, int] | None) -> bool:
    """Whether a (form, size) is taken instead of another: fewer bytes, or as good as and giving back more."""
    if old is None:
        return True
    gives = ("seen", "pixels", "bytes")
    more = gives.index(GIVES_BACK[new[0]]) - gives.index(GIVES_BACK[old[0]])
    return new[1] <= old[1] * (1 + 0.03 * more) + 128 * more


def form_of(data: bytes) -> str | None:
    """The name of the form that wrote these stored bytes, by their beginning; None for others."""
    from tasks.forms import exact, jxl_jpeg, lossless, npi

    if data.startswith(npi.MAGIC):
        return LEARNED
    if data.startswith(exact.MAGIC):
        return "exact"
    if data.startswith(lossless.MAGIC):
        return "lossless"
    if jxl_jpeg.is_jxl_jpeg(data):
        return "jxl-jpeg"
    if data[4:12] == b"JXL \r\n\x87\n" or data[:2] == b"\xff\x0a":
        return "jxl"
    return "avif" if data[4:8] == b"ftyp" and b"avif" in data[8:40] else None
