"""The trained CLIP model that the other stages learn from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.batches import Batch, PictogramBatches
from ..embeddings.space import EmbeddingSpace
from ..networks.clip import ClipNetwork
from ..stages import ClipStage

CUT_TO = 16  # captions are cut to multiples of it, so that a compiled network sees few lengths


def without_padding(ids: Tensor) -> Tensor:
    """[B, L] token ids as ``build_tokenizer`` makes them → [B, N] without the padding that all of them share.

    Most captions take a fraction of the context, and padding changes nothing but costs like any other token.
    """
    used = int(ids.argmax(dim=1).max()) + 1  # up to the last end token, which has the highest id
    return ids[:, : -(-used // CUT_TO) * CUT_TO]


class FrozenClip:
    """A CLIP stage in float32 without gradients, giving embeddings in the convention of its space."""

    def __init__(self, stage: ClipStage) -> None:
        self.stage = stage
        self.network = stage.network.eval().requires_grad_(False)
        self.tokenizer = stage.tokenizer
        self.space: EmbeddingSpace = stage.space
        self._device = torch.device("cpu")

    def tokens(self, captions: Sequence[str], with_padding: bool = False) -> Tensor:
        """[B, N] token ids; N is the context length ``with_padding``, and may be less without."""
        ids = self.tokenizer(captions)
        cut = isinstance(self.network, ClipNetwork) and not with_padding
        return without_padding(ids) if cut else ids

    def tokens_of(self, batch: Batch, with_padding: bool = False) -> Tensor:
        """Those of the captions of a batch, which may bring them along."""
        return self.tokens(batch.captions, with_padding) if batch.tokens is None else batch.tokens

    def tokenise_in(self, batches: object, with_padding: bool = False) -> None:
        """Have batches of pictograms bring their token ids along, wherever they are drawn."""
        if isinstance(batches, PictogramBatches):
            batches.tokenise = partial(self.tokens, with_padding=with_padding)

    def reading_size(self, size: int) -> int:
        """Side at which pictures of ``size`` are read where this model is to see them too.

        Priors, `unclip embed` and nodes show it all that its own size holds; smaller pictures tell less.
        """
        vision = self.network.config.vision
        return size if vision is None else max(size, vision.image_size)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 → z_i [B, D] float32."""
        return self.space.in_convention(self._on(images.device).encode_pixels(images).float())

    @torch.no_grad()
    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N] token ids → token features [B, N, W], mask [B, N] and z_t [B, D] float32."""
        tokens, mask, pooled = self._on(ids.device).encode_tokens(ids)
        return tokens, mask, self.space.in_convention(pooled.float())

    def _on(self, device: torch.device) -> ClipNetwork:
        if device != self._device:
            self.network.to(device)
            self._device = device
        return self.network


def stage_file(path: Path) -> Path:
    """The file of a stage, or the index of its shards where it was too large for one file."""
    index = path.with_name(f"{path.name}.index.json")
    return index if not path.exists() and index.exists() else path


def load_frozen_clip(path: Path) -> FrozenClip:
    """Read the CLIP stage that training depends on.

    Raises:
        ValueError: the file is not there or is not a CLIP stage.
    """
    from ..formats.load import load_any_stage

    path = stage_file(path)
    if not path.exists():
        raise ValueError(
            f"no CLIP model at {path}: train it with `unclip train clip`, or set `clip` to its file"
        )
    # A folder may hold a whole model; of a file what it holds is told below.
    stage = load_any_stage(path, expect="clip" if path.is_dir() else None, dtype=torch.float32)
    if not isinstance(stage, ClipStage):
        raise ValueError(f"{path} holds a {type(stage).__name__}, expected a CLIP stage")
    return FrozenClip(stage)
