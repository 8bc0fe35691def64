"""A model that is fetched from DEST proves itself by its hash."""

import hashlib

import pytest

from tasks.stores.base import NotFound, StoreError
from tasks.stores.models import fetch_model, model_key
from tasks.stores.open import open_store


def test_models_are_fetched_and_checked(tmp_path):
    dest, folder = open_store(str(tmp_path / "dest")), tmp_path / "models"
    folder.mkdir()
    identity = hashlib.sha256(b"weights").hexdigest()[:16]
    with pytest.raises(NotFound):
        fetch_model(dest, identity, folder)
    dest.write(model_key(identity), b"weights")
    path = fetch_model(dest, identity, folder)
    assert path.read_bytes() == b"weights" and path.name == f"{identity}.safetensors"
    other = tmp_path / "other"
    other.mkdir()
    dest.write(model_key(identity), b"weight")
    with pytest.raises(StoreError, match=f"{identity}.safetensors under DEST is damaged"):
        fetch_model(dest, identity, other)
    assert not list(other.iterdir())
