"""Recipe: a CLIP model on pictograms and their captions."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import SHARE, require_ranges
from ...data.batches import Batch, PictogramBatches
from ...data.opening import open_batches
from ...data.pictures import PictureBatches
from ...data.process import Process
from ...data.settings import DataConfig
from ...embeddings.space import EmbeddingSpace
from ...networks.clip import ClipConfig, ClipNetwork, build_tokenizer
from ...stages import ClipStage
from ..consistency import BackgroundConsistency, ConsistencyConfig
from ..parallel import gather_rows
from ..recipe import Recipe
from ..settings import LoopConfig

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)  # CLIP (2103.00020), section 2.5
STATISTICS_BATCHES = 40


@dataclass(frozen=True)
class ClipTraining:
    """Settings of ``unclip train clip``.

    Attributes:
        space_id: name of the embedding space that this model defines.
        style_named: share of captions that name the style of the picture.
        locked_image_tower: train the text tower alone (LiT, 2111.07991), so that every z_i stays what it
            is for the stages that have learnt from it.
        consistency: what the image tower learns from its predecessor besides; None for nothing.
    """

    data: DataConfig
    model: ClipConfig
    loop: LoopConfig
    space_id: str
    style_named: float = 0.75
    locked_image_tower: bool = False
    consistency: ConsistencyConfig | None = None

    def __post_init__(self) -> None:
        require_ranges(self, style_named=SHARE)
        if self.locked_image_tower and self.consistency is not None:
            raise ValueError("consistency teaches the image tower, which locked_image_tower keeps: drop one")


class ClipRecipe(Recipe):
    """Symmetric contrastive loss over all pairs of the global batch (CLIP, figure 3), and consistency."""

    whole_batch_loss = True

    def __init__(self, config: ClipTraining, process: Process) -> None:
        self.config = config
        self.stage_network = self.network = ClipNetwork(config.model)
        if config.locked_image_tower:
            self.network.clip.visual.requires_grad_(False)
        self.tokenizer = build_tokenizer(config.model)
        self._process = process
        self.batches = self._open()
        self.consistency: BackgroundConsistency | None = None
        if config.consistency is not None:
            if not isinstance(self.batches, PictogramBatches):
                raise ValueError(
                    f"consistency is of pictograms over backgrounds, but data.source is "
                    f"{config.data.source!r}: leave it out"
                )
            if self.batches.augmentation is not None:
                raise ValueError("consistency knows one picture of each pictogram: leave data.augment out")
            self.consistency = BackgroundConsistency(config.consistency, self.batches.pixels)
            if self.consistency.space.dim != config.model.embed_dim:
                raise ValueError(
                    f"model.embed_dim is {config.model.embed_dim}, but the embeddings of consistency.teacher "
                    f"have {self.consistency.space.dim} values: both must be alike"
                )

    def _open(self, held_out: bool = False) -> PictogramBatches | PictureBatches:
        config, loop = self.config, self.config.loop
        size, named = config.model.vision.image_size, config.style_named
        return open_batches(config.data, size, loop.batch_size, loop.seed, self._process, named, held_out)

    def held_out(self) -> Callable[[int], Batch]:
        if self.consistency is not None:
            raise ValueError("loop.validate_every: consistency is of training pictures only, leave it out")
        return self._open(held_out=True)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pictures [B, 3, S, S], token ids [B, L], and with consistency the target of each z_i [B, D]."""
        target = None
        if self.consistency is not None:
            target = self.consistency.targets(batch.indices, batch.backgrounds)
        return batch.floats(), self.tokenizer(batch.captions), target

    def loss(
        self,
        network: nn.Module,
        batch: tuple[Tensor, Tensor, Tensor | None],
        generator: torch.Generator,
    ) -> Tensor:
        images, ids, target = batch
        image, text, _ = network(images.to(generator.device), ids.to(generator.device))  # [B, D], [B, D]
        loss = self._contrastive(image, text)
        if self.consistency is not None:
            loss = loss + self.consistency(image, target.to(generator.device))
        return loss

    def _contrastive(self, image: Tensor, text: Tensor) -> Tensor:
        image, text = gather_rows(image), gather_rows(text)
        scale = self.network.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        logits = scale * image.float() @ text.float().T  # [B, B]
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        # The teacher's statistics, so that standardised embeddings too stay what its pupils know.
        known = None if self.consistency is None else self.consistency.space
        mean, std = self._statistics() if known is None else (known.mean, known.std)
        space = EmbeddingSpace(self.config.space_id, self.config.model.embed_dim, "unit", mean, std)
        save_stage(
            ClipStage(self.network, self.tokenizer, space), folder / "clip.safetensors", dtype=torch.float16
        )

    @torch.inference_mode()
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the unit-length image embeddings of the training pictures."""
        device = next(self.network.parameters()).device
        first = self.config.loop.steps  # batches that training has not seen in this composition
        embeddings = torch.cat(
            [
                F.normalize(self.network.encode_pixels(images.to(device)).float(), dim=-1).cpu()
                for images in (self.batches.whole(first + i).floats() for i in range(STATISTICS_BATCHES))
            ]
        )
        std, mean = torch.std_mean(embeddings.double(), dim=0)
        return tuple(mean.tolist()), tuple(std.tolist())
