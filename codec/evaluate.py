"""Rate and distortion of this codec and of standard ones on a folder of pictures, from real files.

`evaluate` measures a row per picture, codec and setting and writes into its folder: points.parquet (all rows),
curves.json and curves.md (means per setting, BD-rates), rd-*.png and rd-*.svg. Rows already there for codecs that are
not asked for stay, so that one codec can be measured again beside the others' old rows.

Standard codecs run through their usual libraries in one thread: JPEG, WebP, JPEG 2000 and AVIF by Pillow, JPEG XL by
imagecodecs, HEVC 4:4:4 (x265, the core of BPG) by pillow-heif. Curves are means over the pictures at equal settings;
BD-rate compares these mean curves (metrics.bd_rate). The figures' definitions are in metrics.py.
"""

import dataclasses
import io
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from codec import metrics

OURS = "nightpress"
ANCHORS = ("jpeg", "hevc")

SCHEMA = pa.schema(
    [
        ("picture", pa.string()),
        ("codec", pa.string()),
        ("setting", pa.float64()),  # the codec's own quality step
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),  # of the whole file
        ("bpp", pa.float64()),
        ("psnr", pa.float64()),  # dB
        ("ssim", pa.float64()),
        ("ms_ssim", pa.float64()),  # null under 160 pixels
        ("encode_seconds", pa.float64()),
        ("decode_seconds", pa.float64()),
        ("model", pa.string()),  # id of our model; null for standard codecs
        ("version", pa.string()),  # of the library
    ]
)


@dataclasses.dataclass(frozen=True)
class Codec:
    """How to call one codec. encode(image, setting) -> file; decode(file) -> uint8 [H,W,C] as the image had it."""

    name: str
    title: str
    settings: tuple[float, ...]
    encode: Callable[[Image.Image, float], bytes]
    decode: Callable[[bytes], np.ndarray]
    version: str
    model: str | None = None


def _open(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def _pillow_version(feature: str) -> str:
    import PIL
    from PIL import features

    check = features.version_feature if feature in features.features else features.version
    return f"Pillow {PIL.__version__}, {feature} {check(feature)}"


def _jpeg() -> Codec:
    def encode(image: Image.Image, q: float) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(q), subsampling="4:2:0", optimize=False)
        return file.getvalue()

    settings = (5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95)
    return Codec("jpeg", "JPEG 4:2:0", settings, encode, _open, _pillow_version("libjpeg_turbo"))


def _webp() -> Codec:
    def encode(image: Image.Image, q: float) -> bytes:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=int(q), method=4)
        return file.getvalue()

    return Codec("webp", "WebP", (1, 10, 25, 45, 65, 80, 88, 94, 98), encode, _open, _pillow_version("webp"))


def _jpeg2000() -> Codec:
    def encode(image: Image.Image, ratio: float) -> bytes:
        """One layer at a compression ratio, irreversible wavelet; Pillow leaves the colour transform (mct) off."""
        file = io.BytesIO()
        colour = {"mct": 1} if image.mode == "RGB" else {}
        layers = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True}
        image.save(file, "JPEG2000", no_jp2=True, **layers, **colour)
        return file.getvalue()

    settings = (200, 120, 80, 55, 40, 30, 22, 16, 12, 9, 7)
    return Codec("jpeg2000", "JPEG 2000", settings, encode, _open, _pillow_version("jpg_2000"))


def _avif() -> Codec:
    def encode(image: Image.Image, q: float) -> bytes:
        file = io.BytesIO()
        image.save(file, "AVIF", quality=int(q), subsampling="4:4:4", speed=6, max_threads=1)
        return file.getvalue()

    settings = (5, 15, 25, 35, 45, 55, 65, 75, 83, 90)
    return Codec("avif", "AVIF 4:4:4, speed 6", settings, encode, _open, _pillow_version("avif"))


def _jxl() -> Codec:
    import imagecodecs

    def encode(image: Image.Image, distance: float) -> bytes:
        return imagecodecs.jpegxl_encode(np.asarray(image), distance=distance, effort=7, numthreads=1)

    def decode(data: bytes) -> np.ndarray:
        return imagecodecs.jpegxl_decode(data, numthreads=1)

    settings = (15.0, 10.0, 7.0, 5.0, 3.5, 2.5, 1.8, 1.2, 0.8, 0.5)
    return Codec("jxl", "JPEG XL", settings, encode, decode, f"imagecodecs {imagecodecs.__version__}")


def _hevc() -> Codec:
    import pillow_heif

    def encode(image: Image.Image, q: float) -> bytes:
        """Tuned for PSNR (libheif's own choice is SSIM): the stronger anchor for what is compared first here."""
        file = io.BytesIO()
        options = {"tune": "psnr", "x265:pools": "none"}
        pillow_heif.from_pillow(image).save(file, quality=int(q), chroma="444", enc_params=options)
        return file.getvalue()

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(pillow_heif.open_heif(io.BytesIO(data)).to_pillow())

    settings = (4, 10, 17, 24, 31, 38, 45, 52, 60, 70)
    version = f"pillow-heif {pillow_heif.__version__}, {pillow_heif.libheif_info()['HEIF']}"
    return Codec("hevc", "HEVC 4:4:4 (x265)", settings, encode, decode, version)


def _ours(model=None, device: str = "auto", precision: str = "auto") -> Codec:
    from codec import decoder, encoder, models
    from codec.format import VERSION

    net = models.get_model(model, device=device, precision=precision)

    def encode(image: Image.Image, quality: float) -> bytes:
        return encoder.encode(image, quality, model=net)

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(decoder.decode(data, model=net))

    version = f"npi {VERSION}, {net.precision_name} on {net.log_gain.device.type}"
    return Codec(OURS, title_of(OURS), tuple(range(0, 101, 10)), encode, decode, version, net.identity)


STANDARD = {
    "jpeg": _jpeg, "webp": _webp, "jpeg2000": _jpeg2000, "avif": _avif, "jxl": _jxl, "hevc": _hevc,
}  # fmt: skip
NAMES = (OURS, *STANDARD)


def codec_named(name: str, **ours) -> Codec:
    """One of NAMES, ready to use; `ours`: model, device, precision. Raises ValueError for another name."""
    if name == OURS:
        return _ours(**ours)
    if name not in STANDARD:
        raise ValueError(f"unknown codec {name!r}; there are {', '.join(NAMES)}")
    return STANDARD[name]()


# -- measuring


def open_pictures(folder: str | Path) -> tuple[list[tuple[str, Image.Image]], dict[str, str]]:
    """Pictures below a folder as (relative name, L or RGB image), and the reasons why others were left out."""
    from codec import PictureError, open_picture

    pictures, left_out = [], {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            image = open_picture(path.read_bytes()).image
        except PictureError as error:
            left_out[name] = str(error)
            continue
        if image.mode in ("L", "RGB"):
            pictures.append((name, image))
        else:
            left_out[name] = f"mode {image.mode}: alpha is not compared"
    return pictures, left_out


def measure(codec: Codec, name: str, image: Image.Image, setting: float) -> dict:
    """One row of SCHEMA: the picture through a real file and back. Times are wall clock, one thread if so set."""
    start = time.perf_counter()
    data = codec.encode(image, setting)
    middle = time.perf_counter()
    shown = codec.decode(data)
    end = time.perf_counter()
    if image.mode == "L" and shown.ndim == 3 and shown.shape[2] >= 3:
        shown = np.asarray(Image.fromarray(shown[:, :, :3]).convert("L"))
    single, multiple = metrics.similarity(image, shown)
    return {
        "picture": name,
        "codec": codec.name,
        "setting": float(setting),
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "bpp": metrics.bpp(len(data), image.width, image.height),
        "psnr": min(metrics.psnr(image, shown), 100.0),
        "ssim": single,
        "ms_ssim": multiple,
        "encode_seconds": middle - start,
        "decode_seconds": end - middle,
        "model": codec.model,
        "version": codec.version,
    }


def thinned(settings: Sequence[float], points: int | None) -> tuple[float, ...]:
    """At most `points` of the settings, the two ends among them."""
    if points is None or points >= len(settings):
        return tuple(settings)
    return tuple(settings[round(i)] for i in np.linspace(0, len(settings) - 1, max(points, 2)))


# -- curves and comparisons


def curves_of(table: pa.Table) -> dict[str, list[dict]]:
    """Per codec the means over pictures at each setting, by rising rate; settings that some picture lacks are left out.

    Rates of MS-SSIM (`bpp_ms_ssim`) are means over the pictures large enough for it. Speeds in MP/s over all pixels.
    """
    pictures = len(pc.unique(table["picture"])) if table.num_rows else 0
    grouped = defaultdict(list)
    for row in table.to_pylist():
        grouped[row["codec"], row["setting"]].append(row)
    curves = defaultdict(list)
    for (codec, setting), rows in grouped.items():
        if len(rows) != pictures:
            continue
        large = [row for row in rows if row["ms_ssim"] is not None]
        megapixels = sum(row["width"] * row["height"] for row in rows) / 1e6

        def mean(column: str, rows: list[dict] = rows) -> float | None:
            return float(np.mean([row[column] for row in rows])) if rows else None

        curves[codec].append(
            {
                "setting": setting,
                "bpp": mean("bpp"),
                "psnr": mean("psnr"),
                "ssim": mean("ssim"),
                "bpp_ms_ssim": mean("bpp", large),
                "ms_ssim": mean("ms_ssim", large),
                "encode_mps": megapixels / sum(row["encode_seconds"] for row in rows),
                "decode_mps": megapixels / sum(row["decode_seconds"] for row in rows),
            }
        )
    return {codec: sorted(points, key=lambda point: point["bpp"]) for codec, points in sorted(curves.items())}


def read_references(folder: str | Path) -> dict[str, list[dict]]:
    """Published curves by title from *.json files with results.bpp, results.psnr-rgb and/or results.ms-ssim-rgb."""
    curves = {}
    for path in sorted(Path(folder).glob("*.json")):
        content = json.loads(path.read_text())
        results = content.get("results") if isinstance(content, dict) else None
        if not isinstance(results, dict) or "bpp" not in results:
            continue
        title = content.get("name") or path.stem
        if title in curves or "ms-ssim_" in path.stem:
            title = path.stem
        curves[title] = [
            {
                "bpp": rate,
                "psnr": results["psnr-rgb"][i] if "psnr-rgb" in results else None,
                "bpp_ms_ssim": rate,
                "ms_ssim": results["ms-ssim-rgb"][i] if "ms-ssim-rgb" in results else None,
            }
            for i, rate in enumerate(results["bpp"])
        ]
    return curves


def compare(curves: dict[str, list[dict]], anchors: Iterable[str] = ANCHORS) -> dict[str, dict[str, float | None]]:
    """BD-rates in per cent: {codec: {"psnr vs jpeg": -12.3, ...}}; None where curves share no qualities."""
    found: dict[str, dict[str, float | None]] = {}
    for name, points in curves.items():
        found[name] = {}
        for anchor in anchors:
            for metric in ("psnr", "ms_ssim"):
                value = None
                if anchor in curves:
                    ours, theirs = _axes(points, metric), _axes(curves[anchor], metric)
                    if len(ours[0]) > 1 and len(theirs[0]) > 1:
                        try:
                            value = metrics.bd_rate(*theirs, *ours)
                        except ValueError:
                            value = None
                found[name][f"{metric} vs {anchor}"] = value
    return found


def _axes(points: list[dict], metric: str) -> tuple[list[float], list[float]]:
    """Rates and dB of a curve; mean MS-SSIM is put into dB after averaging, as published curves are."""
    known = [point for point in points if point.get(metric) is not None]
    if metric == "psnr":
        return [point["bpp"] for point in known], [point["psnr"] for point in known]
    known = [point for point in known if point["ms_ssim"] < 1]
    return [p["bpp_ms_ssim"] for p in known], [metrics.ms_ssim_db(p["ms_ssim"]) for p in known]


# -- the whole evaluation


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


def write_comparison(
    table: pa.Table, out: str | Path, *, reference: str | Path | None = None, left_out: dict[str, str] | None = None
) -> dict:
    """Rows of SCHEMA -> curves.json, curves.md, rd-psnr and rd-ms-ssim as PNG and SVG in `out`; the JSON's content."""
    out = Path(out)
    measured = curves_of(table)
    published = read_references(reference) if reference else {}
    versions = {row["codec"]: row for row in table.select(["codec", "version", "model"]).to_pylist()}
    content = {
        "pictures": len(pc.unique(table["picture"])) if table.num_rows else 0,
        "left_out": left_out or {},
        "incomplete": sorted(set(versions) - set(measured)),  # measured, but at no setting on all of these pictures
        "versions": {name: versions[name]["version"] for name in measured},
        "model": versions[OURS]["model"] if OURS in measured else None,
        "curves": measured,
        "bd_rate": compare(measured),
        "published_bd_rate": {
            name: figures
            for name, figures in compare({**{a: measured[a] for a in ANCHORS if a in measured}, **published}).items()
            if name in published
        },
    }
    (out / "curves.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "curves.md").write_text(markdown(content))
    for metric, file in (("psnr", "rd-psnr"), ("ms_ssim", "rd-ms-ssim")):
        figure = plot(measured, published, metric)
        if figure is not None:
            figure.savefig(out / f"{file}.png", dpi=150)
            figure.savefig(out / f"{file}.svg", metadata={"Date": None})
    return content


def title_of(name: str) -> str:
    return {
        OURS: "Nightpress", "jpeg": "JPEG 4:2:0", "webp": "WebP",
        "jpeg2000": "JPEG 2000", "avif": "AVIF", "jxl": "JPEG XL", "hevc": "HEVC 4:4:4",
    }.get(name, name)  # fmt: skip


def markdown(content: dict) -> str:
    """The tables of an evaluation: BD-rates with speeds, then every curve."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:+.1f} %"

    lines = [
        f"# Rate and distortion, mean of {content['pictures']} pictures",
        "",
        "BD-rate of the mean curves: bits at equal quality against the anchor, less is better; empty where curves "
        "share no qualities. Speeds in MP/s over all settings, from pixels to file and back.",
        "",
        "| codec | PSNR, JPEG | MS-SSIM, JPEG | PSNR, HEVC | MS-SSIM, HEVC | encode | decode | version |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    order = sorted(content["bd_rate"], key=lambda name: content["bd_rate"][name]["psnr vs jpeg"] or 0.0)
    for name in order:
        cells = [percent(content["bd_rate"][name][f"{m} vs {a}"]) for a in ANCHORS for m in ("psnr", "ms_ssim")]
        points = content["curves"][name]
        for kind in ("encode_mps", "decode_mps"):  # the same pictures at each setting, so the harmonic mean pools them
            cells.append(f"{len(points) / sum(1 / point[kind] for point in points):.2f}")
        lines.append(f"| {title_of(name)} | {' | '.join(cells)} | {content['versions'][name]} |")
    if content["published_bd_rate"]:
        lines += ["", "Published curves:", "", "| codec | PSNR, JPEG | MS-SSIM, JPEG | PSNR, HEVC | MS-SSIM, HEVC |"]
        lines.append("|---|--:|--:|--:|--:|")
        for name, figures in sorted(content["published_bd_rate"].items(), key=lambda i: i[1]["psnr vs jpeg"] or 0.0):
            cells = [percent(figures[f"{m} vs {a}"]) for a in ANCHORS for m in ("psnr", "ms_ssim")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in order:
        lines += ["", f"## {title_of(name)}", ""]
        lines.append("| setting | bpp | PSNR | SSIM | MS-SSIM | encode MP/s | decode MP/s |")
        lines.append("|--:|--:|--:|--:|--:|--:|--:|")
        for p in content["curves"][name]:
            multiple = "" if p["ms_ssim"] is None else f"{p['ms_ssim']:.4f}"
            lines.append(
                f"| {p['setting']:g} | {p['bpp']:.4f} | {p['psnr']:.2f} | {p['ssim']:.4f} | {multiple} | "
                f"{p['encode_mps']:.2f} | {p['decode_mps']:.2f} |"
            )
    return "\n".join(lines) + "\n"


COLOURS = {
    OURS: "#d1495b", "jpeg": "#6c757d", "webp": "#2a9d8f", "jpeg2000": "#8d6a9f",
    "avif": "#e09f3e", "jxl": "#3a7ca5", "hevc": "#386641",
}  # fmt: skip


def plot(measured: dict[str, list[dict]], published: dict[str, list[dict]], metric: str):
    """matplotlib Figure of a metric over bits per pixel, measured curves solid, published dashed; None if empty."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    drawn = {name: _axes(points, metric) for name, points in measured.items()}
    drawn = {name: axes for name, axes in drawn.items() if axes[0]}
    others = {name: _axes(points, metric) for name, points in published.items()}
    others = {name: axes for name, axes in others.items() if axes[0]}
    if not drawn and not others:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    panel = figure.add_subplot()
    shades = colormaps["tab20"].colors
    for name, (rate, quality) in drawn.items():
        ours = name == OURS
        panel.plot(
            rate, quality, "-o", color=COLOURS.get(name), lw=2.4 if ours else 1.4, ms=5 if ours else 3,
            zorder=5 if ours else 3, label=title_of(name),
        )  # fmt: skip
    for i, (name, (rate, quality)) in enumerate(others.items()):
        order = np.argsort(rate)
        panel.plot(
            np.array(rate)[order], np.array(quality)[order], "--", lw=0.9, alpha=0.8, color=shades[i % len(shades)],
            marker="x+|_"[i % 4], ms=3.5, label=f"{name} (published)",
        )  # fmt: skip
    reach = drawn.get(OURS) or next(iter(drawn.values()), None) or next(iter(others.values()))
    width = min(max(1.15 * max(reach[0]), 1.0), 3.0)
    shown = [q for axes in (*drawn.values(), *others.values()) for r, q in zip(*axes, strict=True) if r <= width]
    panel.set_xlim(0, width)
    panel.set_ylim(math.floor(min(shown)) - 0.5, math.ceil(max(shown)) + 0.5)
    panel.set_xlabel("rate (bits per pixel, whole files)")
    panel.set_ylabel("PSNR (dB, RGB)" if metric == "psnr" else "MS-SSIM (dB, −10 log₁₀(1 − x), RGB)")
    panel.set_title("Mean over the pictures at equal settings", fontsize=10)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7, ncols=2 if len(drawn) + len(others) > 9 else 1, loc="lower right")
    return figure
