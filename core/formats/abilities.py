"""What a bundle can do, told from names, shapes and configs alone: no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..diffusion.spec import FoundSteps
from ..networks.unet_config import UNetConfig
from ..stages import Defaults, StageName
from .defaults import read_defaults
from .detect import identify
from .diffusers_bundle import joined_folders, read_diffusers_folder
from .few_steps import decoder_folder, described_steps
from .layouts.diffusers_files import open_component
from .layouts.kandinsky import MOVQ_DIFFUSERS
from .load import described_folders
from .native.checkpoints import BUNDLE_FILE, read_bundle
from .native.header import read_header


@dataclass(frozen=True)
class Abilities:
    """What can be asked of a bundle.

    Attributes:
        name: for messages.
        sizes: sides of its pictures in pixels: the decoder's own, then that behind each upsampler, from the
            smallest on. Empty without a decoder.
        any_size: the decoder paints latents, and so pictures of other sides and proportions too.
        reads_captions: the decoder reads captions besides embeddings.
        has_prior: a diffusion prior is there, which turns captions into embeddings.
        defaults: sampling settings that hold where a person says nothing.
        takes_embeddings: the decoder paints embeddings; one of GLIDE paints captions alone.
        captioned: those of the sizes whose upsamplers read captions.
        few_steps: timesteps that were found for the decoder.
        fixed_size: the decoder itself paints its own size alone, see ``UNetConfig.fixed_size``.
    """

    name: str
    sizes: tuple[int, ...] = ()
    any_size: bool = False
    reads_captions: bool = False
    has_prior: bool = False
    defaults: Defaults = field(default_factory=Defaults)
    takes_embeddings: bool = True
    captioned: tuple[int, ...] = ()
    few_steps: tuple[FoundSteps, ...] = ()
    fixed_size: bool = False


@dataclass(frozen=True)
class _Decoder:
    config: UNetConfig
    scale: int | None  # of its autoencoder
    few_steps: tuple[FoundSteps, ...] = ()  # in its own file


def read_abilities(folder: str | Path, *others: str | Path) -> Abilities:
    """What a bundle can do, for the same folders as ``load_any_bundle`` takes.

    Raises:
        ValueError: no bundle, or a file of it that cannot be read.
    """
    folder = Path(folder)
    native = (folder / BUNDLE_FILE).is_file()
    folders = [folder] if native else [*(joined_folders(folder) or [folder]), *map(Path, others)]
    decoder, has_prior = None, False
    upsamplers: list[UNetConfig] = []
    for each in folders:
        for stage, file in _native_files(each) if native else _diffusers_files(each):
            if stage == "decoder":
                decoder = _native_decoder(file) if native else _diffusers_decoder(file)
            elif stage == "upsampler":
                upsamplers.append(read_header(file).config if native else _config(file))
            elif stage == "prior":
                has_prior = has_prior or not native or read_header(file).diffusion is not None
    defaults = read_defaults(described_folders(folder, *others))
    if decoder is None:
        return Abilities(folder.name, has_prior=has_prior, defaults=defaults)
    conditioning = decoder.config.conditioning
    return Abilities(
        name=folder.name,
        sizes=(
            decoder.config.image_size * (decoder.scale or 1),
            *sorted(each.image_size for each in upsamplers),
        ),
        any_size=decoder.scale is not None,
        reads_captions=conditioning is not None
        and (conditioning.text_dim is not None or conditioning.text_pooled_dim is not None),
        has_prior=has_prior,
        takes_embeddings=conditioning is None or conditioning.clip_dim is not None,
        defaults=defaults,
        captioned=tuple(sorted(each.image_size for each in upsamplers if each.conditioning is not None)),
        few_steps=described_steps([decoder_folder(folder), *others]) or decoder.few_steps,
        fixed_size=decoder.config.fixed_size,
    )


def _native_files(folder: Path) -> Iterator[tuple[StageName, Path]]:
    for stage, files in read_bundle(folder)[1].items():
        for file in files:
            yield stage, file


def _native_decoder(file: Path) -> _Decoder:
    header = read_header(file)
    scale = None if header.autoencoder is None else header.autoencoder.scale
    return _Decoder(header.config, scale, () if header.diffusion is None else header.diffusion.few_steps)


def _diffusers_files(folder: Path) -> Iterator[tuple[StageName, Path]]:
    yield from read_diffusers_folder(folder)[1].items()


def _diffusers_decoder(folder: Path) -> _Decoder:
    movq = folder.parent / "movq"
    scale = MOVQ_DIFFUSERS.config(open_component(movq)).scale if movq.is_dir() else None
    return _Decoder(_config(folder), scale)


def _config(folder: Path) -> UNetConfig:
    source = open_component(folder)
    return identify(source).config(source)
