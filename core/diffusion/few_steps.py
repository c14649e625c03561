"""Timesteps for few steps, found for a network: where on its own paths a sampler may leave some out.

A network's paths from noise are taken once in many steps. What a step of DDIM from each of their points to
each later one would get wrong then follows without another call of the network, and the cheapest way of n
steps through these costs is found by dynamic programming, for every n at once: "On the Trajectory Regularity
of ODE-based Diffusion Sampling" (Chen et al. 2405.11326, section 4, GITS), with the costs weighed by what is
left of an error at the end. A sum of local errors bounds the one at the end and is not it; so the ways found
and the known spacings are then measured by the sampler itself, and the best one is improved, one timestep at
a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from .denoiser import Denoiser
from .samplers import SamplerStep, sample_dpmpp_2m
from .schedule import Schedule
from .spacing import SPACINGS
from .spec import FoundSteps

# By which share of the stride beside it a timestep is moved, in one sweep after the other.
MOVES = (0.3, 0.15)
# Powers of the local errors that are summed: 1 where they add up, 2 where they are independent.
POWERS = (1, 2)


@dataclass(frozen=True, eq=False)
class Paths:
    """The paths of B samples through a schedule of G steps.

    Attributes:
        schedule: its ``alphas_cumprod`` begin with the least noise; what follows begins with the most.
        states: [G + 1, B, …]: x at each step, and the clean sample.
        predictions: [G, B, …]: x̂_0 at each step.
    """

    schedule: Schedule
    states: Tensor
    predictions: Tensor

    @property
    def end(self) -> Tensor:
        """The clean samples, [B, …]."""
        return self.states[-1]


@dataclass(frozen=True)
class FewSteps:
    """What was found for a sampler and a number of steps.

    Attributes:
        steps: its timesteps.
        error: root mean square distance to the ends of the fine paths.
        others: that of the spacings, by name.
    """

    steps: FoundSteps
    error: float
    others: dict[str, float]


def fine_schedule(full: Schedule, points: int) -> Schedule:
    """A schedule of half ``points`` even strides of time and as many of log-SNR: dense where either is."""
    half = min(max(points // 2, 1), len(full))
    kept = {t for name in ("even", "log_snr") for t in full.respace(half, spacing=name).timesteps.tolist()}
    return full.respace(sorted(kept))


def follow(denoiser: Denoiser, x: Tensor, schedule: Schedule) -> Paths:
    """The paths from x_T [B, …], by DPM-Solver++(2M); they are kept on the CPU."""
    states, predictions = [x.float().cpu()], []

    def keep(step: SamplerStep) -> None:
        states.append(step.x.cpu())
        predictions.append(step.x0.cpu())

    sample_dpmpp_2m(denoiser, x, schedule, callback=keep)
    return Paths(schedule, torch.stack(states), torch.stack(predictions))


def local_errors(paths: Paths) -> Tensor:
    """[G + 1, G + 1] float64: what one step of DDIM from a point of the paths to a later one gets wrong.

    The root mean square over samples and components of its distance to the path, times what is left of it at
    the end: s/√(ᾱs²+1−ᾱ), as the flow of a Gaussian has it that spreads by s as the samples do. The last
    point is the clean sample. Infinite for steps that do not go on.
    """
    alphas = torch.cat([paths.schedule.alphas_cumprod.flip(0), torch.ones(1, dtype=torch.float64)])
    spread = paths.end.double().std(correction=0).item()
    kept = spread / (alphas * spread**2 + 1 - alphas).sqrt().clamp(min=1e-12)
    states, predictions = paths.states.flatten(1), paths.predictions.flatten(1)  # [·, B·…]
    costs = torch.full((len(alphas),) * 2, math.inf, dtype=torch.float64)
    for place, x0 in enumerate(predictions):
        here, there = alphas[place], alphas[place + 1 :, None].float()
        noise = (states[place] - here.sqrt().item() * x0) / (1 - here).sqrt().item()
        off = there.sqrt() * x0 + (1 - there).sqrt() * noise - states[place + 1 :]
        costs[place, place + 1 :] = off.square().mean(dim=1).sqrt().double() * kept[place + 1 :]
    return costs


def cheapest_ways(costs: Tensor, most: int) -> list[list[int]]:
    """For 1 to ``most`` steps the ways from the first point to the last one of the least sum of costs.

    Args:
        costs: [P, P], of a step from a point to another; infinite where there is none.

    Returns:
        For each number n of steps the n points from which they go, ascending, the first one 0.
    """
    last = len(costs) - 1
    left = torch.full((last + 1,), math.inf, dtype=torch.float64)  # cost from a point on, in so many steps
    left[last] = 0.0
    towards: list[list[int]] = []
    ways = []
    for _ in range(min(most, last)):
        left, onward = (costs + left).min(dim=1)
        towards.append(onward.tolist())
        way = [0]
        for following in reversed(towards[1:]):
            way.append(following[way[-1]])
        ways.append(way)
    return ways


def find_few_steps(
    sampled: Callable[[str, Schedule], Tensor],
    paths: Paths,
    full: Schedule,
    samplers: Sequence[str],
    steps: Sequence[int],
    *,
    on_found: Callable[[FewSteps], None] | None = None,
) -> list[FewSteps]:
    """The timesteps that bring samplers nearest to the ends of the paths, for each number of steps.

    Args:
        sampled: sampler and schedule → clean samples [B, …], from the x_T of the paths. It is called at
            most 4·n + 4 times for each sampler and number n of steps.
        full: that of the network, of which timesteps are chosen. The noisiest is one of them, unless a
            spacing that leaves it out (``leading``) comes nearest.
        steps: numbers of steps, each from 1 to that of the paths.
        on_found: told of each.

    Raises:
        ValueError: more steps than the paths have.
    """
    points = len(paths.schedule)
    if not all(1 <= each <= points for each in steps):
        raise ValueError(
            f"steps: found {list(steps)}, expected numbers of 1 to {points}, the steps of the paths"
        )
    costs = local_errors(paths)
    ways = [cheapest_ways(costs**power, max(steps)) for power in POWERS]
    found = []
    for sampler, count in product(samplers, steps):
        of_so_many = [of_power[count - 1] for of_power in ways]
        found.append(_found(partial(sampled, sampler), sampler, count, of_so_many, paths, full))
        if on_found is not None:
            on_found(found[-1])
    return found


def _found(
    sampled: Callable[[Schedule], Tensor],
    sampler: str,
    count: int,
    ways: Sequence[Sequence[int]],
    paths: Paths,
    full: Schedule,
) -> FewSteps:
    """The best of the spacings and of the ways through the paths, improved."""

    def error(timesteps: tuple[int, ...]) -> float:
        off = sampled(full.respace(timesteps)).cpu().float() - paths.end
        return off.square().mean().sqrt().item()

    spaced = {
        name: tuple(full.timesteps[space(count, full.alphas_cumprod)].tolist())
        for name, space in SPACINGS.items()
    }
    others = {name: error(timesteps) for name, timesteps in spaced.items()}
    noisiest_first = paths.schedule.timesteps.flip(0).tolist()
    tried = {row: others[name] for name, row in spaced.items()}
    for way in ways:
        timesteps = tuple(sorted(noisiest_first[place] for place in way))
        if timesteps not in tried:
            tried[timesteps] = error(timesteps)
    best = min(tried, key=lambda timesteps: tried[timesteps])
    for share in MOVES:
        best = _improved(best, share, tried, error)
    return FewSteps(FoundSteps(sampler, best), tried[best], others)


def _improved(
    best: tuple[int, ...],
    share: float,
    tried: dict[tuple[int, ...], float],
    error: Callable[[tuple[int, ...]], float],
) -> tuple[int, ...]:
    """The best that one sweep of moves finds, each timestep but the last a share of its strides."""
    for place in reversed(range(len(best) - 1)):
        for moved in _moved(best, place, share):
            if moved not in tried:
                tried[moved] = error(moved)
            if tried[moved] < tried[best]:
                best = moved
                break
    return best


def _moved(timesteps: tuple[int, ...], place: int, share: float) -> Iterator[tuple[int, ...]]:
    below = timesteps[place - 1] if place else -1
    for beside in (timesteps[place + 1], below):
        by = round(share * (beside - timesteps[place]))
        if by:
            yield (*timesteps[:place], timesteps[place] + by, *timesteps[place + 1 :])
