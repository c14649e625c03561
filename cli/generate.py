"""``unclip generate``: a picture from a prompt, by the graph of workflows/text_to_image.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_path
from .sampling_options import sampling

if TYPE_CHECKING:
    from .workflow.graph import Workflow
    from .workflow.specs import Catalog

UPSAMPLERS_FOR_SIZE = {64: 0, 256: 1, 1024: 2}
SUFFIX = ".png"
_LAYOUT = Path(__file__).resolve().parents[1] / "workflows" / "text_to_image.json"


@dataclass(frozen=True)
class Settings:
    """What the graph is built from.

    Attributes:
        precision: None takes the node's own default.
        sampling: inputs by node, see ``sampling_options.sampling``; those left out have their defaults.
        loras: names and strengths, see ``loras.chosen_loras``.
    """

    prompt: str
    bundle: str = "mini"
    size: int = 256
    seed: int = 0
    batch_size: int = 1
    precision: str | None = None
    filename_prefix: str = "unclip"
    sampling: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loras: Sequence[tuple[str, float]] = ()


def generate(
    ctx: typer.Context,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help='What to paint, for example "a flat panda".')
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The picture's file (.png). It carries its workflow."
        ),
    ],
    seed: Annotated[
        int, typer.Option(min=0, help="Chooses the noise: the same seed gives the same picture.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-n", min=1, max=256, help="Pictures to make; files are numbered.")
    ] = 1,
    size: Annotated[int, typer.Option(metavar="64|256|1024", help="Pixels on each side.")] = 256,
    bundle: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="The models: name of a bundle, or its folder.")
    ] = "mini",
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
    """Paint a picture of a prompt and print its file."""
    targets = target_files(output, batch_size)
    if size not in UPSAMPLERS_FOR_SIZE:
        raise typer.BadParameter(f"--size {size}: choose 64, 256 or 1024.")

    from .loras import chosen_loras
    from .workflow.local import local_catalog, run_here

    catalog = local_catalog()
    from .workflow.builtin_nodes import Folders

    graph = text_to_image(
        Settings(
            prompt=prompt,
            bundle=_bundle_name(bundle),
            size=size,
            seed=seed,
            batch_size=batch_size,
            precision=precision,
            filename_prefix=output.stem,
            sampling=sampling(ctx),
            loras=chosen_loras(lora or []),
        ),
        catalog,
    )
    from ..core.writing import staging_folder

    folder = output.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that moving the finished files there is one rename each.
    with staging_folder(folder) as staging:
        folders = Folders(Path(), staging)
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


def text_to_image(settings: Settings, catalog: Catalog) -> Workflow:
    """The graph of workflows/text_to_image.json: CLIP → prior → decoder → upsamplers → SaveImage.

    Every widget of every node is written out, as ComfyUI does, so that the picture records all of them; it
    carries that file's layout too, with these values.
    """
    from .workflow.graph import Node, Workflow
    from .workflow.laid_out import laid_out

    s = settings
    loras = [
        (f"lora-{number}", "UnCLIPLoadLoRA", "LoRA", {"lora": name, "strength": strength})
        for number, (name, strength) in enumerate(s.loras, 1)
    ]
    prior, decoder = ["1", 1], ["1", 2]
    for node_id, *_, given in loras:
        given |= {"prior": prior, "decoder": decoder}
        prior, decoder = [node_id, 0], [node_id, 1]
    upsampler = {"seed": s.seed, **s.sampling.get("UnCLIPUpsample", {})}
    entries = [
        ("1", "UnCLIPLoadBundle", "Load the models", {"bundle": s.bundle, "precision": s.precision}),
        ("2", "UnCLIPTextEncode", "Encode the prompt", {"clip": ["1", 0], "text": s.prompt}),
        (
            "3",
            "UnCLIPDiffusionPrior",
            "Prior",
            {
                "prior": prior,
                "text": ["2", 0],
                "seed": s.seed,
                "batch_size": s.batch_size,
                **s.sampling.get("UnCLIPDiffusionPrior", {}),
            },
        ),
        (
            "4",
            "UnCLIPDecode",
            "Decode",
            {
                "decoder": decoder,
                "embedding": ["3", 0],
                "text": ["2", 0],
                "seed": s.seed,
                **s.sampling.get("UnCLIPDecode", {}),
            },
        ),
        ("5", "UnCLIPUpsample", "Upsample to 256", {"upsampler": ["1", 3], "image": ["4", 0], **upsampler}),
        ("6", "UnCLIPUpsample", "Upsample to 1024", {"upsampler": ["1", 4], "image": ["5", 0], **upsampler}),
    ]
    entries = entries[: 4 + UPSAMPLERS_FOR_SIZE[s.size]]
    last = entries[-1][0]
    entries += loras
    entries.append(("7", "SaveImage", "Save", {"images": [last, 0], "filename_prefix": s.filename_prefix}))
    graph = Workflow(
        {
            node_id: Node(class_type, _with_defaults(class_type, inputs, catalog), title)
            for node_id, class_type, title, inputs in entries
        }
    )
    if loras:  # for which the file has no places; the page lays the graph out itself
        return graph
    return replace(graph, ui=laid_out(json.loads(_LAYOUT.read_text(encoding="utf-8")), graph, catalog))


def _with_defaults(class_type: str, inputs: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The given inputs; widgets that are not given, or None, hold their default."""
    spec = catalog.spec(class_type)
    widgets: Sequence = spec.widgets if spec is not None else ()
    given = {name: value for name, value in inputs.items() if value is not None}
    return {**{widget.name: widget.default for widget in widgets}, **given}


def _bundle_name(bundle: str) -> str:
    """The bundle's name for the loader node; a folder's parent becomes a model folder of this process."""
    from ..core.formats.load import is_bundle
    from ..nodes import catalogue, host

    if bundle in catalogue.list_bundles():
        return bundle
    folder = Path(bundle).expanduser()
    if not is_bundle(folder):
        if folder.is_dir():
            raise ValueError(
                f"--bundle {bundle}: this folder has no {catalogue.BUNDLE_FILE}, so it is not a bundle."
            )
        names = ", ".join(catalogue.list_bundles())
        raise ValueError(
            f"--bundle {bundle}: there is no such bundle or folder; the bundles here are {names}."
        )
    folder = folder.resolve()
    before = os.environ.get(host.MODEL_FOLDERS_VARIABLE)
    # First of the named folders: a bundle of the same name elsewhere must not be taken instead.
    folders = [str(folder.parent), *([before] if before else [])]
    os.environ[host.MODEL_FOLDERS_VARIABLE] = os.pathsep.join(folders)
    return folder.name
