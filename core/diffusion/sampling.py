"""The samplers by name: what each does, in a sentence, and what it takes.

To add one, write it beside ``samplers`` with the same first three arguments and ``callback``, and give it a
line in ``SAMPLERS``: nodes, the command line, configs and English help pages offer it then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser
from .ode_solvers import sample_euler, sample_heun, sample_unipc
from .samplers import StepCallback, sample_ddim, sample_ddpm, sample_dpmpp_2m
from .schedule import Schedule
from .sde_solvers import (
    sample_dpmpp_2m_sde,
    sample_dpmpp_3m_sde,
    sample_euler_ancestral,
    sample_sa_solver,
)
from .spec import DiffusionSpec


@dataclass(frozen=True)
class Sampler:
    """A sampler that has a name.

    Attributes:
        run: (denoiser, x, schedule, callback=…, and what ``takes`` names) → the clean sample, like x.
        meaning: what it does, to follow its name in a sentence.
        takes: which of ``eta``, ``generators``, ``variance`` and ``learned`` it has as keyword arguments. One
            that takes generators and no eta adds noise in its steps.
        calls: of the network in each step but the last, which has one.
    """

    run: Callable[..., Tensor]
    meaning: str
    takes: tuple[str, ...] = ()
    calls: int = 1

    def adds_noise(self, eta: float) -> bool:
        """Whether its steps add noise, so that a sample does not follow from x_T alone."""
        return "generators" in self.takes and (eta > 0 or "eta" not in self.takes)


_NOISY = ("generators", "learned")

SAMPLERS = {
    "ddpm": Sampler(
        sample_ddpm, "adds fresh noise at every step, as the paper samples", ("generators", "variance")
    ),
    "ddim": Sampler(sample_ddim, "follows a fixed path from the seed's noise", ("generators", "eta")),
    "dpmpp_2m": Sampler(sample_dpmpp_2m, "follows it in larger strides"),
    "unipc": Sampler(sample_unipc, "does so too and corrects each stride"),
    "heun": Sampler(sample_heun, "looks ahead in each step, which takes twice the time", calls=2),
    "euler": Sampler(sample_euler, "is ddim with eta 0 by another name"),
    "euler_ancestral": Sampler(sample_euler_ancestral, "is ddpm by another name", _NOISY),
    "dpmpp_2m_sde": Sampler(sample_dpmpp_2m_sde, "is as random as ddpm with fewer steps", _NOISY),
    "dpmpp_3m_sde": Sampler(sample_dpmpp_3m_sde, "looks back a step further", _NOISY),
    "sa_solver": Sampler(
        sample_sa_solver, "adds noise in the middle of the way alone and corrects each step", _NOISY
    ),
}


def sample(
    name: str,
    denoiser: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    spec: DiffusionSpec,
    generators: Sequence[torch.Generator] | None = None,
    eta: float = 0.0,
    variance: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample by the sampler of a name.

    Args:
        spec: of the network; samplers that take a variance use its, unless ``variance`` is given, and those
            that take ``learned`` that which it has learned.
        generators: one for each row of x; for samplers that add noise.
        eta: for samplers that take it.
        variance: table [S] of reverse variances, or [S, B] of those of each row (see ``analytic``), for
            samplers that take one.

    Raises:
        ValueError: no sampler of that name, or what the sampler itself refuses.
    """
    sampler = SAMPLERS.get(name)
    if sampler is None:
        raise ValueError(f"sampler: found {name!r}, expected one of {', '.join(SAMPLERS)}")
    given: dict[str, Any] = {
        "generators": generators,
        "eta": eta,
        "variance": spec.variance if variance is None else variance,
        "learned": spec.variance == "learned_range",
    }
    return sampler.run(denoiser, x, schedule, callback=callback, **{key: given[key] for key in sampler.takes})
