"""What a person may ask a night for in words of its own: a quality to reach, bytes to stay within, a time to end by.

Each is parsed and said here; as options of a night they stand in settings.py.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True)
class Target:
    """A quality to be met from above: `metric` ssimulacra2 (at most 100), psnr (dB) or ms-ssim (0..1)."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Raises ValueError in words. A night takes no psnr outside 10..60 dB, where nothing useful would come out."""
        from codec import parse_target

        metric, value = parse_target(str(text))
        if metric == "psnr" and not 10 <= value <= 60:
            raise ValueError(f"psnr={value:g} is outside 10..60 dB")
        return cls(metric, value)

    def __str__(self) -> str:
        return f"{self.metric}={self.value!r}" if self.metric == "ms-ssim" else f"{self.metric}={self.value:g}"


@dataclass(frozen=True)
class Budget:
    """What a run may store under DEST/objects: bytes, or percent of the compressed pictures' source bytes."""

    bytes: int | None = None
    percent: float | None = None

    @classmethod
    def parse(cls, value: str | int) -> "Budget":
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        text = str(value).strip()
        match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*(%|[a-zA-Z]*)", text)
        unit = match[2].lower() if match else None
        if not match or (unit != "%" and unit not in UNITS):
            raise ValueError(f"{text!r} is neither bytes (1500000, 1.5MB, 2GiB) nor a percentage (12%)")
        number = float(match[1].replace("_", ""))
        if unit == "%":
            if not 0 < number <= 100:
                raise ValueError(f"{text} is not between 0 and 100 percent")
            return cls(percent=number)
        if number * UNITS[unit] < 1:
            raise ValueError(f"{text} is less than one byte")
        return cls(bytes=round(number * UNITS[unit]))

    def limit(self, source_bytes: int) -> int:
        """Bytes allowed when the pictures to be compressed have `source_bytes` at SOURCE."""
        if self.percent is not None:
            return int(source_bytes * self.percent / 100)
        assert self.bytes is not None, "one of the two is set"
        return self.bytes

    def __str__(self) -> str:
        return str(self.bytes) if self.percent is None else f"{self.percent:g}%"


def deadline_after(text: str, now: datetime | None = None) -> datetime:
    """The moment that `--deadline` names, time zone aware.

    `HH:MM[:SS]` is its next occurrence after `now` in local time, or in the zone named after it
    (`06:30 Europe/Lisbon`); anything else is ISO 8601, local where it carries no offset. ValueError where
    it is neither.
    """
    now = (now or datetime.now()).astimezone()
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s+(\S+))?", text.strip())
    if not clock:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError(f"{text!r} is neither HH:MM nor an ISO time such as 2026-01-31T06:00") from None
        return moment.astimezone()
    if clock[4]:
        try:
            zone = ZoneInfo(clock[4])
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{clock[4]!r} is no time zone that this machine knows") from None
        now = now.astimezone(zone)
    hour, minute, second = int(clock[1]), int(clock[2]), int(clock[3] or 0)
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(f"{text!r} is no time of day")
    # Naive arithmetic, late conversion: the wall clock is what is asked for, whatever the zone's offset then.
    wall = now.replace(tzinfo=None)
    moment = wall.replace(hour=hour, minute=minute, second=second, microsecond=0)
    if moment <= wall:
        moment += timedelta(days=1)
    return moment.replace(tzinfo=now.tzinfo) if clock[4] else moment.astimezone()
