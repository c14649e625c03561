"""A folder of pictures with ``name.txt`` beside each, or metadata.jsonl or .csv as in imagefolder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..pictures.files import IMAGE_SUFFIXES
from ..text_files import read_text
from .decoding import ENDINGS
from .sources import Captioned, Captions, field_of, first_of, text_of
from .tables import csv_rows, json_rows, listed, separator_hint

METADATA = ("metadata.jsonl", "metadata.csv")
_OTHER_KINDS = {suffix[1:] for suffix in IMAGE_SUFFIXES} - {*ENDINGS}

logger = logging.getLogger(__name__)


class FolderSource:
    """The pictures of a folder and the folders in it, in the order of their names."""

    def __init__(self, folder: Path, caption_field: str | None = None, captions: Captions = "needed") -> None:
        """A warning names the rows of metadata that are of no picture there, and pictures with several rows.

        Raises:
            ValueError: it holds no pictures (with captions), or metadata that cannot be read.
        """
        if not folder.is_dir():
            raise ValueError(f"data.path: there is no folder {folder}")
        self._folder, self._captions = folder, captions
        # Relative path and caption, None where there is none; or the name of the text file that holds it.
        self._files: list[tuple[str, str | None, str | None]] = []
        missing, others = [], Counter[str]()
        places = [(Path(place), names) for place, _, names in os.walk(folder)]  # which follows no links
        told: dict[str, str | None] = {}
        for place, names in () if captions == "unread" else places:
            told |= _metadata(place, folder, names, caption_field)
        self._warn_of_rows(told, places)
        for place, names in places:
            texts = {name[:-4]: name for name in names if name.lower().endswith(".txt")}
            if captions == "unread":
                texts = {}
            for name in names:
                stem, _, ending = name.rpartition(".")
                if ending.lower() not in ENDINGS:
                    others.update({ending.lower()} & _OTHER_KINDS)
                    continue
                path = (place / name).relative_to(folder).as_posix()
                caption, text = told.get(path), None if path in told else texts.get(stem)
                if caption is None and text is None and captions == "needed":
                    missing.append(path)
                else:
                    self._files.append((path, caption, text))
        self._files.sort(key=lambda file: (file[0].rpartition(".")[0], file[0]))
        self.missing = tuple(sorted(missing))
        self.groups = (len(self._files),)
        kinds = "/".join(ENDINGS)
        if others:
            found = ", ".join(f"{number} {ending}" for ending, number in sorted(others.items()))
            logger.warning(
                "%s: pictures of other kinds are passed over (%s): save them as %s", folder, found, kinds
            )
        if not self._files:
            beside = f"NAME.txt beside NAME.{kinds}, or {' or '.join(METADATA)} with file_name and text"
            raise ValueError(
                f"{folder}: no pictures with captions ({len(missing)} without); expected {beside}"
                if captions == "needed"
                else f"{folder}: no pictures; expected NAME.{kinds}"
            )

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        return self._files[index][0].rpartition(".")[0]

    def read(self, index: int) -> Captioned:
        path, caption, text = self._files[index]
        file = self._folder / path
        if text is not None:
            caption = read_text(file.with_name(text)).strip()
        if not caption and self._captions == "needed":
            raise ValueError("its caption is empty")
        return Captioned(file.read_bytes(), caption or "", file.suffix[1:].lower())

    def _warn_of_rows(self, told: Iterable[str], places: Iterable[tuple[Path, list[str]]]) -> None:
        there = {place / name for place, names in places for name in names}
        absent = sorted(name for name in told if self._folder / name not in there)
        if absent:
            logger.warning(
                "%s: metadata has %d rows of pictures that are not there: %s",
                self._folder,
                len(absent),
                first_of(absent),
            )


def _metadata(place: Path, folder: Path, names: list[str], field: str | None) -> dict[str, str | None]:
    """Path in ``folder`` → caption, None for an empty one, as a metadata file in ``place`` has them."""
    found = [name for name in METADATA if name in names]
    captions: dict[str, str | None] = {}
    again: list[str] = []
    for number, row in enumerate(_rows(place / found[0]) if found else (), 1):
        where = f"{place / found[0]}, row {number}"
        if "file_name" not in row:
            raise ValueError(
                f"{where}: no file_name among {listed(row)}; expected one with the name of a picture, beside "
                f"its caption{separator_hint(row)}"
            )
        name = row["file_name"]
        if not isinstance(name, str):
            raise ValueError(f"{where}: file_name is {name!r}, expected the name of a picture")
        path = (PurePosixPath(place.relative_to(folder).as_posix()) / name.replace("\\", "/")).as_posix()
        if path in captions:
            again.append(path)
        captions[path] = text_of(field_of(row, field, where))
    if again:
        logger.warning(
            "%s: %d rows are of pictures that have one already, and take its place: %s",
            place / found[0],
            len(again),
            first_of(again),
        )
    return captions


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return csv_rows(path) if path.suffix == ".csv" else json_rows(path)
