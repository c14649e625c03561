"""DDIM run backwards: from a clean sample to the noise x_T that the sampler would make it from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .samplers import SamplerStep, StepCallback, ddim_update, renoised, require_finite
from .schedule import Schedule

REMEMBERED = 2  # states before the last one that a correction goes by
RIDGE = 1e-6  # of the least squares, by the size of what changes


@torch.no_grad()
def invert_ddim(
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    refinements: int = 0,
    callback: StepCallback | None = None,
) -> Tensor:
    """Find the x_T from which ``sample_ddim`` with eta 0 and the same denoiser and schedule gives x.

    Each step is x_{t+1} = √ᾱ_{t+1}·x̂_0 + √(1−ᾱ_{t+1})·ε̂ with x̂_0 and ε̂ of x_t (unCLIP, section 3; DDIM,
    section 4.3). x itself counts as the state at index 0, whose noise is not visible. The sampler's own step
    from x_{t+1} uses x̂_0 of x_{t+1}, so that the round trip is exact only for infinitely many steps.

    ``refinements`` solve for the x_{t+1} whose step leads to x_t, by fixed-point iteration. With ᾱ = cos²φ,
    δ = φ_{t+1} − φ_t the sampler's step is x_t = cos δ·x_{t+1} − sin δ·v̂(x_{t+1}), with v = √ᾱ·ε − √(1−ᾱ)·x_0
    (Salimans & Ho 2202.00512, appendix D), hence x_{t+1} ← (x_t + sin δ·v̂(x_{t+1})) / cos δ: unlike the same
    iteration on ε̂ or x̂_0 it is well conditioned at both ends. Guidance makes it slow or lets it diverge, for
    pictures above all that the network would not paint; so each correction also goes by those before it
    (Anderson's mixing, 1965, here about the best state), and one that made things worse is followed by a
    shorter one from the best state. Strong guidance is not always invertible.

    Args:
        denoiser: the sampler's own, guided and clamped as it is.
        x: [B, …], clean.
        refinements: network calls for each step besides the first one.

    Returns:
        x_T, [B, …] float32.
    """
    if refinements < 0:
        raise ValueError(f"refinements is {refinements}; expected 0 or more")
    x = x.float()
    alphas = schedule.alphas_cumprod.tolist()
    for index, there in enumerate(alphas):
        # The clean sample is no state that the denoiser knows: at index 0 the guess is x as it is.
        here, guess, shown = 1.0, x, x
        if index > 0:
            here, prediction = alphas[index - 1], denoiser(x, index - 1)
            shown, backwards = prediction.x0, turned(prediction)
            guess = ddim_update(renoised(x, backwards, here), backwards.x0, here, there)
        x = _refine(denoiser, x, guess, index, here, there, refinements) if refinements else guess
        if callback is not None:
            callback(SamplerStep(index=index, total=len(schedule), x=x, x0=shown))
    return require_finite(x)


def turned(prediction: Prediction) -> Prediction:
    """What a step towards noise goes by: of CFG++ the picture of the one x̂_0 and the noise of the other.

    The sampler's step from x_{t+1} ends at picture x̂_0 and the noise of x̂_0', so what it came from has the
    picture of x̂_0' and the noise of x̂_0 (2406.08070, algorithm 2). Any other prediction stays as it is.
    """
    if prediction.renoise is None:
        return prediction
    return replace(prediction, x0=prediction.renoise, renoise=prediction.x0)


def _refine(
    denoiser: Denoiser, x: Tensor, guess: Tensor, index: int, here: float, there: float, refinements: int
) -> Tensor:
    """The state at ``index`` (ᾱ_there) whose step towards ᾱ_here ends nearer to x than the guess's."""
    signal, sigma = math.sqrt(there), math.sqrt(1 - there)
    cos = math.sqrt(here) * signal + math.sqrt(1 - here) * sigma  # of δ = φ_there − φ_here
    best, least_missed = guess, torch.zeros_like(x)
    least = torch.full((len(x),), math.inf, device=x.device)
    better, share = torch.ones_like(least, dtype=torch.bool), torch.ones_like(least)
    tried: list[tuple[Tensor, Tensor]] = []
    for _ in range(refinements):
        # The sampler's step itself, as it will be taken from this guess.
        prediction = denoiser(guess, index)
        taken = ddim_update(renoised(guess, prediction, there), prediction.x0, there, here)
        missed = taken - x  # [B, …]
        error = missed.flatten(1).norm(dim=1)  # [B]
        better = error < least
        best = torch.where(_of_rows(better, x), guess, best)
        least_missed = torch.where(_of_rows(better, x), missed, least_missed)
        least = torch.minimum(error, least)
        share = torch.where(better, (2 * share).clamp(max=1), share / 2)
        tried = [*tried[-REMEMBERED:], (guess, missed)]
        state, left = _mixed(best, least_missed, tried)
        guess = state - _of_rows(share, x) * left / cos
    return torch.where(_of_rows(better, x), guess, best)


def _mixed(best: Tensor, missed: Tensor, tried: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The state between those tried, or beyond them, that would miss the least if all were linear.

    Args:
        best: [B, …], and what it misses.
        tried: other states, and what they miss.

    Returns:
        That state, and what it would miss.
    """
    moves = torch.stack([(state - best).flatten(1) for state, _ in tried], dim=2)  # [B, N, K]
    changes = torch.stack([(their - missed).flatten(1) for _, their in tried], dim=2)
    # K numbers for each image: on the CPU, since not every device has float64.
    gram = (changes.mT @ changes).double().cpu()  # [B, K, K]
    wanted = (changes.mT @ missed.flatten(1)[:, :, None]).double().cpu()  # [B, K, 1]
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).sum(dim=1) + 1e-30  # the best state itself has no change
    weights, _ = torch.linalg.solve_ex(gram + ridge[:, None, None] * torch.eye(len(tried)), wanted)
    weights = weights.to(changes)
    state = best - (moves @ weights)[:, :, 0].reshape(best.shape)
    return state, missed - (changes @ weights)[:, :, 0].reshape(best.shape)


def _of_rows(values: Tensor, x: Tensor) -> Tensor:
    """[B] as [B, 1, …], for each row of x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
