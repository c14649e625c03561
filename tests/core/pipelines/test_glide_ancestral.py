"""GLIDE's ancestral sampling against its equations, written down once more in float64.

They are those of upstream's `gaussian_diffusion.py` and `respace.py`, and of `model_fn` and `denoised_fn` in
its notebooks. The networks themselves are compared in test_glide.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unclip.core.embeddings.space import TextFeatures
from unclip.core.formats.layouts.glide import UPSAMPLER_TIMESTEPS
from unclip.core.formats.load import load_any_stage
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import DecoderStage, UpsamplerStage

from ...helpers.glide import write_glide
from ...helpers.unet import difference

SEED, SIDE = 5, 32
WITHIN, OUTSIDE = 1e-4, 1e-2
COSINE = [
    min(
        1
        - cos(((i + 1) / 1000 + 0.008) / 1.008 * pi / 2) ** 2 / cos((i / 1000 + 0.008) / 1.008 * pi / 2) ** 2,
        0.999,
    )
    for i in range(1000)
]
LINEAR = np.linspace(1e-4, 0.02, 1000)
SIX = tuple(round(i * 999 / 5) for i in range(6))


@dataclass(frozen=True)
class Process:
    """Betas of the 1000 steps, those that are run, and what stands between network and sample.

    Attributes:
        share: the log-variance is ``share``·log β + (1 − share)·log β̃, from the network's v of −1..1.
        start: standard deviation of the initial noise.
        known: x̂_0 where it is known, before it is clamped.
    """

    betas: list[float] | np.ndarray
    timesteps: tuple[int, ...]
    share: Callable[[Tensor], Tensor] = lambda v: (v + 1) / 2
    start: float = 1.0
    known: Callable[[Tensor], Tensor] = lambda x0: x0


@torch.no_grad()
def ancestral(predict: Callable[[Tensor, int], tuple[Tensor, Tensor]], process: Process) -> Tensor:
    """p_sample_loop of one picture: ``predict`` gives ε and v of x_t; the result is in 0..1."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(1, 3, SIDE, SIDE, generator=generator).double() * process.start
    kept = np.cumprod(1 - np.array(process.betas, dtype=np.float64))[list(process.timesteps)]
    before = np.append(1.0, kept[:-1])
    betas = 1 - kept / before
    posterior = betas * (1 - before) / (1 - kept)
    smallest = np.log(np.append(posterior[1], posterior[1:]))
    for i in reversed(range(len(kept))):
        eps, v = (part.double() for part in predict(x.float(), process.timesteps[i]))
        x0 = process.known((x - (1 - kept[i]) ** 0.5 * eps) / kept[i] ** 0.5).clamp(-1, 1)
        of_x0, of_x = betas[i] * before[i] ** 0.5, (1 - before[i]) * (1 - betas[i]) ** 0.5
        x = (of_x0 * x0 + of_x * x) / (1 - kept[i])
        if i > 0:
            share = process.share(v)
            log_variance = share * np.log(betas[i]) + (1 - share) * smallest[i]
            x = x + (0.5 * log_variance).exp() * torch.randn(1, 3, SIDE, SIDE, generator=generator)
    return ((x + 1) / 2).clamp(0, 1).float()


def no_learned_variance(v: Tensor) -> Tensor:
    return torch.zeros_like(v)


# --- the base model ---


@dataclass(frozen=True)
class Model:
    stage: DecoderStage | UpsamplerStage
    text: TextFeatures

    @staticmethod
    def of(folder: Path, kind: str) -> Model:
        path = write_glide(folder, kind)
        text = encode_text(load_any_stage(path, expect="clip"), ["the tee in there"])
        return Model(load_any_stage(path), text)

    def run(self, x: Tensor, t: int, text: TextFeatures, concat: Tensor | None = None) -> Tensor:
        network = self.stage.network
        condition = network.condition(text_tokens=text.tokens, text_mask=text.mask, text_pooled=text.pooled)
        return network(x, torch.tensor([t]), condition, concat=concat)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.of(tmp_path_factory.mktemp("base"), "base")


def guided(model: Model, scale: float, variance_of_null: bool = False) -> Callable:
    """`model_fn`: ε of both branches is guided, v is that of the caption's."""

    def predict(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        own, null = (model.run(x, t, text) for text in (model.text, model.text.null))
        eps = null[:, :3] + scale * (own[:, :3] - null[:, :3])
        return eps, (null if variance_of_null else own)[:, 3:]

    return predict


def test_decoding_follows_the_equations(base: Model) -> None:
    process = Process(COSINE, SIX)
    options = DecodeOptions(steps=6, guidance_scale=3.0, sampler="ddpm")
    found = decode(base.stage, None, base.text, seed=SEED, options=options)
    expected = ancestral(guided(base, 3.0), process)
    inside = ((expected > 0) & (expected < 1)).float().mean()
    assert inside > 0.3  # not all clamped
    assert difference(found, expected) < WITHIN
    for other in (
        ancestral(guided(base, 2.9), process),
        ancestral(guided(base, 3.0, variance_of_null=True), process),
        ancestral(guided(base, 3.0), replace(process, share=no_learned_variance)),
        ancestral(guided(base, 3.0), replace(process, betas=LINEAR)),
    ):
        assert difference(found, other) > OUTSIDE


# --- the upsamplers ---


def low_resolution() -> Tensor:
    """[1, 3, 8, 8] in 0..1."""
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(8))


def enlarged() -> Tensor:
    """The condition: in 8 bits, bilinear."""
    low = (low_resolution() * 255).round() / 127.5 - 1
    return F.interpolate(low, (SIDE, SIDE), mode="bilinear")


def unguided(model: Model, concat: Tensor) -> Callable:
    def predict(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return model.run(x, t, model.text, concat).chunk(2, dim=1)

    return predict


FAST = Process(LINEAR, UPSAMPLER_TIMESTEPS, start=0.997)
DDPM = UpsampleOptions(sampler="ddpm")


def test_upsampling_follows_the_equations(tmp_path: Path) -> None:
    model = Model.of(tmp_path, "upsample")
    found = upsample(model.stage, low_resolution(), model.text, seed=SEED, options=DDPM)
    predict = unguided(model, enlarged())
    assert difference(found, ancestral(predict, FAST)) < WITHIN
    for other in (replace(FAST, share=no_learned_variance), replace(FAST, start=1.0)):
        assert difference(found, ancestral(predict, other)) > 1e-3


def test_inpainting_while_upsampling_follows_the_equations(tmp_path: Path) -> None:
    model = Model.of(tmp_path, "upsample-inpaint")
    picture = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    keep = torch.ones(1, 1, SIDE, SIDE)
    keep[..., 10:25, 5:20] = 0
    known = picture * 2 - 1
    found = upsample(
        model.stage, low_resolution(), model.text, seed=SEED, options=DDPM, known_image=picture, mask=1 - keep
    )
    predict = unguided(model, torch.cat([known * keep, keep, enlarged()], dim=1))
    process = replace(FAST, known=lambda x0: x0 * (1 - keep) + known * keep)
    assert difference(found, ancestral(predict, process)) < WITHIN
    assert difference(found, ancestral(predict, FAST)) > OUTSIDE
