"""The policy in deploy/ suffices for a night and a restore and allows only reading at SOURCE: proved on Ceph."""

import json
import re
from pathlib import Path

import pytest

from tasks.stores import s3
from tasks.stores.base import AccessDenied
from tasks.stores.lease import Lease
from tasks.stores.open import open_store

POLICY = Path(__file__).parents[2] / "deploy" / "iam-policy.json"


def test_source_is_only_read():
    for statement in json.loads(POLICY.read_text())["Statement"]:
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in actions)
        if any("SOURCE" in resource for resource in resources):
            assert set(actions) <= {"s3:ListBucket", "s3:GetObject", "s3:GetObjectTagging"}


def allow(store, user):
    """Give `user` on this bucket what the policy says about it."""
    policy = json.loads(POLICY.read_text())
    here = "SOURCE-BUCKET" if store.bucket.startswith("source") else "DEST-BUCKET"
    statements = []
    for statement in policy["Statement"]:
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        place = f"{store.bucket}/{store.prefix.rstrip('/')}"
        resources = [
            r.replace(f"{here}/{here[:-6]}PREFIX", place).replace(here, store.bucket)
            for r in resources
            if re.search(rf":{here}(/|$)", r)
        ]
        if resources:
            statements.append(statement | {"Resource": resources, "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]}})
    store.client.put_bucket_policy(Bucket=store.bucket, Policy=json.dumps(policy | {"Statement": statements}))


@pytest.mark.server
def test_policy_suffices_and_no_more(radosgw_stores, monkeypatch):
    source, dest = radosgw_stores
    source.write("photo.jpg", b"photo")
    for store in (source, dest):
        allow(store, "limited")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "limited")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "limited-secret")
    source, dest = open_store(source.url), open_store(dest.url)

    (info,) = source.list()
    assert source.read("photo.jpg", etag=info.etag) == b"photo"
    assert not source.exists("none")  # 404 and not 403: ListBucket is there
    for forbidden in (lambda: source.write("photo.jpg", b""), lambda: source.delete("photo.jpg")):
        with pytest.raises(AccessDenied):
            forbidden()

    with Lease(dest, "run") as lease:
        assert lease.warning is None
        work = "runs/20260101T020000Z-ab12/work/listing/00000.parquet"
        monkeypatch.setattr(s3, "WHOLE_UP_TO", 6 << 20)
        for key, data in ((work, b""), ("objects/run/1.npi", bytes(7 << 20)), ("models/m.safetensors", b"m")):
            dest.write(key, data)
        dest.write("runs/20260101T020000Z-ab12/manifest.json", b"{}", if_absent=True)
        assert dest.read_range("objects/run/1.npi", 5, 2) == b"\0\0"
        assert dest.list_prefixes("runs/") == ["runs/20260101T020000Z-ab12/"]
        dest.delete(work)
        lease.check()
    assert not dest.exists("catalog/lease.json")
    for key in ("objects/run/1.npi", "models/m.safetensors", "runs/20260101T020000Z-ab12/manifest.json"):
        with pytest.raises(AccessDenied):
            dest.delete(key)
