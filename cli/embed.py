"""``unclip embed``: pictures and captions to shards of CLIP embeddings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def embed(
    data: Annotated[
        str,
        typer.Argument(help="Folder of pictures with captions, or shards (paths, globs, URLs)."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the embeddings.")],
    clip: Annotated[Path, typer.Option(help="File or folder of a CLIP model.")],
    caption_field: Annotated[str | None, typer.Option(help="Column of captions in metadata.")] = None,
    min_side: Annotated[int, typer.Option(min=0, help="Leave out pictures with a smaller side.")] = 0,
    max_aspect: Annotated[
        float | None,
        typer.Option(
            min=1, help="Leave out pictures whose longer side is more than this many times the other."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Pictures in a shard.")] = 4096,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through CLIP at once.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read and decode; by the number of cores.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Embed on the CPU even where there is a GPU.")] = False,
    allow_pipe: Annotated[
        bool, typer.Option("--allow-pipe", help="Run the commands of DATA (pipe:…) that print shards.")
    ] = False,
) -> None:
    """Embed pictures and captions; priors train from that without pictures. Goes on where it was stopped.

    On several GPUs: torchrun --nproc_per_node N -m unclip.cli.app embed …, or accelerate launch.
    """
    from ..core.data.opening import ALLOW_PIPE, source_of, workers_of
    from ..core.data.process import current_process, device_of, together
    from ..core.data.settings import DataConfig
    from ..core.training.embedding import EmbeddingConfig, EmbeddingReport, embed_pictures
    from .console import named, print_path, warn
    from .extras import needs_train_extra
    from .progress import StageBars

    if allow_pipe:
        os.environ[ALLOW_PIPE] = "1"
    process = current_process()
    settings = DataConfig(
        source=source_of(data),
        path=data,
        caption_field=caption_field,
        min_side=min_side,
        max_aspect=max_aspect,
        workers=workers,
    )
    config = EmbeddingConfig(settings, str(clip), rows, batch_size)
    with needs_train_extra(), named("data.path", "DATA"), StageBars(quiet=process.rank > 0) as bars:
        bar = None

        def show(report: EmbeddingReport) -> None:
            nonlocal bar
            bar = bar or bars.add("embed", report.shards)
            bar(report.done, report.shards)

        skipped = embed_pictures(
            config,
            output,
            device_of(process, cpu),
            process,
            workers_of(settings, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
            show,
        )
    skipped = together(process, skipped)
    if process.rank == 0:
        for name, reason in skipped[:5]:
            warn(f"left out: {name}: {reason}")
        if skipped:
            warn(f"{len(skipped)} pictures that could not be used were left out")
        print_path(output)
