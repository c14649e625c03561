"""Recipe: a diffusion prior, captions to CLIP image embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion.losses import q_sample, simple_loss
from ..diffusion.schedule import make_schedule
from ..diffusion.spec import DiffusionSpec
from ..networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from ..stages import PriorStage
from .data import DataConfig, PictogramBatches, load_pictograms
from .frozen_clip import load_frozen_clip
from .loop import LoopConfig
from .parallel import Process


@dataclass(frozen=True)
class PriorTraining:
    """Settings of ``unclip train prior``.

    Attributes:
        clip: file of the trained CLIP stage, which stays frozen.
        drop_text: share of captions replaced by the empty one (paper: 10%).
    """

    clip: str
    data: DataConfig
    model: DiffusionPriorConfig
    diffusion: DiffusionSpec
    loop: LoopConfig
    drop_text: float = 0.1


class PriorRecipe:
    """E‖f(z_i^(t), t, y) − z_i‖² over standardised embeddings (unCLIP, equation 2)."""

    def __init__(self, config: PriorTraining, process: Process) -> None:
        if config.diffusion.prediction != "x0":
            raise ValueError(
                f"prediction is {config.diffusion.prediction!r}; a diffusion prior predicts 'x0'"
            )
        self.config = config
        self.clip = load_frozen_clip(Path(config.clip))
        self.network = DiffusionPrior(config.model)
        self.schedule = make_schedule(config.diffusion.schedule, config.diffusion.num_timesteps)
        self.empty = self.clip.tokenizer([""])  # [1, L]
        self.batches = PictogramBatches(
            load_pictograms(config.data),
            self.clip.network.config.vision.image_size,
            config.loop.batch_size,
            config.loop.seed,
            process,
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        batch = self.batches(step)
        return batch.images, self.clip.tokenizer(batch.captions)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        device = generator.device
        images, ids = (tensor.to(device) for tensor in batch)
        rows = len(images)
        dropped = torch.rand(rows, generator=generator, device=device) < self.config.drop_text
        ids = torch.where(dropped[:, None], self.empty.to(device), ids)
        x0 = self.clip.space.standardise(self.clip.encode_images(images))  # [B, D]
        tokens, mask, pooled = self.clip.encode_tokens(ids)
        t = torch.randint(len(self.schedule), (rows,), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        output = network(q_sample(self.schedule, x0, t, noise), t, tokens, pooled, mask)
        return simple_loss(output, x0).mean()

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ..formats.native import save_stage

        self.network.load_state_dict(state)
        stage = PriorStage(self.network, self.clip.space, self.config.diffusion)
        save_stage(stage, folder / "prior.safetensors", dtype=torch.float16)
