"""Data alone: how fast batches of pictures come out of webdataset shards, and how much memory an epoch takes.

Ours is what training reads: `feed` over `PictureBatches` with worker processes: the shuffled order,
captions, EXIF, transparency, crops, tensors. Its peer is Pillow in as many processes over the same files,
from the first to the last: open, decode at a half or a quarter of the size (JPEG's draft), resize. In turn, a
quarter of the pictures at a time; what the workers had read ahead at the beginning of one is left out.

    python benchmarks/data.py [--count 2000] [--size 256] [--workers 2] [--help]
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from common import console
from PIL import Image
from rich.table import Table
from torch import Tensor
from unclip.core.data.opening import open_batches
from unclip.core.data.settings import DataConfig
from unclip.core.training.feed import feed

PER_SHARD = 1000  # as img2dataset makes them small
DIFFERENT = 200  # pictures, which repeat
PER_TASK = 50
PARTS = 4
FULL = 1.0  # second in which workers have read ahead all that they may

# A shard, where pictures lie in it and how long they are, and the side that they are brought to.
Task = tuple[Path, list[tuple[int, int]], int]


class Reading:
    """Of a recipe, its data: what `feed` asks for."""

    def __init__(self, config: DataConfig, size: int, batch: int) -> None:
        self.batches = open_batches(config, size, batch, seed=0)

    def prepare(self, batch: Any) -> Tensor:
        return batch.images


def main(
    count: Annotated[int, typer.Option(help="Pictures.")] = 2000,
    side: Annotated[int, typer.Option(help="Pixels of a picture, in the files.")] = 512,
    size: Annotated[int, typer.Option(help="Pixels of a picture, in a batch.")] = 256,
    batch: Annotated[int, typer.Option(help="Rows.")] = 64,
    workers: Annotated[int, typer.Option(help="Processes, of both.")] = 2,
    folder: Annotated[
        Path | None, typer.Option(help="Where the shards are written, and removed again.")
    ] = None,
) -> None:
    """Time both, and watch the memory over an epoch."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        start = time.perf_counter()
        shards = write_shards(Path(name), count, side)
        gib = sum(path.stat().st_size for path in shards) / 2**30
        console.print(
            f"{count} pictures of {side} px, {gib:.2f} GiB in {len(shards)} shards, made in "
            f"{time.perf_counter() - start:.0f} s; load before {os.getloadavg()[0]:.1f}"
        )
        compare(shards, count, size, batch, workers)


def compare(shards: list[Path], count: int, size: int, batch: int, workers: int) -> None:
    reading = Reading(DataConfig(source="webdataset", path=str(shards[0].parent)), size, batch)
    steps = count // batch
    stream = feed(reading, 0, steps, workers)  # type: ignore[arg-type]
    ours, theirs, memory = [0.0, 0], [0.0, 0], []
    ahead = 2 * workers + 1
    # Spawned, so that it shares no pages with the side that is watched.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        tasks = tasks_of(shards, size)
        pool.map(pillow, tasks[:workers], chunksize=1)  # imports are not on the clock
        for part in range(PARTS):
            mine = range(part * steps // PARTS, (part + 1) * steps // PARTS)
            for number, _ in enumerate(mine):
                if number == ahead:
                    begun = time.perf_counter()
                next(stream)
                if number % 10 == 9:
                    looked = time.perf_counter()
                    memory.append(own_memory(pool))
                    begun += (time.perf_counter() - looked) if number >= ahead else 0
            ours[0] += time.perf_counter() - begun
            ours[1] += (len(mine) - ahead) * batch
            time.sleep(FULL)
            begun = time.perf_counter()
            theirs[1] += sum(pool.imap_unordered(pillow, tasks[part::PARTS]))
            theirs[0] += time.perf_counter() - begun
    speeds = [pictures / seconds for seconds, pictures in (ours, theirs)]
    table = Table("side", "processes", "pictures/s", "ratio")
    table.add_row("ours", str(workers), f"{speeds[0]:.0f}", f"{speeds[0] / speeds[1]:.2f}")
    table.add_row("Pillow", str(workers), f"{speeds[1]:.0f}", "")
    console.print(table)
    tenth = max(1, len(memory) // 10)
    first, last = max(memory[:tenth]), max(memory[-tenth:])
    console.print(
        f"Memory of all processes: {first / 2**20:.0f} MiB in the first tenth of the epoch, "
        f"{last / 2**20:.0f} MiB in the last, {100 * (last / first - 1):+.1f}%. "
        f"Load {os.getloadavg()[0]:.1f}."
    )


def own_memory(pool: Any) -> int:
    """Bytes that this process and its workers hold, shared pages counted once, without Pillow's pool."""
    this, theirs = psutil.Process(), {worker.pid for worker in pool._pool}
    found = [this, *(child for child in this.children(recursive=True) if child.pid not in theirs)]
    return sum(process.memory_full_info().pss for process in found)


def pillow(task: Task) -> int:
    """Decode and resize some pictures of a shard."""
    path, places, size = task
    with path.open("rb") as file:
        for start, length in places:
            file.seek(start)
            picture = Image.open(io.BytesIO(file.read(length)))
            picture.draft("RGB", (size, size))
            np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return len(places)


def tasks_of(shards: list[Path], size: int) -> list[Task]:
    tasks = []
    for path in shards:
        with tarfile.open(path, "r:") as archive:
            places = [(each.offset_data, each.size) for each in archive if each.name.endswith(".jpg")]
        tasks += [(path, places[i : i + PER_TASK], size) for i in range(0, len(places), PER_TASK)]
    return tasks


def write_shards(folder: Path, count: int, side: int) -> list[Path]:
    contents = [picture(number, side) for number in range(min(DIFFERENT, count))]
    paths = []
    for first in range(0, count, PER_SHARD):
        path = folder / f"{first // PER_SHARD:05}.tar"
        with tarfile.open(path, "w") as archive:
            for number in range(first, min(first + PER_SHARD, count)):
                add(archive, f"{number:09}.jpg", contents[number % len(contents)])
                add(archive, f"{number:09}.txt", f"picture number {number}".encode())
        paths.append(path)
    return paths


def picture(number: int, side: int) -> bytes:
    """Shapes of all sizes and some noise, about as large a file as a photograph of the size."""
    rng = np.random.default_rng(number)
    image = np.zeros((side, side, 3), np.float32)
    for grid in (3, 9, 33, 129):
        coarse = Image.fromarray(rng.integers(0, 256, (grid, grid, 3), np.uint8))
        image += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) / grid**0.5
    image += rng.normal(0, 4, image.shape)
    image *= 255 / image.max()
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    facts = tarfile.TarInfo(name)
    facts.size = len(content)
    archive.addfile(facts, io.BytesIO(content))


if __name__ == "__main__":
    typer.run(main)
