"""Guidance as wrappers around denoisers: the better prediction led away from a worse one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .denoiser import Denoiser, Prediction
from .schedule import Schedule

# (conditional x̂_0, the other x̂_0, step) → guided x̂_0, and the one whose noise is added again, None for that
Combine = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Guidance:
    """A way to guide that has a name.

    Attributes:
        combine: scale → how two predictions are combined; new for each sample, since it may remember.
        meaning: what it is good for, to follow its name in a sentence.
        against: what it leads away from: ``null``, the network without the condition; ``attention``, the
            network with perturbed attention; ``weaker``, another network with the condition.
        idle_at_one: whether scale 1 is the conditional prediction and needs no other.
        highest: scale that it is made for.
    """

    combine: Callable[[float], Combine]
    meaning: str
    against: Literal["null", "attention", "weaker"] = "null"
    idle_at_one: bool = True
    highest: float = math.inf

    def guides(self, scale: float) -> bool:
        """Whether it needs the other prediction at this scale."""
        return scale != 1 or not self.idle_at_one


def extrapolate(scale: float) -> Combine:
    """other + scale·(conditional − other) (classifier-free guidance, 2207.12598, eq. 6, on x̂_0).

    Guidance on x̂_0, ε̂ and v̂ is the same thing: at a given x_t each is an affine function of the other, and
    the weights add up to one. Against a weaker network it is autoguidance (2406.02507, eq. 3), against
    perturbed attention PAG (2403.17377, eq. 15, with the scale counted from 1).
    """
    return lambda conditional, other, step: (other + scale * (conditional - other), None)


def renoise(scale: float) -> Combine:
    """CFG++ (2406.08070, algorithm 1): the same x̂_0, but the noise of the null prediction is added again.

    For a scale within 0…1 the sample stays on the way between the two predictions, and DDIM can be inverted.
    """
    return lambda conditional, other, step: (other + scale * (conditional - other), other)


class Projection:
    """Adaptive projected guidance (Sadat et al. 2410.02416, algorithm 1), on x̂_0.

    What is added to the conditional x̂_0 has a momentum against what was added before, a largest size, and
    nothing that is parallel to x̂_0 itself, which would only raise contrast and saturation.

    Args:
        scale: w; w − 1 of what is left is added.
        momentum: β, negative: against what the last step added.
        size: r, the largest root mean square of what is added: the paper's 15 on 4·128·128 numbers.
        parallel: η, how much of the parallel part stays.
    """

    def __init__(
        self, scale: float, *, momentum: float = -0.5, size: float = 15 / 256, parallel: float = 0.0
    ) -> None:
        self.scale, self.momentum, self.size, self.parallel = scale, momentum, size, parallel
        self._step: int | None = None
        self._before: Tensor | None = None  # what the steps before this one added up to
        self._running: Tensor | None = None

    def __call__(self, conditional: Tensor, other: Tensor, step: int) -> tuple[Tensor, None]:
        # A step that is asked for again, by solvers that look ahead, counts once; going back to more noise
        # begins anew.
        if self._step is None or step > self._step:
            self._before = None
        elif step < self._step:
            self._before = self._running
        change = conditional - other
        if self._before is not None:
            change = change + self.momentum * self._before
        self._step, self._running = step, change
        axes = tuple(range(1, change.ndim))
        rms = change.square().mean(dim=axes, keepdim=True).sqrt().clamp(min=1e-12)
        change = change * (self.size / rms).clamp(max=1)
        length = conditional.square().sum(dim=axes, keepdim=True).clamp(min=1e-12)
        along = (change * conditional).sum(dim=axes, keepdim=True) / length * conditional
        change = change - (1 - self.parallel) * along
        return conditional + (self.scale - 1) * change, None


GUIDANCES = {
    "cfg": Guidance(extrapolate, "leads away from what is painted without the condition"),
    "cfg_pp": Guidance(
        renoise,
        "does so and stays closer to natural pictures; its scale is 0 to 1, and pictures can be inverted",
        idle_at_one=False,
        highest=1.0,
    ),
    "apg": Guidance(Projection, "keeps colours natural at high scales"),
    "pag": Guidance(
        extrapolate, "leads away from pictures without order, and needs no empty caption", against="attention"
    ),
    "autoguidance": Guidance(
        extrapolate, "leads away from a weaker decoder and keeps the variety", against="weaker"
    ),
}


def require_scale(scale: float, guidance: str = "cfg", what: str = "guidance_scale") -> None:
    """Raise a ValueError for a scale that a guidance is not made for.

    Args:
        guidance: a name of ``GUIDANCES``; another one, which is refused elsewhere, takes any.
        what: has the scale, for the message.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"{what} is {scale}; expected 0 or more, 1 for no guidance")
    highest = GUIDANCES[guidance].highest if guidance in GUIDANCES else math.inf
    if scale > highest:
        raise ValueError(
            f"{what} is {scale}; guidance {guidance} takes 0 to {highest:g}, such as {0.6 * highest:g}"
        )


class GuidedDenoiser:
    """x̂_0 of the conditional prediction, led away from another one where the interval says so.

    The log-variance is the conditional one.

    Args:
        conditional: a denoiser of B rows; alone it serves the steps that are not guided.
        both: a denoiser of 2B rows, the conditional ones first, then as many of the other; both halves get
            the same x_t.
        schedule: the schedule that is sampled.
        scale: 1 is the conditional prediction, 0 the other one.
        interval: guide only where the time t/(T−1) lies within, 0 the clean sample, 1 pure noise (guidance
            interval, Kynkäänniemi et al. 2404.07724).
        rescale: φ within [0, 1], how far the guided x̂_0 is brought back to the standard deviation of the
            conditional one, per image (Lin et al. 2305.08891, eq. 15–16).
        name: one of ``GUIDANCES``: how the two are combined.
    """

    def __init__(
        self,
        conditional: Denoiser,
        both: Denoiser,
        schedule: Schedule,
        scale: float,
        interval: tuple[float, float] = (0.0, 1.0),
        rescale: float = 0.0,
        name: str = "cfg",
    ) -> None:
        low, high = interval
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scale: found {scale}, expected a finite number")
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval: found {low}…{high}, expected a start and an end within 0…1, "
                "the start not above the end"
            )
        if not 0 <= rescale <= 1:
            raise ValueError(f"guidance_rescale: found {rescale}, expected a number within 0…1")
        if name not in GUIDANCES:
            raise ValueError(f"guidance: found {name!r}, expected one of {', '.join(GUIDANCES)}")
        self.conditional = conditional
        self.both = both
        self.rescale = rescale
        self._combine = GUIDANCES[name].combine(scale)
        time = schedule.timesteps.double() / max(schedule.num_train_timesteps - 1, 1)  # [S]
        self._guided = (time >= low) & (time <= high) & GUIDANCES[name].guides(scale)

    def guides(self, step: int) -> bool:
        """Whether the other branch is needed at this step."""
        return bool(self._guided[step])

    def __call__(self, x: Tensor, step: int) -> Prediction:
        if not self.guides(step):
            return self.conditional(x, step)
        prediction = self.both(torch.cat([x, x]), step)  # 2B rows
        conditional, other = prediction.x0.chunk(2)
        x0, renoise = self._combine(conditional, other, step)
        if self.rescale:
            x0 = x0 * (1 - self.rescale + self.rescale * _spread(conditional) / _spread(x0))
        log_variance = prediction.log_variance
        return Prediction(x0, None if log_variance is None else log_variance.chunk(2)[0], renoise)


class PairedDenoiser:
    """Two denoisers of B rows as one of 2B: the first half of the rows goes to one, the rest to the other.

    The log-variance, which guidance has of the first alone, is the first's in both halves.
    """

    def __init__(self, first: Denoiser, second: Denoiser) -> None:
        self.first, self.second = first, second

    def __call__(self, x: Tensor, step: int) -> Prediction:
        above, below = x.chunk(2)
        first, second = self.first(above, step), self.second(below, step)
        log_variance = first.log_variance
        doubled = None if log_variance is None else torch.cat([log_variance, log_variance])
        return Prediction(torch.cat([first.x0, second.x0]), doubled)


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each row, [B, 1, …, 1]; kept above zero, since a constant image has none."""
    return x.std(dim=tuple(range(1, x.ndim)), correction=0, keepdim=True).clamp(min=1e-8)
