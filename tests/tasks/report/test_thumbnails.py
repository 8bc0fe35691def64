"""Which place of a picture is shown, and how transparency is."""

import numpy as np
from PIL import Image

from tasks.report import thumbnails


def test_the_crop_finds_the_damage():
    before = np.full((700, 900, 3), 128, np.uint8)
    for top, left in ((0, 0), (650, 850), (333, 517)):
        after = before.copy()
        after[top : top + 30, left : left + 30] += 50
        x, y, wide, high = thumbnails.worst_place(before, after, (400, 300))
        assert (wide, high) == (400, 300) and 0 <= x <= 500 and 0 <= y <= 400
        assert x <= left and left + 30 <= x + wide and y <= top and top + 30 <= y + high
    assert thumbnails.worst_place(before[:1, :1], before[:1, :1], (400, 300)) == (0, 0, 1, 1)
    assert thumbnails.worst_place(before[:7], before[:7], (400, 300))[2:] == (400, 7)


def test_transparency_is_shown_on_squares():
    clear = thumbnails.flat(Image.new("RGBA", (32, 32), (255, 0, 0, 0)))
    assert clear.mode == "RGB" and len(clear.getcolors()) == 2
    assert thumbnails.flat(Image.new("LA", (4, 4), (90, 255))).getpixel((0, 0)) == (90, 90, 90)
