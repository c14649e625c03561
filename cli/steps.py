"""``unclip steps``: the timesteps with which a bundle's decoder paints best in few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_path, stdout

if TYPE_CHECKING:
    from ..core.diffusion.few_steps import FewSteps


def steps(
    bundle: Annotated[str, typer.Argument(metavar="NAME|PATH", help="Bundle, or its folder.")],
    captions: Annotated[Path, typer.Argument(help="File of captions: txt, csv, jsonl or parquet.")],
    steps: Annotated[
        list[int] | None,
        typer.Option(min=1, help="A number of steps; may be given several times. Otherwise 2 to 8."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many of the captions are painted.")] = 8,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="A sampler without noise; may be given several times. Otherwise ddim, dpmpp_2m and unipc."
        ),
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="The guidance that is served. Otherwise the bundle's, or cfg.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0.0, help="Its scale. Otherwise the bundle's, or 1.5.")
    ] = None,
    prior: Annotated[str, typer.Option(help="diffusion, autoregressive or none.")] = "diffusion",
    points: Annotated[int, typer.Option(min=8, help="Steps of the paths that are aimed at.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "auto",
    cpu: Annotated[bool, typer.Option("--cpu", help="Paint on the CPU even where there is a GPU.")] = False,
    with_bundle: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="The prior, where prior and decoder are separate downloads."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is found and write nothing.")] = False,
) -> None:
    """Find the timesteps that a decoder's spacing "optimal" takes, and write them to its folder.

    A few pictures are painted in many steps, and the ways of few steps that come nearest to them are sought
    (docs/sampling.md says how). They go into bundle.json, or into unclip.json beside a model in another
    layout; those for other samplers and numbers of steps stay.
    """
    from ..core.data.prompts import read_prompts
    from ..core.formats.few_steps import decoder_folder, with_described_steps, write_few_steps
    from ..core.formats.load import load_any_bundle
    from ..core.pipelines.encode import encode_text
    from ..core.pipelines.few_steps import find_few_steps, merged_few_steps
    from ..core.pipelines.generate import default_options, require_stages, sample_prior
    from ..core.pipelines.options import require_scale
    from ..nodes import host
    from .bundles import bundle_folder
    from .extras import needs_train_extra
    from .progress import StageBars

    with needs_train_extra():
        spoken = [row.caption for row in read_prompts(captions) if row.caption][:pictures]
    if not spoken:
        raise ValueError(f"{captions} holds no captions")
    folders = [bundle_folder(bundle, "BUNDLE")]
    if with_bundle is not None:
        folders.append(bundle_folder(with_bundle, "--with-bundle"))
    place = decoder_folder(*folders)
    if not dry_run:
        _require_writable(place)
    host.set_device("cpu" if cpu else None)
    device = host.compute_device()
    loaded = load_any_bundle(*folders, device=device, dtype=host.choose_dtype(precision))
    given = {"guidance": guidance, "guidance_scale": guidance_scale}
    asked = default_options(loaded)
    served = {name: value for name, value in given.items() if value is not None}
    guided = {**vars(asked.decode_options), **served}
    require_scale(guided["guidance_scale"], guided["guidance"], "--guidance-scale")
    ways = replace(asked, prior=prior, decode_options=replace(asked.decode_options, **served))
    require_stages(loaded, ways)
    text = encode_text(loaded.clip, spoken)
    embedding = sample_prior(loaded, text, seed, ways)
    read = text if loaded.decoder_text is None else encode_text(loaded.decoder_text, spoken)
    counts, samplers = sorted(set(steps or range(2, 9))), sampler or ["ddim", "dpmpp_2m", "unipc"]
    with StageBars() as bars:
        total, done = len(counts) * len(samplers), []
        bar = bars.add("steps", total)

        def on_found(found: FewSteps) -> None:
            done.append(found)
            bar(len(done), total)

        found = find_few_steps(
            loaded.decoder,
            embedding if loaded.decoder.takes_embeddings else None,
            read,
            steps=counts,
            samplers=samplers,
            seed=seed,
            points=points,
            options=ways.decode_options,
            on_found=on_found,
        )
    _show(found)
    if not dry_run:
        # As the folder has them by now: another run may have found some meanwhile.
        known = with_described_steps(loaded.decoder, [place]).diffusion.few_steps
        merged = merged_few_steps(known, [each.steps for each in found])
        print_path(write_few_steps(place, merged))


def _require_writable(folder: Path) -> None:
    """Said before the search, which takes minutes to hours."""
    import os

    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"{folder}: cannot be written into, where the timesteps that are found would stand; copy the "
            f"bundle to a folder of your own, or only see what is found with --dry-run"
        )


def _show(found: Sequence[FewSteps]) -> None:
    """How far from the many-step pictures, beside the nearest of the other spacings."""
    from rich.table import Table

    table = Table(box=None, title_justify="left")
    for title in ("sampler", "steps", "optimal", "best other", "timesteps"):
        table.add_column(title, overflow="fold")
    for each in found:
        other = min(each.others, key=lambda name: each.others[name])
        table.add_row(
            each.steps.sampler,
            str(len(each.steps.timesteps)),
            f"{each.error:.4f}",
            f"{each.others[other]:.4f} ({other})",
            ", ".join(map(str, each.steps.timesteps)),
        )
    stdout().print(table)
