"""Rate and distortion of this codec and of standard ones on a folder of pictures, from real files.

`evaluate` measures a row per picture, codec and setting and writes into its folder: points.parquet (all rows),
curves.json and curves.md (means per setting, BD-rates, bytes at equal SSIMULACRA2), rd-*.png and rd-*.svg. Rows already
there for codecs that are not asked for stay, so that one codec can be measured again beside the others' old rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from codec.evaluation.codecs import NAMES, OURS, codec_named
from codec.evaluation.points import SCHEMA, measure, open_pictures, thinned
from codec.evaluation.report import write_comparison


def evaluate(
    folder: str | Path,
    out: str | Path,
    codecs: Sequence[str] = NAMES,
    *,
    reference: str | Path | None = None,
    points: int | None = None,
    model=None,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Measure `codecs` on the pictures below `folder`, merge with what `out` already has, write everything there.

    points: at most so many settings a codec; progress(codec, done, total) after each picture and setting. Returns what
    curves.json holds. Raises ValueError for unknown codecs or a folder without a picture that can be compared.
    """
    out = Path(out)
    makers = [name for name in dict.fromkeys(codecs)]
    if unknown := [name for name in makers if name not in NAMES]:
        raise ValueError(f"unknown codec {', '.join(unknown)}; there are {', '.join(NAMES)}")
    pictures, left_out = open_pictures(folder)
    if not pictures:
        raise ValueError(f"no picture to compare below {folder} ({len(left_out)} files left out); name another folder")
    out.mkdir(parents=True, exist_ok=True)
    stored = out / "points.parquet"
    table = _kept_rows(stored, pictures, makers)
    ours = {"model": model, "device": device, "precision": precision}
    for name in makers:
        codec = codec_named(name, **(ours if name == OURS else {}))
        settings = thinned(codec.settings, points)
        codec.decode(codec.encode(pictures[0][1], settings[len(settings) // 2]))  # loads and compiles before the clock
        rows = []
        for picture, image in pictures:
            for setting in settings:
                rows.append(measure(codec, picture, image, setting))
                if progress:
                    progress(name, len(rows), len(settings) * len(pictures))
        table = pa.concat_tables([table, pa.Table.from_pylist(rows, SCHEMA)])
        pq.write_table(table, stored)
    return write_comparison(table, out, reference=reference, left_out=left_out)


def _kept_rows(path: Path, pictures: list[tuple[str, Image.Image]], codecs: list[str]) -> pa.Table:
    """Rows of an earlier evaluation of the same pictures by other codecs."""
    if not path.exists():
        return SCHEMA.empty_table()
    table = pq.read_table(path).select(SCHEMA.names).cast(SCHEMA)
    sizes = {name: image.size for name, image in pictures}
    keep = [
        row["codec"] not in codecs and sizes.get(row["picture"]) == (row["width"], row["height"])
        for row in table.select(["codec", "picture", "width", "height"]).to_pylist()
    ]
    return table.filter(pa.array(keep, pa.bool_()))
