"""The built stages of an unCLIP system: a network together with everything that running it needs.

Formats build them from files, pipelines run them, nodes hand them through sockets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from .config import require_kind
from .diffusion.spec import DiffusionSpec
from .embeddings.space import EmbeddingSpace
from .memory import InMemory
from .precision import precision_of

if TYPE_CHECKING:
    from .networks.ar_prior import AutoregressivePrior
    from .networks.clip import ClipNetwork
    from .networks.dalle2_prior import Dalle2Prior
    from .networks.dalle2_unet import Dalle2UNet
    from .networks.diffusion_prior import DiffusionPrior
    from .networks.glide_text import GlideText
    from .networks.movq import MoVQ
    from .networks.multilingual_clip import MultilingualClip
    from .networks.one_pass_prior import OnePassPrior
    from .networks.unet import UNet
    from .networks.unet_pair import UNetPair

Tokenizer = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, eq=False)
class ClipStage(InMemory):
    """A CLIP model with its tokenizer and image normalisation.

    ``network`` may be a text encoder alone (GLIDE's); ``tokenizer`` maps captions to [B, L] int64 ids.
    """

    network: ClipNetwork | GlideText | MultilingualClip
    tokenizer: Tokenizer
    space: EmbeddingSpace
    source: str = ""


@dataclass(frozen=True, eq=False)
class PriorStage(InMemory):
    """A prior: text features to CLIP image embeddings. ``diffusion`` is None for an autoregressive prior."""

    network: DiffusionPrior | Dalle2Prior | OnePassPrior | AutoregressivePrior
    space: EmbeddingSpace
    diffusion: DiffusionSpec | None
    source: str = ""

    @property
    def working_space(self) -> EmbeddingSpace:
        """The space as the diffusion scales it: what its ``standardise`` gives is what is noised."""
        if self.diffusion is None or self.diffusion.embedding_scale is None:
            return self.space
        dim = self.space.dim
        return replace(self.space, mean=(0.0,) * dim, std=(1 / self.diffusion.embedding_scale,) * dim)


@dataclass(frozen=True, eq=False)
class AutoencoderStage(InMemory):
    """Pictures to latents and back: ``network`` is a ``core.networks.movq.MoVQ``."""

    network: MoVQ
    source: str = ""

    @property
    def scale(self) -> int:
        """Side of a picture divided by that of its latent."""
        return self.network.config.scale


@dataclass(frozen=True, eq=False)
class DecoderStage(InMemory):
    """A decoder: CLIP image embeddings (and text) to pictures of ``picture_size``.

    With an ``autoencoder`` it paints that one's latents, and everything that takes a decoder gives pictures.
    """

    network: UNet | Dalle2UNet
    space: EmbeddingSpace
    diffusion: DiffusionSpec
    source: str = ""
    autoencoder: AutoencoderStage | None = None

    @property
    def scale(self) -> int:
        """Side of a picture divided by that of what the network paints."""
        return 1 if self.autoencoder is None else self.autoencoder.scale

    @property
    def takes_embeddings(self) -> bool:
        """Whether it paints image embeddings; one of GLIDE paints captions alone."""
        conditioning = self.network.config.conditioning
        return conditioning is None or conditioning.clip_dim is not None

    @property
    def picture_size(self) -> int:
        """Side of the pictures that it was trained on."""
        return self.scale * self.network.config.image_size


@dataclass(frozen=True)
class UpsamplerConditions:
    """What an upsampler was trained to be given.

    Attributes:
        resize: how the small picture is brought to size.
        quantise: the small picture is rounded to 8 bits first, as a file holds it.
        noise_scale: standard deviation of the noise that sampling starts from; a little below 1 is cleaner.
        noise_level: 0..1, strength of the noise put on the small picture unless the caller names another.
        noise_on: the picture as it comes, with the strength as the noise's standard deviation; or brought to
            size, with the noise of the timestep 1000·strength of DDPM's linear schedule (DALLE2-pytorch).
    """

    resize: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    quantise: bool = False
    noise_scale: float = 1.0
    noise_level: float = 0.0
    noise_on: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_scale) and self.noise_scale > 0):
            raise ValueError(f"noise_scale is {self.noise_scale}, expected a finite number above 0")
        if not 0 <= self.noise_level <= 1:
            raise ValueError(f"noise_level is {self.noise_level}, expected 0 to 1")


@dataclass(frozen=True, eq=False)
class UpsamplerStage(InMemory):
    """A diffusion upsampler from ``low_size`` to ``network.config.image_size``.

    ``timesteps`` fixes the sampling steps where a checkpoint was made for certain ones; otherwise None.
    ``space`` is that of the captions it reads; None for an upsampler that reads none.
    """

    network: UNet | UNetPair | Dalle2UNet
    low_size: int
    diffusion: DiffusionSpec
    timesteps: tuple[int, ...] | None = None
    source: str = ""
    space: EmbeddingSpace | None = None
    recipe: UpsamplerConditions = UpsamplerConditions()


def require_low_size(low_size: int, image_size: int) -> None:
    """Raise a ValueError unless an upsampler's output is a multiple of its input."""
    if low_size >= image_size or image_size % low_size:
        raise ValueError(
            f"low_size: found {low_size}, expected a whole fraction of the {image_size} pixels that the "
            f"upsampler makes"
        )


Stage = ClipStage | PriorStage | DecoderStage | UpsamplerStage | AutoencoderStage
StageName = Literal["clip", "prior", "decoder", "upsampler", "autoencoder"]

_KINDS: dict[type[Stage], str] = {
    ClipStage: "a CLIP model, such as bundle.clip",
    PriorStage: "a prior, such as bundle.prior or bundle.ar_prior",
    DecoderStage: "a decoder, such as bundle.decoder",
    UpsamplerStage: "an upsampler, such as bundle.upsamplers[0]",
}


def require_stage(kind: type[Stage], **stages: Any) -> None:
    """Raise a ValueError that names the first of the stages that is of another kind, and how one gets it."""
    require_kind(kind, _KINDS[kind], **stages)


@dataclass(frozen=True)
class Defaults:
    """Sampling settings that a bundle asks for where a person says nothing.

    Attributes:
        tables: by stage (prior, decoder, upsampler), under the names of the sampling settings of its node.
        source: the files that say so, for messages.
    """

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, eq=False)
class Bundle:
    """All stages that belong together, under one name. A stage that a bundle lacks is None.

    ``prior`` is a diffusion prior, ``ar_prior`` an autoregressive one. ``decoder_text`` encodes captions for
    a decoder that reads them by another text encoder than CLIP's (Kandinsky 2.1).
    """

    name: str
    clip: ClipStage | None = None
    prior: PriorStage | None = None
    ar_prior: PriorStage | None = None
    decoder: DecoderStage | None = None
    upsamplers: tuple[UpsamplerStage, ...] = field(default_factory=tuple)
    decoder_text: ClipStage | None = None
    defaults: Defaults = field(default_factory=Defaults)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those that are there."""
        named = (self.clip, self.prior, self.ar_prior, self.decoder, self.decoder_text)
        return *(stage for stage in named if stage is not None), *self.upsamplers

    @property
    def precision(self) -> str:
        """What its networks compute in: ``"fp32"``, ``"fp16"``, ``"bf16"``, or several joined by " and "."""
        return precision_of(stage.network for stage in self.stages)
