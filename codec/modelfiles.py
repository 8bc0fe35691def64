"""Which of the package's model files encodes. Without torch, so that a night with nothing to do can ask."""

import re
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def default_file(folder: Path = WEIGHTS) -> Path | None:
    """Of a folder's codec*.safetensors, or else of its *.safetensors, the last by name, numbers in names counting as
    numbers (codec-10 comes after codec-9); None where there is none."""

    def order(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.stem)]

    found = list(folder.glob("codec*.safetensors")) or list(folder.glob("*.safetensors"))
    return max(found, key=order, default=None)
