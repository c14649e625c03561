"""LAION's decoders in the nodes: loaded, painted with and upsampled like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.networks.dalle2_unet import Dalle2UNet
from unclip.nodes import NODE_CLASS_MAPPINGS

from ..helpers.dalle2_decoder import CLIP_DIM, described, upstream


def test_a_decoder_of_laion_paints_in_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"memory_efficient": True, "sparse_attn": True, "self_attn": [False, True, True]}
    facts = {"model": upstream(options).state_dict(), "config": described(options), "version": "1.1.0"}
    torch.save(facts, tmp_path / "laion.pth")
    monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path))

    def run(node: str, **inputs: object) -> tuple:
        return NODE_CLASS_MAPPINGS[node]().execute(**inputs)

    (decoder,) = run("UnCLIPLoadDecoder", file="laion.pth", precision="fp32")
    (upsampler,) = run("UnCLIPLoadUpsampler", file="laion.pth", precision="fp32")
    assert isinstance(decoder.network, Dalle2UNet) and isinstance(upsampler.network, Dalle2UNet)
    z = torch.nn.functional.normalize(
        torch.randn(1, CLIP_DIM, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    common = {"seed": 1, "steps": 2}
    painted = run(
        "UnCLIPDecode",
        decoder=decoder,
        embedding=Embedding(z, decoder.space),
        batch_size=1,
        guidance_scale=1.7,
        **common,
    )[0]
    assert painted.shape == (1, 16, 16, 3)
    large = run("UnCLIPUpsample", upsampler=upsampler, image=painted, **common)[0]
    assert large.shape == (1, 32, 32, 3)
    assert torch.isfinite(large).all() and large.std() > 0.01
