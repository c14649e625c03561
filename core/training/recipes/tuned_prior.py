"""Recipe: a prior that is there already, trained on, whole or as a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...config import SHARE, require_ranges
from ...data.batches import Batch
from ...data.draws import draw_integers, draw_normal, draw_uniform
from ...data.process import Process
from ...data.settings import DataConfig
from ...diffusion.losses import q_sample, simple_loss
from ...diffusion.schedule import schedule_of
from ...diffusion.spec import DiffusionSpec
from ...embeddings.space import require_same_space
from ...networks.dalle2_prior import Dalle2Prior
from ...networks.diffusion_prior import DiffusionPrior
from ...networks.one_pass_prior import OnePassPrior
from ...stages import PriorStage
from ..embedded_captions import CaptionedPictures
from ..low_rank import LowRankConfig, LowRankNetwork
from ..recipe import Recipe
from ..settings import LoopConfig
from ..starting import load_base, trained


@dataclass(frozen=True)
class PriorTuning:
    """Settings of ``unclip train prior`` with a base.

    Attributes:
        base: the prior that training starts from: a file, or a folder in diffusers' layout.
        clip: its CLIP model, which stays frozen.
        lora: train a LoRA; None trains the whole network.
        drop_text: share of captions replaced by the empty one, or, of a prior with learned vectors for none
            (LAION's), by those.
        style_named: share of captions of pictograms that name the style.
    """

    base: str
    clip: str
    data: DataConfig
    loop: LoopConfig
    lora: LowRankConfig | None = None
    drop_text: float = 0.1
    style_named: float = 0.75

    def __post_init__(self) -> None:
        require_ranges(self, drop_text=SHARE, style_named=SHARE)


class TunedPriorRecipe(Recipe):
    """The squared error of PriorRecipe, in the statistics and with the schedule of the base.

    ECLIPSE's prior, which is no diffusion, learns z_i from noise in one pass.
    """

    def __init__(self, config: PriorTuning, process: Process) -> None:
        self.config = config
        self.base = load_base(config.base, PriorStage)
        network, spec = _require_trainable(self.base)
        self.own_null = isinstance(network, Dalle2Prior) and network.config.unconditional
        self.data = CaptionedPictures(
            config.clip,
            config.data,
            config.loop,
            0.0 if isinstance(network, Dalle2Prior) else config.drop_text,
            config.style_named,
            process,
            self.base.space,
        )
        require_same_space("clip", self.data.clip.space, self.base.space)
        self.data.require_fits(network.config.dim, getattr(network.config, "text_dim", network.config.dim))
        self.clip_stage = self.data.clip.stage
        self.batches = self.data.batches
        self.stage_network = network
        self.network = trained(network, network, config.lora, config.loop)
        self.schedule = schedule_of(spec)

    def held_out(self) -> Callable[[int], Batch]:
        return self.data.open(held_out=True)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.data.prepare(batch)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        pairs = self.data.embed(batch, generator)
        space = self.base.space
        x0 = self.base.working_space.standardise(space.in_convention(pairs.image))  # [B, D]
        pooled = space.in_convention(pairs.pooled)
        t = draw_integers(len(self.schedule), len(x0), generator)
        noise = draw_normal(x0.shape, generator)
        if isinstance(self.stage_network, OnePassPrior):
            return simple_loss(network(noise, pairs.tokens, pooled, pairs.mask), x0).mean()
        x_t = q_sample(self.schedule, x0, t, noise)
        keep = {}
        if self.own_null:
            keep["keep"] = draw_uniform((len(x0),), generator) >= self.config.drop_text
        output = network(x_t, t, pairs.tokens, pooled, pairs.mask, **keep)
        return simple_loss(output, x0).mean()

    def stage(self) -> PriorStage:
        return replace(self.base, network=self.stage_network)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        if isinstance(self.network, LowRankNetwork):
            self.network.write(folder / "prior-lora.safetensors")
        else:
            save_stage(self.stage(), folder / "prior.safetensors", dtype=torch.float16)


def _require_trainable(base: PriorStage) -> tuple[DiffusionPrior | Dalle2Prior | OnePassPrior, DiffusionSpec]:
    network = base.network
    if base.diffusion is None or not isinstance(network, (DiffusionPrior, Dalle2Prior, OnePassPrior)):
        raise ValueError(
            f"base: {base.source} is an autoregressive prior; train it with unclip train ar-prior and "
            f"loop.start_from"
        )
    if isinstance(network, OnePassPrior) and network.config.control:
        raise ValueError(
            f"base: {base.source} reads pictures of subjects (λ-ECLIPSE), which no data here have"
        )
    if base.diffusion.prediction != "x0":
        raise ValueError(f"base: {base.source} predicts {base.diffusion.prediction!r}, expected 'x0'")
    return network, base.diffusion
