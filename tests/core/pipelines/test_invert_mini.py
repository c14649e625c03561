"""A picture of mini comes back from its noise under CFG++ (2406.08070), as under plain guidance."""

from __future__ import annotations

import torch
from unclip.core.api import load_bundle
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.invert import InvertOptions, invert
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import DecoderStage


def returned(decoder: DecoderStage, picture: torch.Tensor, embedding: Embedding, **way) -> float:
    """Peak signal-to-noise ratio in dB of the round trip."""
    refinements = way.pop("refinements")
    noise = invert(decoder, picture, embedding, refinements=refinements, **way)
    back = decode(decoder, embedding, seed=0, noise=noise, options=DecodeOptions(**way))
    return -10 * (back - picture).square().mean().log10().item()


def test_gradients_come_back_with_the_defaults() -> None:
    """Pictures that mini would not paint, which guidance leads far away from."""
    bundle = load_bundle(dtype=torch.float32)
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    half = torch.full_like(ramp, 0.5)
    pictures = torch.stack([torch.stack([ramp] * 3), torch.stack([ramp, half, 1 - ramp])])  # [2, 3, 64, 64]
    embedding = encode_images(bundle.clip, pictures)
    noise = invert(bundle.decoder, pictures, embedding, **vars(InvertOptions()))
    back = decode(bundle.decoder, embedding, seed=0, noise=noise, options=DecodeOptions())
    assert (back - pictures).abs().mean(dim=(1, 2, 3)).max() < 2 / 255


def test_a_picture_of_mini_comes_back_by_cfg_pp() -> None:
    bundle = load_bundle(dtype=torch.float32)
    assert bundle.prior is not None
    text = encode_text(bundle.clip, ["a smiling face"])
    quick = PriorOptions(steps=8, candidates=1)
    embedding = sample_diffusion_prior(bundle.prior, text, seed=0, options=quick)
    picture = decode(bundle.decoder, embedding, text, seed=5, options=DecodeOptions(steps=12))
    way = {"steps": 16, "guidance_scale": 0.6, "guidance": "cfg_pp"}
    refined = returned(bundle.decoder, picture, embedding, **way, refinements=3)
    assert refined >= 42
    assert returned(bundle.decoder, picture, embedding, **way, refinements=0) < refined - 5
    plain = {"steps": 16, "guidance_scale": 1.5, "guidance": "cfg"}
    assert returned(bundle.decoder, picture, embedding, **plain, refinements=1) >= 35
