"""`nightpress run`: one night now, or with --dry-run an estimate of it. The night itself stands in flows/nightly.py."""

import argparse
import json
import os

from flows.console import WorkFailed, counted, say
from flows.settings import RunSettings, add_arguments


def register(subparsers) -> None:
    command = subparsers.add_parser(
        "run",
        help="the nightly job: deduplicate, restore, compress, verify, report",
        description="Compress the pictures of SOURCE into DEST. SOURCE is only read. A run that was killed goes on "
        "where it stopped when the same command is given again; a later run does only what is new or changed.",
        epilog="Example: nightpress run s3://photos s3://photos-pressed --target ssimulacra2=85 --deadline 06:00",
    )
    add_arguments(command)
    command.add_argument("--json", action="store_true", help="the manifest, or the estimate, instead of the summary")
    command.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    settings = RunSettings.from_args(args)
    if settings.dry_run:
        return estimate(settings, args.json)
    # Before Prefect is imported, which reads them once: nothing is told to anybody, errors are told once and by us.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows.prefect_server import UNTOLD, PrefectServer

    os.environ |= UNTOLD

    with PrefectServer() as server:  # its start overlaps with our imports
        from flows.finish import FailedRows
        from flows.nightly import night_on
        from tasks.night.model_files import NoModel

        code = 0
        try:
            manifest = night_on(server, settings)
        except FailedRows as error:
            manifest, code = error.manifest, 3
            say(f"nightpress: {error}")
        except NoModel as error:
            raise WorkFailed(str(error)) from None
    tell(settings, manifest, args.json)
    return code


def tell(settings: RunSettings, manifest: dict, as_json: bool) -> None:
    """The run's outcome on stdout, where its report lies on stderr."""
    from tasks.night.catalog import read_report
    from tasks.report import summary
    from tasks.stores.open import open_store

    dest = open_store(settings.dest)
    if as_json:
        print(json.dumps(manifest, indent=1, ensure_ascii=False))
    else:
        print(summary.text(read_report(dest, manifest), manifest), end="")
    say(f"report: {dest.place('runs/' + manifest['run_id'] + '/report.html')}")


def estimate(settings: RunSettings, as_json: bool) -> int:
    """--dry-run: reads a sample of what is new or changed; writes nothing."""
    from tasks.machine import cores
    from tasks.night import dry_run, listing
    from tasks.night.catalog import read_catalog
    from tasks.night.model_files import NoModel, codec_model
    from tasks.night.runs import latest_manifest
    from tasks.stores.base import StoreError
    from tasks.stores.open import open_store

    source, dest = open_store(settings.source), open_store(settings.dest)
    try:
        listed = listing.list_source(listing.objects_of(source, settings.inventory), settings.selects)
        catalog = read_catalog(dest, latest_manifest(dest))
        new = listing.compare(listed, catalog, settings.max_objects)
        night = settings.night("dry-run", codec_model().identity, None)  # an estimate goes by hashes
        budget = settings.budget
        with counted("sample") as watch:
            result = dry_run.foretell(
                night,
                listing.new_objects(new),
                budget_bytes=budget.bytes if budget else None,
                budget_percent=budget.percent if budget else None,
                workers=settings.workers or cores(),
                watch=watch,
            )
    except (StoreError, NoModel, ValueError) as error:
        raise WorkFailed(str(error)) from None
    print(json.dumps(result.as_dict(), indent=1) if as_json else dry_run.text(result).rstrip("\n"))
    return 0
