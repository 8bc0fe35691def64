"""Which pictures of a training set are kept for validation: those of about one original in seven.

A folder's INDEX.csv names each file's original (columns `file` and `original`); all files of one original fall on the
same side, so that nothing measured on the held-out ones was seen in training. Files without an entry are trained on.
"""

import csv
import hashlib
from pathlib import Path

PICTURES = (".avif", ".png", ".jpg", ".jpeg", ".webp", ".ppm", ".bmp", ".tif", ".tiff")


def held_out(original: str) -> bool:
    """Whether this original is for validation, by sha256 of its name."""
    return hashlib.sha256(original.encode()).digest()[0] < 37


def picture_files(folders: list[Path]) -> list[tuple[Path, str, bool]]:
    """(file, name of its original, held out) of every picture below the folders, sorted by path."""
    originals: dict[Path, str] = {}
    files: list[Path] = []
    for folder in map(Path, folders):
        for index in folder.rglob("INDEX.csv"):
            with index.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines):
                    if row.get("file") and row.get("original"):
                        originals[index.parent / row["file"]] = row["original"]
        files += (path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    return [
        (path, originals.get(path, str(path)), path in originals and held_out(originals[path]))
        for path in sorted(files)
    ]
