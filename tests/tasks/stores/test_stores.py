"""Stores: what they hold, what they refuse, what they survive. The real server is Ceph's; failures that no real
server gives on demand come from a scripted one on a real socket."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.stores import base, retries, s3
from tasks.stores.base import (
    AccessDenied,
    AlreadyExists,
    Archived,
    CannotHold,
    Changed,
    NotFound,
    StoreError,
    TooLarge,
    Unavailable,
)
from tasks.stores.local import key_of_name, name_of_key
from tasks.stores.open import open_store, overlap
from tasks.stores.parallel_listing import listed_in_ranges, successor

PLAIN_KEYS = [
    "a.jpg",
    "a.png",
    "with space.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "one+two.jpg",
    "Übersicht/日本/😀.png",
    "q?x=1&y=2#z.jpg",
    "quote'\"<>&.jpg",
    "back\\slash.jpg",
    ".hidden/..jpg",
    "é" * 100 + "/" + "é" * 100,
]
ONLY_ON_S3 = ["/leading.jpg", "trailing/", "double//slash.jpg", "./dot/../dots.jpg", "é" * 450, "a.jpg/below", "\x01"]


def listing(store, prefix=""):
    return {info.key: info for info in store.list(prefix)}


# --- every kind of store ---


def test_holds_any_key(stores):
    store, _ = stores
    keys = PLAIN_KEYS + [key for key in ONLY_ON_S3 if not store.refusal(key) and key != "a.jpg/below"]
    if store.url.startswith("s3://"):
        keys = PLAIN_KEYS + ONLY_ON_S3
    for key in keys:
        store.write(key, key.encode())
    found = listing(store)
    assert set(found) == set(keys)
    for key in keys:
        assert store.read(key, etag=found[key].etag) == key.encode()
        assert found[key].size == len(key.encode()) == store.head(key).size
        assert store.head(key).etag == found[key].etag
        assert store.exists(key)
    assert listing(store, "a.").keys() == {key for key in keys if key.startswith("a.")}
    assert listing(store, "Übersicht/日") and not listing(store, "nothing/here")
    for key in keys:
        store.delete(key)
        store.delete(key)
    assert not listing(store)


def test_prefixes(stores):
    store, _ = stores
    for key in ["runs/b/manifest.json", "runs/a/x/y", "runs/c", "other/z"]:
        store.write(key, b"")
    assert store.list_prefixes("runs/") == ["runs/a/", "runs/b/"]
    assert store.list_prefixes() == ["other/", "runs/"]
    assert store.list_prefixes("none/") == []


def test_refuses_what_is_not_as_listed(stores):
    store, _ = stores
    etag = store.write("k", b"12345")
    assert store.read("k", etag=etag, max_bytes=5) == b"12345"
    with pytest.raises(TooLarge, match="5 bytes, the limit is 4"):
        store.read("k", max_bytes=4)
    assert store.read_range("k", 1, 3, etag=etag) == b"234"
    assert store.read_range("k", 1, 0) == b""
    with pytest.raises(StoreError):
        store.read_range("k", 3, 4)
    os.utime(store.place("k"), ns=(1, 1)) if os.path.exists(store.place("k")) else store.write("k", b"54321")
    for call in (store.read, lambda key, etag: store.read_range(key, 0, 2, etag=etag)):
        with pytest.raises(Changed, match="k"):
            call("k", etag=etag)
    for missing in (store.read, store.head, store.age):
        with pytest.raises(NotFound, match="gone"):
            missing("gone")
    assert not store.exists("gone")


def test_empty_object(stores):
    store, _ = stores
    store.write("empty", b"")
    assert listing(store)["empty"].size == 0
    assert store.read("empty", etag=store.head("empty").etag) == b""
    assert list(store.chunks("empty", 0)) == []


def test_conditional_writes(stores):
    store, _ = stores
    assert store.honours_conditional_write() and store.honours_if_match()
    assert not listing(store)
    etag = store.write("catalog/lease", b"1", if_absent=True)
    with pytest.raises(AlreadyExists, match="lease"):
        store.write("catalog/lease", b"2", if_absent=True)
    second = store.write("catalog/lease", b"2", if_match=etag)
    assert second != etag
    with pytest.raises(Changed):
        store.write("catalog/lease", b"3", if_match=etag)
    with pytest.raises((Changed, NotFound)):
        store.write("none", b"3", if_match=etag)
    assert store.read("catalog/lease") == b"2"
    assert 0 <= store.age("catalog/lease") < 60


@pytest.mark.parametrize("kind", ["local", pytest.param("radosgw", marks=pytest.mark.server)])
def test_one_winner(kind, request):
    store, _ = request.getfixturevalue(f"{kind}_stores")
    store.honours_conditional_write()
    etag = store.write("renewed", b"")

    def attempt(i):
        won = []
        for key, condition in (("race", {"if_absent": True}), ("renewed", {"if_match": etag})):
            try:
                store.write(key, b"%d" % i, **condition)
                won.append(key)
            except (AlreadyExists, Changed):
                pass
        return won

    with ThreadPoolExecutor(16) as pool:
        won = [key for keys in pool.map(attempt, range(16)) for key in keys]
    assert sorted(won) == ["race", "renewed"]


def test_pickled_store_is_the_same_store(stores):
    store, dest = stores
    store.write("k", b"v")
    again = pickle.loads(pickle.dumps(store))
    assert again.url == store.url and again.read("k") == b"v"
    assert overlap(store.url, again.url) and not overlap(store.url, dest.url)


def test_large_objects_go_in_parts(stores, monkeypatch):
    store, _ = stores
    monkeypatch.setattr(s3, "WHOLE_UP_TO", 6 << 20)
    for module in (base, s3):
        monkeypatch.setattr(module, "PART", 5 << 20)
    data = os.urandom(11 << 20)
    etag = store.write("large", data, content_type="image/tiff")
    assert listing(store)["large"].etag == etag
    assert b"".join(store.chunks("large", len(data), etag=etag)) == data
    with pytest.raises(Changed, match="instead of"):
        store.write_stream("short", [data[: 5 << 20]], len(data))

    def breaks():
        yield data[: 6 << 20]
        raise OSError("source gone")

    with pytest.raises((OSError, StoreError)):
        store.write_stream("broken", breaks(), len(data))
    assert set(listing(store)) == {"large"}


# --- S3 alone ---


@pytest.mark.server
@pytest.mark.parametrize("kind", ["moto", "radosgw"])
def test_s3_keeps_description(kind, request):
    store, _ = request.getfixturevalue(f"{kind}_stores")
    store.write(
        "k.jpg",
        b"data",
        content_type="image/jpeg",
        metadata={"camera": "K-5", "ort": "Köln"},
        headers={"CacheControl": "max-age=60"},
    )
    data, head = store.fetch("k.jpg")
    assert (data, head.content_type, head.headers["CacheControl"]) == (b"data", "image/jpeg", "max-age=60")
    assert head.metadata["camera"] == "K-5" and "=?utf-8?" in head.metadata["ort"]
    assert len(head.metadata["nightpress-sha256"]) == 64
    store.write("copy", b"data", metadata={k: v for k, v in head.metadata.items() if "nightpress" not in k})
    assert store.head("copy").metadata == head.metadata
    store.write("full", b"", metadata={"long": "x" * 2000})  # theirs goes before ours
    assert set(store.head("full").metadata) == {"long"}


@pytest.mark.server
def test_s3_refuses_1025_bytes(moto_stores):
    store, _ = moto_stores
    longest = "k" * (1024 - len(store.prefix))
    assert store.refusal(longest) is None
    with pytest.raises(CannotHold, match="1024"):
        store.write(longest + "k", b"")


@pytest.mark.server
def test_s3_errors_of_place_and_credentials(radosgw_stores, monkeypatch):
    store, _ = radosgw_stores
    with pytest.raises(NotFound, match="no such bucket"):
        list(open_store("s3://there-is-no-such-bucket").list())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    for call in (lambda: store.read("k"), lambda: list(store.list()), lambda: store.write("k", b"")):
        with pytest.raises(AccessDenied, match="credentials"):
            call()


@pytest.mark.server
def test_s3_lists_a_flat_folder_in_ranges(moto_stores, monkeypatch):
    store, _ = moto_stores
    keys = {f"flat/img_{i:04d} é+%.jpg" for i in range(1300)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, b"x"), keys))
    assert set(listing(store)) == keys
    assert len(list(store.list("flat/img_1"))) == 300


# --- listing in ranges, against a paginator in memory ---


class Pages:
    """A sorted key space that answers like ListObjectsV2 with StartAfter, `size` keys a page."""

    def __init__(self, keys, size=3):
        self.keys, self.size, self.calls = sorted(keys), size, 0

    def __call__(self, after, count):
        self.calls += 1
        above = [key for key in self.keys if key > after]
        size = min(count, self.size)
        return [{"Key": key} for key in above[:size]], len(above) > size


@settings(max_examples=100, deadline=None)
@given(
    st.sets(st.text(alphabet=st.sampled_from("abz/0é\U0001f600\U0010ffff\ud7ff\ue000"), min_size=1, max_size=6)),
    st.integers(1, 5),
)
def test_ranges_miss_nothing_and_repeat_nothing(keys, threads):
    found = [entry["Key"] for page in listed_in_ranges(Pages(keys), "", threads) for entry in page]
    assert sorted(found) == sorted(keys)


def test_ranges_are_split_where_keys_branch():
    keys = [f"photos/{year}/img_{i:03d}.jpg" for year in (2023, 2024) for i in range(300)]
    pages = Pages(keys)
    slow = threading.Event()

    def page(after, count):
        slow.wait(0.002)
        return pages(after, count)

    seen = {}
    for entries in listed_in_ranges(page, "photos/", 4):
        for entry in entries:
            seen[entry["Key"]] = seen.get(entry["Key"], 0) + 1
    assert seen == dict.fromkeys(keys, 1)


def test_listing_that_is_not_sorted_is_refused():
    def page(after, count):
        return [{"Key": "b" if not after else "a"}], True

    with pytest.raises(StoreError, match="not in ascending order"):
        list(listed_in_ranges(page, "", 2))


def test_abandoned_listing_leaves_no_threads():
    before = threading.active_count()
    pages = listed_in_ranges(Pages([f"{i:05d}" for i in range(5000)], 10), "", 4)
    next(pages)
    pages.close()
    for thread in threading.enumerate():
        if thread.name.startswith("listing"):
            thread.join(5)
    assert threading.active_count() <= before


def test_successor():
    assert successor("ab") == "ac"
    assert successor("a\ud7ff") == "a\ue000"
    assert successor("a\U0010ffff") == "b"
    assert successor("\U0010ffff\U0010ffff") is None


# --- a server that fails on purpose ---


@pytest.fixture
def scripted(monkeypatch):
    """A server that answers from a list: each item (status, headers, body) or "break"; and what it was asked."""
    script, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, dict(self.headers), body))
            step = script.pop(0)
            step = step(asked) if callable(step) else step
            if step == "break":
                self.connection.close()
                self.close_connection = True
                return
            status, headers, content = step
            content = content if status >= 300 or self.command == "GET" else b""
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
            if int(headers.get("Content-Length", 0)) > len(content):
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    yield script, asked
    server.shutdown()
    server.server_close()


def refusal(status, code, **headers):
    return status, headers, f"<Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()


WELL = (200, {"ETag": '"e1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, b"content")
CUT_SHORT = (200, WELL[1] | {"Content-Length": "100"}, b"only this")


def test_survives_throttling_errors_and_broken_connections(scripted):
    script, asked = scripted
    script += [
        refusal(503, "SlowDown"),
        refusal(500, "InternalError"),
        "break",
        CUT_SHORT,
        (502, {}, b"<html>bad gateway</html>"),
        refusal(429, "TooManyRequests", **{"Retry-After": "0"}),
        WELL,
    ]
    assert open_store("s3://bucket").read("a b+c%.jpg", etag="e1") == b"content"
    assert not script and len(asked) == 7
    assert asked[0][1] == "/bucket/a%20b%2Bc%25.jpg" and asked[0][2]["If-Match"] == '"e1"'


def test_gives_up_in_words(scripted, monkeypatch):
    script, _ = scripted
    monkeypatch.setattr(retries, "ATTEMPTS", 3)
    script += [refusal(503, "SlowDown")] * 3
    with pytest.raises(Unavailable, match=r"s3://bucket/k: given up after 3 tries.*SlowDown"):
        open_store("s3://bucket").read("k")
    script += ["break"] * 3
    with pytest.raises(Unavailable, match="network"):
        open_store("s3://bucket").head("k")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refusal(403, "AccessDenied"), AccessDenied, "AccessDenied"),
        (refusal(403, "InvalidObjectState"), Archived, "archive"),
        (refusal(412, "PreconditionFailed"), Changed, "changed since"),
        (refusal(404, "NoSuchKey"), NotFound, "no such object"),
        (refusal(400, "KMS.DisabledException"), StoreError, "KMS"),
        (refusal(501, "NotImplemented"), StoreError, "NotImplemented"),
    ],
)
def test_lasting_failures_are_not_retried(scripted, answer, kind, words):
    script, asked = scripted
    script.append(answer)
    with pytest.raises(kind, match=words) as caught:
        open_store("s3://bucket/p").read("k", etag="e")
    assert len(asked) == 1 and "s3://bucket/p/k" in str(caught.value)
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)


def test_own_conditional_write_whose_answer_was_lost_counts(scripted):
    script, asked = scripted

    def ours(asked):
        writer = asked[0][2]["x-amz-meta-nightpress-writer"]
        return 200, WELL[1] | {"x-amz-meta-nightpress-writer": writer, "Content-Length": "0"}, b""

    def others(asked):
        return 200, WELL[1] | {"x-amz-meta-nightpress-writer": "else", "Content-Length": "0"}, b""

    store = open_store("s3://bucket")
    script += ["break", refusal(412, "PreconditionFailed"), ours]
    assert store.write("manifest", b"m", if_absent=True) == "e1"
    asked.clear()
    script += ["break", refusal(412, "PreconditionFailed"), others]
    with pytest.raises(AlreadyExists):
        store.write("manifest", b"m", if_absent=True)


def test_server_that_ignores_conditions_is_found_out(scripted):
    script, asked = scripted
    script += [WELL] * 8
    store = open_store("s3://bucket")
    assert not store.honours_conditional_write() and not store.honours_if_match()
    assert asked[-1][0] == "DELETE"


def test_server_that_wants_bare_etags(scripted):
    script, asked = scripted
    script += [WELL, refusal(412, "PreconditionFailed"), WELL]  # absent, there, written
    script += [refusal(412, "PreconditionFailed"), WELL, refusal(412, "PreconditionFailed"), (204, {}, b"")]
    store = open_store("s3://bucket")
    assert store.honours_conditional_write() and store.honours_if_match()
    script.append(WELL)
    store.write("lease", b"", if_match="e1")
    assert asked[-1][2]["If-Match"] == "e1"


def test_no_credentials(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(AccessDenied, match="credentials"):
        open_store("s3://bucket").read("k")


# --- local folders alone ---


@pytest.mark.parametrize("key", ["/a", "a/", "a//b", "../a", "a/./b", "x" * 256, "", "nul\0", "\\xc3\\xa9", "\udcff"])
def test_folder_refuses_what_it_cannot_hold(local_stores, key):
    store, _ = local_stores
    assert store.refusal(key)
    with pytest.raises(CannotHold):
        store.write(key, b"")
    assert not os.listdir(store.root)


def test_folder_holds_no_key_below_another(local_stores):
    store, _ = local_stores
    store.write("a", b"")
    store.write("b/c", b"")
    for key in ("a/b", "a/b/c", "b"):
        with pytest.raises(CannotHold, match="both a file"):
            store.write(key, b"")
    assert set(listing(store)) == {"a", "b/c"}


def test_names_that_are_not_utf8(local_stores):
    store, _ = local_stores
    names = [b"latin-\xe9.jpg", b"\xff\xfe", b"\\xe9", b"\\x5cxe9", b"plain\\x41", b"mixed \xc3\xa9\xe9"]
    for name in names:
        with open(os.path.join(os.fsencode(store.root), name), "wb") as file:
            file.write(name)
    found = listing(store)
    assert len(found) == len(names) and "latin-\\xe9.jpg" in found and "\\x5cxe9" in found
    for key in found:
        key.encode()
        assert os.fsencode(name_of_key(key)) == store.read(key, etag=found[key].etag)


@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_name_and_key_are_inverse(name):
    name = os.fsdecode(name)
    assert name_of_key(key_of_name(name)) == name


@given(st.text(alphabet="\\x5c9eaf/é", max_size=14))
def test_distinct_keys_have_distinct_names(key):
    name = name_of_key(key)
    assert key_of_name(name) == key or open_store("/nowhere").refusal(key)


def test_links_out_of_the_folder_are_not_followed(local_stores, tmp_path):
    store, _ = local_stores
    (tmp_path / "secret").write_bytes(b"s")
    store.write("inside/a", b"a")
    os.symlink(tmp_path / "secret", f"{store.root}/out")
    os.symlink(tmp_path, f"{store.root}/outdir")
    os.symlink("nowhere", f"{store.root}/dangling")
    os.symlink("inside/a", f"{store.root}/link")
    os.symlink(store.root, f"{store.root}/loop")
    os.mkfifo(f"{store.root}/fifo")
    assert set(listing(store)) == {"inside/a", "link"}
    for key in ("out", "outdir/secret", "dangling", "fifo", "inside"):
        with pytest.raises(NotFound):
            store.read(key)
    assert listing(store, "outdir/") == {}


def test_temporary_files_are_not_listed(local_stores):
    store, _ = local_stores
    store.write("k", b"", if_absent=True)
    (open(f"{store.root}/.nightpress-tmp-123", "w")).close()
    assert set(listing(store)) == {"k"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder_stops_the_listing(local_stores):
    store, _ = local_stores
    store.write("shut/a", b"")
    os.chmod(f"{store.root}/shut", 0)
    with pytest.raises(AccessDenied, match="shut"):
        list(store.list())


def test_missing_folder(tmp_path):
    with pytest.raises(NotFound, match="none"):
        list(open_store(str(tmp_path / "none")).list())
    assert open_store(str(tmp_path / "none")).list_prefixes("runs/") == []


def test_places(tmp_path):
    os.symlink(tmp_path, tmp_path / "again")
    assert overlap(str(tmp_path), str(tmp_path / "x/y"))
    assert overlap(str(tmp_path / "again/x"), str(tmp_path / "x/y"))
    assert not overlap(str(tmp_path / "photos"), str(tmp_path / "photos2"))
    assert overlap("s3://b", "s3://b/x") and overlap("s3://b/x/", "s3://b/x")
    assert not overlap("s3://b/x", "s3://b/xy") and not overlap("s3://b", "s3://c")
    assert not overlap("s3://b", str(tmp_path / "b"))
    for wrong in ("gs://bucket/x", "s3://", "s3:///x", ""):
        with pytest.raises(ValueError, match="neither|missing"):
            open_store(wrong)
