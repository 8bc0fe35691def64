"""What an S3 object says of itself comes back: tags, Expires, redirects, names in any script."""

import pytest

from tasks.stores.s3 import S3Store, carried_headers

SAID = {
    "CacheControl": "max-age=60",
    "ContentDisposition": 'attachment; filename="写真 Übung.jpg"',
    "ContentEncoding": "identity",
    "ContentLanguage": "de",
    "Expires": "Wed, 21 Oct 2026 07:28:00 GMT",
    "WebsiteRedirectLocation": "/pictures/other.jpg",
    "Tagging": "project=North%20%2B%20Co&keep=",
}


@pytest.mark.server
def test_headers_and_tags_come_back(moto_stores):
    source, dest = moto_stores
    assert isinstance(source, S3Store)
    source.write("a.jpg", b"data", content_type="image/jpeg", headers=SAID)
    _, head = source.fetch("a.jpg")
    assert head.headers == SAID
    dest.write("a.jpg.png", b"other", headers=head.headers)
    assert dest.fetch("a.jpg.png")[1].headers == SAID
    assert source.head("a.jpg").headers == {name: value for name, value in SAID.items() if name != "Tagging"}
    dest.write_stream("large", iter([b"x" * (65 << 20)]), 65 << 20, headers=SAID)
    assert dest.head("large").headers["Expires"] == SAID["Expires"]
    client = dest.client
    tags = client.get_object_tagging(Bucket=dest.bucket, Key=dest.prefix + "large")["TagSet"]
    assert {"Key": "project", "Value": "North + Co"} in tags


@pytest.mark.server
def test_what_is_no_date_is_left_out(moto_stores):
    _, dest = moto_stores
    dest.write("a", b"data", headers={"Expires": "never", "CacheControl": "no-store"})
    assert dest.fetch("a")[1].headers == {"CacheControl": "no-store"}


def test_headers_are_text():
    raw = "attachment; filename=写.jpg".encode().decode("latin-1")
    assert carried_headers({"ContentDisposition": raw, "Expires": None, "ContentLanguage": ""}) == {
        "ContentDisposition": "attachment; filename=写.jpg"
    }
