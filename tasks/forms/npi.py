"""What is seen, by the learned codec: a .npi file to a target, at a quality, or of at most so many bytes.

The codec itself is codec's (encoder.py, decoder.py), finding the level codec/rate_control's.
"""

from collections.abc import Sequence

from codec.pictures.files import Picture
from tasks.forms.base import DamagedData, Declined, Goal

MAGIC = b"NPI"


class Npi:
    """The learned codec with one model (None: the package's); `models`: folders where others may lie."""

    name, gives_back, suffix = "npi", "seen", ".npi"

    def __init__(self, model=None, models: Sequence[str] = (), device: str = "auto"):
        self.model, self.models, self.device = model, list(models), device

    def encode(self, file_bytes: bytes, picture: Picture | None, goal: Goal | None = None) -> bytes:
        from codec import encoder, models
        from codec.format import level_of
        from codec.rate_control.target import TargetUnreachable, target_level

        if picture is None or goal is None:
            raise Declined("it cannot be shown as one picture of 8 bits a sample")
        prepared = encoder.prepare(picture, self.model or models.get_model(None, device=self.device))
        if goal.metric == "quality":
            data = prepared.code(level_of(goal.value))
        else:
            try:
                data = target_level(prepared, goal.metric, goal.value).bitstream
            except TargetUnreachable as error:
                raise Declined(_unreached(goal, error)) from None
        return data

    def verify(self, data: bytes, file_bytes: bytes, picture: Picture | None) -> None:
        """Declined unless mode, size and alpha come back; how near the colours are is measured by who chooses."""
        shown = self.picture(data).image
        if picture is None or (shown.mode, shown.size) != (picture.image.mode, picture.image.size):
            raise Declined("the bitstream decodes to another mode or size than was encoded")
        if "A" in shown.mode and shown.getchannel("A").tobytes() != picture.image.getchannel("A").tobytes():
            raise Declined("the bitstream decodes to another alpha plane than was encoded")

    def decode(self, data: bytes) -> bytes:
        from codec.pictures.files import picture_bytes

        return picture_bytes(self.picture(data))

    def picture(self, data: bytes, max_pixels: int = 1 << 40) -> Picture:
        """The decoded picture itself. Raises DamagedData; UnknownModel where a model is missing."""
        from codec.decoder import decode_picture
        from codec.errors import CodecError, UnknownModel

        try:
            return decode_picture(data, model=self.model, models=self.models, device=self.device,
                                  max_pixels=max_pixels)  # fmt: skip
        except UnknownModel:
            raise
        except CodecError as error:
            raise DamagedData(str(error)) from error


def _unreached(goal: Goal, error: Exception) -> str:
    if goal.metric == "bytes":
        return f"its share of the budget, {goal.value:,.0f} bytes, can't be kept: {error}"
    return f"the target can't be reached: {error}"
