"""Work by a team of threads: all of it, once, each piece with one of torch's threads, and the same pictures."""

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from codec import decode, default_model, encode, encode_batch
from codec.engine.windows import Grid
from codec.threads import map_threads, team, team_size


@pytest.fixture
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_team_takes_torchs_threads_and_gives_them_back(three):
    assert team_size() == 1
    with team():
        assert (team_size(), torch.get_num_threads()) == (3, 1)
        with team():
            assert (team_size(), torch.get_num_threads()) == (3, 1)
        assert (team_size(), torch.get_num_threads()) == (3, 1)
    assert (team_size(), torch.get_num_threads()) == (1, 3)


def test_each_piece_once_by_several_threads_with_one_of_torchs(three):
    together, seen = threading.Barrier(3, timeout=300), []

    def work(item: int) -> int:
        if item < 3:
            together.wait()  # three threads must be here at once
        torch.zeros(1 << 20).add_(1)  # a thread's first parallel operation may change its number of threads
        seen.append((threading.current_thread().name, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return 10 * item

    with torch.inference_mode(), team():
        assert map_threads(work, list(range(20))) == [10 * i for i in range(20)]
    assert len({name for name, _, _ in seen}) == 3 and len(seen) == 20
    assert {(threads, inference) for _, threads, inference in seen} == {(1, True)}
    assert torch.get_num_threads() == 3


def test_without_a_team_the_caller_works_alone(three):
    assert set(map_threads(lambda _: threading.current_thread().name, [1, 2, 3])) == {threading.current_thread().name}


def test_an_error_reaches_the_caller_when_all_have_stopped(three):
    running = []

    def work(item: int) -> None:
        running.append(item)
        try:
            if item == 2:
                raise KeyError("piece 2")
        finally:
            running.remove(item)

    with team(), pytest.raises(KeyError, match="piece 2"):
        map_threads(work, list(range(6)))
    assert running == [] and torch.get_num_threads() == 3


def test_the_first_items_error_is_raised(three):
    both = threading.Barrier(2, timeout=300)

    def work(item: int) -> None:
        if item < 2:
            both.wait()  # so that both fail
            time.sleep(0.05 * (1 - item))
            raise KeyError(item)

    for _ in range(3):
        with team(), pytest.raises(KeyError, match="0"):
            map_threads(work, list(range(6)))


def test_what_failed_is_let_go(three):
    class Held:
        pass

    held = Held()
    gone = weakref.ref(held)

    def work(item: int, held=held) -> None:
        raise KeyError(item)

    gc.disable()
    try:
        with team(), contextlib.suppress(KeyError):
            map_threads(work, [1, 2, 3])
        del work, held
        until = time.monotonic() + 60
        while gone() is not None and time.monotonic() < until:
            time.sleep(0.01)  # helpers that had nothing to do any more are on their way out
        assert gone() is None
    finally:
        gc.enable()


def test_threads_begun_meanwhile_have_torchs_number(three):
    seen = []

    def begin() -> None:
        torch.zeros(1 << 20).add_(1)
        seen.append(torch.get_num_threads())

    with team():
        for _ in range(2):
            map_threads(abs, [1, 2, 3])
            stranger = threading.Thread(target=begin)
            stranger.start()
            stranger.join()
        assert torch.get_num_threads() == 1
    assert seen == [3, 3]


@pytest.mark.parametrize("size", [(1, 1), (31, 90), (32, 48), (77, 102), (130, 64), (515, 520)])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_pieces_cover_a_band_and_lie_in_its_windows(size, members):
    grid = Grid(*size, 64)
    for band in range(grid.bands):
        windows, pieces = grid.windows(band), grid.pieces(band, members)
        covered = np.zeros(size, int)
        for piece in pieces:
            covered[piece.top : piece.bottom, piece.left : piece.right] += 1
            assert piece.top % 4 == piece.left % 4 == 0
            assert any(w.top <= piece.top and piece.bottom <= w.bottom for w in windows)
            assert any(w.left <= piece.left and piece.right <= w.right for w in windows)
        top, bottom = grid.rows[band : band + 2]
        assert (covered[top:bottom] == 1).all() and covered.sum() == (bottom - top) * size[1]
        if members > 1 and max(windows[0].shape) >= 24 and len(windows) < 2 * members:
            assert len(pieces) > len(windows)


def test_a_team_makes_the_same_picture(small, three):
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8))
    image = coarse.resize((530, 1210), Image.Resampling.BICUBIC)
    file = encode(image, 60, model=small)
    by_three = np.asarray(decode(file, model=small)).astype(int)
    torch.set_num_threads(1)
    alone = np.asarray(decode(file, model=small)).astype(int)
    assert np.abs(by_three - alone).max() <= 1
    assert abs(len(encode(image, 60, model=small)) - len(file)) <= 2  # a value may lie on an edge


def test_batches_of_several_shapes_by_a_team(small, three):
    images = [Image.new("RGB", size, colour) for size, colour in (((40, 60), "red"), ((64, 64), "blue"))] * 2
    files = encode_batch(images, 50, model=small)
    for image, file in zip(images, files, strict=True):
        assert decode(file, model=small).size == image.size
    assert torch.get_num_threads() == 3 and team_size() == 1


PAGES = """
import resource, sys
import numpy as np
from PIL import Image
from codec import decode, encode
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 768, 3)).astype(np.uint8))
data, taken = encode(image, 40, model=sys.argv[1]), []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    decode(data, models=[sys.argv[2]])
    taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(taken))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_freed_memory_is_kept_for_the_next_picture(tmp_path):
    """New pages that a decode takes, under what Dask sets for its workers."""
    model = str(default_model())
    taken = {}
    for allocator in ("", "system"):
        given = {"MALLOC_TRIM_THRESHOLD_": "65536", "NIGHTPRESS_ALLOCATOR": allocator}
        command = [sys.executable, "-c", PAGES, model, str(tmp_path)]
        run = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True, timeout=1200)
        taken[allocator] = int(run.stdout)
    assert taken[""] < 2000 < 5000 < taken["system"]
