"""What priors learn from: image embeddings with the features of their captions, some captions dropped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Range
from ..data.batches import Batch, PictogramBatches, in_unit_range
from ..data.draws import draw_uniform
from ..data.opening import open_batches, open_embeddings
from ..data.pictures import EmbeddingBatches, PictureBatches
from ..data.process import Process
from ..data.settings import DataConfig
from ..embeddings.space import EmbeddingSpace
from .frozen_clip import load_frozen_clip
from .settings import LoopConfig

logger = logging.getLogger(__name__)

FIT_PICTURES = Range(2, 2**17)
"""Pictures that statistics are taken of: many times the rank of any embeddings, and still in memory."""

COMPARED = 32  # captions whose stored z_t are compared with the CLIP model's
SAME_MODEL = 0.98
"""Least cosine of those: halves and bfloat16 are above 0.999, other models far below."""

UNIT = 0.01
"""How far from 1 the length of a vector may be that was normalised and rounded to halves."""


@dataclass(frozen=True, eq=False)
class CaptionedEmbeddings:
    """A batch of pairs.

    Attributes:
        image: z_i, [B, D], in the convention of the CLIP space.
        tokens, mask, pooled: features of the captions as the prior sees them, those of the empty caption
            where they were dropped: [B, N, W], [B, N] bool, z_t [B, D].
        caption: z_t of the pictures' own captions, dropped or not, [B, D].
    """

    image: Tensor
    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    caption: Tensor


class CaptionedPictures:
    """Pictograms with captions, and the frozen CLIP model that embeds both."""

    def __init__(
        self,
        clip_file: str,
        data: DataConfig,
        loop: LoopConfig,
        drop_text: float,
        style_named: float,
        process: Process,
        prior_space: EmbeddingSpace | None = None,
    ) -> None:
        """``prior_space``: the space as the prior has it, with its own convention; None for that of CLIP."""
        self.clip = load_frozen_clip(Path(clip_file))
        self.drop_text = drop_text
        self.empty = self.clip.tokenizer([""])  # [1, L]
        self._clip_file, self._data, self._loop = clip_file, data, loop
        self._style_named, self._process = style_named, process
        self._prior_space = prior_space or self.clip.space
        self._length = 1.0  # what embeddings in files are multiplied by
        self.batches = self.open()
        if isinstance(self.batches, EmbeddingBatches):
            self._length = self._length_for(self.batches)
        self.clip.tokenise_in(self.batches)

    def open(self, held_out: bool = False) -> PictogramBatches | PictureBatches | EmbeddingBatches:
        """Batches of what is trained on, or of what is kept out of that."""
        data, size, seed = self._data, self._loop.batch_size, self._loop.seed
        if data.source == "embeddings":
            embeddings = open_embeddings(data, size, seed, self._process, held_out)
            self._require_space(self._clip_file, embeddings)
            return embeddings
        side = self.clip.network.config.vision.image_size
        return open_batches(data, side, size, seed, self._process, self._style_named, held_out)

    def require_fits(self, dim: int, text_dim: int) -> None:
        """Raise a ValueError unless a prior of these widths takes what the CLIP model gives."""
        widths = {
            "dim": (dim, self.clip.space.dim),
            "text_dim": (text_dim, self.clip.network.config.text.width),
        }
        for name, (found, expected) in widths.items():
            if found != expected:
                raise ValueError(f"model.{name} is {found}, but {self._clip_file} gives {expected} values")

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, S, S], or z_i [B, D], and token ids [B, N] of their captions."""
        return batch.images, self.clip.tokens_of(batch)

    def sample_images(self, count: int) -> Tensor:
        """z_i [N, D] of the first batches, at least ``count`` pictures, to take statistics of."""
        return torch.cat([self._embedded(self.batches.whole(step).images) for step in self._steps(count)])

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """z_i and z_t [N, D], as :meth:`sample_images`."""
        images, captions = [], []
        for step in self._steps(count):
            batch = self.batches.whole(step)
            images.append(self._embedded(batch.images))
            stored = self._stored_texts(step)
            captions.append(
                self.clip.encode_tokens(self.clip.tokens_of(batch))[2] if stored is None else stored
            )
        return torch.cat(images), torch.cat(captions)

    def _steps(self, count: int) -> range:
        return range(-(-count // self.batches.sampler.batch_size))

    def _stored_texts(self, step: int) -> Tensor | None:
        """z_t [B, D] where the files hold them as the CLIP model gives them."""
        batches = self.batches
        told = isinstance(batches, EmbeddingBatches) and batches.space_id
        return batches.texts(step) if told else None  # type: ignore[union-attr]

    def embed(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> CaptionedEmbeddings:
        """On the device of the generator, which draws whose captions are dropped."""
        device = generator.device
        images, ids = (tensor.to(device) for tensor in batch)
        rows = len(images)
        dropped = draw_uniform((rows,), generator) < self.drop_text
        self.empty = self.empty.to(device)  # once
        empty = self.empty[:, : ids.shape[1]]
        tokens, mask, pooled = self.clip.encode_tokens(torch.cat([ids, empty]))
        return CaptionedEmbeddings(
            self._embedded(images),
            torch.where(dropped[:, None, None], tokens[rows:], tokens[:rows]),
            torch.where(dropped[:, None], mask[rows:], mask[:rows]),
            torch.where(dropped[:, None], pooled[rows:], pooled[:rows]),
            pooled[:rows],
        )

    def _embedded(self, images: Tensor) -> Tensor:
        """z_i [B, D] of pictures [B, 3, S, S], or of embeddings as files have them [B, D]."""
        if images.ndim == 2:
            return self.clip.space.in_convention(images * self._length)
        return self.clip.encode_images(in_unit_range(images))

    def _require_space(self, clip_file: str, batches: EmbeddingBatches) -> None:
        """Raise a ValueError unless the embeddings are of the CLIP model."""
        space, first = self.clip.space, batches.whole(0)
        found = first.images.shape[1]
        if found != space.dim:
            raise ValueError(
                f"data.path holds embeddings of {found} values, but {clip_file} gives {space.dim}: embed the "
                f"pictures with it (unclip embed)"
            )
        told = batches.space_id
        if told and told != space.id:
            raise ValueError(
                f"data.path holds embeddings of the space {told}, but {clip_file} is of {space.id}: embed "
                f"the pictures with it (unclip embed)"
            )
        self._require_same_model(clip_file, batches.texts(0), first.captions[:COMPARED])

    def _require_same_model(self, clip_file: str, stored: Tensor | None, captions: list[str]) -> None:
        """Raise a ValueError where the stored z_t of captions, if any, are not what the CLIP model gives.

        A model that was trained again has the name and the space of the one before.
        """
        if stored is None:
            return
        found = self.clip.encode_tokens(self.clip.tokens(captions))[2]
        likeness = F.cosine_similarity(stored[: len(found)], found).median().item()
        if likeness < SAME_MODEL:
            raise ValueError(
                f"data.path holds embeddings of another CLIP model than {clip_file}: those of its captions "
                f"have a cosine of {likeness:.2f} with what this one gives, expected 1. Embed the pictures "
                f"with it (unclip embed, into another folder), or set clip to the model that they are of"
            )

    def _length_for(self, batches: EmbeddingBatches) -> float:
        """What makes embeddings as long as the prior takes them, see :meth:`Embedding.in_norm_of`.

        Raises:
            ValueError: they have length 1, another one is taken, and no statistics tell it.
        """
        clip, prior = self.clip.space, self._prior_space
        lengths = batches.whole(0).images.norm(dim=1)
        if batches.space_id or "unit" in (clip.norm, prior.norm) or (lengths - 1).abs().max() > UNIT:
            return 1.0
        length = prior.typical_norm or clip.typical_norm
        if length is None:
            raise ValueError(
                f"data.path holds embeddings of length 1, as clip-retrieval writes them, but those of "
                f"{self._clip_file} have another, which without statistics is not known: embed the pictures "
                f"with it (unclip embed)"
            )
        if abs(length - 1) > UNIT:
            logger.warning(
                "the embeddings of data.path have length 1, and get the typical one of %s, %.4g: their own "
                "lengths are lost. Embedding the pictures with it keeps them (unclip embed)",
                self._clip_file,
                length,
            )
        return length
