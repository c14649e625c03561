"""From the table ``[data]`` of a config to batches."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from .batches import PictogramBatches, load_pictograms
from .crops import CropBatches, PictogramCanvas
from .embeddings import EmbeddingSource
from .folders import FolderSource
from .pictures import EmbeddingBatches, PictureBatches, PictureCanvas, Subset
from .process import ALONE, Process
from .processors import usable_processors
from .settings import DataConfig, Source, chosen_by_name
from .shards import ShardSource
from .sources import Captions, PictureSource, first_of

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
ALLOW_PIPE = "UNCLIP_ALLOW_PIPE"


def source_of(path: str) -> Source:
    """What lies at a path: a folder of pictures, or shards."""
    folder = Path(path)
    return "folder" if folder.is_dir() and not any(folder.glob("*.tar")) else "webdataset"


def open_source(config: DataConfig, captions: Captions = "needed") -> PictureSource:
    """The pictures of a folder or of shards, all of them.

    Raises:
        ValueError: the data are of another kind, or cannot be read.
    """
    assert config.path is not None
    if config.source == "folder":
        return FolderSource(Path(config.path), config.caption_field, captions)
    if config.source == "webdataset":
        # Only the person at the command line can allow commands: no config sets the environment.
        allowed = os.environ.get(ALLOW_PIPE) == "1"
        return ShardSource(config.path, config.caption_field, allow_pipe=allowed, captions=captions)
    raise ValueError(f"data.source is {config.source!r}, expected 'folder' or 'webdataset': pictures")


def open_captioned(config: DataConfig) -> PictureSource:
    """The pictures that have a caption, with a warning that names those that have none."""
    source = open_source(config)
    if source.missing:
        logger.warning(
            "%d pictures without a caption are left out: %s", len(source.missing), first_of(source.missing)
        )
    return source


def open_pictures(config: DataConfig, held_out: bool = False) -> Subset:
    """The pictures that are (not) held out.

    Raises:
        ValueError: as ``open_source``, or none are left.
    """
    return _part(open_captioned(config), config, held_out)


def _part(source: PictureSource | EmbeddingSource, config: DataConfig, held_out: bool) -> Subset:
    if config.held_out or held_out:
        chosen = [chosen_by_name(source.key(i), config.held_out) == held_out for i in range(len(source))]
        indices = np.flatnonzero(chosen)
    else:
        indices = np.arange(len(source))
    if not len(indices):
        what = "none are held out: raise" if held_out else "all are held out: lower"
        raise ValueError(f"{config.path}: of its {len(source)} pictures {what} data.held_out")
    return Subset(source, indices)


def open_batches(
    config: DataConfig,
    size: int,
    batch_size: int,
    seed: int,
    process: Process = ALONE,
    style_named: float = 0.75,
    held_out: bool | None = False,
    twin_block: int | None = None,
) -> PictogramBatches | PictureBatches:
    """Batches of pictures of ``size`` with captions.

    Args:
        style_named: share of captions of pictograms that name the style.
        held_out: those that are kept out of training; of pictograms, None for all.
        twin_block: see :class:`PictogramBatches`.

    Raises:
        ValueError: the data cannot be read, or have no backgrounds for twins.
    """
    if config.source == "pictograms":
        pictograms = load_pictograms(config, held_out)
        return PictogramBatches(
            pictograms, size, batch_size, seed, process, style_named, config.white, config.augment, twin_block
        )
    if twin_block is not None:
        raise ValueError(
            f"twins are of pictograms over backgrounds, but data.source is {config.source!r}: leave them out"
        )
    return PictureBatches(open_pictures(config, bool(held_out)), config, size, batch_size, seed, process)


def open_embeddings(
    config: DataConfig, batch_size: int, seed: int, process: Process = ALONE, held_out: bool = False
) -> EmbeddingBatches:
    """Batches of embeddings with captions."""
    assert config.path is not None
    source = EmbeddingSource(Path(config.path), config.caption_field)
    if source.missing:
        logger.warning(
            "%s lacks %d of its shards (%s): unclip embed makes those that are missing",
            config.path,
            len(source.missing),
            first_of(source.missing),
        )
    part = _part(source, config, held_out)
    return EmbeddingBatches(part, batch_size, seed, process, source.space_id)


def open_crops(
    config: DataConfig,
    size: int,
    crop: int,
    margin: int,
    align: int,
    batch_size: int,
    seed: int,
    process: Process = ALONE,
    crops_per_picture: int = 4,
    held_out: bool = False,
) -> CropBatches:
    """Crops of pictures of ``size``, see :class:`CropBatches`.

    Raises:
        ValueError: the data cannot be read, or are to be augmented, which crops are not.
    """
    if config.augment is not None:
        raise ValueError("data.augment is set, but an upsampler learns from crops as they are: leave it out")
    if config.source == "pictograms":
        canvas: PictogramCanvas | PictureCanvas = PictogramCanvas(load_pictograms(config, held_out), size)
    else:
        canvas = PictureCanvas(open_pictures(config, held_out), config, size, seed)
    return CropBatches(
        canvas, size, crop, margin, align, batch_size, seed, process, crops_per_picture, config.white
    )


def workers_of(config: DataConfig, processes: int) -> int:
    """How many worker processes read and decode for each of the run's processes on this machine."""
    if config.workers is not None:
        return config.workers
    if config.source in ("pictograms", "embeddings"):
        return 0  # they lie in memory: a thread is enough
    return max(1, min(MOST_WORKERS, usable_processors() // max(1, processes)))
