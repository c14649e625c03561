"""``unclip convert``: checkpoints of others, written in unclip's own format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_path

if TYPE_CHECKING:
    import torch

    from ..core.stages import Bundle, Stage

SUFFIX = ".safetensors"
FOREIGN_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
MAX_SHARD_BYTES = 5_000_000_000


def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="A bundle; a whole model in diffusers' layout, or several that belong together (Kandinsky's "
            "prior and decoder); or files of single stages, which become a bundle if they hold several.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER|FILE",
            help="The folder to write; for one stage also a file (.safetensors). It must not exist.",
        ),
    ],
    precision: Annotated[
        str, typer.Option(help="Numbers to store: fp32, fp16 or bf16; keep leaves them as they are.")
    ] = "keep",
) -> None:
    """Write a model of Karlo, Kandinsky, GLIDE, DALLE2-pytorch or CLIP in unclip's own format."""
    from ..core.formats.bundling import bundle_of
    from ..core.formats.load import load_all_stages
    from ..core.formats.native.checkpoints import save_bundle, save_stage
    from ..core.precision import NUMBER_FORMATS
    from .bundles import path_or_bundle

    if precision not in ("keep", *NUMBER_FORMATS):
        raise ValueError(f"--precision: found {precision!r}, expected keep, {', '.join(NUMBER_FORMATS)}")
    dtype = NUMBER_FORMATS.get(precision)
    _require_free(output)
    if output.suffix in FOREIGN_SUFFIXES:
        raise ValueError(
            f"--output {output}: found a name that ends in {output.suffix}, expected a folder, or for one "
            f"stage a file that ends in {SUFFIX}"
        )
    sources = [path_or_bundle(source) for source in sources]
    if _are_bundles(sources):
        with _whole_folder(output) as folder:
            save_bundle(_joined(sources, output, dtype), folder, max_shard_bytes=MAX_SHARD_BYTES)
        print_path(output)
        return
    stages = [stage for source in sources for stage in load_all_stages(source, dtype=dtype)]
    if len(stages) == 1 and output.suffix == SUFFIX:
        print_path(save_stage(stages[0], output, max_shard_bytes=MAX_SHARD_BYTES))
        return
    with _whole_folder(output) as folder:
        if len(stages) == 1:
            path = folder / f"{_name(stages[0])}{SUFFIX}"
            result = output / save_stage(stages[0], path, max_shard_bytes=MAX_SHARD_BYTES).name
        else:
            save_bundle(bundle_of(output.name, stages), folder, max_shard_bytes=MAX_SHARD_BYTES)
            result = output
    print_path(result)


def _are_bundles(sources: list[Path]) -> bool:
    """Whether all sources are whole models; a ValueError where only some are, or a folder is neither."""
    from ..core.formats.layouts.diffusers_files import is_component
    from ..core.formats.load import is_bundle
    from ..core.formats.loose_stages import about_loose_stages

    whole = [source for source in sources if is_bundle(source)]
    if whole and len(whole) < len(sources):
        other = next(source for source in sources if source not in whole)
        raise ValueError(
            f"{whole[0]}: is a whole model, and {other} is not; expected one bundle, whole models in "
            f"diffusers' layout that belong together, or files and folders of single stages. Name the stages "
            f"in it one by one, such as {_a_stage_of(whole[0])}"
        )
    for source in sources:
        loose = source.is_dir() and not whole and not is_component(source)
        if loose and (what := about_loose_stages(source)) is not None:
            raise ValueError(what)
    return bool(whole)


def _a_stage_of(folder: Path) -> Path:
    """A stage of a whole model, by a name that ``convert`` takes."""
    from ..core.formats.diffusers_bundle import joined_folders, read_diffusers_folder
    from ..core.formats.native.checkpoints import BUNDLE_FILE, read_bundle

    if (folder / BUNDLE_FILE).is_file():
        return next(iter(read_bundle(folder)[1].values()))[0]
    part = next(iter(joined_folders(folder)), folder)
    return next(path for stage, path in read_diffusers_folder(part)[1].items() if stage != "clip")


def _joined(sources: list[Path], output: Path, dtype: torch.dtype | None) -> Bundle:
    """A bundle, or several models as one that has the name of its new folder."""
    from ..core.formats.load import load_any_bundle

    bundle = load_any_bundle(*sources, dtype=dtype)
    return bundle if len(sources) == 1 else replace(bundle, name=output.name)


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that becomes it when the block ends well, and is removed otherwise."""
    if output.suffix == SUFFIX:
        raise ValueError(f"{output}: several stages need a folder; give --output a name without {SUFFIX}")
    from ..core.writing import new_folder

    with new_folder(output) as folder:
        yield folder


def _name(stage: Stage) -> str:
    from ..core.stages import UpsamplerStage

    if isinstance(stage, UpsamplerStage):
        return f"upsampler-{stage.network.config.image_size}"
    return type(stage).__name__.removesuffix("Stage").lower()


def _require_free(path: Path) -> None:
    """Raise a ValueError if something is there: of a file also the index and the shards of its name."""
    from ..core.formats.files.safetensors_io import saved_files

    there = saved_files(path) if path.suffix == SUFFIX else set()
    if there or path.exists():
        found = min(there, default=path)
        raise ValueError(f"{found}: exists already; choose another --output, or remove it first")
