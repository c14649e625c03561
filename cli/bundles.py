"""Bundles as people name them to every command: by a name, or by their folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

MOST = 2
"""A prior and a decoder, where they are separate downloads."""


def bundle_folders(given: Sequence[str], what: str = "--bundle") -> list[Path]:
    """The folders of a bundle, or of the two that make one, see ``bundle_folder``."""
    if len(given) > MOST:
        raise typer.BadParameter(f"{what}: found {len(given)}; expected one, or a prior and a decoder.")
    return [bundle_folder(each, what) for each in given]


def bundle_folder(given: str, what: str = "--bundle") -> Path:
    """The folder of a bundle by its name or path; names come first.

    Args:
        what: the option that gave it, for messages.

    Raises:
        ValueError: there is none; says how to get a public one.
    """
    from ..core.folders import at_home
    from ..core.formats.load import is_bundle
    from ..core.formats.loose_stages import about_loose_stages
    from ..core.formats.published import published_model
    from ..nodes import catalogue

    names = catalogue.list_bundles()
    if given in names:
        return catalogue.find_bundle(given, what)
    folder = at_home(given)
    if is_bundle(folder):
        return folder
    if folder.is_dir():
        if (loose := about_loose_stages(folder)) is not None:
            raise ValueError(f"{what} {loose}")
        raise ValueError(
            f"{what} {given}: this folder has no {catalogue.BUNDLE_FILE}, so it is not a bundle."
        )
    if not folder.exists() and published_model(given) is not None:
        # By another of its names, or the reason says where to get it.
        return catalogue.find_bundle(given, what)
    raise ValueError(
        f"{what} {given}: there is no such bundle or folder; the bundles here are {', '.join(names)}."
    )


def path_or_bundle(path: Path) -> Path:
    """A path that is there, else the folder of the bundle of that name; of neither the path as it is.

    Raises:
        ValueError: a public model that is not here; says how to get it.
    """
    from ..core.formats.published import published_model
    from ..nodes import catalogue

    name = path.as_posix()
    if path.exists() or not (name in catalogue.list_bundles() or published_model(name) is not None):
        return path
    return catalogue.find_bundle(name)


def bundle_names(given: Sequence[str], what: str = "--bundle") -> list[str]:
    """Names by which the loader node finds just these bundles in this process.

    Raises:
        ValueError: see ``bundle_folder``; a folder that no name leads to.
    """
    from ..nodes import host

    chosen: list[tuple[str, Path]] = []
    roots = host.model_folders()
    for each, folder in zip(given, bundle_folders(given, what), strict=True):
        found = (each, roots) if _leads_to(each, folder, roots) else _name_of(folder, chosen, roots)
        if found is None:
            raise ValueError(
                f"{what} {each}: other models have its name, or its path is none that a workflow can hold; "
                f"rename the folder."
            )
        name, roots = found
        chosen.append((name, folder))
    host.named_bundles.update(chosen)
    return [name for name, _ in chosen]


def _name_of(
    folder: Path, chosen: Sequence[tuple[str, Path]], roots: list[Path]
) -> tuple[str, list[Path]] | None:
    """The shortest name that leads to a folder while those chosen before lead where they did; None for none.

    Beside it the model folders by which all of them do, as ``unclip run`` would need them.
    """
    folder = folder.resolve()
    for root in roots:
        if folder.is_relative_to(root.resolve()):
            name = folder.relative_to(root.resolve()).as_posix()
            if _leads_to(name, folder, roots):
                return name, roots
    pack, *others = roots
    for parent in folder.parents:
        name = folder.relative_to(parent).as_posix()
        for around in ([pack, parent, *others], [*roots, parent]):
            if all(_leads_to(*each, around) for each in (*chosen, (name, folder))):
                return name, around
    return None


def _leads_to(name: str, folder: Path, roots: Sequence[Path]) -> bool:
    from ..nodes import catalogue

    try:
        found = catalogue.first_bundle(name, roots=roots)
    except ValueError:
        return False
    return found is not None and found.resolve() == folder.resolve()
