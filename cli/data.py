"""``unclip data``: build training data."""

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
