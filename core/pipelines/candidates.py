"""What priors share: what their captions must carry, and which of several embeddings are kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import require_kind
from ..embeddings.space import EmbeddingSpace, TextFeatures, require_text_of
from .rows import CAPTIONS


def closest_to_text(candidates: Tensor, text: Tensor, keep: int = 1, *, cosine: bool = False) -> Tensor:
    """Of candidates z_i [B, N, D] those with the largest z_i·z_t for each z_t [B, D], the best first.

    With ``cosine`` those at the smallest angle, whatever their length.

    Returns:
        [B, keep, D].
    """
    of = F.normalize(candidates, dim=-1) if cosine else candidates
    scores = torch.einsum("b n d, b d -> b n", of, text.to(candidates.dtype))
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return candidates.take_along_dim(best[..., None], dim=1)


def require_text(
    text: TextFeatures,
    space: EmbeddingSpace,
    guidance_scale: float,
    guided: bool | None = None,
    *,
    subjects: bool = False,
) -> None:
    """Raise a ValueError unless captions are of a prior's CLIP space and carry what its guidance needs.

    Args:
        guided: whether there is guidance; None for at all scales but 1.
        subjects: pictures may stand among the words, of which the network then says whether it reads them.
    """
    require_kind(TextFeatures, CAPTIONS, text=text)
    require_text_of("text", text, space, subjects=subjects)
    if (guidance_scale != 1 if guided is None else guided) and text.null is None:
        raise ValueError(
            f"guidance_scale: {guidance_scale} needs the features of the empty caption, which this text does "
            f"not carry. Set it to 1 and guidance to cfg, or encode the captions with unCLIP's text encoder"
        )
