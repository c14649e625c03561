"""``unclip download``: a public model into a folder below the model folder."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from .console import print_path, stderr, stdout

if TYPE_CHECKING:
    from ..core.formats.published import PublishedModel, Repository
    from .downloading import RemoteFile

_LISTED = "list"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="karlo, kandinsky22, glide, …; 'list' shows all of them.")
    ] = _LISTED,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The model folder. Default: ComfyUI's models/unclip, or UNCLIP_MODELS."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Download a public model, and print its folder. What is there already is not fetched again."""
    from ..core.formats.published import PUBLISHED
    from ..nodes import host

    if name == _LISTED:
        for model in PUBLISHED:
            stdout().print(
                Text(f"{model.name:20} {model.title}, {model.size}, {model.licence}"), soft_wrap=True
            )
        return
    model = next((each for each in PUBLISHED if each.name == name or name in each.spellings), None)
    if model is None:
        raise typer.BadParameter(f"{name!r}: choose {', '.join(each.name for each in PUBLISHED)}.")
    folder = (to or host.model_folders()[-1]) / model.name
    say = stderr().print
    say(
        Text(f"{model.title}, {model.size}. Licence: {model.licence}, see {', '.join(model.sources)}"),
        soft_wrap=True,
    )
    fetch_model(model, folder, quiet=quiet)
    print_path(folder)


def fetch_model(model: PublishedModel, folder: Path, *, quiet: bool = False) -> None:
    """Download all files of a model, with the licence that lies beside them, and note its sampling settings.

    Raises:
        ValueError: see ``downloading.fetch``; huggingface_hub is not installed, a repository is gone, or the
            disk has not enough room.
    """
    from ..core.formats.defaults import write_defaults
    from .downloading import fetch, require_space
    from .progress import StageBars

    files = [file for part in model.repositories for file in files_of(part)]
    files += [_web_file(url) for url in model.files]
    require_space(files, folder)
    with StageBars(quiet=quiet) as bars:
        for file in files:
            update = bars.add(file.path, file.size or 1)
            fetch(file, folder, lambda done, total, update=update: update(done, total or done))
            update(1, 1)
    write_defaults(folder, model.defaults)


def files_of(part: Repository) -> list[RemoteFile]:
    """The files of a repository that are needed, at its newest commit.

    Of the same weights in several forms only one is taken: whole before half precision, safetensors before
    pickles.
    """
    from .downloading import RemoteFile, offline
    from .extras import hugging_face

    hub = hugging_face("unclip download")
    endpoint = os.environ.get("HF_ENDPOINT") or None  # a mirror
    address = hub.hf_hub_url(part.name, "config.json", endpoint=endpoint)
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(part.name, files_metadata=True, token=False)
    except Exception as error:  # of its HTTP library, which is another in every version
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None:
            raise offline(address, error) from error
        raise ValueError(
            f"{part.page}: the server answers {status}; is the model still published?"
        ) from error
    found = {each.rfilename: each for each in info.siblings or []}
    chosen = chosen_files(list(found), part.only)
    if not chosen:
        raise ValueError(
            f"{part.page}: holds none of the files that are needed; is the model still published?"
        )
    return [
        RemoteFile(
            hub.hf_hub_url(part.name, name, revision=info.sha, endpoint=endpoint),
            f"{part.into}/{name}".lstrip("/"),
            found[name].size,
            found[name].lfs.sha256 if found[name].lfs else None,
            None if found[name].lfs else found[name].blob_id,
        )
        for name in chosen
    ]


def chosen_files(names: list[str], only: tuple[str, ...] = ()) -> list[str]:
    """Of a repository's files those to download."""
    if only:
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in only)]
    weights: dict[str, list[str]] = {}
    chosen = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if file.endswith((".safetensors", ".bin", ".index.json")) and folder:
            weights.setdefault(folder, []).append(name)
        elif file.endswith((".json", ".txt", ".model", ".md")) or file.upper().startswith("LICENSE"):
            chosen.append(name)
    for files in weights.values():
        safe = [name for name in files if ".safetensors" in name] or files
        whole = [name for name in safe if ".fp16." not in name and ".non_ema." not in name]
        chosen += whole or safe
    return sorted(chosen)


def _web_file(url: str) -> RemoteFile:
    from .downloading import RemoteFile

    parts = url.split("/")
    # OpenAI's addresses of CLIP hold the SHA-256 of the file.
    digest = next((part for part in parts if _SHA256.fullmatch(part)), None)
    return RemoteFile(url, parts[-1], sha256=digest)
