"""`nightpress runs` and `nightpress report` on folders: text, JSON, the page, and what they say when things lack."""

import argparse
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands import report
from flows.console import WorkFailed, WrongUsage
from tasks.report.schema import SCHEMA

OLD, NEW, LATER = "20260101T020000Z-aaaa", "20260102T020000Z-bbbb", "20260103T020000Z-cccc"


def table(run: str, n: int) -> pa.Table:
    base = dict.fromkeys(SCHEMA.names) | {"first_run": run, "sha256": "0" * 64}
    rows = [
        base
        | {"key": f"a/{i}.jpg", "status": "compressed", "source_bytes": 1000, "stored_bytes": 100, "psnr": 38.0,
           "output_key": "objects/p", "output_offset": 100 * i, "output_length": 100, "bpp": 0.4, "ms_ssim": 0.981}
        for i in range(n)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture
def dest(tmp_path):
    """Two complete runs, the second in two Parquet files, and one without a manifest."""
    for run, n, parts in ((OLD, 2, 1), (NEW, 5, 2)):
        folder = tmp_path / "runs" / run
        (folder / "report").mkdir(parents=True)
        rows = table(run, n)
        for part in range(parts):
            first = part * n // parts
            piece = rows.slice(first, (part + 1) * n // parts - first)
            pq.write_table(piece, folder / "report" / f"part-{part:04d}.parquet")
        manifest = {
            "run_id": run, "source": str(tmp_path / "source"), "started": "2026-01-01T02:00:00+00:00", "objects": n,
            "finished": "2026-01-01T02:01:30+00:00", "source_bytes": 1000 * n, "stored_bytes": 100 * n,
            "counts": {"compressed": n}, "config": {"target": "psnr=38"}, "versions": {},
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "runs" / LATER / "work").mkdir(parents=True)
    (tmp_path / "runs" / NEW / "report.html").write_text("<!doctype html><p>as the night wrote it")
    return tmp_path


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    report.register(parser.add_subparsers())
    args = parser.parse_args([str(word) for word in words])
    return args.handler(args)


def test_runs_are_a_line_each_oldest_first(dest, capsys):
    assert call("runs", dest) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", OLD, NEW]
    assert "1 min 30 s" in lines[1] and "5.0 kB" in lines[2] and "500 B" in lines[2]
    assert LATER in err and "not finished" in err


def test_runs_for_scripts(dest, capsys):
    assert call("runs", dest, "--json") == 0
    assert [run["run_id"] for run in json.loads(capsys.readouterr().out)] == [OLD, NEW]


def test_report_of_the_newest_complete_run(dest, capsys):
    assert call("report", dest) == 0
    out = capsys.readouterr().out
    assert NEW in out and "5.0 kB in 5 objects" in out and "us-east-1" in out
    assert call("report", dest, "--run", OLD, "--region", "eu-central-1") == 0
    out = capsys.readouterr().out
    assert OLD in out and "2.0 kB in 2 objects" in out and "eu-central-1" in out


def test_report_for_scripts(dest, capsys):
    assert call("report", dest, "--json", "--storage-class", "STANDARD_IA") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["totals"]["saved_bytes"] == 4500 and figures["totals"]["stored_objects"] == 1
    assert figures["bill"]["originals"] == {"STANDARD_IA": 5} and figures["bill"]["before"] > 0
    assert all(proof["holds"] for proof in figures["proofs"])
    assert len(figures["largest"]) == 5 and figures["by_prefix"][0]["name"] == "a/"


def test_storage_classes_come_from_the_catalog(dest, capsys):
    folder = dest / "catalog" / NEW
    folder.mkdir(parents=True)
    keys = pa.array(["a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "gone.jpg"])
    classes = pa.array(["STANDARD_IA"] * 4 + [None, None])
    there = pa.array([True] * 5 + [False])
    pq.write_table(pa.table({"key": keys, "storage_class": classes, "at_source": there}), folder / "part-0.parquet")
    assert call("report", dest, "--json") == 0
    bill = json.loads(capsys.readouterr().out)["bill"]
    assert bill["originals"] == {"STANDARD": 1, "STANDARD_IA": 4}


def test_page_as_the_night_wrote_it_or_anew(dest, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert call("report", dest, "--html", file) == 0
    assert file.read_text() == "<!doctype html><p>as the night wrote it"
    assert str(file) in capsys.readouterr().err
    assert call("report", dest, "--html", file, "--region", "eu-west-1") == 0
    anew = file.read_text()
    assert "Europe (Ireland)" in anew and NEW in anew and "5 compressed" in anew
    assert call("report", dest, "--html", file, "--run", OLD) == 0
    assert OLD in file.read_text()


@pytest.mark.parametrize(
    "words, error, message",
    [
        (["report", "--run", "20990101T000000Z-ffff"], WorkFailed, f"no complete run.*{NEW}"),
        (["report", "--run", LATER], WorkFailed, "no complete run"),
        (["report", "--run", "../.."], WorkFailed, "runs"),
        (["report", "--region", "nowhere"], WrongUsage, "us-east-1"),
        (["report", "--storage-class", "GOLD"], WrongUsage, "STANDARD_IA"),
        (["report", "--html", "/proc/no/such/folder/x.html"], WorkFailed, "--html"),
    ],
)
def test_what_it_says_when_asked_for_too_much(dest, words, error, message):
    with pytest.raises(error, match=message):
        call(words[0], dest, *words[1:])


def test_damage_is_named(dest, tmp_path):
    (dest / "runs" / NEW / "report" / "part-0001.parquet").unlink()
    with pytest.raises(WorkFailed, match="5 objects, its report has 2 rows"):
        call("report", dest)
    (dest / "runs" / NEW / "report" / "part-0000.parquet").unlink()
    with pytest.raises(WorkFailed, match="no Parquet file"):
        call("report", dest)
    (dest / "runs" / NEW / "manifest.json").write_text("{")
    with pytest.raises(WorkFailed, match="not a manifest"):
        call("runs", dest)
    for empty in (tmp_path / "source", tmp_path / "nowhere"):
        with pytest.raises(WorkFailed, match="no run under"):
            call("runs", empty)
    with pytest.raises(WrongUsage, match="gopher"):
        call("runs", "gopher://x")
    (tmp_path / "fresh" / "runs" / LATER).mkdir(parents=True)
    with pytest.raises(WorkFailed, match="complete yet"):
        call("report", tmp_path / "fresh")
