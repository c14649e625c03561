"""What CLIP sees in pictures that were varied, or turned by a text diff: zero-shot among many concepts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...embeddings.arithmetic import embedding_diff, positions, text_diff
from ...embeddings.space import Embedding
from ...pipelines.encode import encode_text
from ...pipelines.noise import draw_starting_noise
from ..quality.prompts import Prompt, render_prompts
from ..statistics import Proportion
from .measured_bundle import Example, MeasuredBundle

SHOWN = 12  # pictures of a row
SHOWN_PAIRS = 8


@torch.no_grad()
def measure_variations(measured: MeasuredBundle, prompts: list[Prompt]) -> tuple[dict[str, Any], Example]:
    """One variation of each real picture: its embedding decoded from fresh noise (unCLIP, section 3.1).

    Returns:
        ``real``: shares of the real pictures for which the judge finds their concept most probable of all:
        what variations can reach; ``variations``, the same of those; ``kept``, of the variations of real
        pictures that are recognised; ``same``, of those for which picture and variation are taken for the
        same, right or wrong.
    """
    captions = [prompt.caption for prompt in prompts]
    real = render_prompts(prompts, measured.size)
    embedding = measured.encode(real)
    counter = measured.counter("variations", len(prompts))
    varied = measured.decode(embedding, counter)
    before = measured.probabilities(embedding, captions).argmax(dim=1)  # [N]
    after = measured.probabilities(measured.encode(varied), captions).argmax(dim=1)
    right = torch.arange(len(prompts))
    known = before == right
    results = {
        "concepts": len(prompts),
        "real": Proportion.of(known).to_json(),
        "variations": Proportion.of(after == right).to_json(),
        "kept": Proportion.of((after == right)[known]).to_json() if bool(known.any()) else None,
        "same": Proportion.of(after == before).to_json(),
    }
    shown = slice(SHOWN)
    example = Example(
        "variations",
        torch.stack([real[shown], varied[shown]]),
        ["real", "variation"],
        captions[shown],
        [[captions[index] for index in found[shown].tolist()] for found in (before, after)],
    )
    return results, example


@torch.no_grad()
def measure_text_diff(
    measured: MeasuredBundle, prompts: list[Prompt]
) -> tuple[dict[str, Any], list[Example]]:
    """Pictures turned towards another concept, with one x_T for all frames (unCLIP, section 3.3).

    Picture 2i is turned by the caption of picture 2i + 1, its own being the baseline.

    Returns:
        By ``theta`` the mean zero-shot probability of the target caption among all prompts' for the turned
        ``embedding`` itself and for the ``pictures`` decoded from it, each with its standard error, and for
        the pictures that of the own caption, ``left``; how many pairs and single steps rise in the pictures;
        ``aligned``, the mean cosine of the direction and the difference of both real pictures' embeddings.
        ``by_prior`` has the same of the direction between the diffusion prior's embeddings of the captions.
    """
    settings, captions = measured.config.text_diff, [prompt.caption for prompt in prompts]
    sources, targets = (torch.arange(start, 2 * settings.pairs, 2) for start in (0, 1))
    clip = measured.bundle.clip
    of_pairs = measured.encode(render_prompts(prompts[: 2 * settings.pairs], measured.size))
    real = replace(of_pairs, vectors=of_pairs.vectors[sources])
    between = F.normalize(of_pairs.vectors[targets] - real.vectors, dim=-1)  # [P, D]
    texts = [encode_text(clip, [captions[i] for i in which.tolist()]) for which in (targets, sources)]
    turn = (settings.theta_max, settings.frames)

    def found_of(title: str, turned: Embedding, direction: Tensor) -> tuple[dict[str, Any], Example]:
        found, example = _measure_turned(measured, title, turned, captions, sources, targets)
        aligned = (F.normalize(direction.to(between), dim=-1) * between).sum(dim=1).mean().item()
        return {**found, "aligned": aligned}, example

    target, own = texts
    results, example = found_of("text diff", text_diff(real, target, own, *turn), target.pooled - own.pooled)
    if not settings.by_prior:
        return results, [example]
    # One seed for both captions of a pair: what differs then are the captions.
    target, own = (measured.imagine(text) for text in texts)
    turned = embedding_diff(real, target, own, *turn)
    results["by_prior"], other = found_of("text diff by the prior", turned, target.vectors - own.vectors)
    return results, [example, other]


def _measure_turned(
    measured: MeasuredBundle,
    title: str,
    turned: Embedding,
    captions: list[str],
    sources: Tensor,
    targets: Tensor,
) -> tuple[dict[str, Any], Example]:
    """Measures of embeddings [P·F, D] and of what is decoded from them; captions by their places."""
    settings = measured.config.text_diff
    noise = draw_starting_noise(
        measured.bundle.decoder, seed=measured.config.seed, batch_size=settings.pairs
    ).values
    counter = measured.counter(title, len(turned))
    pictures = measured.decode(turned, counter, noise.repeat_interleave(settings.frames, dim=0))

    def probabilities(embedding: Embedding, which: Tensor) -> Tensor:
        shares = measured.probabilities(embedding, captions).double()  # [P·F, N]
        shares = rearrange(shares, "(p f) n -> p f n", p=settings.pairs)
        return shares[torch.arange(settings.pairs), :, which]  # [P, F]

    seen = measured.encode(pictures)
    direct, found = probabilities(turned, targets), probabilities(seen, targets)
    left = probabilities(seen, sources)
    results = {
        "pairs": settings.pairs,
        "concepts": len(captions),
        "theta": (settings.theta_max * positions(settings.frames)).tolist(),
        "embedding": _mean(direct),
        "pictures": _mean(found),
        "left": _mean(left),
        "rising_pairs": Proportion.of(found[:, -1] > found[:, 0]).to_json(),
        "rising_steps": Proportion.of(found.diff(dim=1) > 0).to_json(),
    }
    shown = min(SHOWN_PAIRS, settings.pairs)
    rows = rearrange(pictures, "(p f) c h w -> p f c h w", p=settings.pairs)[:shown]
    example = Example(
        title.replace(" ", "-"),
        rows,
        [f"{captions[2 * pair]} → {captions[2 * pair + 1]}" for pair in range(shown)],
        [f"θ {theta:.3g}" for theta in results["theta"]],
        [[f"{share:.0%}" for share in row] for row in found[:shown].tolist()],
    )
    return results, example


def _mean(values: Tensor) -> dict[str, list[float]]:
    """[P, F] → mean and standard error over P, F values each."""
    spread = values.std(dim=0) if len(values) > 1 else torch.zeros(values.shape[1])
    return {"mean": values.mean(dim=0).tolist(), "error": (spread / len(values) ** 0.5).tolist()}
