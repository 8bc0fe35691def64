"""The environment is put back as it was, whatever happens in between; caches lie where the user says."""

import os

import pytest

from tasks.machine import cache_folder, cores, environment


def test_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("NIGHTPRESS_A", "before")
    monkeypatch.setenv("NIGHTPRESS_B", "there")
    monkeypatch.delenv("NIGHTPRESS_C", raising=False)
    with (
        pytest.raises(ZeroDivisionError),
        environment({"NIGHTPRESS_A": "in", "NIGHTPRESS_C": "new"}, ("NIGHTPRESS_B",)),
    ):
        assert [os.environ.get(f"NIGHTPRESS_{name}") for name in "ABC"] == ["in", None, "new"]
        raise ZeroDivisionError
    assert [os.environ.get(f"NIGHTPRESS_{name}") for name in "ABC"] == ["before", "there", None]


def test_cores_are_those_that_may_be_used():
    assert cores() == len(os.sched_getaffinity(0))


def test_caches_lie_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("models") == tmp_path / "nightpress" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "nightpress"
