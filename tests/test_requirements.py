"""pyproject.toml and the code agree on what is needed: for a night, and beyond it only where a command is run."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from flows.cli import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OURS = ("codec", "tasks", "flows", "deploy")
OPTIONAL = {"dask_cuda"}  # taken where it is there: the image for GPUs installs it


def canonical(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement.strip())[0].lower().replace("_", "-")


NEEDED = {canonical(requirement) for requirement in PROJECT["dependencies"]} | {"distributed", "botocore"}
PACKAGES = packages_distributions()
BY_EXTRA = {name: {canonical(r) for r in listed} for name, listed in PROJECT["optional-dependencies"].items()}


def third_party(path: Path) -> dict[str, bool]:
    """Packages that a file imports: name -> whether already when the file itself is imported."""
    tree = ast.parse(path.read_text("utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        else:
            continue
        for name in (name.partition(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name not in (*OURS, *OPTIONAL):
                found[name] = found.get(name, False) or id(node) not in inside
    return found


FILES = sorted(path for layer in OURS for path in (ROOT / layer).rglob("*.py"))


def distributions(package: str) -> set[str]:
    return {canonical(name) for name in PACKAGES.get(package, [package])}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_import_is_declared(path):
    for package, early in third_party(path).items():
        if not distributions(package) & NEEDED:
            assert package in EXTRAS, f"{package} is neither in pyproject's dependencies nor in flows.cli.EXTRAS"
            assert not early, f"{package} belongs to an extra: import it within the function that needs it"


@pytest.mark.parametrize("package, extra", EXTRAS.items())
def test_extras_hold_what_the_command_line_says(package, extra):
    assert distributions(package) & BY_EXTRA[extra], f"nightpress[{extra}] does not bring {package}"


def test_no_requirement_is_idle():
    used = {name for path in FILES for package in third_party(path) for name in distributions(package)}
    # What these need of each other: Prefect's and moto's servers, Dask's dashboard, the bound on Prefect's database.
    indirect = {"dask", "fastapi", "sqlalchemy", "flask", "flask-cors", "moto", "bokeh"}
    for name in NEEDED.union(*(BY_EXTRA[extra] for extra in ("demo", "embedding", "evaluate", "serve"))) - indirect:
        assert name in used, f"nothing imports {name}; take it out of pyproject.toml"


def test_the_lock_pins_all_of_it():
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    pins = {canonical(line) for line in lines if not line.startswith("#")}
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in lines if not line.startswith("#"))
    wanted = NEEDED.union(*BY_EXTRA.values()) - {"nightpress"}
    assert not wanted - pins, f"make lock: {sorted(wanted - pins)} are not pinned"
