"""Public models of the unCLIP family: where their files come from, and the name of the folder for them.

Facts of the sources, July 2026; what the files hold is told by their keys, never by these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

HUB = "huggingface.co"


@dataclass(frozen=True)
class Repository:
    """A repository of Hugging Face, or a part of it.

    Attributes:
        name: ``owner/name``.
        only: patterns of the files that are needed; all where there is none.
        into: folder below that of the model.
    """

    name: str
    only: tuple[str, ...] = ()
    into: str = ""

    @property
    def page(self) -> str:
        return f"{HUB}/{self.name}"

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class PublishedModel:
    """A model, by the name of the folder that ``unclip download`` makes of it.

    Attributes:
        title: what people call it.
        size: of the download, in words.
        repositories, files: what it is made of; ``files`` are plain addresses.
        defaults: sampling settings by stage, those of its publishers' own code, see ``defaults``.
    """

    name: str
    title: str
    licence: str
    size: str
    repositories: tuple[Repository, ...] = ()
    files: tuple[str, ...] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def spellings(self) -> dict[str, str]:
        """Folders by which workflows and people know its parts → the place below the model folder."""
        return {each.short_name: PurePosixPath(self.name, each.into).as_posix() for each in self.repositories}

    @property
    def sources(self) -> tuple[str, ...]:
        """What to download by hand."""
        return (*(each.page for each in self.repositories), *self.files)


_OPENRAIL, _APACHE, _MIT = "CreativeML OpenRAIL-M", "Apache-2.0", "MIT"
_GLIDE = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021"
_WORDS = "https://huggingface.co/openai-community/gpt2/resolve/main/merges.txt"
_CLIP_L = (
    "https://openaipublic.azureedge.net/clip/models/"
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt"
)


# diffusers' UnCLIPPipeline and UnCLIPImageVariationPipeline.
_LIKE_KARLO = {
    "prior": {"sampler": "ddpm", "steps": 25, "guidance_scale": 4.0},
    "decoder": {"sampler": "ddpm", "steps": 25, "guidance_scale": 8.0},
    "upsampler": {"sampler": "ddpm", "steps": 7},
}


def _kandinsky(
    name: str, title: str, size: str, prior: str, decoder: str, sampler: str = "ddpm"
) -> PublishedModel:
    owner = "kandinsky-community"
    parts = tuple(Repository(f"{owner}/{each}", into=each) for each in (prior, decoder))
    defaults = {  # the guidance of diffusers' pipelines, and half of their 100 steps
        "prior": {"sampler": "ddpm", "steps": 25, "guidance_scale": 4.0},
        "decoder": {"sampler": sampler, "steps": 50, "guidance_scale": 4.0},
    }
    return PublishedModel(name, title, _APACHE, size, parts, defaults=defaults)


PUBLISHED: tuple[PublishedModel, ...] = (
    PublishedModel(
        "karlo",
        "Karlo by Kakao Brain",
        _OPENRAIL,
        "about 14 GB",
        (Repository("kakaobrain/karlo-v1-alpha"),),
        defaults=_LIKE_KARLO,
    ),
    PublishedModel(
        "karlo-variations",
        "Karlo for variations of pictures",
        _OPENRAIL,
        "about 11 GB",
        (Repository("kakaobrain/karlo-v1-alpha-image-variations"),),
        defaults=_LIKE_KARLO,
    ),
    _kandinsky("kandinsky22", "Kandinsky 2.2", "about 20 GB", "kandinsky-2-2-prior", "kandinsky-2-2-decoder"),
    _kandinsky(
        "kandinsky22-inpaint",
        "Kandinsky 2.2 for inpainting",
        "about 20 GB",
        "kandinsky-2-2-prior",
        "kandinsky-2-2-decoder-inpaint",
    ),
    _kandinsky(
        "kandinsky22-depth",
        "Kandinsky 2.2 for depth maps",
        "about 20 GB",
        "kandinsky-2-2-prior",
        "kandinsky-2-2-controlnet-depth",
    ),
    _kandinsky("kandinsky21", "Kandinsky 2.1", "about 14 GB", "kandinsky-2-1-prior", "kandinsky-2-1", "ddim"),
    _kandinsky(
        "kandinsky21-inpaint",
        "Kandinsky 2.1 for inpainting",
        "about 14 GB",
        "kandinsky-2-1-prior",
        "kandinsky-2-1-inpaint",
        "ddim",
    ),
    PublishedModel(
        "glide",
        "GLIDE (filtered) by OpenAI",
        _MIT,
        "about 6 GB",
        files=(
            *(f"{_GLIDE}/{file}.pt" for file in ("base", "upsample", "base_inpaint", "upsample_inpaint")),
            _WORDS,
        ),
    ),
    PublishedModel(
        "laion",
        "DALL·E 2 of LAION, with Veldrovive's upsampler",
        f"{_MIT}; that of the upsampler is not stated",
        "8 GB and more",
        (
            Repository(
                "laion/DALLE2-PyTorch",
                (
                    *("prior/best.pth", "prior/prior_config.json", "README.md"),
                    *("decoder/v1.0.2/latest.pth", "decoder/v1.0.2/decoder_config.json"),
                ),
            ),
            Repository(
                "Veldrovive/upsamplers",
                ("working/latest.pth", "working/decoder_config.json", "README.md"),
                into="upsampler",
            ),
        ),
        (_CLIP_L,),
    ),
)


def published_model(name: str) -> PublishedModel | None:
    """The model of a bundle or file that a workflow names, by the first part of its path."""
    first = name.replace("\\", "/").partition("/")[0]
    return next((each for each in PUBLISHED if first == each.name or first in each.spellings), None)


def other_spellings(name: str) -> list[str]:
    """Where else a bundle or file may lie: in the folder of ``unclip download``, or one of its own name."""
    first, slash, rest = name.replace("\\", "/").partition("/")
    found = []
    for model in PUBLISHED:
        for short, place in model.spellings.items():
            if first == short:
                found.append(place + slash + rest)
            elif name == place or name.startswith(place + "/"):
                found.append(short + name[len(place) :])
    return found


def how_to_get(model: PublishedModel, folder: str, command: str = "", *, refresh: bool = True) -> str:
    """One sentence or two: which files from where into which folder.

    Args:
        folder: the model folder, as the reader knows it.
        command: what downloads a model by its name; empty where the reader has none.
        refresh: whether the reader is in ComfyUI, which then has to make its lists anew.
    """
    by_hand = "; ".join(
        f"{what} into {place}" if place else what for what, place in _parts(model, folder, command)
    )
    if command:
        how = f"Download it with: {command} {model.name} (or by hand: {by_hand})"
    else:
        how = f"To download it: {by_hand}"
    about = f"This is {model.title} ({model.size}, licence {model.licence})"
    return f"{about}. {how}{'. Then refresh the node definitions (key R)' if refresh else ''}"


def facts_of(model: PublishedModel, folder: str, command: str = "") -> dict[str, Any]:
    """What :func:`how_to_get` says, for a page that says it in another language.

    Returns:
        title, size and licence; command, empty where there is none; parts, each what to get and the place for
        it (empty where what to get is a command that knows the place).
    """
    return {
        "title": model.title,
        "size": model.size,
        "licence": model.licence,
        "command": f"{command} {model.name}" if command else "",
        "parts": _parts(model, folder, command),
    }


def _parts(model: PublishedModel, folder: str, command: str) -> list[tuple[str, str]]:
    """What to download by hand, and into which folder. Where there is no other command, those of
    huggingface_hub, which every installation has and which name the folder themselves."""
    parts = []
    for repository in model.repositories:
        place = f"{folder}/{repository.short_name}"
        if command:
            parts.append((repository.page, place))
        else:
            only = "".join(f' --include "{pattern}"' for pattern in repository.only)
            parts.append((f"hf download {repository.name}{only} --local-dir {place}", ""))
    if model.files:
        parts.append((", ".join(model.files), f"{folder}/{model.name}"))
    return parts
