"""Why a file gives no picture; each error says it in words, with what is known of the file."""


class PictureError(ValueError):
    """A file that gives no picture. `reason` in words; width, height, format, mode where they are known, else None."""

    def __init__(self, reason: str, *, width=None, height=None, format=None, mode=None):
        super().__init__(reason)
        self.reason = reason
        self.width, self.height, self.format, self.mode = width, height, format, mode

    def __reduce__(self):
        return _rebuild, (type(self), self.reason, self.width, self.height, self.format, self.mode)


class NotAPicture(PictureError):
    """The bytes are no picture of any kind known here."""


class BrokenPicture(PictureError):
    """A picture that cannot be decoded: truncated, corrupt, empty or too large."""


class UncarriedPicture(PictureError):
    """A sound picture that the codec cannot carry without loss of something other than precision of 8-bit samples."""


class DamagedPicture(PictureError):
    """A picture that decodes although part of its data is missing or corrupt: what is seen is not all there was."""


def _rebuild(kind, reason, width, height, format, mode):
    return kind(reason, width=width, height=height, format=format, mode=mode)
