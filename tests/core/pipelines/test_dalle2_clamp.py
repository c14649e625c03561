"""``sampling_clamp_l2norm`` and ``image_embed_scale`` of DALLE2-pytorch's priors.

The first keeps x̂_0 at the length of embeddings at every step; the second is that length.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from unclip.core.formats.load import load_any_stage
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior

from ...helpers.dalle2 import DIM, NETWORK, TIMESTEPS, captions, dalle2_state
from ...helpers.dalle2_decoder import package


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_sampling_is_the_packages(tmp_path: Path, clamped: bool, scale: float | None) -> None:
    """All timesteps with the same noise: the generator of a seed draws what the seed draws."""
    module = package()
    network = module.DiffusionPriorNetwork(**NETWORK)
    network.load_state_dict(dalle2_state())
    settings = {"timesteps": TIMESTEPS, "sampling_clamp_l2norm": clamped, "image_embed_scale": scale}
    theirs = module.DiffusionPrior(network, image_embed_dim=DIM, **settings).eval()
    text = captions(9)
    given = {
        "text_embed": F.normalize(text.pooled, dim=-1),
        "text_encodings": text.tokens * text.mask[:, :, None],
    }
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        expected = theirs.p_sample_loop_ddpm((1, DIM), given) / theirs.image_embed_scale

    model = {f"net.{name}": value for name, value in dalle2_state().items()}
    torch.save({"model": model}, tmp_path / "best.pth")
    (tmp_path / "prior_config.json").write_text(json.dumps({"prior": settings}))
    stage = load_any_stage(tmp_path / "best.pth", expect="prior")
    options = PriorOptions(
        steps=TIMESTEPS, guidance_scale=1, candidates=1, sampler="ddpm", pack_weights=False
    )
    found = sample_diffusion_prior(stage, text, seed=3, options=options).vectors
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (abs(found.norm().item() - 1) < 1e-4) == clamped
