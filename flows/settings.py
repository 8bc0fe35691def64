"""The options of a night: one frozen record, from flags, a TOML file or a Prefect deployment's parameters.

Here: the options' names, types, ranges, defaults and clashes; which of them decide the results
(`fingerprint`, by which an unfinished run is recognised). Carrying the options out is nightly.py's
business, what a store's URL means is tasks/stores's.
"""

import argparse
import dataclasses
import difflib
import fnmatch
import hashlib
import json
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flows.console import WrongUsage
from flows.goals import Budget, Target, deadline_after
from tasks.night.runs import Night

EMBEDDINGS = ("copy", "classifier", "autoencoder")


@dataclass(frozen=True)
class RunSettings:
    """What `nightpress run` was asked to do. Fields are the options of the contract, `-` as `_`.

    Exactly one of quality, target and budget is set (`target` ssimulacra2=80 when none was given).
    Construction checks ranges and clashes and raises WrongUsage; `from_args` and `from_parameters` also
    refuse places that overlap.
    """

    source: str
    dest: str
    quality: float | None = None  # 0..100
    target: Target | None = None
    budget: Budget | None = None
    dedup: str = "near"  # off, exact, near
    dedup_embedding: str | None = None  # copy, classifier, autoencoder, FILE.onnx
    denoise: str = "off"  # off, auto
    superres: str = "off"  # off, auto
    codec: str = "learned"  # learned, lossless, avif, jxl, smallest: tasks/forms/choose.py says what each tries
    min_gain: float = 10.0  # percent of the source bytes; below it the original is kept
    max_pixels: int = 200_000_000
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_objects: int | None = None
    deadline: str | None = None  # as given; deadline_after(text) when the run starts
    max_failed: float = 50.0  # percent of the objects read
    workers: int | None = None  # None: as many as there are cores
    device: str = "auto"  # auto, cpu, cuda
    dask: str | None = None  # scheduler address
    shard_size: int | None = None  # objects in a shard; None: chosen by the size of the bucket
    inventory: str | None = None  # manifest.json of an S3 Inventory, listed instead of SOURCE
    dry_run: bool = False
    fresh: bool = False
    strict: bool = False

    def __post_init__(self):
        if self.quality is None and self.target is None and self.budget is None:
            object.__setattr__(self, "target", Target("ssimulacra2", 80.0))
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in values.items():
            check_range(name, value, option(name))
        given = {name: value for name, value in values.items() if value not in (None, False, ())}
        refuse_clashes(given, option)
        if self.dedup_embedding and self.dedup != "near":
            raise WrongUsage(
                f"--dedup {self.dedup} and --dedup-embedding {self.dedup_embedding} exclude each other: "
                "embeddings propose near duplicates; use --dedup near or leave --dedup-embedding out"
            )
        if self.codec != "learned" and self.target is None:
            other = "quality" if self.quality is not None else "budget"
            raise WrongUsage(
                f"--codec {self.codec} and {option(other)} exclude each other: only the learned codec has qualities "
                "and shares a budget; give a --target or leave --codec out"
            )
        if self.deadline is not None:
            try:
                deadline_after(self.deadline)
            except ValueError as error:
                raise WrongUsage(f"--deadline: {error}") from None

    @classmethod
    def from_parameters(cls, parameters: dict, where: str = "parameters") -> "RunSettings":
        """From option names (`min_gain` or `min-gain`) and values as TOML, JSON or flags write them.

        None stands for "not given". WrongUsage names the option, the value and `where` it stood.
        """
        values = converted(parameters, lambda name: f"{name} in {where}")
        for name in ("source", "dest"):
            if name not in values:
                raise WrongUsage(f"{where}: {name} is missing")
        settings = cls(**values)
        settings.refuse_overlap()
        return settings

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "RunSettings":
        """From parsed arguments of `add_arguments`; explicit flags go before the --config file's keys."""
        settings = cls(**merged(args))
        settings.refuse_overlap()
        return settings

    def refuse_overlap(self) -> None:
        """WrongUsage where SOURCE and DEST share objects (the night would compress its own output) or are no places."""
        from tasks.stores.open import overlap

        try:
            shared = overlap(self.source, self.dest)
        except ValueError as error:
            raise WrongUsage(str(error)) from None
        if shared:
            raise WrongUsage(
                f"SOURCE {self.source} and DEST {self.dest} overlap; "
                "choose a DEST that neither lies within SOURCE nor contains it"
            )

    def parameters(self) -> dict:
        """JSON-able form: every option that differs from its default, as `from_parameters` reads it back."""
        out = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, Target | Budget):
                value = str(value)
            out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    def fingerprint(self, *more: str) -> str:
        """16 hex digits over what decides the results; `more`: model ids and the like that do so too.

        Left out: WITHOUT_INFLUENCE.
        """
        chosen = self.parameters()
        for name in WITHOUT_INFLUENCE:
            chosen.pop(name, None)
        chosen["source"] = self.source.rstrip("/")
        if self.dedup_embedding and self.dedup_embedding not in EMBEDDINGS:
            try:
                network = Path(self.dedup_embedding).read_bytes()
                chosen["dedup_embedding"] = hashlib.sha256(network).hexdigest()
            except OSError:
                pass  # the path stands in the hash; whoever loads the network says that it is not there
        canonical = json.dumps([chosen, list(more)], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def night(self, run_id: str, model: str, embedding: str | None) -> Night:
        """What workers need to know of the settings. model: id of the codec's model; embedding: as Night has it."""
        from tasks.stores.open import open_store

        target = self.target
        return Night(
            run_id=run_id, source=open_store(self.source).url, dest=open_store(self.dest).url,
            quality=self.quality, metric=target.metric if target else None, target=target.value if target else None,
            dedup=self.dedup, denoise=self.denoise == "auto", superres=self.superres == "auto",
            codec=self.codec, min_gain=self.min_gain, max_pixels=self.max_pixels, device=self.device, model=model,
            embedding=embedding,
        )  # fmt: skip

    def selects(self, key: str) -> bool:
        """Whether --include and --exclude let `key` (relative to SOURCE) in.

        Shell patterns over the whole key, case-sensitive, `*` crosses slashes (as in the AWS command line).
        With --include only matching keys enter; --exclude takes away from those.
        """
        if self.include and not any(fnmatch.fnmatchcase(key, pattern) for pattern in self.include):
            return False
        return not any(fnmatch.fnmatchcase(key, pattern) for pattern in self.exclude)


FIELDS = {field.name: field for field in dataclasses.fields(RunSettings)}
CHOICES = {
    "dedup": ("off", "exact", "near"),
    "denoise": ("off", "auto"),
    "superres": ("off", "auto"),
    "codec": ("learned", "lossless", "avif", "jxl", "smallest"),
    "device": ("auto", "cpu", "cuda"),
}
RANGES = {  # inclusive
    "quality": (0, 100),
    "min_gain": (0, 100),
    "max_failed": (0, 100),
    "max_pixels": (1, 10**12),
    "max_objects": (1, 10**12),
    "workers": (1, 4096),
    "shard_size": (1, 100_000),
}
WHOLE = ("max_pixels", "max_objects", "workers", "shard_size")
SWITCHES = ("dry_run", "fresh", "strict")
# Only decide when and where the work is done; DEST is where fingerprints are compared.
WITHOUT_INFLUENCE = ("dest", "workers", "device", "dask", "deadline", "max_failed", *SWITCHES)
# Within one layer (flags, or the file) two of a group are a clash; a flag silences the file's whole group.
EXCLUSIVE = (("quality", "target", "budget"), ("workers", "dask"), ("dry_run", "fresh"))


def option(name: str) -> str:
    """The flag (or positional) that sets a field, as the person typed it."""
    return name.upper() if name in ("source", "dest") else "--" + name.replace("_", "-")


def check_range(name: str, value, label: str) -> None:
    if value is None:
        return
    if name in ("source", "dest") and not (isinstance(value, str) and value.strip()):
        raise WrongUsage(f"{label}: {value!r} is neither s3://bucket/prefix nor a folder")
    if name in CHOICES and value not in CHOICES[name]:
        raise WrongUsage(f"{label}: {value!r} is not one of {', '.join(CHOICES[name])}")
    if name in RANGES:
        low, high = RANGES[name]
        if not low <= value <= high:
            raise WrongUsage(f"{label}: {value:g} is outside {low}..{high}")
    if name == "dedup_embedding" and value not in EMBEDDINGS and not value.endswith(".onnx"):
        raise WrongUsage(f"{label}: {value!r} is neither {', '.join(EMBEDDINGS)} nor a FILE.onnx")


def refuse_clashes(given: dict, label) -> None:
    """WrongUsage naming both arguments where two members of an exclusive group are in `given`."""
    for group in EXCLUSIVE:
        present = [name for name in group if name in given]
        if len(present) > 1:
            pair = " and ".join(label(name) for name in present)
            raise WrongUsage(f"{pair} exclude each other; give one of them")


def converted(raw: dict, label) -> dict:
    """Option values of one layer in their own types; None entries dropped, WrongUsage with `label(name)`."""
    out = {}
    for spelled, value in raw.items():
        name = spelled.replace("-", "_")
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(FIELDS)}"
            raise WrongUsage(f"{label(spelled)}: no such option{hint}")
        if value is None:
            continue
        try:
            out[name] = convert(name, value)
        except (ValueError, TypeError, OverflowError) as error:
            raise WrongUsage(f"{label(spelled)}: {error}") from None
        if out[name] is None:
            del out[name]
        else:
            check_range(name, out[name], label(spelled))
    refuse_clashes({k: v for k, v in out.items() if v is not False}, label)
    return out


def convert(name: str, value):
    """One option's value in its field's type; ValueError in words where it cannot be."""
    if name == "target":
        return value if isinstance(value, Target) else Target.parse(value)
    if name == "budget":
        return value if isinstance(value, Budget) else Budget.parse(value)
    if name in ("include", "exclude"):
        patterns = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError(f"{value!r} is not a list of patterns")
        return patterns
    if name in SWITCHES:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is neither true nor false")
        return value
    if name in WHOLE:
        number = float(str(value).replace("_", "").replace(",", "")) if not isinstance(value, bool) else 0.5
        if number != int(number):
            raise ValueError(f"{value!r} is not a whole number")
        return int(number)
    if name in RANGES:
        if isinstance(value, bool):
            raise ValueError(f"{value!r} is not a number")
        number = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
        if number != number:
            raise ValueError(f"{value!r} is not a number")
        return number
    if name in CHOICES and value is False:  # `dedup = off` read by a YAML parser
        return "off"
    if isinstance(value, datetime):  # TOML has times of its own
        return value.isoformat()
    if name == "deadline" and not isinstance(value, str) and hasattr(value, "isoformat"):
        return value.isoformat("minutes")
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    if name == "dedup_embedding" and value in ("none", "off", ""):
        return None
    return value


def merged(args: argparse.Namespace) -> dict:
    """Field values of the flags over those of the --config file; WrongUsage for clashes within either."""
    flags = converted({name: getattr(args, name, None) for name in FIELDS}, option)
    if not getattr(args, "config", None):
        return flags
    try:
        with open(args.config, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise WrongUsage(f"--config {args.config}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongUsage(f"--config {args.config} is not TOML: {error}") from None
    file_values = converted(content, lambda name: f"{name} in {args.config}")
    for group in EXCLUSIVE:
        if any(name in flags for name in group):
            for name in group:
                file_values.pop(name, None)
    return file_values | flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE, DEST, --config and every option of a run; absent ones stay None so that a file can set them."""
    parser.add_argument("source", metavar="SOURCE", help="s3://bucket/prefix or a folder; only ever read")
    parser.add_argument("dest", metavar="DEST", help="s3://bucket/prefix or a folder for the results")
    parser.add_argument("--config", metavar="FILE.toml", help="options as keys (min_gain = 5); flags win")
    add = parser.add_argument_group
    rate = add("how good or how small, one of (default --target ssimulacra2=80)")
    rate.add_argument("--quality", metavar="Q", help="codec quality, 0..100")
    rate.add_argument("--target", metavar="METRIC=V", help="ssimulacra2=V, ms-ssim=V or psnr=V, met from above")
    rate.add_argument(
        "--budget", metavar="BYTES|PERCENT%", help="what the run may store: 20GB, or 12%% of the source bytes"
    )
    steps = add("steps")
    steps.add_argument("--dedup", metavar="off|exact|near", help="default near")
    steps.add_argument(
        "--dedup-embedding",
        metavar="copy|classifier|autoencoder|FILE.onnx",
        help="also propose duplicates by an embedding (default none)",
    )
    steps.add_argument("--denoise", metavar="off|auto", help="clean noise and impulses (default off)")
    steps.add_argument("--superres", metavar="off|auto", help="enlarge small pictures (default off)")
    steps.add_argument(
        "--codec",
        metavar="learned|lossless|avif|jxl|smallest",
        help="what pictures are stored as: the learned codec and lossless forms where they are better (default), "
        "nothing that changes a pixel (near duplicates stay apart), an open format, or whatever is smallest",
    )
    steps.add_argument("--min-gain", metavar="PERCENT", help="keep originals below this saving (default 10)")
    steps.add_argument("--max-pixels", metavar="N", help="larger pictures fail (default 200,000,000)")
    choice = add("which objects")
    choice.add_argument(
        "--include", metavar="GLOB", action="append", help="only matching keys; * crosses /; repeatable"
    )
    choice.add_argument("--exclude", metavar="GLOB", action="append", help="not these keys; repeatable")
    choice.add_argument("--max-objects", metavar="N", help="the first N keys in order")
    choice.add_argument("--inventory", metavar="URL", help="manifest.json of an S3 Inventory, as the listing")
    limits = add("limits")
    limits.add_argument(
        "--deadline", metavar="TIME", help='HH:MM (the next), "HH:MM Zone/Name" or ISO: commit what is done'
    )
    limits.add_argument("--max-failed", metavar="PERCENT", help="abort without a commit above (default 50)")
    limits.add_argument("--strict", action="store_true", default=None, help="exit 3 if any row failed")
    limits.add_argument("--dry-run", action="store_true", default=None, help="estimate from a sample only")
    limits.add_argument(
        "--fresh", action="store_true", default=None, help="forget the unfinished run and the catalog's skips"
    )
    place = add("where it is computed")
    place.add_argument("--workers", metavar="N", help="local worker processes (default: one a core)")
    place.add_argument("--device", metavar="auto|cpu|cuda", help="default auto")
    place.add_argument("--dask", metavar="ADDRESS", help="an existing Dask scheduler, not local workers")
    place.add_argument("--shard-size", metavar="N", help="objects a shard (default: by the bucket's size)")
