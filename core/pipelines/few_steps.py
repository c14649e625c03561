"""The timesteps with which a decoder comes nearest to its own many-step pictures in few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..diffusion import few_steps
from ..diffusion.denoiser import Denoiser
from ..diffusion.few_steps import FewSteps
from ..diffusion.noise import draw_noise, image_generators
from ..diffusion.sampling import SAMPLERS, sample
from ..diffusion.schedule import Schedule, schedule_of
from ..diffusion.spec import FoundSteps
from ..embeddings.space import Embedding, TextFeatures
from ..stages import DecoderStage, require_stage
from .canvas import network_shape, picture_size
from .conditions import Conditions
from .decode import DecodeOptions, decoder_denoiser, limited
from .rows import common_batch, device_and_dtype


@torch.no_grad()
def find_few_steps(
    decoder: DecoderStage,
    embedding: Embedding | None,
    text: TextFeatures | None = None,
    *,
    steps: Sequence[int],
    samplers: Sequence[str],
    seed: int,
    options: DecodeOptions,
    points: int = 60,
    hint: Tensor | None = None,
    on_found: Callable[[FewSteps], None] | None = None,
) -> list[FewSteps]:
    """Timesteps for samplers and numbers of steps, see ``diffusion.few_steps``; distances are those of x_0.

    Args:
        embedding, text, hint: of B pictures, see ``decode``.
        steps: numbers of steps.
        samplers: what is good for one is not for another: each has timesteps of its own.
        points: of the fine paths; as many calls of the network with B rows, guidance not counted.
        options: guidance and size that are to be served; ``steps``, ``spacing`` and ``sampler`` do not count.
        on_found: told of each sampler with each number of steps.

    Raises:
        ValueError: a sampler that adds noise, whose pictures are not those of a path; see also ``decode``.
    """
    require_stage(DecoderStage, decoder=decoder)
    for sampler in samplers:
        _require_without_noise(sampler)
    conditions = Conditions(embedding, text, hint=hint)
    batch = common_batch(**conditions.sizes())
    size = picture_size(decoder, options.width, options.height)
    device, _ = device_and_dtype(decoder.network)
    x = draw_noise(image_generators(seed, batch), network_shape(decoder, size), device)

    def denoiser(schedule: Schedule) -> Denoiser:
        guided = decoder_denoiser(decoder, schedule, conditions, batch, options, size=size)
        return limited(guided, decoder, options)

    def sampled(sampler: str, schedule: Schedule) -> Tensor:
        return sample(sampler, denoiser(schedule), x, schedule, spec=decoder.diffusion)

    full = schedule_of(decoder.diffusion)
    fine = few_steps.fine_schedule(full, points)
    paths = few_steps.follow(denoiser(fine), x, fine)
    return few_steps.find_few_steps(sampled, paths, full, samplers, steps, on_found=on_found)


def _require_without_noise(sampler: str) -> None:
    quiet = [name for name, each in SAMPLERS.items() if not each.adds_noise(0.0)]
    if sampler not in quiet:
        raise ValueError(
            f"sampler: found {sampler!r}, expected one whose pictures follow from x_T alone: "
            f"{', '.join(quiet)}"
        )


def merged_few_steps(old: Sequence[FoundSteps], new: Sequence[FoundSteps]) -> tuple[FoundSteps, ...]:
    """One for each sampler and number of steps, sorted by both; new ones take the place of old ones."""
    merged = {(each.sampler, len(each.timesteps)): each for each in (*old, *new)}
    return tuple(merged[key] for key in sorted(merged))
