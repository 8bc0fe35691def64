"""What deploy/ promises, as far as it can be checked without a container engine."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
BIN = Path(sys.executable).parent


def help_of(*command: str) -> str:
    """The command's --help, from the environment that the tests run in."""
    done = subprocess.run([str(BIN / command[0]), *command[1:], "--help"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stdout[-500:]}{done.stderr[-500:]}"
    return done.stdout


def interpolated(text: str, environment: dict[str, str]) -> str:
    """Compose's variable forms: $NAME is not used here, ${NAME}, ${NAME:-default}, ${NAME:?message} are."""

    def value(match: re.Match) -> str:
        name, kind, rest = match[1], match[2], match[3] or ""
        if environment.get(name):
            return environment[name]
        assert kind != ":?", f"{name} must be set: {rest}"
        assert kind == ":-", f"{name} has neither a value nor a default"
        return rest

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def environment_file() -> dict[str, str]:
    lines = (DEPLOY / "example.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> dict:
    """The one deployment of prefect.yaml as Prefect's own code reads it, without a word of complaint."""
    from prefect.cli.deploy._config import _load_deploy_configs_and_actions
    from rich.console import Console

    said = io.StringIO()
    deployments, actions = _load_deploy_configs_and_actions(DEPLOY / "prefect.yaml", console=Console(file=said))
    assert said.getvalue() == "" and actions == {"build": [], "push": [], "pull": []}
    assert len(deployments) == 1
    return deployments[0]


def test_prefect_yaml_says_when_and_that_nights_do_not_overlap(deployment):
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule

    (schedule,) = deployment["schedules"]
    assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]).timezone == "Europe/Lisbon"
    limit = deployment["concurrency_limit"]
    assert limit["limit"] == 1
    assert ConcurrencyLimitStrategy(limit["collision_strategy"]) is ConcurrencyLimitStrategy.CANCEL_NEW


def test_prefect_yaml_parameters_are_options_of_the_run(deployment, monkeypatch):
    from prefect.utilities.templating import apply_values

    from flows.settings import RunSettings

    environment = {"NIGHTPRESS_SOURCE": "s3://photos", "NIGHTPRESS_DEST": "s3://photos-pressed"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parameters = apply_values(deployment["parameters"], environment)
    settings = RunSettings.from_parameters(parameters)
    assert (settings.source, settings.dest, str(settings.target)) == (
        "s3://photos",
        "s3://photos-pressed",
        "ssimulacra2=80",
    )


def test_prefect_yaml_entry_point_takes_those_parameters(deployment):
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert set(deployment["parameters"]) <= set(parameter_schema(flow).properties)


@pytest.mark.slow
@pytest.mark.server
def test_prefect_yaml_is_deployed_on_a_real_server(tmp_path):
    """The commands at the top of prefect.yaml, against a Prefect server; the deployment is then read back from it."""
    import json
    import os
    import urllib.request

    from flows.commands.serve import started_server

    with started_server(tmp_path) as url:
        environment = os.environ | {
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(tmp_path / "client"),
            "NIGHTPRESS_SOURCE": "s3://photos",
            "NIGHTPRESS_DEST": "s3://photos-pressed",
        }
        for command in (
            "work-pool create --type process nightpress",
            "--no-prompt deploy --prefect-file deploy/prefect.yaml --all",
        ):
            done = subprocess.run(
                [str(BIN / "prefect"), *command.split()],
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        request = urllib.request.Request(
            f"{url}/deployments/filter", data=b"{}", headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            (there,) = json.load(answer)
    assert there["name"] == "nightly" and there["entrypoint"] == "flows.nightly.nightly"
    assert there["parameters"]["source"] == "s3://photos" and not there["pull_steps"]
    assert there["schedules"][0]["schedule"]["cron"] == "0 2 * * *" and there["schedules"][0]["active"]
    assert there["global_concurrency_limit"]["limit"] == 1
    assert there["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(interpolated((DEPLOY / "compose.yaml").read_text(), environment_file()))


def test_compose_is_whole(compose):
    services = compose["services"]
    assert {"postgres", "prefect", "scheduler", "worker", "nightly"} <= set(services)
    volumes = set(compose["volumes"])
    for name, service in services.items():
        known = {"image", "build", "restart", "volumes", "environment", "command", "depends_on", "ports", "healthcheck"}
        assert set(service) <= known | {"profiles", "deploy"}, name
        waits = service.get("depends_on", [])
        assert set(waits) <= set(services), name
        for other, how in waits.items() if isinstance(waits, dict) else []:
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}'s health, which nobody checks"
        for volume in service.get("volumes", []):
            outside = volume.partition(":")[0]
            assert outside.startswith(("/", ".")) or outside in volumes, volume
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name} opens {port} to the world"
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert service["build"]["args"]["COMPUTE"] in ("cpu", "cuda")
    database = services["prefect"]["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"]
    owner = services["postgres"]["environment"]
    assert database.startswith(f"postgresql+asyncpg://{owner['POSTGRES_USER']}:{owner['POSTGRES_PASSWORD']}@postgres:")
    for name in ("worker", "nightly"):
        environment = services[name]["environment"]
        assert environment["PREFECT_API_URL"] == "http://prefect:4200/api"
        assert {key for key in environment if key.startswith("AWS_")} >= {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"}
        assert all(environment[key] is None for key in environment if key.startswith("AWS_"))


def test_compose_refuses_to_start_without_source(compose):
    incomplete = {name: value for name, value in environment_file().items() if name != "NIGHTPRESS_SOURCE"}
    with pytest.raises(AssertionError, match="NIGHTPRESS_SOURCE must be set"):
        interpolated((DEPLOY / "compose.yaml").read_text(), incomplete)


def test_compose_commands_exist_with_their_options(compose):
    """Every program, subcommand and option that a service names. dask-cuda is not installed here: its form only."""
    for name, service in compose["services"].items():
        command = service.get("command")
        if command is None:
            continue
        options = [word for word in command if word.startswith("--")]
        words = [word for word in command if not word.startswith("-")]
        if name == "worker-cuda":
            assert words[:3] == ["dask", "cuda", "worker"]
            continue
        depth = {"prefect": 3, "dask": 2, "nightpress": 2}[words[0]]
        text = help_of(*words[:depth])
        missing = [option for option in options if not re.search(re.escape(option) + r"\b", text)]
        assert not missing, f"{name}: {' '.join(words[:depth])} has no {missing}"


def test_compose_schedule_is_a_command_line_that_parses(compose):
    from flows.cli import parser
    from flows.settings import RunSettings

    args = parser().parse_args(compose["services"]["nightly"]["command"][1:])
    assert args.cron == "0 2 * * *" and args.timezone == "Europe/Lisbon"
    assert RunSettings.from_args(args).dask == "tcp://scheduler:8786"


@pytest.mark.skipif(not shutil.which("docker"), reason="no docker client")
def test_docker_compose_config(tmp_path):
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("the docker client has no compose plugin")
    done = subprocess.run(
        ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "--env-file", str(DEPLOY / "example.env"), "config"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_dockerfile():
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", text).splitlines()
    instructions = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    assert {name for name, _ in instructions} <= {
        *("ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "ENTRYPOINT", "CMD")
    }
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name, rest in instructions:
        if name == "COPY":
            *sources, _ = shlex.split(rest)
            for source in sources:
                assert (REPOSITORY / source).exists(), f"COPY {source}: not in the repository"
                assert f"!{source.removeprefix('./')}" in allowed, f"COPY {source}: kept out by Dockerfile.dockerignore"
    assert "ARG COMPUTE=cpu" in text and "download.pytorch.org/whl/cpu" in text and "dask-cuda" in text
    torch = [line for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if line.startswith("torch==")]
    assert len(torch) == 1, "the Dockerfile takes torch's version from its line in the lock"
    assert "deploy/.env" in allowed and ".env" in (DEPLOY / ".gitignore").read_text().split()


def test_readme_names_what_is_there():
    text = (DEPLOY / "README.md").read_text()
    named = set(re.findall(r"^\| `([^|]+)` \|", text, re.M))
    files = {
        part for cell in named for part in re.findall(r"[\w.-]+\.(?:yaml|env|json|py)|Dockerfile|install-[\w-]+", cell)
    }
    assert files >= {"compose.yaml", "prefect.yaml", "Dockerfile", "iam-policy.json"}
    assert not [name for name in files if not (DEPLOY / name).exists()]
