"""``unclip data``: build training data, and turn it from one form into another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build training data.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Build training data."""


@app.command()
def pictograms(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the shards.")] = Path(
        "data/pictograms"
    ),
    packages: Annotated[
        Path, typer.Option(help="Folder of the npm packages; missing ones are downloaded with npm.")
    ] = Path("data/packages"),
    style: Annotated[list[str] | None, typer.Option(help="Icon set, repeatable; all by default.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Group, repeatable; all by default.")] = None,
) -> None:
    """Pack open pictograms with their human-made names into webdataset shards of SVG."""
    from ..core.data.pictograms import (
        GROUPS,
        ICON_PACKAGES,
        download_packages,
        read_pictograms,
        require_known,
        require_writer,
        write_shards,
    )
    from .console import stdout
    from .extras import needs_train_extra

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    styles, groups = style or list(ICON_PACKAGES), group or list(GROUPS)
    with needs_train_extra():
        # What would stop the work in the end is asked for before the downloads.
        require_writer()
        require_known("group", groups, GROUPS)
        download_packages(packages, styles)
        count = write_shards(read_pictograms(packages, styles, groups), output)
    stdout().print(f"{count} pictograms in {output}", soft_wrap=True)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder of pictures with captions, or webdataset shards.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder of the shards, or pictures.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Pictures in a shard.")] = 10_000,
    caption_field: Annotated[str | None, typer.Option(help="Column of captions in metadata files.")] = None,
) -> None:
    """Pack a folder of pictures with captions into webdataset shards, or unpack shards into a folder."""
    from ..core.data.converting import to_folder, to_shards
    from ..core.data.opening import open_source, source_of
    from ..core.data.settings import DataConfig
    from .console import named, print_path, warn
    from .extras import needs_train_extra
    from .progress import StageBars

    kind = source_of(source)
    with needs_train_extra(), named("data.path", "SOURCE"):
        found = open_source(DataConfig(source=kind, path=source, caption_field=caption_field))
    with StageBars() as bars:
        bar = bars.add("convert", len(found))

        def show(done: int) -> None:
            bar(done, len(found))

        if kind == "folder":
            skipped = to_shards(found, output, per_shard, show)
        else:
            skipped = to_folder(found, output, show)
    missing = [(name, "it has no caption or no picture") for name in found.missing]
    for name, reason in [*missing, *skipped][:5]:
        warn(f"left out: {name}: {reason}")
    if missing or skipped:
        warn(f"{len(missing) + len(skipped)} pictures were left out")
    print_path(output)
