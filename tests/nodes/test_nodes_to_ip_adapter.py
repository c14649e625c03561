"""unCLIP to IPAdapter: embeddings in the form that ComfyUI_IPAdapter_plus reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.mapping.spaces import clip_space
from unclip.core.stages import PriorStage
from unclip.nodes import NODE_CLASS_MAPPINGS
from unclip.nodes.to_ip_adapter import IMAGE_ENCODERS

from ..helpers.nodes import run

WIDTH, TOKENS = 64, 4  # of the cross-attention that an adapter feeds


def some(space: EmbeddingSpace, rows: int = 1, seed: int = 0) -> Embedding:
    vectors = torch.randn(rows, space.dim, generator=torch.Generator().manual_seed(seed))
    return Embedding(space.in_convention(vectors), space)


class Projection(nn.Module):
    """A base IP-Adapter's way from an embedding to tokens (2308.06721, section 3.2): linear, LayerNorm."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj, self.norm = nn.Linear(dim, TOKENS * WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(embeds).reshape(-1, TOKENS, WIDTH))  # [B, tokens, width]


@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_the_rows_are_the_embeddings_of_clip_and_zeros_lead_away(encoder):
    embedding = some(clip_space(IMAGE_ENCODERS[encoder]), rows=3)
    positive, negative = run("UnCLIPToIPAdapter", embedding=embedding, image_encoder=encoder)
    ((output, *_),) = run("UnCLIPToClipVision", embedding=embedding, target="any")
    assert torch.equal(positive[:1], output.image_embeds), "what ComfyUI's CLIP Vision Encode would give"
    assert torch.equal(positive, embedding.vectors) and positive.dtype == torch.float32
    assert negative.shape == positive.shape and not negative.any()
    # Both go through the adapter's projection as they are.
    with torch.no_grad():
        tokens = Projection(IMAGE_ENCODERS[encoder])(torch.cat([positive, negative]))
    assert tokens.shape == (6, TOKENS, WIDTH)


def test_its_outputs_are_of_the_packs_socket():
    assert NODE_CLASS_MAPPINGS["UnCLIPToIPAdapter"].RETURN_TYPES == ("EMBEDS", "EMBEDS")


def test_a_negative_embedding_stands_in_for_the_zeros():
    space = clip_space(1280)
    embedding, other = some(space, 3), some(space, 1, seed=5)
    _, negative = run("UnCLIPToIPAdapter", embedding=embedding, negative_embedding=other)
    assert torch.equal(negative, other.vectors.repeat(3, 1))
    three = some(space, 3, seed=6)
    _, negative = run("UnCLIPToIPAdapter", embedding=embedding, negative_embedding=three)
    assert torch.equal(negative, three.vectors)
    with pytest.raises(ValueError, match=r"negative_embedding: found 2, expected 1 or as many .* 3"):
        run("UnCLIPToIPAdapter", embedding=embedding, negative_embedding=some(space, 2))
    with pytest.raises(ValueError, match=r"negative_embedding is in .*ViT-H"):
        run("UnCLIPToIPAdapter", embedding=embedding, negative_embedding=some(clip_space(1024)))


def test_unit_vectors_get_the_length_that_a_stage_knows():
    unit = some(clip_space(768, "unit"), rows=2)
    mean, std = torch.full((768,), 0.3), torch.full((768,), 0.4)
    prior = PriorStage(nn.Identity(), clip_space(768, mean=mean, std=std), None)
    positive, _ = run("UnCLIPToIPAdapter", embedding=unit, stage=prior)
    torch.testing.assert_close(positive, unit.vectors * (768 * (0.3**2 + 0.4**2)) ** 0.5)
    with pytest.raises(ValueError, match=r"^embedding: .* length 1 here"):
        run("UnCLIPToIPAdapter", embedding=unit)
    raw = some(clip_space(768), rows=2)
    with pytest.raises(ValueError, match=r"^negative_embedding: .* length 1 here"):
        run("UnCLIPToIPAdapter", embedding=raw, negative_embedding=unit)


@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_embeddings_of_another_clip_model_are_refused(encoder):
    dim = IMAGE_ENCODERS[encoder]
    strangers = [clip_space(other) for other in IMAGE_ENCODERS.values() if other != dim]
    for space in (*strangers, EmbeddingSpace("somebody/else", dim)):
        with pytest.raises(ValueError, match=rf"is in .*{space.id}.*{encoder} reads .*another image_encoder"):
            run("UnCLIPToIPAdapter", embedding=some(space), image_encoder=encoder)
        positive, _ = run("UnCLIPToIPAdapter", embedding=some(space), image_encoder="any")
        assert positive.shape == (1, space.dim)
