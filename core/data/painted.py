"""The pictures of many captions as webdataset shards: painted as files, then packed by number."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .packing import files_in_shard, names_in_shard, write_shard
from .process import Process

_NUMBERED = re.compile(r"\d{6,}")
ABOUT = "unclip"  # the text of a picture that says how it was made


class PaintedShards:
    """The shards ``00000.tar`` … of a folder: ``NNNNNN.png``, ``.txt`` and ``.json``, ``rows`` of each.

    What is in which shard follows from the rows' numbers alone, and its bytes from what is in it: they depend
    neither on who packs it nor on the number of goes.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """Raises ValueError where a shard that is there is damaged."""
        self.folder, self.rows = folder, rows
        self._packed = {
            int(name.removesuffix(".png"))
            for path in folder.glob("*.tar")
            for name in names_in_shard(path)
            if name.endswith(".png")
        }

    def __contains__(self, number: int) -> bool:
        """Whether the picture of a row is packed."""
        return number in self._packed

    def pack(self, process: Process) -> None:
        """Pack the pictures that lie in the folder as files: this process's share of the shards."""
        loose: dict[int, list[int]] = {}
        for path in self.folder.glob("*.png"):
            if _NUMBERED.fullmatch(path.stem):
                loose.setdefault(int(path.stem) // self.rows, []).append(int(path.stem))
        for shard, numbers in sorted(loose.items()):
            if shard % process.world == process.rank:
                write_shard(self.folder / f"{shard:05}.tar", self._files(shard, sorted(numbers)))
                for number in numbers:
                    for ending in ("png", "txt"):
                        (self.folder / f"{number:06}.{ending}").unlink(missing_ok=True)

    def _files(self, shard: int, numbers: list[int]) -> Iterator[tuple[str, bytes]]:
        """The files of a shard: those that it has, and the pictures that are new, in the rows' order."""
        path = self.folder / f"{shard:05}.tar"
        new = set(numbers)
        if path.exists():
            for name, content in files_in_shard(path):
                number = int(name.partition(".")[0])
                while numbers and numbers[0] < number:
                    yield from self._painted(numbers.pop(0))
                if number not in new:
                    yield name, content
        for number in numbers:
            yield from self._painted(number)

    def _painted(self, number: int) -> Iterator[tuple[str, bytes]]:
        path = self.folder / f"{number:06}.png"
        with Image.open(path) as picture:
            about = json.loads(picture.text[ABOUT])
        facts = json.dumps({"key": path.stem, **about}, ensure_ascii=False)
        yield path.name, path.read_bytes()
        yield f"{path.stem}.txt", about["caption"].encode()
        yield f"{path.stem}.json", facts.encode()
