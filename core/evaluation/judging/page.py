"""A static page on which a person judges pairs of pictures blind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ...data.decoding import open_picture, upright
from ...data.sources import PictureSource
from ...pictures.files import write_png
from ...writing import new_folder
from .questions import GRID, Question, side_of_first

PAGE = "index.html"
PICTURES = "pictures"
_MARK = "/* the questions */ null"
_GRID_SIDE, _GAP = 4, 4
_LARGEST_CELL = 256


def write_page(
    target: Path,
    sets: Sequence[tuple[str, PictureSource]],
    questions: Sequence[Question],
    seed: int,
    on_question: Callable[[int], None] | None = None,
) -> Path:
    """Write ``index.html`` and ``pictures/`` into a new folder, which is there whole or not at all.

    Neither the names of the pictures nor what is in their files tells whose they are: pictures are written
    anew, without what their files say of how they were made.

    Args:
        target: a new folder.
        sets: names and pictures of both.
        seed: of the sides.
        on_question: told how many are done.

    Returns:
        The page.

    Raises:
        ValueError: ``target`` exists, or a picture cannot be read.
    """
    (first_name, first), (second_name, second) = sets
    asked = []
    with new_folder(target) as folder:
        (folder / PICTURES).mkdir()
        written: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        for done, question in enumerate(questions, 1):
            # A pair is asked about twice, and may lie on other sides then.
            number = written.setdefault((question.first, question.second), len(written))
            side = side_of_first(seed, question.kind, question.item)
            shown = {side: (first, question.first), _other(side): (second, question.second)}
            names = {}
            for place, (source, indices) in shown.items():
                names[place] = f"{PICTURES}/{number:05}-{_tag(seed, number, source is first)}.png"
                if not (folder / names[place]).exists():
                    write_png(folder / names[place], _shown(source, indices))
            asked.append(
                {
                    "question": question.kind,
                    "item": question.item,
                    "caption": question.caption,
                    **names,
                }
            )
            if on_question is not None:
                on_question(done)
        facts = {"a": first_name, "b": second_name, "seed": seed, "questions": asked}
        text = json.dumps(facts).replace("<", "\\u003c")
        facts["page"] = hashlib.sha256(text.encode()).hexdigest()[:16]
        text = json.dumps(facts).replace("<", "\\u003c")
        template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        if template.count(_MARK) != 1:
            raise RuntimeError("page.html has no place for the questions")
        (folder / PAGE).write_text(template.replace(_MARK, text), encoding="utf-8")
    return target / PAGE


def _other(side: str) -> str:
    return "right" if side == "left" else "left"


def _tag(seed: int, number: int, is_first: bool) -> str:
    """A letter of a picture's name that says nothing to who does not know the seed."""
    digest = hashlib.sha256(f"{seed}/name/{number}".encode()).digest()
    return "xy"[(digest[0] + is_first) % 2]


def _shown(source: PictureSource, indices: Sequence[int]) -> Image.Image:
    pictures = []
    for index in indices:
        try:
            pictures.append(upright(open_picture(source.read(index).picture)))
        except (ValueError, OSError) as error:
            raise ValueError(f"{source.key(index)}: {error}") from error
    return pictures[0] if len(pictures) == 1 else _grid(pictures)


def _grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """GRID pictures as 4 × 4 squares, no larger than their pictures or _LARGEST_CELL."""
    assert len(pictures) == GRID
    side = min(_LARGEST_CELL, max(max(picture.size) for picture in pictures))
    step = side + _GAP
    sheet = Image.new("RGB", (_GRID_SIDE * step - _GAP, _GRID_SIDE * step - _GAP), "white")
    for number, picture in enumerate(pictures):
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        row, column = divmod(number, _GRID_SIDE)
        corner = (column * step + (side - size[0]) // 2, row * step + (side - size[1]) // 2)
        sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), corner)
    return sheet
