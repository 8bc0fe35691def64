"""`nightpress encode`, `decode` and `info`: one picture file, and one file in a form that the night stores.

The work is codec's and tasks/forms'; here only options, files and what is printed.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from flows.console import WorkFailed, WrongUsage
from tasks.report.words import size

MEASURES = {"psnr": "PSNR {:.2f} dB", "ms-ssim": "MS-SSIM {:.5f}", "ssimulacra2": "SSIMULACRA2 {:.2f}"}
BACK = {"bytes": "the file's own bytes", "pixels": "its exact pixels", "seen": "what is seen"}
FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


def register(subparsers) -> None:
    encode = subparsers.add_parser(
        "encode",
        help="compress one picture into a .npi file, or into another form",
        epilog="Example: nightpress encode photo.jpg photo.npi --target ssimulacra2=80",
    )
    encode.add_argument("image", metavar="IMAGE", type=Path, help="an 8-bit picture in any usual format")
    encode.add_argument("file", metavar="FILE.npi", type=Path)
    encode.add_argument(
        "--form",
        choices=("npi", "jxl-jpeg", "lossless", "exact", "avif", "jxl"),
        default="npi",
        help="npi (default), avif and jxl to what is asked for; jxl-jpeg and exact give the file's own bytes back, "
        "lossless its pixels",
    )
    goal = encode.add_mutually_exclusive_group()
    goal.add_argument("--quality", metavar="Q", type=float, help="0..100 (default 75)")
    goal.add_argument(
        "--target",
        metavar="M=V",
        help="ssimulacra2=V, ms-ssim=V or psnr=V, met from above by at most 0.5 points or 0.1 dB",
    )
    goal.add_argument("--max-bytes", metavar="N", type=int, help="at most so many bytes, at most 2 %% fewer")
    encode.add_argument("--model", metavar="FILE", help="a model that was trained elsewhere (default: the package's)")
    encode.add_argument("--max-pixels", metavar="N", type=int, default=200_000_000, help="refuse larger pictures")
    encode.set_defaults(handler=run_encode)

    decode = subparsers.add_parser(
        "decode",
        help="turn a .npi file, or one of another form, back into a picture file",
        epilog="Example: nightpress decode photo.npi photo.png",
    )
    decode.add_argument("file", metavar="FILE.npi", type=Path)
    decode.add_argument(
        "image",
        metavar="IMAGE",
        type=Path,
        help="its ending names the format: " + " ".join(FORMATS) + "; a form that keeps the file's bytes takes any",
    )
    decode.add_argument(
        "--models", metavar="DIR", type=Path, action="append", help="search for the file's model here too; repeatable"
    )
    decode.add_argument("--max-pixels", metavar="N", type=int, default=200_000_000, help="refuse larger pictures")
    decode.set_defaults(handler=run_decode)

    info = subparsers.add_parser(
        "info",
        help="what a .npi file, or one of another form, says about itself",
        epilog="Example: nightpress info photo.npi --json",
    )
    info.add_argument("file", metavar="FILE.npi", type=Path)
    info.set_defaults(handler=run_info)

    for command in (encode, decode):
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for command in (encode, decode, info):
        command.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def run_encode(args: argparse.Namespace) -> int:
    if args.form != "npi":
        return encode_form(args)
    metric, value = goal_of(args)
    source = _read(args.image)
    _need_folder(args.file)

    from codec import CodecError, PictureError, get_model, open_picture, prepare

    start = time.perf_counter()
    try:
        picture = open_picture(source, args.max_pixels)
        prepared = prepare(picture, get_model(args.model, device=_device(args.device)))
        data, level, reached = coded(prepared, metric, value)
    except (PictureError, CodecError, ValueError) as error:
        raise WorkFailed(f"{args.image}: {error}") from error
    _write(args.file, data)
    result = {
        "file": str(args.file),
        "source_bytes": len(source),
        "bytes": len(data),
        "width": picture.width,
        "height": picture.height,
        "bpp": 8 * len(data) / (picture.width * picture.height),
        "quality": level / 10,
        "seconds": time.perf_counter() - start,
    }
    if reached:
        result.update(metric=reached.metric, value=reached.value, passes=reached.passes)
    print(json.dumps(result) if args.json else encoded_words(result))
    return 0


def encode_form(args: argparse.Namespace) -> int:
    """One file in a form of the night's other than the learned codec's."""
    from codec import PictureError, open_picture
    from tasks.forms.base import Declined, Goal
    from tasks.forms.choose import FORMS

    form, goal = FORMS[args.form], None
    if form.gives_back == "seen":
        if not args.target:
            raise WrongUsage(f"--form {args.form} needs a --target: only the learned codec has qualities and sizes")
        goal = Goal(*goal_of(args))
    elif args.target or args.quality is not None or args.max_bytes is not None:
        raise WrongUsage(f"--form {args.form} loses nothing: leave --target, --quality and --max-bytes out")
    source = _read(args.image)
    _need_folder(args.file)
    start = time.perf_counter()
    try:
        picture = open_picture(source, args.max_pixels, checked=False)
    except PictureError as error:
        if form.gives_back == "seen":
            raise WorkFailed(f"{args.image}: {error}") from error
        picture = None  # its own bytes, or its samples, do not need one
    try:
        data = form.encode(source, picture, goal)
    except Declined as reason:
        raise WorkFailed(f"{args.image}: {reason}") from reason
    _write(args.file, data)
    result = {
        "file": str(args.file), "source_bytes": len(source), "bytes": len(data), "form": form.name,
        "gives_back": form.gives_back, "seconds": time.perf_counter() - start,
    }  # fmt: skip
    words = (
        f"{args.file}: {size(len(data))} ({len(data) / max(len(source), 1):.1%} of {size(len(source))}), {form.name}"
    )
    print(json.dumps(result) if args.json else f"{words}, gives back {BACK[form.gives_back]}")
    return 0


def goal_of(args: argparse.Namespace) -> tuple[str, float]:
    """(metric, value) of what the bitstream is to meet: `quality` 0..100, `bytes`, or a target's. Raises WrongUsage."""
    if args.target:
        from codec.rate_control.target import parse_target

        try:
            return parse_target(args.target)
        except ValueError as error:
            raise WrongUsage(str(error)) from None
    if args.max_bytes is not None:
        if args.max_bytes < 1:
            raise WrongUsage(f"--max-bytes {args.max_bytes}: at least 1")
        return "bytes", args.max_bytes
    if args.quality is None:
        from codec.encoder import DEFAULT_QUALITY

        return "quality", DEFAULT_QUALITY
    if not 0 <= args.quality <= 100:
        raise WrongUsage(f"--quality {args.quality:g} is outside 0..100")
    return "quality", args.quality


def coded(prepared, metric: str, value: float) -> tuple[bytes, int, object]:
    """(bitstream, its level, the rate control's Reached or None) of what `prepare` gave. Raises ValueError."""
    from codec import level_of
    from codec.rate_control.target import target_level

    if metric == "quality":
        level = level_of(value)
        return prepared.code(level), level, None
    reached = target_level(prepared, metric, value)
    return reached.bitstream, reached.level, reached


def encoded_words(result: dict) -> str:
    """The outcome on one line."""
    words = (
        f"{result['file']}: {size(result['bytes'])} ({result['bytes'] / result['source_bytes']:.1%} of "
        f"{size(result['source_bytes'])}), {result['width']}x{result['height']}, {result['bpp']:.3f} bpp, "
        f"quality {result['quality']:g}"
    )
    met = MEASURES.get(result.get("metric"))
    return f"{words}, {met.format(result['value'])}" if met else words


def run_decode(args: argparse.Namespace) -> int:
    data = _read(args.file)
    _need_folder(args.image)
    format = FORMATS.get(args.image.suffix.lower())

    from codec import CodecError, picture_bytes
    from tasks.forms.choose import GIVES_BACK, form_of
    from tasks.forms.stored import file_of, picture_of

    back = GIVES_BACK.get(form_of(data) or "npi")
    if format is None and back != "bytes":
        raise WrongUsage(f"{args.image}: {args.image.suffix!r} names no format; use {', '.join(FORMATS)}")
    try:
        if back == "bytes" or (back == "pixels" and format == "PNG"):
            file = file_of(data)
            _write(args.image, file)
            words = f"{args.image}: {size(len(file))}, {BACK[back]}"
            print(json.dumps({"image": str(args.image), "bytes": len(file)}) if args.json else words)
            return 0
        picture = picture_of(data, models=args.models or (), device=_device(args.device), max_pixels=args.max_pixels)
        _write(args.image, picture_bytes(picture, format))
    except (CodecError, ValueError, OSError) as error:
        raise WorkFailed(f"{args.file}: {error}") from error
    if args.json:
        print(json.dumps({"image": str(args.image), "width": picture.width, "height": picture.height,
                          "mode": picture.image.mode}))  # fmt: skip
    else:
        print(f"{args.image}: {picture.width}x{picture.height} {picture.image.mode}")
    return 0


def run_info(args: argparse.Namespace) -> int:
    data = _read(args.file)

    from codec import CodecError, info
    from tasks.forms.choose import GIVES_BACK, form_of

    name = form_of(data) or "npi"
    try:
        facts = info(data) if name == "npi" else {"form": name, "gives_back": GIVES_BACK[name], "bytes": len(data)}
    except CodecError as error:
        raise WorkFailed(f"{args.file}: {error}") from error
    if args.json:
        print(json.dumps(facts))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WrongUsage(f"can't read {path}: {error.strerror or error}") from None


def _need_folder(path: Path) -> None:
    """Refuse before the work what cannot be written after it."""
    if not path.parent.is_dir():
        raise WrongUsage(f"there is no folder {path.parent} to write {path.name} into")
    if path.is_dir():
        raise WrongUsage(f"{path} is a folder; name a file")


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: into a temporary file beside, then renamed."""
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise WorkFailed(f"can't write {path}: {error.strerror or error}") from error
        raise


def _device(name: str) -> str:
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise WrongUsage("--device cuda: torch sees no GPU here; use --device cpu")
    return name
