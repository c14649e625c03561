"""``unclip generate``: pictures of a prompt, of other pictures, or of both, by the graph in ``painting``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_path, warn
from .painting import Settings, chosen_size, painting, require_able, require_sides
from .sampling_options import idle_options, require_fitting, sampling

if TYPE_CHECKING:
    from ..core.formats.abilities import Abilities
    from .workflow.specs import Catalog

SUFFIX = ".png"
MAX_SIDE = 4096
LAST_SEED = 2**64 - 1


def generate(
    ctx: typer.Context,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The picture's file (.png). It carries its workflow."
        ),
    ],
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help='What to paint, for example "a flat panda". Not needed beside --image.'
        ),
    ] = "",
    seed: Annotated[
        int,
        typer.Option(min=0, max=LAST_SEED, help="Chooses the noise: the same seed gives the same picture."),
    ] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-n", min=1, max=256, help="Pictures to make; files are numbered.")
    ] = 1,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIDE|WIDTHxHEIGHT",
            help="Pixels: what the bundle makes, of mini 64, 256 or 1024. Kandinsky also paints other sides "
            "and proportions, such as 768x512. Default: 256, or the decoder's own.",
        ),
    ] = None,
    negative: Annotated[
        str, typer.Option(metavar="PROMPT", help="What the picture is not to show: for prior and decoder.")
    ] = "",
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A picture to vary. With several, or with a PROMPT, all are mixed: up to 4 in all.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="How much of each --image, and last of the PROMPT if there is one: 0.3,0.7. Weight 0 leaves "
            "the PROMPT to the decoder alone. Default: all the same.",
        ),
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help="The models: name of a bundle, or its folder. Twice where prior and decoder are separate "
            "downloads. Default: mini.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:STRENGTH]", help="A LoRA on prior or decoder, at strength 1. Several add up."
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16 or bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the best.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Paint a picture of a prompt, of pictures, or of both, and print its file.

    Settings that are not given are those that the bundle asks for (unclip inspect tells them), or else
    those below.
    """
    targets = target_files(output, batch_size)
    width, height = _sides(size)
    sources = _names_of(image or [])

    from .bundles import bundle_names
    from .loras import chosen_loras
    from .workflow.local import local_catalog, run_here

    catalog = local_catalog()
    from .workflow.builtin_nodes import Folders

    if precision is not None:
        from ..core.precision import require_precision

        require_precision(precision, "--precision")
    names = bundle_names(bundle or ["mini"])
    abilities = _abilities(names)
    chosen = sampling(ctx)
    settings = Settings(
        prompt=prompt,
        bundles=tuple(names),
        size=chosen_size(abilities, width, height),
        seed=seed,
        batch_size=batch_size,
        negative=negative,
        images=tuple(sources),
        weights=_weights(weights, catalog),
        precision=precision,
        filename_prefix=output.stem,
        sampling=chosen,
        loras=chosen_loras(lora or []),
    )
    sides = {side: value for side, value in chosen["UnCLIPDecode"].items() if side in ("width", "height")}
    if sides and (settings.size.width or settings.size.height):
        flags = " and ".join(f"--{side}" for side in sides)
        raise typer.BadParameter(f"--size {size} and {flags}: both name a size; leave one out.")
    require_sides(abilities, sides)
    require_able(settings, abilities)
    graph = painting(settings, abilities, catalog)
    painted = {node.class_type: node.inputs for node in graph.nodes.values()}
    require_fitting(painted, abilities.few_steps)
    for flag in idle_options(chosen, painted):
        warn(f"{flag} has no effect: what it sets does not run here")
    from ..core.writing import staging_folder

    folder = output.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that moving the finished files there is one rename each.
    with staging_folder(folder) as staging:
        folders = Folders(staging / "input", staging / "output")
        folders.input.mkdir()
        for name, source in sources.items():
            shutil.copyfile(source, folders.input / name)
        run_here(graph, catalog, folders, device=device, quiet=quiet)
        for made, target in zip(folders.written, targets, strict=True):
            made.replace(target)
            print_path(target)


def target_files(output: Path, count: int) -> list[Path]:
    """Where the pictures go, see ``numbered``."""
    if output.is_dir():
        raise typer.BadParameter(
            f"--output {output}: is a folder; name a file, such as {output / 'fox.png'}."
        )
    if output.suffix.lower() != SUFFIX:
        raise typer.BadParameter(
            f"--output {output}: expected a name that ends in {SUFFIX}, which can carry the workflow."
        )
    from ..core.pictures.files import numbered

    return numbered(output, count)


def _sides(size: str | None) -> tuple[int, int]:
    """Width and height; 0 and 0 where none is named."""
    if size is None:
        return 0, 0
    found = re.fullmatch(r"(\d{1,4})(?:[x×](\d{1,4}))?", size.strip().lower())
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or not all(1 <= side <= MAX_SIDE for side in sides):
        raise typer.BadParameter(
            f"--size {size}: expected a side in pixels, such as 256, or width and height, such as 768x512, "
            f"of 1 to {MAX_SIDE}."
        )
    return sides[0], sides[-1]


def _weights(text: str | None, catalog: Catalog) -> tuple[float, ...]:
    if text is None:
        return ()
    from ..nodes.inputs import numbers

    spec = catalog.spec("UnCLIPBlend")
    assert spec is not None
    options = spec.inputs["weight_1"].options
    return tuple(numbers(text, "--weights", options["min"], options["max"]))


def _names_of(images: list[Path]) -> dict[str, Path]:
    """The pictures by the names that the workflow has for them; two of one name are told apart.

    Raises:
        ValueError: no such file, no picture, or several in one file.
    """
    from ..core.pictures.opening import read_file

    named: dict[str, Path] = {}
    for path in images:
        if not path.is_file():
            raise ValueError(f"--image {path}: there is no such file")
        frames = read_file(path, _frames)
        if frames > 1:
            raise ValueError(f"--image {path}: holds {frames} pictures; expected one. Save one of them alone")
        name, number = path.name, 1
        while name in named:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        named[name] = path
    return named


def _frames(opened: Any) -> int:
    # Further pictures of an MPO are depth maps and thumbnails, which Load Image passes over.
    return 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)


def _abilities(names: list[str]) -> Abilities:
    from ..core.formats.abilities import read_abilities
    from ..nodes.catalogue import find_bundle

    return read_abilities(*(find_bundle(name, "--bundle") for name in names))
