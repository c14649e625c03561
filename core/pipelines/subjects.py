"""A caption some of whose words are pictures (λ-ECLIPSE, 2402.05195, section 3.2).

The features of the tokens of a subject's name are replaced by the image embedding of its picture, which is as
wide (bigG/14). Source: eclipse-t2i/lambda-eclipse-inference,
`src/pipelines/pipeline_kandinsky_subject_prior.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..embeddings.space import Embedding, TextFeatures, require_same_space
from ..stages import ClipStage, require_stage
from .conditioning import zero_embedding
from .encode import encode_text
from .rows import device_and_dtype


@torch.no_grad()
def encode_with_subjects(
    clip: ClipStage,
    caption: str,
    subjects: Embedding,
    names: Sequence[str],
    control: Embedding | None = None,
) -> TextFeatures:
    """Encode a caption, its words for subjects replaced by their pictures.

    Every token of a name is replaced wherever it stands in the caption. Of two names with a common token the
    later one has it.

    Args:
        caption: has every name in it.
        subjects: [N, D], a row for each name, of the same CLIP model.
        control: [1, D], the embedding of a drawing of outlines (Canny) that the picture follows; None is that
            of an all-zero picture, which says nothing.

    Returns:
        One caption, with ``control``, for λ-ECLIPSE's prior.

    Raises:
        ValueError: another number of names than of subjects, a name that does not stand in the caption, its
            words side by side in this order, another CLIP space, or a CLIP model whose text features are not
            as wide as its embeddings.
    """
    require_stage(ClipStage, clip=clip)
    require_same_space("embedding", subjects.space, clip.space)
    if len(names) != len(subjects):
        raise ValueError(
            f"subject_names: found {len(names)} names for {len(subjects)} embeddings; write one a line, "
            f"in the order of the pictures"
        )
    text = encode_text(clip, [caption])
    if text.tokens.shape[2] != clip.space.dim:
        raise ValueError(
            f"clip: its text features are {text.tokens.shape[2]} wide and its embeddings {clip.space.dim}, "
            f"so that a picture cannot stand for a word; connect the CLIP model of λ-ECLIPSE, bigG/14"
        )
    ids = clip.tokenizer([caption, *names])  # [1 + N, L]
    device, _ = device_and_dtype(clip.network)
    _, mask, _ = clip.network.encode_tokens(ids.to(device))
    mask = mask.cpu()
    mask[:, 0] = False  # the start token
    mask[torch.arange(len(mask)), mask.sum(dim=1)] = False  # the end token, now the last that is valid
    tokens = text.tokens.clone()
    vectors = subjects.in_norm_of(clip.space).to(tokens)
    for row, name in enumerate(names, 1):
        wanted = ids[row][mask[row]]
        places = torch.isin(ids[0], wanted) & mask[0]
        if not _stands_in(wanted, ids[0][mask[0]]):
            raise ValueError(
                f"subject_names: {name!r} is not in the caption {caption!r}; write it there as it stands here"
            )
        tokens[0, places.to(tokens.device)] = vectors[row - 1]
    if control is None:
        control = zero_embedding(clip)
    require_same_space("control", control.space, clip.space)
    if len(control) != 1:
        raise ValueError(f"control: found {len(control)} embeddings, expected one")
    return replace(text, tokens=tokens, control=control.in_norm_of(clip.space, "control").to(tokens))


def _stands_in(name: Tensor, caption: Tensor) -> bool:
    """Whether token ids [N] stand side by side, in this order, among others [L]."""
    if not 0 < len(name) <= len(caption):
        return False
    return bool((caption.unfold(0, len(name), 1) == name).all(dim=1).any())
