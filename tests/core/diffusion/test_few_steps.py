"""Timesteps for few steps, on data whose paths are known: errors at their ends are exact, without chance."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from unclip.core.diffusion import few_steps
from unclip.core.diffusion.few_steps import cheapest_ways, fine_schedule, follow, local_errors
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.samplers import ddim_update
from unclip.core.diffusion.sampling import sample
from unclip.core.diffusion.schedule import Schedule, make_schedule
from unclip.core.diffusion.spacing import SPACINGS
from unclip.core.diffusion.spec import DiffusionSpec, FoundSteps

from ...helpers.gaussian import example_gaussian

GAUSSIAN = example_gaussian()
LINEAR = make_schedule("linear", 1000)
X = draw_noise(image_generators(0, 1), (24, 3))  # [1, 24, 3]


def sampled(name: str, schedule: Schedule, x: torch.Tensor = X) -> torch.Tensor:
    return sample(name, GAUSSIAN.denoiser(schedule), x, schedule, spec=DiffusionSpec())


def exact_error(name: str, schedule: Schedule, full: Schedule = LINEAR) -> float:
    """The root mean square distance to the flow over all of N(0, 1): both are affine in x_T."""
    points = torch.cat([torch.zeros(1, 3), torch.eye(3)])[None]
    off = sampled(name, schedule, points) - GAUSSIAN.flow(points, full.alphas_cumprod[-1].item(), 1.0)
    shift, columns = off[0, 0], off[0, 1:] - off[0, 0]
    return ((shift.square().sum() + columns.square().sum()) / 3).sqrt().item()


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc"])
def test_they_beat_the_spacings_that_do_not_know_the_data(name: str) -> None:
    paths = follow(GAUSSIAN.denoiser(fine := fine_schedule(LINEAR, 60)), X, fine)
    told: list = []
    found = few_steps.find_few_steps(sampled, paths, LINEAR, [name], range(4, 9), on_found=told.append)
    assert told == found
    for count, each in zip(range(4, 9), found, strict=True):
        assert each.steps.sampler == name and len(each.steps.timesteps) == count
        assert each.steps.timesteps[-1] == 999 and set(each.others) == set(SPACINGS)
        error = exact_error(name, LINEAR.respace(each.steps.timesteps))
        # What was measured on samples, to the ends of paths that are not quite exact themselves.
        assert each.error == pytest.approx(error, rel=0.35, abs=0.003)
        for spacing in ("even", "log_snr"):
            assert error < 0.9 * exact_error(name, LINEAR.respace(count, spacing=spacing)), (count, spacing)


def test_of_few_timesteps_the_best_of_all_ways_is_found() -> None:
    full = make_schedule("cosine", 14)
    paths = follow(GAUSSIAN.denoiser(full), X, full)
    (found,) = few_steps.find_few_steps(sampled, paths, full, ["ddim"], [4])
    errors = {
        way: (sampled("ddim", full.respace(way)) - paths.end).square().mean().sqrt().item()
        for way in combinations(range(14), 4)
    }
    ranked = sorted(errors, key=errors.__getitem__)
    assert found.steps.timesteps in ranked[:10] and len(ranked) == 1001
    assert found.error == pytest.approx(errors[found.steps.timesteps])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_no_spacing_comes_nearer(schedule: str) -> None:
    """Of a cosine schedule it may be ``leading``, which begins below pure noise."""
    full = make_schedule(schedule, 1000)
    paths = follow(GAUSSIAN.denoiser(fine := fine_schedule(full, 40)), X, fine)
    found = few_steps.find_few_steps(sampled, paths, full, ["ddim", "unipc"], [2, 3, 6])
    assert all(each.error <= min(each.others.values()) for each in found)
    begins_lower = [each for each in found if each.steps.timesteps[-1] < 999]
    assert schedule == "linear" or begins_lower
    for each in begins_lower:
        assert min(each.others, key=each.others.__getitem__) == "leading"


def test_local_errors_are_those_of_steps_of_ddim() -> None:
    schedule = LINEAR.respace(12, spacing="log_snr")
    paths = follow(GAUSSIAN.denoiser(schedule), X, schedule)
    costs = local_errors(paths)
    alphas = [*reversed(schedule.alphas_cumprod.tolist()), 1.0]
    assert paths.states.shape == (13, 1, 24, 3) and costs.shape == (13, 13)
    spread = paths.end.double().std(correction=0).item()
    for place, to in ((0, 1), (0, 7), (3, 12), (10, 11)):
        step = ddim_update(paths.states[place], paths.predictions[place], alphas[place], alphas[to])
        off = (step - paths.states[to]).square().mean().sqrt().item()
        left = spread / math.sqrt(alphas[to] * spread**2 + 1 - alphas[to])
        assert costs[place, to].item() == pytest.approx(off * left, rel=1e-3, abs=1e-6)
    assert torch.isinf(costs[5, :6]).all() and costs[0, 1] < costs[0, 7]


def test_the_cheapest_ways_are_the_cheapest_of_all() -> None:
    costs = torch.rand(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    costs[torch.tril(torch.ones(7, 7)).bool()] = math.inf
    ways = cheapest_ways(costs, 9)
    assert len(ways) == 6  # more steps than there are points do not exist
    for count, way in enumerate(ways, 1):
        all_ways = [[0, *rest, 6] for rest in combinations(range(1, 6), count - 1)]
        best = min(all_ways, key=lambda each: sum(costs[a, b].item() for a, b in pairwise(each)))
        assert [*way, 6] == best


def test_fine_schedules_are_dense_in_time_and_in_log_snr() -> None:
    fine = fine_schedule(LINEAR, 40)
    kept = set(fine.timesteps.tolist())
    for spacing in ("even", "log_snr"):
        assert set(LINEAR.respace(20, spacing=spacing).timesteps.tolist()) <= kept
    assert len(fine_schedule(make_schedule("cosine", 5), 60)) == 5


def test_more_steps_than_the_paths_have_are_refused() -> None:
    schedule = LINEAR.respace(6)
    paths = follow(GAUSSIAN.denoiser(schedule), X, schedule)
    with pytest.raises(ValueError, match=r"steps: found \[7\], expected numbers of 1 to 6"):
        few_steps.find_few_steps(sampled, paths, LINEAR, ["ddim"], [7])


@pytest.mark.parametrize("timesteps", [(), (3, 3), (5, 2), (-1, 4)])
def test_timesteps_that_do_not_ascend_are_refused(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected ascending ones from 0 on"):
        FoundSteps("ddim", timesteps)


def test_a_spec_refuses_what_does_not_fit_it() -> None:
    with pytest.raises(ValueError, match="few_steps has the timestep 1000 for ddim, expected 0 to 999"):
        DiffusionSpec(few_steps=(FoundSteps("ddim", (5, 1000)),))
    with pytest.raises(ValueError, match="few_steps has unipc with 2 steps twice"):
        DiffusionSpec(few_steps=(FoundSteps("unipc", (5, 999)), FoundSteps("unipc", (7, 999))))
    spec = DiffusionSpec(few_steps=(FoundSteps("unipc", (5, 999)), FoundSteps("ddim", (7, 500, 999))))
    assert spec.steps_found("unipc") == {2: (5, 999)} and spec.steps_found("ddpm") == {}
