"""Forms under fire: files of some folders and mutants of them through each exact form; what comes back is compared.

    .venv/bin/python tests/bench/bench_forms.py [FOLDER...] [--files 1000] [--seed 1] [--json FILE]

A form may decline any file, for a reason. It must not crash, claim what is not so, or take time and memory out of
proportion. Files are done in a child process, so that a crash of a native library is counted and not suffered.
Mutants: bytes changed, cut, repeated, zeroed, two files joined, numbers in the header replaced.
"""

import argparse
import json
import random
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

BATCH = 50
MOST_BYTES = 4 << 20  # of a file that is mutated
MAX_PIXELS = 50_000_000
FORMS = ("jxl-jpeg", "lossless", "exact")


def mutant(files: list[Path], seed: int) -> bytes:
    """One odd file, the same for the same seed."""
    rng = random.Random(seed)
    data = bytearray(rng.choice(files).read_bytes()[:MOST_BYTES])
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind, at = rng.randrange(7), rng.randrange(len(data)) if data else 0
        if kind == 0:
            for _ in range(rng.choice((1, 3, 20))):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randrange(1, 5000)]
        elif kind == 3:
            length = min(rng.randrange(1, 4096), len(data) - at)
            data[at : at + length] = bytes(length)
        elif kind == 4:
            data += rng.choice(files).read_bytes()[:MOST_BYTES]
        elif kind == 5 and len(data) > 64:
            place = rng.randrange(min(512, len(data) - 4))
            data[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\0\0\xff\xff", rng.randbytes(4)))
        else:
            del data[at : at + rng.randrange(1, 64)]
    return bytes(data)


def outcomes(data: bytes) -> list[tuple[str, str, int, float]]:
    """(form, what happened, bytes stored, seconds) of one file, each claim checked by other means than the form's."""
    from codec.pictures.errors import PictureError
    from codec.pictures.files import open_picture, pixel_sha256
    from tasks.forms.base import DamagedData, Declined
    from tasks.forms.choose import FORMS as KNOWN

    try:
        picture = open_picture(data, MAX_PIXELS)
    except PictureError:
        picture = None
    found = []
    for name in FORMS:
        form, start, size = KNOWN[name], time.perf_counter(), 0
        try:
            stored = form.encode(data, picture)
            size, back = len(stored), form.decode(stored)
            if form.gives_back == "bytes":
                what = "given back" if back == data else "WRONG CLAIM"
            elif picture is None:
                what = "given back"  # its samples were compared by the form alone
            else:
                shown = open_picture(back, MAX_PIXELS).image
                shown = shown if shown.mode == picture.image.mode else shown.convert(picture.image.mode)
                what = "given back" if pixel_sha256(shown) == pixel_sha256(picture.image) else "WRONG CLAIM"
            for cut in (len(stored) // 2, len(stored) - 1):
                try:
                    form.decode(stored[:cut])
                    if form.gives_back == "bytes" and form.decode(stored[:cut]) == data:
                        what = "given back"  # what was cut off was padding
                except DamagedData:
                    pass
        except Declined:
            what = "declined"
        except Exception as error:  # counted and shown: a form raises Declined and DamagedData alone
            what = f"ERROR {type(error).__name__}: {error}"[:160]
        found.append((name, what, size, time.perf_counter() - start))
    return found


def do_batch(files: list[Path], seeds: list[int]) -> tuple[list[list], int]:
    """Outcomes of a file for each seed (negative: an original), and the child's highest memory in KiB."""
    done = []
    for seed in seeds:
        data = files[-seed - 1].read_bytes() if seed < 0 else mutant(files, seed)
        done.append([(len(data), *each) for each in outcomes(data)])
    return done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="default: the pictures of tests/data and skimage")
    parser.add_argument("--files", type=int, default=1000, help="mutants (default 1,000), besides the originals")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folders = args.folders or [Path(__file__).parents[1] / "data", Path(find_spec("skimage").origin).parent / "data"]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    seeds = [-i - 1 for i in range(len(files))] + [args.seed * 10_000_000 + i for i in range(args.files)]
    counts: dict[str, Counter] = {name: Counter() for name in FORMS}
    saved = {name: [0, 0] for name in FORMS}
    slowest, memory, crashes, start = (0.0, "", 0), 0, 0, time.perf_counter()
    waiting = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    while waiting:
        batch = waiting.pop()
        try:
            done, peak = pool.submit(do_batch, files, batch).result()
        except BrokenProcessPool:
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            if len(batch) == 1:
                crashes += 1
                print("CRASH at seed", batch[0], flush=True)
            else:
                waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        memory = max(memory, peak)
        for seed, file in zip(batch, done, strict=True):
            for size, name, what, stored, seconds in file:
                counts[name][what] += 1
                if what.startswith(("WRONG", "ERROR")):
                    print(name, what, "at seed", seed, files[-seed - 1] if seed < 0 else "", flush=True)
                if what == "given back" and seed < 0:
                    saved[name][0] += size
                    saved[name][1] += stored
                slowest = max(slowest, (seconds, name, seed))
    pool.shutdown()
    result = {
        "originals": len(files), "mutants": args.files, "crashes": crashes, "outcomes": counts,
        "originals_bytes": saved, "slowest": slowest, "memory_mib": memory // 1024,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
