"""Recipe: a diffusion prior, captions to CLIP image embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...config import POSITIVE, SHARE, require_ranges
from ...data.batches import Batch
from ...data.draws import draw_integers, draw_normal
from ...data.process import Process
from ...data.settings import DataConfig
from ...diffusion.losses import q_sample, simple_loss
from ...diffusion.schedule import schedule_of
from ...diffusion.spec import DiffusionSpec, PredictionType
from ...embeddings.space import Embedding
from ...networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from ...stages import PriorStage
from ..embedded_captions import FIT_PICTURES, CaptionedPictures
from ..recipe import Recipe
from ..settings import LoopConfig
from ..whitening import WhitenedError


@dataclass(frozen=True)
class PriorDiffusion(DiffusionSpec):
    """The table ``[diffusion]`` of a prior.

    Attributes:
        clip_x0: ±5 standard deviations, as diffusers has it for Karlo's prior; pixels end at 1, which would
            cut off a third of all values of standardised embeddings.
    """

    prediction: PredictionType = "x0"
    clip_x0: float | None = 5.0


@dataclass(frozen=True)
class PriorTraining:
    """Settings of ``unclip train prior``.

    Attributes:
        clip: file of the trained CLIP stage, which stays frozen.
        drop_text: share of captions replaced by the empty one (paper: 10%).
        style_named: share of captions that name the style of the picture.
        whitening: ridge of ``WhitenedError``, which then takes the place of the plain squared error; None for
            that of the paper.
        fit_pictures: number of training pictures whose principal components that error is measured along.
    """

    clip: str
    data: DataConfig
    model: DiffusionPriorConfig
    diffusion: PriorDiffusion
    loop: LoopConfig
    drop_text: float = 0.1
    style_named: float = 0.75
    whitening: float | None = None
    fit_pictures: int = 8192

    def __post_init__(self) -> None:
        require_ranges(
            self,
            drop_text=SHARE,
            style_named=SHARE,
            whitening=POSITIVE,
            fit_pictures=FIT_PICTURES,
        )


class PriorRecipe(Recipe):
    """E‖f(z_i^(t), t, y) − z_i‖² over standardised embeddings (unCLIP, equation 2), or whitened."""

    def __init__(self, config: PriorTraining, process: Process) -> None:
        if config.diffusion.prediction != "x0":
            raise ValueError(
                f"prediction is {config.diffusion.prediction!r}; a diffusion prior predicts 'x0'"
            )
        self.config = config
        self.data = CaptionedPictures(
            config.clip, config.data, config.loop, config.drop_text, config.style_named, process
        )
        self.clip_stage = self.data.clip.stage
        self.data.require_fits(config.model.dim, config.model.text_dim)
        self.batches = self.data.batches
        self.stage_network = self.network = DiffusionPrior(config.model)
        self.schedule = schedule_of(config.diffusion)
        self.error: Callable[[Tensor, Tensor], Tensor] = simple_loss
        if config.whitening is not None:
            space = self.data.clip.space
            images = self.data.sample_images(config.fit_pictures)
            self.error = WhitenedError(Embedding(space.standardise(images), space), config.whitening)

    def held_out(self) -> Callable[[int], Batch]:
        return self.data.open(held_out=True)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.data.prepare(batch)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        pairs = self.data.embed(batch, generator)
        x0 = self.data.clip.space.standardise(pairs.image)  # [B, D]
        t = draw_integers(len(self.schedule), len(x0), generator)
        noise = draw_normal(x0.shape, generator)
        x_t = q_sample(self.schedule, x0, t, noise)
        output = network(x_t, t, pairs.tokens, pairs.pooled, pairs.mask)
        return self.error(output, x0).mean()

    def stage(self) -> PriorStage:
        diffusion = DiffusionSpec(**vars(self.config.diffusion))
        return PriorStage(self.network, self.data.clip.space, diffusion)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        save_stage(self.stage(), folder / "prior.safetensors", dtype=torch.float16)
