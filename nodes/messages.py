"""Messages as artists read them in ComfyUI's page: with the folders that they know, not their paths."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import host, wires

_NodeClass = type


def plain(text: str) -> str:
    """A message with ComfyUI's names of folders (``models/unclip``, ``input``) in place of their paths.

    Outside of ComfyUI, where people work with paths, it stays as it is.
    """
    comfy = host.comfyui()
    if comfy is None:
        return text
    for folder, name in sorted(_folders(comfy).items(), key=lambda each: -len(each[0])):
        text = text.replace(folder, name)
    return text


def _folders(comfy: Any) -> dict[str, str]:
    """Absolute paths → what they are called in ComfyUI."""
    names: dict[Path, str] = {host.PACK_FOLDER: f"custom_nodes/{host.PACK_NAME}"}
    default = Path(comfy.folders.models_dir) / host.MODEL_FOLDER_NAME
    for folder in host.model_folders()[1:]:
        # Others are those of extra_model_paths.yaml.
        names[folder] = (
            f"models/{folder.name}" if folder == default else f"{folder.parent.name}/{folder.name}"
        )
    for folder in host.lora_folders():
        around = names.get(
            folder.parent, folder.parent.name
        )  # those in model folders have no name of their own
        names.setdefault(folder, f"{around}/{folder.name}")
    names[host.input_folder()], names[host.output_folder()] = "input", "output"
    return {spelling: name for folder, name in names.items() for spelling in _spellings(folder)}


def _spellings(folder: Path) -> set[str]:
    found = {str(folder), folder.as_posix(), str(folder.resolve()), folder.resolve().as_posix()}
    return {each for each in found if len(each) > 1}  # never the root of a disk


def refusal(find: Callable[[Any], object], name: Any) -> bool | str:
    """For ``VALIDATE_INPUTS``: True, or what ``find`` says of a name that it does not know.

    ComfyUI itself would only list what there is. A name that comes by a wire is None here, and checked later.
    """
    told = _told(find, name)
    return told is None or re.sub(r"^\w+: ", "", told)  # ComfyUI writes the input's name before it


def refusals(find: Mapping[str, Callable[[Any, str], object]], **names: Any) -> bool | str:
    """As :func:`refusal`, of several inputs, each with its name before what is said of it.

    ComfyUI shows one text at all inputs that ``VALIDATE_INPUTS`` checks, also at those that are in order.

    Args:
        find: for each input what finds a name, and is told the input's.
        names: what the inputs hold.
    """
    every = (_told(lambda name, what=what: find[what](name, what), name) for what, name in names.items())
    return "\n".join(told for told in every if told is not None) or True


def _told(find: Callable[[Any], object], name: Any) -> str | None:
    if name is not None:
        try:
            find(name)
        except ValueError as error:
            return plain(str(error))
    return None


def with_plain_errors(node: _NodeClass) -> _NodeClass:
    """A node class whose errors read as :func:`plain` has them; type and traceback stay.

    What is wired to it is checked before it runs, see ``wires.taken``.
    """
    run = getattr(node, node.FUNCTION)
    kinds = wires.kinds_of(run)

    @functools.wraps(run)
    def execute(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **wires.taken(node, kinds, kwargs))
        except Exception as error:
            _rewrite(error)
            raise

    setattr(node, node.FUNCTION, execute)
    return node


def _rewrite(error: Exception) -> None:
    if isinstance(error, OSError):  # its text is made of its parts
        for name in ("filename", "filename2"):
            value = getattr(error, name)
            if isinstance(value, (str, Path)):
                setattr(error, name, plain(str(value)))
    error.args = tuple(plain(each) if isinstance(each, str) else each for each in error.args)
