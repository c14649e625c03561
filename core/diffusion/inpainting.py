"""Filling in a part of a sample while the rest is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .noise import draw_noise
from .parameterization import add_noise
from .samplers import SamplerStep, StepCallback, ddim_sigma, ddim_update, renoised, require_finite
from .schedule import Schedule


class KnownDenoiser:
    """Replaces x̂_0 by the known sample outside of the repainted part (GLIDE's inpainting, 2112.10741)."""

    def __init__(self, denoiser: Denoiser, known: Tensor, repaint: Tensor) -> None:
        self.denoiser, self.known, self.repaint = denoiser, known, repaint

    def __call__(self, x: Tensor, step: int) -> Prediction:
        return self.denoiser(x, step).map(lambda x0: torch.where(self.repaint, x0, self.known))


def resampling_path(steps: int, jump_length: int, resamples: int) -> list[int]:
    """Noise levels from ``steps`` (pure noise) to 0 (clean), with the way back of RePaint (figure 9).

    Every ``jump_length`` levels the sampler goes back up by as many, until each stretch has been walked
    ``resamples`` times; in a way too short for that, by all of its levels but one. It never goes back from
    the clean sample, and what lies above the highest jump is walked once, as in the authors' code. 1 is the
    plain way down.
    """
    if jump_length < 1 or resamples < 1:
        raise ValueError(
            f"jump_length is {jump_length} and resamples is {resamples}; expected at least 1 for both"
        )
    jump_length = min(jump_length, max(1, steps - 1))
    jumps = dict.fromkeys(range(1, steps - jump_length + 1, jump_length), resamples - 1)
    path = [steps]
    while path[-1] > 0:
        path.append(path[-1] - 1)
        if jumps.get(path[-1], 0) > 0:
            jumps[path[-1]] -= 1
            path += range(path[-1] + 1, path[-1] + jump_length + 1)
    return path


def passes_down(path: Sequence[int]) -> int:
    """How many steps of a path of noise levels denoise; the others only add noise."""
    return sum(there < here for here, there in pairwise(path))


@torch.no_grad()
def sample_repaint(
    denoiser: Denoiser,
    x: Tensor,
    known: Tensor,
    repaint: Tensor,
    schedule: Schedule,
    *,
    generators: Sequence[torch.Generator],
    eta: float = 1.0,
    resamples: int = 1,
    jump_length: int = 1,
    known_noise: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """RePaint (2201.09865, algorithm 1): for networks that know nothing of masks.

    After every step the known part is put in, noised to the level of the step. By going back up and down
    again (see :func:`resampling_path`) the new part gets to fit it. The steps are DDIM's; eta 1 has the law
    of the paper's DDPM steps.

    Args:
        x: [B, …] x_T.
        known: [B, …] clean sample, of which the part outside ``repaint`` is used.
        repaint: bool, broadcasts against x.
        generators: one for each row, for all noise after x_T.
        known_noise: [B, …], with which the known part is noised at every step; None draws it anew.
    """
    x, alphas = x.float(), [1.0, *schedule.alphas_cumprod.tolist()]  # by level
    path = resampling_path(len(schedule), jump_length, resamples)
    total, done = passes_down(path), 0
    for here, there in pairwise(path):
        if there > here:
            share = alphas[there] / alphas[here]
            x = add_noise(x, draw_noise(generators, x.shape[1:], x.device), share**0.5, (1 - share) ** 0.5)
            continue
        prediction = denoiser(x, here - 1)
        x = renoised(x, prediction, alphas[here])
        sigma = ddim_sigma(alphas[here], alphas[there], eta)
        noise = draw_noise(generators, x.shape[1:], x.device) if sigma > 0 else None
        x = ddim_update(x, prediction.x0, alphas[here], alphas[there], sigma, noise)
        pasted = known
        if there > 0:
            noise = draw_noise(generators, x.shape[1:], x.device) if known_noise is None else known_noise
            pasted = add_noise(known, noise, math.sqrt(alphas[there]), math.sqrt(1 - alphas[there]))
        x = torch.where(repaint, x, pasted)
        if callback is not None:
            shown = torch.where(repaint, prediction.x0, known)
            callback(SamplerStep(index=done, total=total, x=x, x0=shown))
        done += 1
    return require_finite(x)
