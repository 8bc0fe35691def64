"""`nightpress serve`: the schedule. Registers the nightly deployment with Prefect and runs it whenever it is due.

Here: the schedule, one run at a time, the Prefect server where none is given. What a run does is flows/nightly.py's;
a deployment for work pools stands in deploy/prefect.yaml.
"""

import argparse
import contextlib
import fcntl
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from flows.console import WorkFailed, WrongUsage, say
from flows.settings import RunSettings, add_arguments, option
from tasks.machine import cache_folder, environment


def register(subparsers) -> None:
    command = subparsers.add_parser(
        "serve",
        help="run the nightly job on a schedule, on Prefect",
        description="Stay here and start the nightly job whenever it is due; one run at a time, the next one is "
        "dropped where a night outlasts the day. Options are those of `nightpress run`.",
        epilog='Example: nightpress serve --cron "0 2 * * *" --timezone Europe/Lisbon s3://photos s3://photos-pressed',
    )
    command.add_argument("--cron", required=True, metavar='"M H D M W"', help='when: "0 2 * * *" is every night at two')
    command.add_argument("--timezone", default="UTC", metavar="TZ", help="of --cron and --deadline (default UTC)")
    command.add_argument("--name", default="nightly", help="of the deployment; one for each bucket (default nightly)")
    add_arguments(command)
    command.set_defaults(handler=serve)


def serve(args: argparse.Namespace) -> int:
    settings = RunSettings.from_args(args)
    for name in ("dry_run", "fresh"):
        if getattr(settings, name):
            raise WrongUsage(f"{option(name)} is for a single run, not for a schedule: use `nightpress run`")
    parameters = in_zone(settings.parameters(), args.timezone)
    following = next_times(args.cron, args.timezone)
    # Prefect reads its settings when it is first imported: nothing above this line imports it.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", args.name):
        raise WrongUsage(f"--name {args.name!r}: letters, digits, - _ and . are possible")
    with api_url(args.name) as url, given_environment(PREFECT_API_URL=url):
        say(f"next runs: {', '.join(following)}; stop with Ctrl-C")
        return watch_the_clock(args.name, args.cron, args.timezone, parameters, url)


def in_zone(parameters: dict, zone: str) -> dict:
    """The parameters with a deadline's bare time of day made one of the schedule's zone."""
    deadline = parameters.get("deadline")
    if deadline and re.fullmatch(r"[\d:]+", deadline.strip()):
        return parameters | {"deadline": f"{deadline.strip()} {zone}"}
    return parameters


def watch_the_clock(name: str, cron: str, zone: str, parameters: dict, url: str) -> int:
    """Register the deployment at the API and run what is due until told to stop; PREFECT_API_URL is set."""
    from prefect import serve as serve_deployments
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import EntrypointType
    from prefect.schedules import Cron

    from flows.nightly import nightly

    try:
        schedule = Cron(cron, timezone=zone)
    except ValueError as error:
        raise WrongUsage(f"--cron {cron!r} --timezone {zone}: Prefect does not take it: {error}") from None
    deployment = nightly.to_deployment(
        name,
        schedule=schedule,
        parameters=parameters,
        description=f"Compress {parameters['source']} into {parameters['dest']}",
        tags=["nightpress"],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    say(f"serving {nightly.name}/{name} at {url.removesuffix('/api')}")
    serve_deployments(deployment, print_starting_message=False, limit=1)
    return 0


def next_times(cron: str, zone: str, n: int = 3) -> list[str]:
    """The next `n` times of the schedule in words. Raises WrongUsage where cron or zone make no sense."""
    from cronsim import CronSim, CronSimError  # what Prefect's own schedules are computed with

    try:
        dates = CronSim(cron, datetime.now(ZoneInfo(zone)))
        return [f"{next(dates):%Y-%m-%d %H:%M %Z}" for _ in range(n)]
    except CronSimError as error:
        raise WrongUsage(f"--cron {cron!r}: {error}; five fields are wanted: minute hour day month weekday") from None
    except StopIteration:
        raise WrongUsage(f"--cron {cron!r} is never due") from None
    except (KeyError, ValueError, OSError):
        raise WrongUsage(f"--timezone {zone!r} is no time zone that this machine knows; e.g. Europe/Lisbon") from None


@contextlib.contextmanager
def api_url(name: str) -> Iterator[str]:
    """PREFECT_API_URL where it is set and answers, else a server of our own that ends with us.

    Unlike the one that a single night starts (flows/cluster.py) it has a scheduler, and its pages. Its history is
    kept in $XDG_CACHE_HOME/nightpress/schedule/<name>. Raises WorkFailed.
    """
    from flows.prefect_server import answers, given_url, unanswered

    given = given_url()
    if given:
        if not answers(given):
            raise WorkFailed(unanswered(given))
        yield given
        return
    home = cache_folder("schedule", name)
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkFailed(
                f"a `nightpress serve --name {name}` is running here; give this one another --name"
            ) from None
        with started_server(home) as url:
            yield url


@contextlib.contextmanager
def started_server(home: Path) -> Iterator[str]:
    """Prefect's server, scheduler and pages included, with its database in `home`; its API's URL once it answers."""
    from flows.prefect_server import ServerProcess

    with ServerProcess(home) as server:
        yield server.answering()


@contextlib.contextmanager
def given_environment(**values: str) -> Iterator[None]:
    from flows.prefect_server import UNTOLD

    with environment(values | UNTOLD):
        yield
