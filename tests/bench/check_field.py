"""Nights over the field cases, folder by folder: what is expected of each kind, and what came of it.

    python tests/bench/check_field.py FIELD [--kind NAME ...] [--keep FOLDER]

FIELD has a folder for each kind of loss, as its INDEX.md says; each is pressed with default options, restored, and
compared with its source. Prints a line for each picture and `holds` or `FAILS` for each kind; exit code 1 where one
fails. Data of such kinds is not part of the repository; drawn cases of the same kinds are in tests/.
"""

import argparse
import csv
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from codec.pictures.metadata import Metadata, same_facts
from codec.pictures.metadata_readers import bare_png, read_metadata

TILE = 32
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20  # the cases hold texts of 2 MB
PILLOWS_WORDS = ("PngImagePlugin", "MAX_TEXT", "BytesIO", "I;16", "mode ")


@dataclass
class Case:
    """One picture of a kind after its night."""

    key: str
    row: dict
    source: bytes
    restored: bytes | None
    removable: bool

    @property
    def safe(self) -> bool:
        """Whether nobody is told to remove it, or its own bytes come back."""
        return not self.removable or self.restored == self.source

    @property
    def said(self) -> str:
        figures = [f"{n}={self.row[n]:.4g}" for n in ("ssimulacra2", "worst_tile") if self.row.get(n) is not None]
        why = self.row["reason"] or self.row["error"] or ""
        return " ".join([self.row["status"], *figures, "" if self.safe else "(removable)", why])[:150]


def kept(case: Case) -> bool:
    return case.safe


def plainly(case: Case) -> bool:
    """It is given back with all it says, or a reason says in plain words why not."""
    reason = (case.row["reason"] or "") + (case.row["error"] or "")
    return facts(case) and (not case.safe or bool(reason)) and not any(word in reason for word in PILLOWS_WORDS)


def facts(case: Case) -> bool:
    return case.safe or same_facts(metadata_of(case.source), metadata_of(case.restored))


def not_denoised(case: Case) -> bool:
    return not case.row["denoised"]


def own_picture(case: Case) -> bool:
    return case.row["status"] != "duplicate"


def same_colours(case: Case) -> bool:
    """The flat colour, as the median of each channel, within 2 of 255."""
    a, b = (np.asarray(opened(data).convert("RGB")) for data in (case.source, case.restored))
    return bool(np.abs(np.median(a, (0, 1)) - np.median(b, (0, 1))).max() <= 2)


def same_structure(case: Case) -> bool:
    """Every tile that has structure of its own has it still: correlation of at least 0.7 in its grey values."""
    if case.safe:
        return True
    a, b = (np.asarray(opened(data).convert("L"), np.float64) for data in (case.source, case.restored))
    for top in range(0, a.shape[0] - TILE + 1, TILE):
        for left in range(0, a.shape[1] - TILE + 1, TILE):
            one, other = (each[top : top + TILE, left : left + TILE] for each in (a, b))
            if one.std() > 3 and (other.std() == 0 or np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.7):
                return False
    return True


def as_browsers_show_it(case: Case) -> bool:
    """EXIF alone turns: these have none."""
    a, b = opened(case.source), opened(case.restored)
    return a.size == b.size and same_colours(case) and int(opened(case.restored).getexif().get(0x0112, 1)) == 1


KINDS: dict[str, tuple[str, Callable[[Case], bool]]] = {
    "appended-data": ("kept, or its bytes come back", kept),
    "damaged-jpeg": ("failed or kept", kept),
    "denoise-default": ("nothing denoised unasked", not_denoised),
    "dup-colour": ("pictures of their own", own_picture),
    "dup-invoice": ("pictures of their own", own_picture),
    "dup-label": ("pictures of their own", own_picture),
    "dup-lesion": ("pictures of their own", own_picture),
    "dup-watermark": ("pictures of their own", own_picture),
    "flat-colour-shift": ("flat colours within 2 steps", same_colours),
    "low-contrast-erased": ("structure stays in every tile, or kept", same_structure),
    "motion-photo": ("kept, or its bytes come back", kept),
    "png-chrm-without-gama": ("cHRM and gAMA come back", facts),
    "png-text-limits": ("opens, or a reason in plain words", plainly),
    "same-pixels-other-exif": ("each key's own EXIF", facts),
    "text-metadata": ("IPTC, comments, texts, density come back, or kept", facts),
    "tiff-extra-channels": ("kept, or its bytes come back", kept),
    "tiff-geotiff-layers": ("kept, or its bytes come back", kept),
    "two-nights-thumbnail-first": ("the better original is compressed itself", own_picture),
    "xmp-orientation-only": ("shown as browsers show it", as_browsers_show_it),
}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(bare_png(data) if data[:4] == b"\x89PNG" else data))


def metadata_of(data: bytes) -> Metadata:
    format = opened(data).format
    return read_metadata(data, format)


def nightpress(*arguments: str) -> None:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def nights(kind: str, folder: Path, place: Path) -> list[Case]:
    """Press and restore one kind; two-nights folders hold night1 and night2, of which the second one's count."""
    source, dest, out = place / "source", place / "dest", place / "out"
    batches = sorted(each for each in folder.iterdir() if each.is_dir()) or [folder]
    counted: list[str] = []
    for batch in batches:
        counted = [str(each.relative_to(batch)) for each in sorted(batch.rglob("*")) if each.is_file()]
        shutil.copytree(batch, source, dirs_exist_ok=True)
        nightpress("run", str(source), str(dest), "--workers", "1")
    nightpress("restore", str(dest), str(out))
    run = max(each.name for each in (dest / "runs").iterdir() if (each / "manifest.json").exists())
    rows = {row["key"]: row for row in pq.read_table(dest / "runs" / run / "report").to_pylist()}
    with open(dest / "runs" / run / "removable.csv", newline="") as file:
        removable = {unquote(line[1]) for line in csv.reader(file)}
    return [Case(key, rows[key], (source / key).read_bytes(), restored(out, key), key in removable) for key in counted]


def restored(out: Path, key: str) -> bytes | None:
    found = [path for path in (out / key, out / f"{key}.png") if path.is_file()]
    return found[0].read_bytes() if found else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("field", type=Path)
    parser.add_argument("--kind", action="append", help="this one alone; may be given again")
    parser.add_argument("--keep", type=Path, help="folder for what the nights leave behind (default: none)")
    arguments = parser.parse_args()
    failed = []
    for kind, (expected, holds) in KINDS.items():
        folder = arguments.field / kind
        if not folder.is_dir() or (arguments.kind and kind not in arguments.kind):
            continue
        with tempfile.TemporaryDirectory(prefix="nightpress-field-") as temporary:
            place = arguments.keep / kind if arguments.keep else Path(temporary)
            cases = nights(kind, folder, place)
            wrong = [case for case in cases if not holds(case)]
        print(f"{'FAILS' if wrong else 'holds'}  {kind}: {expected}")
        for case in cases:
            print(f"    {'!' if case in wrong else ' '} {case.key}: {case.said}", flush=True)
        failed += [kind] if wrong else []
    print(f"{len(failed)} kinds fail{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
