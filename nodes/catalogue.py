"""The models that a person can choose: bundles and stage files, listed and found by name.

Names are paths from their model folder, always written with ``/``, so that a workflow opens on every system.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..core.folders import fingerprint, require_name, walk_once
from ..core.formats.diffusers_bundle import is_diffusers_folder, joined_folders, read_diffusers_folder
from ..core.formats.layouts.diffusers_files import MODEL_INDEX, is_component
from ..core.formats.load import is_bundle
from ..core.formats.loose_stages import about_loose_stages
from ..core.formats.native.checkpoints import BUNDLE_FILE, read_bundle
from ..core.formats.published import PUBLISHED, facts_of, how_to_get, other_spellings, published_model
from ..core.stages import StageName
from .host import (
    LORA_FOLDER_NAME,
    MODEL_EXTENSIONS,
    MODEL_FOLDER_NAME,
    MODEL_FOLDERS_VARIABLE,
    PACK_FOLDER,
    comfyui,
    model_folders,
    named_bundles,
)

EMBEDDED_BUNDLE = "mini"
_INDEX = ".index.json"  # behind the name of a checkpoint in shards
OPERATOR_FILE = "learned_prior.pth"
EMBEDDINGS_FOLDER = "embeddings"  # of saved embeddings, see embedding_files.py


def list_bundles() -> list[str]:
    """Names of all bundles, the embedded one first whether its files are there or not.

    A bundle is a sub-folder with a ``bundle.json``, or a whole model in diffusers' layout (with a
    ``model_index.json``); its name is the path from the model folder.
    """
    names = {name for root in model_folders() for name in _scan(root)[0]}
    return [EMBEDDED_BUNDLE, *sorted(names - {EMBEDDED_BUNDLE}, key=_natural)]


def list_bundles_to_join() -> list[str]:
    """Names of the bundles that can be joined to another: models in diffusers' layout."""
    return [name for name in list_bundles() if _can_be_joined(first_bundle(name))]


def list_stage_files(stage: StageName) -> list[str]:
    """Names of the files that may hold a stage, those of the embedded bundle first.

    Inside bundles the files that bundle.json names for this stage, for example ``mini/decoder.safetensors``,
    or the folder of its network in diffusers' layout, for example ``karlo/decoder``; outside of them every
    model file, because only its content tells what it holds. A checkpoint in shards is one name, that of the
    whole file.
    """
    places: dict[str, tuple[Any, ...]] = {}
    for root in model_folders():
        bundles, loose = _scan(root)
        for bundle in bundles:
            for number, entry in enumerate(_bundle_entries(root / bundle, stage)):
                # Of two priors the one that the bundle names first; upsamplers by their sizes.
                place = (_natural(bundle), number if stage == "prior" else 0, _natural(entry))
                places.setdefault(PurePosixPath(bundle, entry).as_posix(), place)
        places.update({name: (_natural(name),) for name in loose})
    # An empty choice would make ComfyUI refuse the node without a reason; loading this name gives one.
    names = list(places) or [f"{EMBEDDED_BUNDLE}/{stage}.safetensors"]
    return sorted(names, key=lambda name: (not name.startswith(f"{EMBEDDED_BUNDLE}/"), places.get(name)))


def list_operator_files() -> list[str]:
    """Names of the files that may hold an operator: those of no bundle. Without any, what pOps calls its own,
    of which loading says that it is not here."""
    names = {name for root in model_folders() for name in _scan(root)[1]}
    return sorted(names, key=_natural) or [OPERATOR_FILE]


def find_bundle(name: str, what: str = "bundle") -> Path:
    """The folder of a bundle. Raises ValueError where there is none of that name.

    Args:
        what: the input that gave the name, for the message.
    """
    folder = first_bundle(name, what)
    if folder is not None:
        return folder
    if name == EMBEDDED_BUNDLE:
        raise ValueError(_embedded_is_missing(EMBEDDED_BUNDLE + "/" + BUNDLE_FILE))
    for folder in _places(name, what):
        if folder.is_dir() and (loose := about_loose_stages(folder)) is not None:
            raise ValueError(f"{what}: {loose}")
    _require_unpublished(what, name)
    raise ValueError(
        f"{what}: there is no bundle {name!r}; found {', '.join(list_bundles())}. Put its folder, with its "
        f"{BUNDLE_FILE}, into {model_folders()[-1]}{and_refresh()}.{if_elsewhere()}"
    )


def find_bundle_to_join(name: str, what: str) -> Path:
    """As :func:`find_bundle`. Raises ValueError also where the bundle cannot be joined to another."""
    folder = find_bundle(name, what)
    if not _can_be_joined(folder):
        raise ValueError(
            f"{what}: {name!r} is no model in diffusers' layout, which alone can be joined to another, as "
            f"Kandinsky's decoder to its prior; choose none"
        )
    return folder


def _can_be_joined(folder: Path | None) -> bool:
    return folder is not None and is_diffusers_folder(folder)


def first_bundle(name: str, what: str = "bundle", roots: Sequence[Path] | None = None) -> Path | None:
    """The folder that :func:`find_bundle` gives, None where there is none: no folder is searched for others.

    Args:
        roots: are looked into in place of the model folders, and without the names of this process.

    Raises:
        ValueError: no name inside the model folders.
    """
    if roots is None and isinstance(name, str) and name in named_bundles:
        return named_bundles[name]
    return next((folder for folder in _places(name, what, roots) if is_bundle(folder)), None)


def find_stage_file(name: str) -> Path:
    """The path of a stage by its listed name: a file, an index of shards, or a folder in diffusers' layout.

    Raises:
        ValueError: there is none of that name.
    """
    for path in _places(name, "file"):
        for candidate in (path, path.with_name(path.name + _INDEX)):
            if candidate.is_file() or is_component(candidate) or is_diffusers_folder(candidate):
                return candidate
    if name.startswith(f"{EMBEDDED_BUNDLE}/"):
        raise ValueError(_embedded_is_missing(name))
    _require_unpublished("file", name)
    raise ValueError(
        f"file: there is no model file {name!r} in {', '.join(map(str, model_folders()))}. Put it into "
        f"{model_folders()[-1]}{and_refresh()}, or choose another one.{if_elsewhere()}"
    )


def state_of(
    find: Callable[[Any], Path | None],
    *names: Any,
    beside: Callable[[Path], list[Path]] = lambda path: [],
) -> str:
    """For ``IS_CHANGED``: another value once a file of one of these models was replaced, none of them read.

    ComfyUI would keep what it has loaded for as long as the name stays: of a model that trains on, the old
    weights.

    Args:
        find: the path of a name, None for none; what it does not know is told when the node runs.
        names: None, for what comes by a wire, is passed over.
        beside: the files that a model is read from besides its own.
    """
    files: list[Path] = []
    for name in names:
        try:
            path = None if name is None else find(name)
            files += [] if path is None else [*_files_of(path), *beside(path)]
        except (OSError, ValueError):
            continue
    return fingerprint(files)


def _files_of(path: Path) -> list[Path]:
    """The files of a model: one, its shards, or all that its folder holds of weights and descriptions."""
    if path.is_dir():
        kinds = (*MODEL_EXTENSIONS, ".json")
        return [
            folder / name for folder, _, names in walk_once(path) for name in names if name.endswith(kinds)
        ]
    if not path.name.endswith(_INDEX):
        return [path]
    stem = path.name.removesuffix(_INDEX).rpartition(".")[0]
    return [path, *sorted(each for each in path.parent.iterdir() if each.name.startswith(f"{stem}-"))]


def sources_of_missing() -> dict[str, dict[str, Any]]:
    """Public models that are not here, by the first part of the names that workflows have for them → how to
    get them, in English (``text``) and as ``facts`` for a page in another language. Loaders tell it to the
    page, which tells it when a workflow is opened."""
    folder = f"models/{MODEL_FOLDER_NAME}"
    names = [name for model in PUBLISHED for name in (model.name, *model.spellings)]
    command = _download_command()
    missing = [name for name in names if not any(place.is_dir() for place in _places(name, "bundle"))]
    return {
        name: {"text": how_to_get(model, folder, command), "facts": facts_of(model, folder, command)}
        for name in missing
        if (model := published_model(name))
    }


def _places(name: str, what: str, roots: Sequence[Path] | None = None) -> Iterator[Path]:
    """Where a bundle or file may lie: under its name, then under others that public models have."""
    roots = model_folders() if roots is None else roots
    for spelling in (name, *other_spellings(name)) if isinstance(name, str) else (name,):
        for root in roots:
            yield inside(root, spelling, what)


def _require_unpublished(what: str, name: str) -> None:
    """Raise a ValueError that says how to get a model, if it is a public one that is not here."""
    model = published_model(name)
    if model is not None:
        in_comfyui = comfyui() is not None
        how = how_to_get(model, str(model_folders()[-1]), _download_command(), refresh=in_comfyui)
        raise ValueError(f"{what}: {name!r} is not here. {how}.{if_elsewhere()}")


def and_refresh() -> str:
    """What else is to be done when a file was added: ComfyUI makes its lists once, others when they run."""
    return "" if comfyui() is None else " and refresh the node definitions"


def if_elsewhere(folder: str = "the folder around it", variable: str = MODEL_FOLDERS_VARIABLE) -> str:
    """How models that lie elsewhere are found where no ComfyUI knows of their folder."""
    if comfyui() is not None:
        return ""
    return f" If it lies elsewhere, name {folder} in the variable {variable}."


def _download_command() -> str:
    """``unclip download`` where this package is installed with its command; empty where it only lies among
    ComfyUI's custom nodes."""
    installed = entry_points(group="console_scripts", name="unclip")
    return "unclip download" if installed else ""


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts by the numbers in a name: upsampler-256 before upsampler-1024."""
    parts = re.split(r"(\d+)", name)  # text and digits by turns, text first
    return [(int(digits), text) for digits, text in zip(["0", *parts[1::2]], parts[::2], strict=True)]


def _embedded_is_missing(name: str) -> str:
    return (
        f"the embedded bundle {EMBEDDED_BUNDLE!r} is missing: {PACK_FOLDER / 'models' / name} is not there. "
        f"Its weights are part of the repository: install the pack again, or choose another model from "
        f"{model_folders()[-1]}."
    )


def inside(root: Path, name: str, what: str, where: str = "the model folders") -> Path:
    """``root / name``, refusing names that lead out of ``root``. Both / and \\ separate.

    Args:
        what: the input that gave the name, for the message.
        where: what ``root`` is, for the message.
    """
    require_name(what, name)
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or PureWindowsPath(name).anchor or not name.strip():
        raise ValueError(f"{what}: {name!r} is not a name inside {where}; choose one from the list.")
    return root.joinpath(*parts)


def _scan(root: Path) -> tuple[list[str], list[str]]:
    """Names of the bundles below ``root``, and of the model files that belong to no bundle."""
    bundles: list[str] = []
    loose: list[str] = []
    for folder, subfolders, files in walk_once(root):
        relative = folder.relative_to(root)
        if (BUNDLE_FILE in files or MODEL_INDEX in files) and relative.parts:
            bundles.append(relative.as_posix())
            subfolders.clear()
            continue
        if relative.parts and joined_folders(folder):  # a bundle of bundles, each of which counts too
            bundles.append(relative.as_posix())
        skipped = {EMBEDDINGS_FOLDER, LORA_FOLDER_NAME} if not relative.parts else set()
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skipped]
        sharded = {
            name
            for file in files
            if (name := file.removesuffix(_INDEX)) != file and name.endswith(MODEL_EXTENSIONS)
        }
        stems = {name.rpartition(".")[0] for name in sharded}
        whole = [file for file in files if file.rpartition("-of-")[0].rpartition("-")[0] not in stems]
        models = [*(file for file in whole if file.endswith(MODEL_EXTENSIONS)), *sharded]
        loose += [(relative / file).as_posix() for file in models]
    return bundles, loose


def _bundle_entries(folder: Path, stage: StageName) -> list[str]:
    """File or folder names of a stage in a bundle; none where it cannot be read (loading it says why)."""
    try:
        if not (folder / BUNDLE_FILE).is_file():
            _, networks = read_diffusers_folder(folder)
            return [networks[stage].relative_to(folder).as_posix()] if stage in networks else []
        _, files = read_bundle(folder)
    except (OSError, ValueError):
        return []
    return [file.name for file in files.get(stage, ())]
