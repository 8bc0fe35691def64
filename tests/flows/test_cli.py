"""The `nightpress` command itself: exit codes, and what it says where the package of an extra is missing."""

import argparse
import re
import sys
from pathlib import Path

import pytest

from flows import cli
from flows.console import WorkFailed, WrongUsage

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")


@pytest.fixture
def command(monkeypatch):
    """Makes `nightpress probe` do what the test's function does."""

    def with_handler(handler) -> int:
        def only_probe() -> argparse.ArgumentParser:
            top = argparse.ArgumentParser()
            top.add_subparsers(dest="command").add_parser("probe").set_defaults(handler=handler)
            return top

        monkeypatch.setattr(cli, "parser", only_probe)
        return cli.main(["probe"])

    return with_handler


def raising(error: Exception):
    def handler(args):
        raise error

    return handler


def test_exit_codes(command, capsys):
    assert command(lambda args: None) == 0
    assert command(lambda args: 3) == 3
    assert command(raising(WorkFailed("the disk is full"))) == 1
    assert command(raising(WrongUsage("--target: psnr=1"))) == 2
    assert capsys.readouterr().err.splitlines() == ["nightpress: the disk is full", "nightpress: --target: psnr=1"]


@pytest.mark.parametrize("package, extra", cli.EXTRAS.items())
def test_a_missing_package_is_named_with_its_extra(package, extra, command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert command(lambda args: __import__(package)) == 1
    assert capsys.readouterr().err == (
        f"nightpress: probe needs {package}, which is not installed; pip install 'nightpress[{extra}]' brings it\n"
    )
    assert re.search(rf"^{extra} = \[", PYPROJECT, re.M)


def test_another_missing_module_is_a_bug_and_told_as_one(command):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        command(lambda args: __import__("no_such_module"))


def test_commands_start_without_the_extras(monkeypatch):
    for package in cli.EXTRAS:
        monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("flows.commands.")]:
        monkeypatch.delitem(sys.modules, name)
    assert set(cli.parser().parse_args(["demo"]).__dict__) >= {"command", "handler", "out"}


def test_a_night_by_embeddings_misses_its_search_before_it_reads(monkeypatch, local_stores):
    from tasks.night.model_files import embedding_of

    monkeypatch.setitem(sys.modules, "faiss", None)
    assert embedding_of(local_stores[1], None) is None
    with pytest.raises(ModuleNotFoundError, match="faiss"):
        embedding_of(local_stores[1], "copy")
