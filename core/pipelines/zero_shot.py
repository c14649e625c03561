"""Which of some captions fits a picture, in the eyes of a CLIP model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..embeddings.batches import common_batch
from ..embeddings.space import Embedding, TextFeatures, require_same_space, require_text_of
from ..networks.clip import ClipNetwork
from ..networks.glide_text import GlideText
from ..stages import ClipStage, require_stage


@torch.no_grad()
def zero_shot(clip: ClipStage, embedding: Embedding, text: TextFeatures) -> Tensor:
    """Zero-shot classification (CLIP 2103.00020, section 3.1): softmax over captions of scale·cosine.

    unCLIP shows by it (section 4, figure 6) that a picture with writing on it is taken for what is written,
    while its decoded embedding still shows the object.

    Args:
        clip: for its learned scale.
        embedding: [B, D] image embeddings.
        text: N captions.

    Returns:
        [B, N] float32 on the CPU, rows that add up to 1.

    Raises:
        ValueError: no embedding, an embedding or captions of another CLIP model, or a text encoder alone.
    """
    require_stage(ClipStage, clip=clip)
    if not isinstance(clip.network, ClipNetwork):
        kind = "GLIDE's" if isinstance(clip.network, GlideText) else "Kandinsky 2.1's"
        raise ValueError(
            f"clip: this is {kind} text encoder, which cannot compare captions with pictures; connect a CLIP "
            f"model that reads both"
        )
    common_batch(embedding=len(embedding))
    require_same_space("embedding", embedding.space, clip.space)
    require_text_of("text", text, clip.space)
    image = F.normalize(embedding.vectors.cpu().double(), dim=-1)  # [B, D]
    captions = F.normalize(text.pooled.cpu().double(), dim=-1)  # [N, D]
    scale = clip.network.logit_scale.detach().cpu().double().exp()
    return (scale * image @ captions.T).softmax(dim=-1).float()
