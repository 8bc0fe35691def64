"""Bench: listing 1,000,000 keys through the store interface: time, keys/s, requests, peak memory.

    python tests/bench/bench_listing.py [--keys N] [--shape folders|flat] [--latency MS] [--held] [--json]

How the keys are made: nothing stores a million objects (a real server takes an hour to fill). A server process of this
script answers ListObjectsV2 over HTTP from key numbers: `photos/2015/03/img_00012345.jpg` in 120 folders (folders), or
`img_00012345.jpg` in one (flat), 1000 to a page, after waiting `--latency` ms as a distant server would (S3: 30-100).
What is measured is real: S3Store.list through boto3, in a process of its own per line, peak memory by the kernel
(VmHWM). Compared: one range after the other, as a plain paginator lists; an S3 Inventory in Parquet with the same
keys; a local folder with `--files` empty files.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

KINDS = ("parallel", "serial", "inventory", "folder")


def key_at(i: int, total: int, shape: str) -> str:
    if shape == "flat":
        return f"img_{i:08d}.jpg"
    month = i * 120 // total
    return f"photos/{2015 + month // 12}/{month % 12 + 1:02d}/img_{i:08d}.jpg"


class Numbers:
    """The sorted keys as a sequence, each made when it is asked for."""

    def __init__(self, total: int, shape: str):
        self.total, self.shape = total, shape

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, i: int) -> str:
        return key_at(i, self.total, self.shape)


def serve(total: int, shape: str, latency: float) -> None:
    """Answer ListObjectsV2 for ever; prints the port first."""
    keys = Numbers(total, shape)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            start = bisect_right(keys, query.get("start-after", ""))
            stop = min(start + int(query.get("max-keys", 1000)), total)
            entries = "".join(
                f"<Contents><Key>{quote(keys[i])}</Key><LastModified>2024-01-31T02:00:00.000Z</LastModified>"
                f"<ETag>&quot;{i:032x}&quot;</ETag><Size>{i}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                for i in range(start, stop)
            )
            more = "true" if stop < total else "false"
            body = (
                '<?xml version="1.0" encoding="UTF-8"?>'
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
                f"<IsTruncated>{more}</IsTruncated>{entries}</ListBucketResult>"
            ).encode()
            time.sleep(latency)
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: str, place: str, held: bool) -> dict:
    """One listing, in this process; `held`: all entries kept in a list and sorted, not only counted."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tasks.stores import s3
    from tasks.stores.inventory import read_inventory
    from tasks.stores.open import open_store

    store = open_store("s3://bucket" if kind != "folder" else place)
    requests: list[int] = []
    if kind == "serial":
        s3.LISTING_THREADS = 1
    if kind in ("parallel", "serial"):
        s3.s3_client().meta.events.register("before-send.s3", lambda **_: requests.append(1))
    before, started, cpu = peak_mb(), time.perf_counter(), time.process_time()
    infos = read_inventory(place, store) if kind == "inventory" else store.list()
    if held:
        entries = sorted(infos, key=lambda info: info.key)
        count, distinct = len(entries), len({info.key for info in entries})
    else:
        count = distinct = sum(1 for _ in infos)
    seconds = time.perf_counter() - started
    return {
        "kind": kind,
        "held": held,
        "keys": count,
        "distinct": distinct,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "requests": len(requests),
        "keys_per_second": round(count / seconds),
        "peak_mb": round(peak_mb()),
        "mb_before": round(before),
    }


def write_inventory(folder: str, total: int, shape: str) -> str:
    """An S3 Inventory of the same keys, ten Parquet files; returns the manifest's path."""
    import hashlib
    from datetime import UTC, datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    files, step = [], -(-total // 10)
    for number, start in enumerate(range(0, total, step)):
        rows = range(start, min(start + step, total))
        table = pa.table(
            {
                "bucket": pa.repeat(pa.scalar("bucket"), len(rows)),
                "key": [key_at(i, total, shape) for i in rows],
                "size": pa.array(rows, pa.int64()),
                "last_modified_date": pa.repeat(pa.scalar(datetime(2024, 1, 31, tzinfo=UTC)), len(rows)),
                "e_tag": [f"{i:032x}" for i in rows],
                "storage_class": pa.repeat(pa.scalar("STANDARD"), len(rows)),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        Path(folder, f"{number}.parquet").write_bytes(sink.getvalue())
        digest = hashlib.md5(sink.getvalue(), usedforsecurity=False).hexdigest()
        files.append({"key": f"{number}.parquet", "size": len(sink.getvalue()), "MD5checksum": digest})
    manifest = {"sourceBucket": "bucket", "fileFormat": "Parquet", "fileSchema": "message s3", "files": files}
    Path(folder, "manifest.json").write_text(json.dumps(manifest))
    return str(Path(folder, "manifest.json"))


def write_files(folder: str, total: int, shape: str) -> None:
    for i in range(total):
        path = os.path.join(folder, key_at(i, total, shape))
        if i * 120 % total < 120:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=100_000, help="in the local folder")
    parser.add_argument("--shape", choices=("folders", "flat"), default="folders")
    parser.add_argument("--latency", type=float, default=0.0, help="ms that the server waits before each answer")
    parser.add_argument("--held", action="store_true", help="also keep and sort all entries")
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.keys, args.shape, args.latency / 1000)
    if args.measure:
        kind, place, held = args.measure
        return print(json.dumps(measure(kind, place, held == "held")))

    me = [sys.executable, __file__, "--keys", str(args.keys), "--shape", args.shape]
    server = subprocess.Popen(
        [*me, "--serve", "--latency", str(args.latency)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    environment = os.environ | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.only or KINDS:
            place = os.path.join(folder, kind)
            os.mkdir(place)
            if kind == "inventory":
                place = write_inventory(place, args.keys, args.shape)
            if kind == "folder":
                write_files(place, args.files, args.shape)
            for held in ("counted", "held") if args.held else ("counted",):
                done = subprocess.run([*me, "--measure", kind, place, held], env=environment, capture_output=True)
                if done.returncode:
                    sys.exit(done.stderr.decode())
                result = json.loads(done.stdout)
                expected = args.files if kind == "folder" else args.keys
                assert result["keys"] == result["distinct"] == expected, result
                results.append(result)
                if not args.json:
                    print(
                        f"{kind:10} {held:8} {result['keys']:>9,} keys  {result['seconds']:7.2f} s "
                        f"({result['cpu_seconds']:.2f} s CPU)  "
                        f"{result['requests']:>5} requests  {result['keys_per_second']:>9,}/s  "
                        f"peak {result['peak_mb']} MB ({result['mb_before']} MB before)",
                        flush=True,
                    )
    server.stdin.close()
    server.wait()
    if args.json:
        print(json.dumps({"latency_ms": args.latency, "shape": args.shape, "results": results}))


if __name__ == "__main__":
    main()
