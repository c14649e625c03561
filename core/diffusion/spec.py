"""How a network was trained to denoise: the part of a checkpoint that is not weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

PredictionType = Literal["eps", "x0", "v"]
VarianceType = Literal["fixed_small", "fixed_large", "learned_range"]
ScheduleName = Literal["cosine", "linear"]
Spacing = Literal["even", "trailing", "leading", "log_snr", "karras", "beta"]

MAX_TIMESTEPS = 100_000
"""Of a schedule, whose tables hold them all."""


@dataclass(frozen=True)
class FoundSteps:
    """Timesteps that were found for a network and a sampler: ascending, as many as there are steps."""

    sampler: str
    timesteps: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in pairwise(self.timesteps))
        if not self.timesteps or not ascending or self.timesteps[0] < 0:
            raise ValueError(f"timesteps is {list(self.timesteps)}, expected ascending ones from 0 on")


@dataclass(frozen=True)
class DiffusionSpec:
    """Training-time diffusion process of a network.

    Attributes:
        schedule: noise schedule by name, see ``schedule.make_schedule``.
        num_timesteps: number T of training timesteps.
        prediction: what the network's output means: the noise ε, the clean x0, or v = √ᾱ·ε − √(1−ᾱ)·x0
            (Salimans & Ho 2022, eq. in appendix D).
        variance: reverse-process variance; ``learned_range`` networks give twice the channels, the second
            half interpolating between log β̃ and log β (Improved DDPM, eq. 15).
        clip_x0: after guidance x̂0 is clamped to ±clip_x0, in the network's own units; None for never.
        norm_x0: after guidance x̂0 is scaled to this length, in the network's own units; None for never.
        beta_start, beta_end: first and last β of a linear schedule; None for DDPM's.
        embedding_scale: of a prior of unit vectors: by what they are multiplied for the diffusion; None for
            what their space says, see ``EmbeddingSpace.standardise``.
        spacing: how fewer steps are spread over the timesteps, see ``spacing``.
        few_steps: timesteps that were found for this network, see ``few_steps``.
    """

    schedule: ScheduleName = "cosine"
    num_timesteps: int = 1000
    prediction: PredictionType = "eps"
    variance: VarianceType = "fixed_small"
    clip_x0: float | None = 1.0
    beta_start: float | None = None
    beta_end: float | None = None
    spacing: Spacing = "even"
    norm_x0: float | None = None
    embedding_scale: float | None = None
    few_steps: tuple[FoundSteps, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_timesteps <= MAX_TIMESTEPS:
            raise ValueError(
                f"num_timesteps is {self.num_timesteps}, expected 1 to {MAX_TIMESTEPS:,} training timesteps"
            )
        if self.clip_x0 is not None and not (math.isfinite(self.clip_x0) and self.clip_x0 > 0):
            raise ValueError(f"clip_x0 is {self.clip_x0}, expected a finite number above 0, or none")
        for name in ("norm_x0", "embedding_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, expected a finite number above 0, or none")
        if self.spacing not in get_args(Spacing):
            raise ValueError(f"spacing is {self.spacing!r}, expected one of {', '.join(get_args(Spacing))}")
        given = [beta is not None for beta in (self.beta_start, self.beta_end)]
        if any(given) and (not all(given) or self.schedule != "linear"):
            raise ValueError(
                f"beta_start is {self.beta_start} and beta_end {self.beta_end}; expected both, of a linear "
                f"schedule, or none"
            )
        self._require_few_steps()

    def _require_few_steps(self) -> None:
        for found in self.few_steps:
            if found.timesteps[-1] >= self.num_timesteps:
                raise ValueError(
                    f"few_steps has the timestep {found.timesteps[-1]} for {found.sampler}, expected 0 to "
                    f"{self.num_timesteps - 1}"
                )
        keys = [(found.sampler, len(found.timesteps)) for found in self.few_steps]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"few_steps has {twice[0]} with {twice[1]} steps twice, expected it once")

    def steps_found(self, sampler: str) -> dict[int, tuple[int, ...]]:
        """The timesteps that were found for a sampler, by their number."""
        return {len(found.timesteps): found.timesteps for found in self.few_steps if found.sampler == sampler}
