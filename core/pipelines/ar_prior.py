"""Captions → CLIP image embeddings, by an autoregressive prior (unCLIP 2204.06125, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..acceleration.kept_copies import with_packed_weights
from ..diffusion.noise import image_generators
from ..diffusion.samplers import SamplerStep, StepCallback, require_finite
from ..embeddings.codec import EmbeddingCodec
from ..embeddings.pca import PCA
from ..embeddings.space import Embedding, TextFeatures
from ..networks.ar_prior import AutoregressivePrior, CodeCache
from ..networks.prior_cache import PriorCache
from ..stages import PriorStage, require_stage
from .candidates import closest_to_text, require_text
from .options import candidates_option, check_options, guidance_scale_option, option
from .prior import PRIOR_GUIDANCE
from .rows import common_batch, device_and_dtype, to_batch


@dataclass(frozen=True)
class AutoregressiveOptions:
    """How an autoregressive prior is sampled.

    Attributes:
        guidance_scale: of the logits, null + scale·(conditional − null); 1 for none, which halves the work.
        temperature: above 0. Logits are divided by it.
        candidates: embeddings sampled for each image, of which the one with the largest z_i·z_t is kept.
        pack_weights: on the CPU, keep a second, blocked copy of the weights from the first call on: twice the
            memory, and faster.

    The paper tells none of these.
    """

    guidance_scale: float = guidance_scale_option(1.5, PRIOR_GUIDANCE)
    temperature: float = option(
        0.7,
        0.05,
        2.0,
        0.05,
        help="How freely the pieces are chosen. Lower keeps to the likeliest ones, 1 is as varied as the "
        "pictures that the prior has learnt from.",
    )
    candidates: int = candidates_option(4)
    top_p: float = option(
        1.0,
        0.05,
        1.0,
        0.05,
        help="Leaves out unlikely choices: only the likeliest ones, which together have this probability, "
        "are open. 1 leaves out none.",
        advanced=True,
    )
    top_k: int = option(
        0,
        0,
        4096,
        help="Leaves out unlikely choices: only so many of the likeliest ones are open. 0 leaves out none, "
        "1 always takes the likeliest.",
        advanced=True,
    )
    pack_weights: bool = True

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature: found {self.temperature}, expected above 0 (top_k 1 takes the likeliest code)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: found {self.top_p}, expected above 0 to 1 (1 for all codes)")
        if self.top_k < 0:
            raise ValueError(f"top_k: found {self.top_k}, expected 0 (for all codes) or more")


@torch.no_grad()
def sample_autoregressive_prior(
    prior: PriorStage,
    text: TextFeatures,
    *,
    seed: int,
    batch_size: int = 1,
    options: AutoregressiveOptions = AutoregressiveOptions(),
    callback: StepCallback | None = None,
) -> Embedding:
    """Sample an image embedding for each caption, code by code.

    The match token, the quantised z_i·z_t that the embedding is asked to have, is drawn from the top half of
    its training distribution. Of an image's candidates the one with the largest z_i·z_t is kept: the
    dot product, which that token, too, means in the paper.

    Args:
        text: B captions, or one for the whole batch; ``text.null`` serves the unconditional branch.
        seed: of the first image; image i draws the codes of all its candidates from a generator of seed + i.
        batch_size: number of images, where there is one caption.
        callback: called after each code. Its x and x0 are the embeddings of the codes so far, the others at
            their mean, [B·candidates, D] standardised; what it raises ends the sampling.

    Returns:
        [B, D] float32 on the network's device, in the norm convention of the CLIP space.

    Raises:
        ValueError: another CLIP space, a diffusion prior, guidance without null features, batch sizes that
            do not match, or a network that overflows.
    """
    network = _require_autoregressive_prior(prior)
    require_text(text, prior.space, options.guidance_scale)
    batch = common_batch(text=len(text), batch_size=batch_size)
    device, _ = device_and_dtype(network)
    text = text.to(device).in_convention_of(prior.space)
    codec = codec_of(prior)

    # An image's generator serves its candidates one after the other, so that nothing else reaches them.
    draws = _uniform(image_generators(seed, batch), options.candidates, 1 + network.config.components)
    rows, half = len(draws), network.config.match_buckets // 2
    previous = half + (draws[:, 0] * half).long()  # the upper half of the buckets, equally likely

    running = with_packed_weights(network) if options.pack_weights else network
    cache = _start(running, text, batch, options)
    codes = previous.new_empty(rows, network.config.components)  # on the CPU, as all that is drawn
    for index in range(codes.shape[1]):
        logits = running.step(previous.repeat(len(cache) // rows).to(device), cache).float().cpu()
        if len(cache) > rows:  # [2·rows, V]
            conditional, null = logits.chunk(2)
            logits = null + options.guidance_scale * (conditional - null)
        previous = choose(require_finite(logits), draws[:, 1 + index], options)
        codes[:, index] = previous
        if callback is not None:
            partial = prior.space.standardise(codec.decode(codes[:, : index + 1]).vectors)
            callback(SamplerStep(index, codes.shape[1], partial, partial))
    vectors = prior.space.in_convention(codec.decode(codes).vectors)
    candidates = rearrange(vectors, "(b n) d -> b n d", b=batch)
    best = closest_to_text(candidates, text.expand(batch).pooled)
    return Embedding(best.flatten(0, 1), prior.space)


def codec_of(prior: PriorStage) -> EmbeddingCodec:
    """What the codes of an autoregressive prior mean, from its checkpoint."""
    return EmbeddingCodec.from_state(_require_autoregressive_prior(prior).codebook.state_dict(), prior.space)


def components_of(prior: PriorStage) -> PCA:
    """The principal components that an autoregressive prior writes embeddings in, of its training pictures.

    Raises:
        ValueError: another kind of prior.
    """
    _require_autoregressive_prior(prior)
    return codec_of(prior).pca


def choose(logits: Tensor, draws: Tensor, options: AutoregressiveOptions) -> Tensor:
    """Codes [R] by logits [R, V] and numbers [R] drawn uniformly from 0..1.

    By the inverse of the cumulative distribution. Buckets are in the order of their values, so where another
    device or batch rounds differently, a draw moves to a neighbour at most.
    """
    probabilities = (logits.double() / options.temperature).softmax(dim=-1)
    if options.top_k or options.top_p < 1:
        by_rank, codes = probabilities.sort(dim=-1, descending=True, stable=True)
        before = by_rank.cumsum(dim=-1) - by_rank  # of likelier codes
        kept = before < options.top_p
        if options.top_k:
            kept[:, options.top_k :] = False
        probabilities = torch.zeros_like(probabilities).scatter(-1, codes, by_rank * kept)
    cumulative = probabilities.cumsum(dim=-1)
    targets = draws[:, None] * cumulative[:, -1:]
    # The first code whose cumulative probability exceeds the target: never one of probability 0.
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _uniform(generators: Sequence[torch.Generator], candidates: int, count: int) -> Tensor:
    """Numbers in 0..1, [images·candidates, count] float64, an image's candidates one after the other."""
    rows = [
        torch.rand(count, generator=generator, dtype=torch.float64)
        for generator in generators
        for _ in range(candidates)
    ]
    return torch.stack(rows)


def _start(
    network: AutoregressivePrior, text: TextFeatures, batch: int, options: AutoregressiveOptions
) -> CodeCache:
    """A cache of B·candidates rows, and as many unconditional ones behind them where there is guidance."""
    prefix = network.prefill(text.tokens, text.pooled, text.mask).expand(batch)
    pooled = to_batch(text.pooled, batch)
    if options.guidance_scale != 1:
        assert text.null is not None  # as was asked for
        null = network.prefill(text.null.tokens, text.null.pooled, text.null.mask)
        prefix = PriorCache.cat(prefix, null.expand(batch))
        pooled = torch.cat([pooled, to_batch(text.null.pooled, batch)])
    return network.start(prefix, pooled, options.candidates)


def _require_autoregressive_prior(prior: PriorStage) -> AutoregressivePrior:
    require_stage(PriorStage, prior=prior)
    if not isinstance(prior.network, AutoregressivePrior):
        raise ValueError(
            f"prior {prior.source or type(prior.network).__name__!r} is not an autoregressive prior: "
            f"connect the output ar_prior of Load unCLIP Bundle (mini has one), or load one with Load "
            f"unCLIP Prior. A diffusion prior runs in the node unCLIP Diffusion Prior"
        )
    return prior.network
