"""Operators on embeddings: priors whose caption is made of pictures (pOps, 2406.01300).

Of the places of a caption's tokens the first hold standardised image embeddings, as wide as CLIP's text
(bigG/14), then those of a caption, if one is given; the pooled caption is zeros. The null branch has zeros in
the same places. Source: pOpsPaper/pOps, `model/pipeline_pops.py` and `model/pops_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.samplers import StepCallback
from ..embeddings.space import Embedding, TextFeatures, require_plain_text, require_same_space
from ..networks.diffusion_prior import DiffusionPrior
from ..stages import PriorStage, require_stage
from .options import (
    check_options,
    eta_option,
    guidance_interval_option,
    guidance_rescale_option,
    guidance_scale_option,
    sampler_option,
    steps_option,
)
from .prior import PriorOptions, sample_diffusion_prior
from .rows import common_batch, to_batch

OPERATOR_GUIDANCE = (
    "How closely the result follows the inputs. 1 is without guidance, as for pOps' scene and instruct; its "
    "texturing and union take 8."
)


@dataclass(frozen=True)
class OperatorOptions:
    """How an operator is sampled, see ``PriorOptions``."""

    steps: int = steps_option(25, "Denoising steps. 25 are plenty; fewer are faster and blander.")
    guidance_scale: float = guidance_scale_option(1.0, OPERATOR_GUIDANCE)
    sampler: str = sampler_option("ddpm")
    eta: float = eta_option()
    guidance_interval: tuple[float, float] = guidance_interval_option()
    guidance_rescale: float = guidance_rescale_option()
    pack_weights: bool = True

    def __post_init__(self) -> None:
        check_options(self)


@torch.no_grad()
def apply_operator(
    operator: PriorStage,
    embedding: Embedding,
    second: Embedding | None = None,
    text: TextFeatures | None = None,
    *,
    seed: int,
    batch_size: int = 1,
    options: OperatorOptions = OperatorOptions(),
    callback: StepCallback | None = None,
) -> Embedding:
    """Sample what an operator makes of one embedding and a second one, a caption, or both.

    Args:
        operator: see ``core.formats.operators.load_operator``.
        embedding, second: [1 or B, D], in the operator's space.
        text: 1 or B captions.
        seed: of the first result; row i has seed + i.

    Returns:
        [B, D] float32 on the network's device.

    Raises:
        ValueError: neither a second embedding nor a caption, another CLIP space, or batch sizes that do not
            match.
    """
    require_stage(PriorStage, operator=operator)
    if second is None and text is None:
        raise ValueError(
            "embedding_b: nothing is connected there, nor at text; an operator takes two embeddings, or one "
            "and a caption"
        )
    given = {"embedding": embedding, "embedding_b": second, "text": text}
    for name, each in given.items():
        if each is not None:
            require_same_space(name, each.space, operator.space)
    if text is not None:
        require_plain_text("text", text)
    sizes = {name: len(each) for name, each in given.items() if each is not None}
    batch = common_batch(**sizes, batch_size=batch_size)
    embeddings = {name: each for name, each in given.items() if isinstance(each, Embedding)}
    tokens, mask = _tokens(operator, embeddings, text, batch)
    zeros = torch.zeros(batch, operator.space.dim)
    null = TextFeatures(torch.zeros_like(tokens), mask, zeros, operator.space)
    features = TextFeatures(tokens, mask, zeros, operator.space, null.rows(0, 1))
    return sample_diffusion_prior(
        operator,
        features,
        seed=seed,
        batch_size=batch,
        options=PriorOptions(candidates=1, **vars(options)),
        negative_text=None if options.guidance_scale == 1 else null,
        callback=callback,
    )


def _tokens(
    operator: PriorStage, embeddings: Mapping[str, Embedding], text: TextFeatures | None, batch: int
) -> tuple[Tensor, Tensor]:
    """Tokens [B, N, D] and which of them are valid, [B, N]."""
    assert isinstance(operator.network, DiffusionPrior)  # as load_operator makes them
    rows = [
        operator.space.standardise(to_batch(each.in_norm_of(operator.space, name), batch).float().cpu())
        for name, each in embeddings.items()
    ]
    tokens = torch.stack(rows, dim=1)  # [B, 1 or 2, D]
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    if text is not None:
        text = text.to("cpu").expand(batch)
        if text.tokens.shape[2] != tokens.shape[2]:
            raise ValueError(
                f"text: its tokens are {text.tokens.shape[2]} wide, expected {tokens.shape[2]}; encode it "
                f"with the CLIP model of Kandinsky 2.2's prior"
            )
        tokens = torch.cat([tokens, text.tokens], dim=1)
        mask = torch.cat([mask, text.mask], dim=1)
    length = operator.network.config.text_length
    return tokens[:, :length], mask[:, :length]
