"""Sheets of pictures: everything in its place, in its size, and legible."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from unclip.core.pictures import sheet as sheets
from unclip.core.pictures.sheet import (
    THEMES,
    SheetStyle,
    Tile,
    arrange,
    contact_sheet,
    draw_sheet,
    from_pil,
    page,
    side_by_side,
    tiles,
    to_pil,
)

PAPER, INK, FRAME = THEMES["white"].paper, THEMES["white"].ink, THEMES["white"].frame


def coloured(colour, size=(8, 8)):
    return Image.new("RGB", size, colour)


def has(picture, colour):
    return bool((np.asarray(picture) == np.array(colour)).all(axis=-1).any())


def where(picture, colour=None):
    """Left, top, right, bottom of all pixels of a colour, or of all that are not paper."""
    pixels = np.asarray(picture)
    mask = (pixels == colour).all(axis=-1) if colour else (pixels != PAPER).any(axis=-1)
    y, x = np.nonzero(mask)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def test_tensors_become_pictures_and_back():
    images = torch.zeros(2, 3, 2, 4)
    images[1, 0, 0, 3], images[1, 1, 1, 0] = 1.0, 2.0
    first, second = to_pil(images)
    assert first.size == (4, 2) and first.mode == "RGB"
    assert second.getpixel((3, 0)) == (255, 0, 0)
    assert second.getpixel((0, 1)) == (0, 255, 0)
    assert torch.equal(from_pil(second), images[1:].clamp(0, 1))


def test_pictures_are_read_like_a_page_and_tiny_ones_enlarged_pixel_by_pixel():
    picture = coloured((255, 0, 0))
    picture.putpixel((1, 0), (0, 255, 0))
    others = [coloured((0, 0, 200 + index)) for index in range(4)]
    sheet = contact_sheet([picture, *others], columns=3, style=SheetStyle(cell_size=20, padding=5))
    assert sheet.size == (5 + 3 * (16 + 5), 5 + 2 * (16 + 5))
    assert [sheet.getpixel((5 + 21 * column, 5)) for column in range(3)] == [
        (255, 0, 0),
        (0, 0, 200),
        (0, 0, 201),
    ]
    assert sheet.getpixel((5, 26)) == (0, 0, 202)
    assert [sheet.getpixel((5 + x, 5)) for x in (1, 2, 3, 4)] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 255, 0),
        (255, 0, 0),
    ]
    assert sheet.getpixel((4, 5)) == FRAME
    assert sheet.getpixel((2, 2)) == PAPER
    assert sheet.getpixel((47 + 8, 26 + 8)) == PAPER  # the place of the sixth is empty
    assert not has(sheet, INK)


@pytest.mark.parametrize(
    ("size", "limit", "fitted"),
    [
        ((64, 64), (200, 200), (192, 192)),  # tiny: by a whole factor
        ((64, 64), (100, 100), (100, 100)),  # where no whole factor helps, smoothly
        ((300, 150), (600, 600), (600, 300)),
        ((300, 150), (100, 100), (100, 50)),
        ((1000, 1), (100, 100), (100, 1)),
    ],
)
def test_a_picture_keeps_its_proportions_in_its_place(size, limit, fitted):
    assert sheets._fitted(size, limit) == fitted


def test_tiny_pictures_stay_sharp_and_large_ones_smooth():
    def colours(side, cell):
        halves = coloured((0, 0, 0), (side, side))
        halves.paste((255, 255, 255), (0, 0, side // 2, side))
        sheet = contact_sheet([halves], style=SheetStyle(cell_size=cell, padding=0))
        assert sheet.size == (cell, cell)
        return len(np.unique(np.asarray(sheet)))

    assert colours(64, 256) == 2
    assert colours(256, 512) > 2


def test_pictures_of_different_sizes_take_the_same_place():
    red, blue = coloured((255, 0, 0), (40, 40)), coloured((0, 0, 255), (20, 10))
    sheet = contact_sheet([red, blue], style=SheetStyle(padding=4))
    assert sheet.size == (4 + 44 + 44, 4 + 44)
    assert where(sheet, (0, 0, 255)) == (48, 4 + 10, 48 + 40, 4 + 30)  # doubled, and centred


def test_without_padding_pictures_touch():
    sheet = contact_sheet([coloured((9, 9, 9))] * 6, columns=3, style=SheetStyle(padding=0))
    assert sheet.size == (24, 16) and not has(sheet, PAPER) and not has(sheet, FRAME)


def test_captions_stand_below_their_pictures():
    pictures = [coloured((255, 0, 0), (64, 64))] * 2
    style = SheetStyle(padding=10)
    plain = contact_sheet(pictures, columns=2, style=style)
    labelled = contact_sheet(pictures, ["", "red"], columns=2, style=style)
    assert labelled.height > plain.height and labelled.width == plain.width
    below = labelled.crop((0, 76, labelled.width, labelled.height))
    assert not has(below.crop((0, 0, 80, below.height)), INK)
    assert has(below.crop((80, 0, below.width, below.height)), INK)
    left, _, right, _ = where(below)
    assert abs((left + right) / 2 - (10 + 74 + 32)) <= 2, "centred"
    assert labelled.tobytes() == contact_sheet(pictures, ["", "red"], columns=2, style=style).tobytes()


def test_names_of_rows_and_columns_stand_at_their_rows_and_columns():
    red, blue = (255, 0, 0), (0, 0, 255)
    rows = page(tiles([coloured(red, (64, 64)), coloured(blue, (64, 64))] * 2), 2)
    sheet = draw_sheet(rows, row_labels=["one", "two"], column_labels=["left", "right"])
    x, y, _, bottom = where(sheet, red)
    heads, names = sheet.crop((0, 0, sheet.width, y - 1)), sheet.crop((0, y, x - 1, bottom))
    assert has(heads, INK) and has(names, INK)
    assert not has(sheet.crop((x, y, sheet.width, sheet.height)), INK)
    # each column's name above its own pictures: nothing above the gap between them
    assert not has(heads.crop((x + 66, 0, x + 74, heads.height)), INK)
    for top in (y, y + 76):
        _, above, _, below = where(sheet.crop((0, top, x - 1, top + 64)), INK)
        assert abs((above + below) / 2 - 32) <= 6, "at mid-height of the row"
    only_second = draw_sheet(rows, column_labels=["", "right"])
    assert not has(only_second.crop((0, 0, 12 + 64, only_second.height)), INK)


@pytest.mark.parametrize("background", list(THEMES))
@pytest.mark.parametrize("gap", [0, 3, 12])
def test_labels_never_leave_the_sheet_or_run_into_each_other(background, gap, monkeypatch):
    drawn = []
    real = sheets._Layout._write

    def write(self, lettering, index, place, anchor):
        for number, line in enumerate(lettering.lines[index]):
            spot = (place[0], place[1] + number * lettering.line_height)
            drawn.append(self.pen.textbbox(spot, line, font=lettering.font, anchor=f"{anchor}a"))
        real(self, lettering, index, place, anchor)

    monkeypatch.setattr(sheets._Layout, "_write", write)
    long = "unimaginably long names, Äg|jpq " * 3
    items = tiles([coloured((90, 0, 0), (32, 32))] * 6, [long, "fig", "W" * 30, "", "CLIP 0.312", long])
    sheet = draw_sheet(
        page(items, 3),
        row_labels=[long, "two"],
        column_labels=["a", long, "autoregressive"],
        style=SheetStyle(padding=gap, background=background),
    )
    assert len(drawn) > 15
    for left, top, right, bottom in drawn:
        assert left >= 0 and top >= 0 and right <= sheet.width and bottom <= sheet.height
    for number, a in enumerate(drawn):
        for b in drawn[:number]:
            across = min(a[2], b[2]) - max(a[0], b[0])
            down = min(a[3], b[3]) - max(a[1], b[1])
            assert across <= 0 or down <= 1, (a, b)


def test_a_background_changes_paper_and_ink():
    for theme in THEMES.values():
        assert abs(sum(theme.paper) - sum(theme.ink)) > 3 * 120
    sheet = contact_sheet([coloured((255, 0, 0))], ["red"], style=SheetStyle(background="black"))
    assert sheet.getpixel((0, 0)) == (0, 0, 0) and has(sheet, THEMES["black"].ink)


# ------------------------------------------------------------------------------------------------ arrangement


def named(*names):
    return [Tile(coloured((0, 0, 0)), name) for name in names]


def names_of(rows):
    return ["".join(tile.label if tile else "." for tile in row) for row in rows]


def test_groups_become_rows_or_columns():
    groups = [named("a", "b", "c"), named("d"), named("e", "f")]
    assert names_of(side_by_side(groups, "row")) == ["abc", "d..", "ef."]
    assert names_of(side_by_side(groups, "column")) == ["ade", "b.f", "c.."]
    assert names_of(arrange(groups, each="column")) == ["ade", "b.f", "c.."]
    assert names_of(arrange(groups, each="column", columns=4)) == ["abcd", "ef"]


def test_one_group_is_a_page_as_wide_as_its_labels_ask_for():
    group = [named(*"abcdefgh")]
    assert names_of(arrange(group)) == ["abc", "def", "gh"]
    assert names_of(arrange(group, columns=5)) == ["abcde", "fgh"]
    assert names_of(arrange(group, column_labels=list("wxyz"))) == ["abcd", "efgh"]
    assert names_of(arrange(group, row_labels=list("xyz"))) == ["abc", "def", "gh"]
    assert names_of(arrange(group, row_labels=["x"])) == ["abcdefgh"]


def test_labels_belong_to_pictures():
    pictures = [coloured((0, 0, 0))] * 2
    assert [tile.label for tile in tiles(pictures)] == ["", ""]
    assert [tile.label for tile in tiles(pictures, ["a", "b"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: contact_sheet([]), "pictures: found none"),
        (lambda p: draw_sheet([[None]]), "pictures: found none"),
        (lambda p: contact_sheet(p, ["a"]), "captions: found 1 for 2 pictures; expected one for each, or"),
        (lambda p: contact_sheet(p, columns=0), "columns is 0; expected at least 1"),
        (
            lambda p: draw_sheet([tiles(p)], row_labels=["a", "b"]),
            "row_labels: found 2 names for 1 rows; expected at most 1",
        ),
        (
            lambda p: draw_sheet([tiles(p)], column_labels=["a", "b", "c"]),
            "column_labels: found 3 names for 2 columns",
        ),
        (lambda p: SheetStyle(padding=-1), "padding is -1; expected 0 or more"),
        (lambda p: SheetStyle(background="pink"), "background 'pink' is not known; choose one of white"),
        (
            lambda p: contact_sheet(p, style=SheetStyle(cell_size=9000)),
            "the sheet would have 18036×9024 pixels, expected at most 16384 on each side",
        ),
    ],
)
def test_what_makes_no_sheet_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call([coloured((0, 0, 0), (200, 200))] * 2)
