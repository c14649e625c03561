"""Recipe: a CLIP model on pictograms and their captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import SHARE, require_ranges
from ...data.batches import Batch, PictogramBatches, in_unit_range
from ...data.opening import open_batches
from ...data.pictures import PictureBatches
from ...data.process import Process
from ...data.settings import DataConfig
from ...embeddings.space import EmbeddingSpace
from ...formats.mapping.tokenizing import build_tokenizer
from ...networks.clip import ClipConfig, ClipNetwork
from ...stages import ClipStage
from ..consistency import BackgroundConsistency, ConsistencyConfig
from ..frozen_clip import without_padding
from ..parallel import gather_rows
from ..recipe import Recipe
from ..reconstruction import ReconstructingClip, ReconstructionConfig
from ..settings import LoopConfig
from ..twins import TwinsConfig, interaction

logger = logging.getLogger(__name__)

# See ``ClipRecipe.prepare``.
Prepared = tuple[Tensor, Tensor, Tensor | None, Tensor | None]

MAX_SCALE = 100.0  # of the logits: CLIP (2103.00020), section 2.5
STATISTICS_BATCHES = 40
STATISTICS_PICTURES = 2**17  # of which a mean and a standard deviation are exact enough at any batch


@dataclass(frozen=True)
class ClipTraining:
    """Settings of ``unclip train clip``.

    Attributes:
        space_id: name of the embedding space that this model defines.
        style_named: share of captions that name the style of the picture.
        locked_image_tower: train the text tower alone (LiT, 2111.07991), so that every z_i stays what it
            is for the stages that have learnt from it.
        consistency: what the image tower learns from its predecessor besides; None for nothing.
        twins: what it learns from pictures over two backgrounds, without a predecessor; None for nothing.
        reconstruction: what embeddings must tell of how a picture looks; None for nothing.
    """

    data: DataConfig
    model: ClipConfig
    loop: LoopConfig
    space_id: str
    style_named: float = 0.75
    locked_image_tower: bool = False
    consistency: ConsistencyConfig | None = None
    twins: TwinsConfig | None = None
    reconstruction: ReconstructionConfig | None = None

    def __post_init__(self) -> None:
        require_ranges(self, style_named=SHARE)
        for name in ("consistency", "twins", "reconstruction"):
            if self.locked_image_tower and getattr(self, name) is not None:
                raise ValueError(f"{name} teaches the image tower, which locked_image_tower keeps: drop one")
        if self.locked_image_tower and self.loop.start_from is None:
            raise ValueError(
                "locked_image_tower keeps the image tower as it is, but without loop.start_from that one is "
                "random: name the file of a CLIP model, or train both towers"
            )
        if self.twins is not None and self.loop.batch_size % self.twins.block:
            raise ValueError(
                f"twins.block is {self.twins.block}, expected a divisor of loop.batch_size, which is "
                f"{self.loop.batch_size}"
            )
        side = 0 if self.reconstruction is None else self.reconstruction.side
        if side > (largest := self.model.vision.image_size):
            raise ValueError(
                f"reconstruction.side is {side}, expected at most model.vision.image_size, which is {largest}"
            )


class ClipRecipe(Recipe):
    """Symmetric contrastive loss over all pairs of the global batch (CLIP, figure 3), and further losses."""

    whole_batch_loss = True

    def __init__(self, config: ClipTraining, process: Process) -> None:
        self.config = config
        self.stage_network = ClipNetwork(config.model)
        self.network: nn.Module = self.stage_network
        if config.locked_image_tower:
            self.stage_network.clip.visual.requires_grad_(False)
        if config.reconstruction is not None:
            self.network = ReconstructingClip(self.stage_network, config.reconstruction)
        self.tokenizer = build_tokenizer(config.model)
        self._process = process
        self.batches = self._open()
        if isinstance(self.batches, PictogramBatches):
            self.batches.tokenise = self._tokens
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
        block = None if config.twins is None else config.twins.block
        return open_batches(
            config.data, size, loop.batch_size, loop.seed, self._process, named, held_out, block
        )

    def held_out(self) -> Callable[[int], Batch]:
        if self.consistency is not None:
            raise ValueError("loop.validate_every: consistency is of training pictures only, leave it out")
        return self._open(held_out=True)

    def prepare(self, batch: Batch) -> Prepared:
        """Pictures [B, 3, S, S], token ids [B, N], and where they are asked for the target of each z_i [B, D]
        and the pictures' twins [B, 3, S, S]."""
        target = None
        if self.consistency is not None:
            target = self.consistency.targets(batch.indices, batch.backgrounds)
        ids = self._tokens(batch.captions) if batch.tokens is None else batch.tokens
        return batch.images, ids, target, batch.twins

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        return without_padding(self.tokenizer(captions))

    def loss(self, network: nn.Module, batch: Prepared, generator: torch.Generator) -> Tensor:
        image, twin, text, scale, error = _embedded(network, batch, generator.device)
        return self._loss_of_all(image, twin, text, scale) + self._loss_by_row(image, error, batch)

    def part_losses(
        self, network: nn.Module, parts: Sequence[Any], device: torch.device
    ) -> Callable[[int], Tensor]:
        """The embeddings of all parts first, without gradients; then each part's with the gradient that the
        loss of all has for them (GradCache, 2101.06983)."""
        with torch.no_grad():
            found = [_embedded(network, part, device) for part in parts]
        rows = [torch.cat([each[i] for each in found]).requires_grad_() for i in range(3)]
        scale = found[0][3].detach().requires_grad_()
        loss = self._loss_of_all(*rows, scale)
        *gradients, of_scale = torch.autograd.grad(
            loss, (*rows, scale), allow_unused=True, materialize_grads=True
        )
        sizes = [[len(each[i]) for each in found] for i in range(3)]
        by_part = list(zip(*(g.split(size) for g, size in zip(gradients, sizes, strict=True)), strict=True))

        def part_loss(number: int) -> Tensor:
            *own, scale, error = _embedded(network, parts[number], device)
            pull = sum((each * g).sum() for each, g in zip(own, by_part[number], strict=True))
            pull = len(parts) * pull + scale * of_scale
            whole = loss.detach() + (pull - pull.detach())  # worth the loss, with the gradient of the pull
            return whole + self._loss_by_row(own[0], error, parts[number])

        return part_loss

    def _loss_of_all(self, image: Tensor, twin: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        """What compares the rows of all processes with each other."""
        image = gather_rows(image)
        loss = _contrastive(image, gather_rows(text), scale)
        twins = self.config.twins
        if twins is not None:
            loss = loss + twins.weight * interaction(image, gather_rows(twin), twins.block, twins.ridge)
        return loss

    def _loss_by_row(self, image: Tensor, error: Tensor | None, batch: Prepared) -> Tensor | float:
        """What is a mean over rows: ``error``, of the small pictures, and that of consistency."""
        loss: Tensor | float = 0.0 if error is None else error
        if self.consistency is not None:
            assert batch[2] is not None
            loss = loss + self.consistency(image, batch[2].to(image.device))
        return loss

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        # The teacher's statistics, so that standardised embeddings too stay what its pupils know.
        known = None if self.consistency is None else self.consistency.space
        mean, std = self._statistics() if known is None else (known.mean, known.std)
        space = EmbeddingSpace(self.config.space_id, self.config.model.embed_dim, "unit", mean, std)
        save_stage(
            ClipStage(self.stage_network, self.tokenizer, space),
            folder / "clip.safetensors",
            dtype=torch.float16,
        )

    @torch.inference_mode()
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the unit-length image embeddings of the training pictures.

        Of ``STATISTICS_BATCHES`` batches, or as many as have ``STATISTICS_PICTURES``; in float32, so many
        pictures at once as training forwards.
        """
        loop = self.config.loop
        rows = max(1, loop.batch_size // (self._process.world * loop.accumulate))
        count = min(STATISTICS_BATCHES, -(-STATISTICS_PICTURES // loop.batch_size))
        device = next(self.stage_network.parameters()).device
        first = loop.steps  # batches that training has not seen in this composition
        embeddings = torch.cat(
            [
                F.normalize(
                    self.stage_network.encode_pixels(in_unit_range(pictures.to(device))).float(), dim=-1
                ).cpu()
                for step in range(first, first + count)
                for pictures in self.batches.whole(step).images.split(rows)
            ]
        )
        std, mean = torch.std_mean(embeddings.double(), dim=0)
        return tuple(mean.tolist()), tuple(std.tolist())


def _embedded(
    network: nn.Module, batch: Prepared, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """z_i [B, D], those of the twins ([0, D] without), z_t [B, D], the scale of the logits, and the error of
    the small pictures where there are some."""
    images, ids, _, twins = batch
    shown = images if twins is None else torch.cat([images, twins])
    image, text, scale, *error = network(in_unit_range(shown.to(device)), ids.to(device))
    return image[: len(images)], image[len(images) :], text, scale, error[0] if error else None


def _contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Cross entropy, both ways, of unit embeddings [B, D]."""
    logits = scale.clamp(max=MAX_SCALE) * image.float() @ text.float().T  # [B, B]
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
