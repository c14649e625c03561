"""Recipe: an autoregressive prior, captions to the codes of CLIP image embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import NOT_NEGATIVE, SHARE, require_ranges
from ...data.batches import Batch
from ...data.process import Process
from ...data.settings import DataConfig
from ...embeddings.codec import EmbeddingCodec, fit_codec
from ...embeddings.pca import EXPLAINED_VARIANCE
from ...embeddings.space import Embedding
from ...networks.ar_prior import AutoregressivePrior, AutoregressivePriorConfig
from ...stages import PriorStage
from ..embedded_captions import FIT_PICTURES, CaptionedPictures
from ..recipe import Recipe
from ..settings import LoopConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoregressivePriorTraining:
    """Settings of ``unclip train ar-prior``.

    Attributes:
        clip: file of the trained CLIP stage, which stays frozen.
        drop_text: share of captions replaced by the empty one (paper: 10%).
        style_named: share of captions that name the style of the picture.
        fit_pictures: number of training pictures, over random backgrounds, on which PCA and buckets are
            fitted before the first step.
        smoothing: standard deviation, in buckets, of the bell over which the target of a code is spread
            (HL-Gauss of 2403.03950, section 3.1): buckets beside the right one are nearly right. 0 for none.
    """

    clip: str
    data: DataConfig
    model: AutoregressivePriorConfig
    loop: LoopConfig
    drop_text: float = 0.1
    style_named: float = 0.75
    fit_pictures: int = 8192
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_ranges(
            self,
            drop_text=SHARE,
            style_named=SHARE,
            fit_pictures=FIT_PICTURES,
            smoothing=NOT_NEGATIVE,
        )


class AutoregressivePriorRecipe(Recipe):
    """Cross entropy of each code given the caption, z_i·z_t and the codes before it, in nats a code."""

    def __init__(self, config: AutoregressivePriorTraining, process: Process) -> None:
        self.config = config
        self.data = CaptionedPictures(
            config.clip, config.data, config.loop, config.drop_text, config.style_named, process
        )
        self.clip_stage = self.data.clip.stage
        self.data.require_fits(config.model.dim, config.model.text_dim)
        self.batches = self.data.batches
        self.stage_network = self.network = AutoregressivePrior(config.model)

    def fit(self) -> None:
        self.network.codebook.load_state_dict(self._codec().state())

    def held_out(self) -> Callable[[int], Batch]:
        return self.data.open(held_out=True)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.data.prepare(batch)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        pairs = self.data.embed(batch, generator)
        space = self.data.clip.space
        codec = EmbeddingCodec.from_state(self.network.codebook.state_dict(), space)
        codes = codec.encode(Embedding(pairs.image, space))  # [B, K]
        # With the picture's own caption: a dropped one's says nothing of how well the two match.
        match = codec.encode_match((pairs.image * pairs.caption).sum(dim=1))  # [B]
        logits = network(codes, match, pairs.tokens, pairs.pooled, pairs.mask)  # [B, K, buckets]
        target = codes.flatten()
        if self.config.smoothing > 0:
            target = spread(target, logits.shape[2], self.config.smoothing)
        return F.cross_entropy(logits.float().flatten(0, 1), target)

    def stage(self) -> PriorStage:
        return PriorStage(self.network, self.data.clip.space, None)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        save_stage(self.stage(), folder / "ar-prior.safetensors", dtype=torch.float16)

    def _codec(self) -> EmbeddingCodec:
        """PCA and buckets of the first batches' pictures."""
        config = self.config
        images, captions = self.data.sample(config.fit_pictures)
        codec = fit_codec(
            Embedding(images, self.data.clip.space),
            captions,
            components=config.model.components,
            buckets=config.model.buckets,
            match_buckets=config.model.match_buckets,
        )
        explained = float(codec.pca.explained_variance.sum())
        logger.info("%d components explain %.2f%% of the variance", len(codec.pca), 100 * explained)
        if explained < EXPLAINED_VARIANCE:
            logger.warning(
                "model.components is %d; for %.0f%% of the variance it needs more",
                len(codec.pca),
                100 * EXPLAINED_VARIANCE,
            )
        return codec


def spread(codes: Tensor, buckets: int, deviation: float) -> Tensor:
    """[N] codes → [N, buckets] shares of a bell around each, which add up to 1."""
    off = torch.arange(buckets, device=codes.device) - codes[:, None]
    return (-0.5 * (off / deviation) ** 2).softmax(dim=1)
