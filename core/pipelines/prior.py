"""Captions → CLIP image embeddings, by a diffusion prior (unCLIP 2204.06125, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from ..acceleration.kept_copies import with_packed_weights
from ..config import require_whole
from ..diffusion.analytic import OWN_SAMPLES, analytic_variance, own_eps_power
from ..diffusion.denoiser import Denoiser, NetworkDenoiser, bounded
from ..diffusion.guidance import GuidedDenoiser
from ..diffusion.noise import SEEDS, draw_noise, image_generators, require_seed
from ..diffusion.parameterization import add_noise
from ..diffusion.samplers import StepCallback
from ..diffusion.sampling import SAMPLERS, sample
from ..diffusion.schedule import Schedule
from ..diffusion.spec import DiffusionSpec
from ..embeddings.space import Embedding, TextFeatures, require_same_space, require_text_of
from ..networks.dalle2_prior import Dalle2Prior
from ..networks.diffusion_prior import DiffusionPrior
from ..networks.one_pass_prior import Captions, OnePassPrior
from ..networks.prior_cache import PriorCache
from ..stages import PriorStage, require_stage
from .candidates import closest_to_text, require_text
from .null_branches import NullBranches
from .options import (
    candidates_option,
    check_options,
    eta_option,
    guidance_interval_option,
    guidance_option,
    guidance_rescale_option,
    guidance_scale_option,
    is_guided,
    option,
    sampler_option,
    spaced_schedule,
    spacing_option,
    steps_option,
    strength_option,
)
from .rows import common_batch, count_on, device_and_dtype

_Network = DiffusionPrior | Dalle2Prior | OnePassPrior

# Of the progress with analytic variance: samples to measure, measuring them, and those that are asked for.
_ANALYTIC_PARTS = 3

PRIOR_GUIDANCE = (
    "How closely the embedding follows the caption. 1 is without guidance; higher is closer to the caption "
    "and less varied."
)


@dataclass(frozen=True)
class PriorOptions:
    """How a diffusion prior is sampled.

    Attributes:
        steps: evenly strided.
        guidance_scale: 1 for no guidance, which halves the work.
        candidates: embeddings sampled for each image, of which the one nearest to z_t is kept.
        guidance_interval: guide only at these times, 0 the clean embedding, 1 pure noise.
        guidance_rescale: see ``GuidedDenoiser``.
        variance: of the reverse steps of samplers that take one (ddpm): ``"default"`` is that of the prior's
            ``DiffusionSpec``, ``"analytic"`` that of Analytic-DPM (2201.06503), by which the paper samples
            its prior (appendix C). Its statistic is measured for each caption on the prior's own samples.
        pack_weights: on the CPU, keep a second, blocked copy of the weights from the first call on: twice the
            memory, and nearly twice as fast.
    """

    steps: int = steps_option(25, "Denoising steps. 25 are plenty; fewer are faster and blander.")
    guidance_scale: float = guidance_scale_option(1.5, PRIOR_GUIDANCE)
    candidates: int = candidates_option(4)
    sampler: str = sampler_option("ddpm")
    eta: float = eta_option()
    guidance_interval: tuple[float, float] = guidance_interval_option()
    guidance_rescale: float = guidance_rescale_option()
    variance: str = option(
        "default",
        help="ddpm only: how much fresh noise a step adds. default is what the prior was made for; analytic "
        "first measures what suits each caption, as the paper samples, and takes longer.",
        choices=("default", "analytic"),
        advanced=True,
    )
    pack_weights: bool = True
    strength: float = strength_option(
        "With an embedding to begin from: how much of it may change. 1 keeps next to nothing of it, 0 all. "
        "Priors of one pass (ECLIPSE) take nothing between."
    )
    spacing: str = spacing_option()
    guidance: str = guidance_option("cfg", "cfg_pp", "apg")

    def __post_init__(self) -> None:
        check_options(self)

    def without_guidance(self) -> PriorOptions:
        return replace(self, guidance_scale=1.0, guidance="cfg")


@torch.no_grad()
def sample_diffusion_prior(
    prior: PriorStage,
    text: TextFeatures,
    *,
    seed: int,
    batch_size: int = 1,
    options: PriorOptions = PriorOptions(),
    eps_power: Tensor | None = None,
    negative_text: TextFeatures | None = None,
    image_embedding: Embedding | None = None,
    keep: int = 1,
    callback: StepCallback | None = None,
) -> Embedding:
    """Sample an image embedding for each caption.

    A prior that predicts in one pass (``OnePassPrior``) takes neither steps nor guidance from the options,
    and one of DALLE2-pytorch before 1.9.0, which has no unconditional branch, no guidance. Guidance acts on
    x̂_0, which is then clamped (``spec.clip_x0``) or scaled (``spec.norm_x0``). Samples leave the standardised
    scale in which the prior works, and of an image's candidates the one nearest to z_t is kept, both in the
    convention of the CLIP space. Nearest is the largest dot product z_i·z_t, as in the paper (section 2.2):
    where the convention is ``raw``, longer embeddings score higher. For priors of DALLE2-pytorch it is the
    largest cosine, as in ``DiffusionPrior.sample`` there. Karlo, Kandinsky and ECLIPSE choose nothing.

    Args:
        text: B captions, or one for the whole batch; ``text.null`` serves the unconditional branch.
        seed: of the first image; image i draws the noise of all its candidates from a generator of seed + i.
        batch_size: number of images, where there is one caption.
        negative_text: captions, 1 or B, in place of the empty one: what guidance leads away from.
        image_embedding: [1 or B, D], to begin from instead of noise alone; ``options.strength`` is the share
            of the way that is gone, in the standardised scale. In one pass, 0 gives it back, 1 goes without.
        eps_power: the prior's Analytic-DPM statistic, [S] or [T], for the ddpm sampler (see ``analytic``); it
            takes the place of ``options.variance``.
        keep: how many of an image's candidates are kept, the nearest to z_t first; ``options.candidates`` or
            fewer.
        callback: called after each step, with x [B·candidates, D] standardised; what it raises ends the
            sampling. With analytic variance also while that is measured, with other rows.

    Returns:
        [B·keep, D] float32 on the network's device; those of an image are neighbours.

    Raises:
        ValueError: another CLIP space, an autoregressive prior, guidance without null features, batch sizes
            that do not match, options out of range, or more to keep than there are candidates.
    """
    network, spec = _require_diffusion_prior(prior)
    require_whole(keep=keep)
    if not 1 <= keep <= options.candidates:
        raise ValueError(
            f"keep: found {keep}, expected 1 to {options.candidates}, the number of candidates; raise that "
            f"to keep more"
        )
    if isinstance(network, OnePassPrior):  # its one step has no other branch
        options = replace(options.without_guidance(), steps=1, variance="default")
    if isinstance(network, Dalle2Prior) and not network.config.unconditional:  # nor does guidance upstream
        options = options.without_guidance()
    # DALLE2-pytorch's network carries its unconditional branch itself and needs no empty caption.
    guided = is_guided(options) and not isinstance(network, Dalle2Prior)
    subjects = isinstance(network, OnePassPrior) and network.config.control
    require_text(text, prior.space, options.guidance_scale, guided, subjects=subjects)
    given = {"negative_text": negative_text, "image_embedding": image_embedding}
    sizes = {name: len(rows) for name, rows in given.items() if rows is not None}
    batch = common_batch(text=len(text), **sizes, batch_size=batch_size)
    device, _ = device_and_dtype(network)
    if negative_text is not None:
        require_text_of("negative_text", negative_text, prior.space, subjects=subjects)
        if isinstance(network, Dalle2Prior):
            raise ValueError(
                "negative_text: this prior's unconditional branch reads no caption, so none can stand there; "
                "disconnect it"
            )
        if len(negative_text) > 1:
            text, negative_text = text.expand(batch), negative_text.expand(batch)
        text = replace(text, null=replace(negative_text, null=None))
    text = text.to(device).in_convention_of(prior.space)
    schedule = spaced_schedule(spec, options.steps, options.spacing)
    if image_embedding is not None:
        require_same_space("image_embedding", image_embedding.space, prior.space)
        if isinstance(network, OnePassPrior) and 0 < options.strength < 1:
            raise ValueError(
                f"image_embedding: this prior imagines in one pass and cannot begin from an embedding; set "
                f"strength, {options.strength:g}, to 1 (anew) or 0 (the embedding), or take another prior"
            )
        way = int(options.strength * options.steps + 1e-6)
        known = image_embedding.in_norm_of(prior.space, "image_embedding").expand(batch, -1)
        if way == 0:
            return Embedding(known.repeat_interleave(keep, dim=0), prior.space)
        schedule = schedule.start(way)
    variance = None if eps_power is None else analytic_variance(schedule, eps_power)
    if variance is None and options.variance == "analytic" and "variance" in SAMPLERS[options.sampler].takes:
        told = [count_on(callback, part, _ANALYTIC_PARTS) for part in range(_ANALYTIC_PARTS)]
        variance = _measured_variance(prior, schedule, text, options, (told[0], told[1]))
        variance = variance.repeat_interleave(batch * options.candidates // len(text), dim=1)
        callback = told[2]

    # An image's generator serves its candidates one after the other, so that nothing else reaches them.
    generators = [g for g in image_generators(seed, batch) for _ in range(options.candidates)]
    x = draw_noise(generators, (prior.space.dim,), device)  # [B·candidates, D]
    if image_embedding is not None and not isinstance(network, OnePassPrior):
        known = prior.working_space.standardise(known.to(device, torch.float32))
        known = known.repeat_interleave(options.candidates, dim=0)
        signal, sigma = schedule.sqrt_alphas_cumprod[-1].item(), schedule.sqrt_one_minus_alphas_cumprod[-1]
        x = add_noise(known, x, signal, sigma.item())
    denoiser = _denoiser(network, spec, schedule, text, options)
    x = sample(
        options.sampler,
        denoiser,
        x,
        schedule,
        spec=spec,
        generators=generators,
        eta=options.eta,
        variance=variance,
        callback=callback,
    )
    candidates = rearrange(prior.working_space.unstandardise(x), "(b n) d -> b n d", b=batch)
    pooled = text.expand(batch).pooled
    best = closest_to_text(candidates, pooled, keep, cosine=isinstance(network, Dalle2Prior))
    return Embedding(best.flatten(0, 1), prior.space)


def prior_rows(options: PriorOptions, captions: int, batch_size: int) -> int:
    """The most rows that :func:`sample_diffusion_prior` passes through the network at once, in one branch."""
    measured = captions * OWN_SAMPLES if options.variance == "analytic" else 0
    return max(max(captions, batch_size) * options.candidates, measured)


NEGATIVE_SEED = 0x9E3779B9
"""Added to a seed for the noise of negative embeddings: their own, and the same for the same seed. Within 32
bits, of which alone PyTorch's generator on the CPU makes its state."""


@torch.no_grad()
def sample_negative_embedding(
    prior: PriorStage,
    negative_text: TextFeatures,
    *,
    seed: int,
    batch_size: int = 1,
    options: PriorOptions = PriorOptions(),
    callback: StepCallback | None = None,
) -> Embedding:
    """What a picture of a negative caption could show, for a decoder to lead away from (Kandinsky).

    As ``KandinskyV22PriorPipeline`` makes it: a sample of the negative caption, guided against that caption
    too, which is no guidance, from noise of its own.

    Args, Returns, Raises: see :func:`sample_diffusion_prior`.
    """
    options = replace(options.without_guidance(), strength=1.0)
    seed = (require_seed(seed) + NEGATIVE_SEED) % SEEDS
    return sample_diffusion_prior(
        prior, negative_text, seed=seed, batch_size=batch_size, options=options, callback=callback
    )


def _require_diffusion_prior(prior: PriorStage) -> tuple[_Network, DiffusionSpec]:
    require_stage(PriorStage, prior=prior)
    if prior.diffusion is None or not isinstance(prior.network, _Network):
        raise ValueError(
            f"prior {prior.source or type(prior.network).__name__!r} is not a diffusion prior: connect the "
            f"output prior of Load unCLIP Bundle, or load one with Load unCLIP Prior. An autoregressive "
            f"prior runs in the node unCLIP Autoregressive Prior"
        )
    return prior.network, prior.diffusion


def _measured_variance(
    prior: PriorStage,
    schedule: Schedule,
    text: TextFeatures,
    options: PriorOptions,
    callbacks: tuple[StepCallback | None, StepCallback | None],
) -> Tensor:
    """Analytic-DPM's reverse variances [S, B] of each caption: of the network itself, without guidance."""
    network, spec = _require_diffusion_prior(prior)
    device, _ = device_and_dtype(network)
    plain = _denoiser(
        network, replace(spec, clip_x0=None, norm_x0=None), schedule, text, options.without_guidance()
    )
    power = own_eps_power(
        plain,
        bounded(plain, spec),
        schedule,
        (prior.space.dim,),
        groups=len(text),
        device=device,
        callbacks=callbacks,
    )
    return analytic_variance(schedule, power)


def _denoiser(
    network: _Network,
    spec: DiffusionSpec,
    schedule: Schedule,
    text: TextFeatures,
    options: PriorOptions,
) -> Denoiser:
    """x̂_0 of [B·candidates, D] rows: guided, then clamped."""
    running = with_packed_weights(network) if options.pack_weights else network
    beside = {"control": text.control} if isinstance(running, OnePassPrior) else {}
    cache = running.prefill(text.tokens, text.pooled, text.mask, schedule.timesteps, **beside)
    run = _cached_network(running, cache)
    denoiser: Denoiser = NetworkDenoiser(run, schedule, spec)
    if is_guided(options):
        null = NullBranches.of(network, options.pack_weights)
        if isinstance(running, Dalle2Prior):
            both = _with_null_rows(run, null.table(running, schedule.timesteps))
        else:
            # A one-pass prior has no guidance, and what guidance needs was asked for.
            assert isinstance(running, DiffusionPrior) and isinstance(cache, PriorCache)
            assert text.null is not None
            prefix = null.prefix(running, text.null, schedule.timesteps)
            both = _cached_network(running, PriorCache.cat(cache, prefix.expand(len(cache))))
        denoiser = GuidedDenoiser(
            denoiser,
            NetworkDenoiser(both, schedule, spec),
            schedule,
            options.guidance_scale,
            options.guidance_interval,
            options.guidance_rescale,
            options.guidance,
        )
    return bounded(denoiser, spec)


Run = Callable[[Tensor, int], Tensor]


def _cached_network(network: _Network, cache: PriorCache | Captions) -> Run:
    take_step: Callable[..., Tensor] = network.step

    def run(x: Tensor, step: int) -> Tensor:
        # Rows of one caption are neighbours: all its images and their candidates share its prefix.
        rows = rearrange(x, "(g m) d -> g m d", g=len(cache))
        return rearrange(take_step(rows, step, cache), "g m d -> (g m) d")

    return run


def _with_null_rows(run: Run, table: Tensor) -> Run:
    """The first half of the rows as ``run`` has them, and for the second half those of a table [S, D]."""

    def both(x: Tensor, step: int) -> Tensor:
        half = len(x) // 2
        return torch.cat([run(x[:half], step), table[step].expand(half, -1)])

    return both
