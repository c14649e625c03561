"""Which timesteps a sampler visits when it takes fewer than there are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Beyond this σ = √(1−ᾱ)/√ᾱ there is nothing but noise to see: σ_max of Karras et al. (2206.00364, table 1).
# A cosine schedule goes on to 20,000, where steps would be spent on nothing.
HIGHEST_SIGMA = 80.0


def even(steps: int, alphas_cumprod: Tensor) -> Tensor:
    """Rounded even strides from the first index to the last, both kept.

    ``space_timesteps`` of guided-diffusion (respace.py) does it for the paper's strided sampling. One step
    keeps the noisiest index: sampling starts at pure noise.
    """
    length = len(alphas_cumprod)
    if steps == 1:
        return torch.tensor([length - 1])
    stride = (length - 1) / (steps - 1)
    return (torch.arange(steps, dtype=torch.float64) * stride).round().long()


def trailing(steps: int, alphas_cumprod: Tensor) -> Tensor:
    """Even strides that end at the last index and leave the first one out (Lin et al. 2305.08891, table 2).

    No network call is spent on nearly clean samples.
    """
    ends = torch.arange(1, steps + 1, dtype=torch.float64) * (len(alphas_cumprod) / steps)
    return ends.round().long() - 1


def leading(steps: int, alphas_cumprod: Tensor) -> Tensor:
    """Strides of whole timesteps from index 0 on, which leave the noisiest ones out.

    As the schedulers of diffusers do by default, Kandinsky's too. One step is as ``even``.
    """
    length = len(alphas_cumprod)
    return even(1, alphas_cumprod) if steps == 1 else torch.arange(steps) * (length // steps)


def log_snr(steps: int, alphas_cumprod: Tensor) -> Tensor:
    """Even strides of λ = log(√ᾱ/√(1−ᾱ)), in which DPM-Solver++ and UniPC measure (2211.01095, section 6)."""
    sigmas = _sigmas(alphas_cumprod)
    low, high = _ends(sigmas)
    return _nearest(torch.linspace(math.log(low), math.log(high), steps, dtype=torch.float64).exp(), sigmas)


def karras(steps: int, alphas_cumprod: Tensor) -> Tensor:
    """Even strides of σ^(1/7) (Karras et al. 2206.00364, eq. 5, ρ = 7): dense where there is little noise."""
    sigmas = _sigmas(alphas_cumprod)
    low, high = _ends(sigmas)
    ramp = torch.linspace(low ** (1 / 7), high ** (1 / 7), steps, dtype=torch.float64)
    return _nearest(ramp**7, sigmas)


def beta(steps: int, alphas_cumprod: Tensor) -> Tensor:
    """Timesteps at even quantiles of the beta distribution, α = β = 0.6 (Lee et al. 2407.12173).

    Dense at both ends, where outlines and where details come to be.
    """
    # Of n steps the quantiles are 1, 1 − 1/n, …, 1/n.
    quantiles = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return _distinct(
        (_beta_quantiles(quantiles, 0.6) * (len(alphas_cumprod) - 1)).round().long(), alphas_cumprod
    )


SPACINGS: dict[str, Callable[[int, Tensor], Tensor]] = {
    each.__name__: each for each in (even, trailing, leading, log_snr, karras, beta)
}
"""By name: (number of steps n, ᾱ [S] with index 0 the least noise) → n different indices, ascending."""


def _sigmas(alphas_cumprod: Tensor) -> Tensor:
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()  # infinite where ᾱ = 0


def _ends(sigmas: Tensor) -> tuple[float, float]:
    low = sigmas[0].item()
    return low, max(low, min(sigmas[-1].item(), HIGHEST_SIGMA))


def _nearest(wanted: Tensor, sigmas: Tensor) -> Tensor:
    """The indices nearest to given σ, by logarithms; the last is the noisiest, where sampling starts."""
    distance = (wanted.log()[:, None] - sigmas.log()[None]).abs()  # [n, S]
    indices = distance.argmin(dim=1)
    indices[-1] = len(sigmas) - 1
    return _distinct(indices, sigmas)


def _distinct(indices: Tensor, of: Tensor) -> Tensor:
    """Ascending indices, those that fall together moved apart by as little as it takes."""
    apart = indices.tolist()
    for place in reversed(range(len(apart))):
        above = apart[place + 1] if place + 1 < len(apart) else len(of)
        apart[place] = min(apart[place], above - 1)
    for place in range(len(apart)):
        apart[place] = max(apart[place], apart[place - 1] + 1 if place else 0)
    return torch.tensor(apart)


def _beta_quantiles(quantiles: Tensor, shape: float) -> Tensor:
    """Of the beta distribution with α = β = shape ≥ ½, to about 1e-6.

    With x = sin²θ its density over θ is (sin θ·cos θ)^(2·shape − 1), which is finite; summed by midpoints.
    """
    edges = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = (middles.sin() * middles.cos()) ** (2 * shape - 1)
    cumulated = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
    cumulated = cumulated / cumulated[-1]
    upper = torch.searchsorted(cumulated, quantiles).clamp(1, len(mass))
    below, above = cumulated[upper - 1], cumulated[upper]
    theta = edges[upper - 1] + (quantiles - below) / (above - below) * (edges[1] - edges[0])
    return theta.sin() ** 2
