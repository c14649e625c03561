"""No image embedding: what a decoder sees where it was dropped in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from unclip.core.embeddings.space import Embedding
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.conditioning import null_embedding
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.nodes import NODE_CLASS_MAPPINGS

from ...helpers.bundle import DIM, randomised, tiny_bundle
from ...helpers.nodes import run


@pytest.fixture(scope="module")
def tiny():
    bundle = tiny_bundle(upsamplers=0)
    null = torch.randn(DIM, generator=torch.Generator().manual_seed(3))
    bundle.decoder.network.conditioner.null_clip = nn.Parameter(null, requires_grad=False)
    return bundle


def with_conditioning(decoder, **changes):
    """The decoder with another kind of conditions, and random weights."""
    config = decoder.network.config
    changed = replace(config, conditioning=replace(config.conditioning, **changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # of what `randomised` leaves as its constructor drew it
        network = randomised(UNet(changed), torch.Generator().manual_seed(1))
    return replace(decoder, network=network)


def conditions(decoder, embedding, text):
    vectors = None if embedding is None else decoder.space.standardise(embedding.vectors)
    return decoder.network.condition(
        batch=1, clip_embedding=vectors, text_tokens=text.tokens, text_mask=text.mask
    )


def test_it_gives_the_conditions_of_a_dropped_embedding(tiny) -> None:
    text = encode_text(tiny.clip, ["a red fox"])
    dropped, null = (conditions(tiny.decoder, z, text) for z in (None, null_embedding(tiny.decoder)))
    torch.testing.assert_close(null.embedding, dropped.embedding, atol=1e-5, rtol=0)
    other = Embedding(torch.zeros(1, DIM), tiny.decoder.space)
    assert (conditions(tiny.decoder, other, text).embedding - dropped.embedding).abs().max() > 1e-2


def test_guidance_leads_away_from_no_caption(tiny) -> None:
    """With the caption, guidance changes the picture; without, both branches are the same."""
    text, null = encode_text(tiny.clip, ["a red fox"]), null_embedding(tiny.decoder)
    weak, strong = (DecodeOptions(steps=2, guidance_scale=scale) for scale in (1.0, 4.0))

    def paint(options, caption):
        return decode(tiny.decoder, null, caption, seed=0, batch_size=1, options=options)

    torch.testing.assert_close(paint(weak, None), paint(strong, None), atol=1e-4, rtol=0)
    assert (paint(weak, text) - paint(strong, text)).abs().max() > 1e-2


def test_without_a_learned_vector_it_is_zero(tiny) -> None:
    plain = with_conditioning(tiny.decoder, learned_null=False, standardised=False)
    assert torch.equal(null_embedding(plain, 2).vectors, torch.zeros(2, DIM))
    standardised = with_conditioning(tiny.decoder, learned_null=False)
    mean = torch.tensor(tiny.decoder.space.mean)
    torch.testing.assert_close(null_embedding(standardised).vectors[0], mean)


def test_the_node_makes_a_batch_that_can_be_decoded(tiny) -> None:
    (embedding,) = run("UnCLIPNullEmbedding", decoder=tiny.decoder, batch_size=3)
    assert embedding.vectors.shape == (3, DIM) and embedding.space == tiny.decoder.space
    (image,) = run("UnCLIPDecode", decoder=tiny.decoder, embedding=embedding, steps=1)
    assert len(image) == 3


def test_what_is_decoded_away_from_it_can_be_inverted(tiny) -> None:
    """A Kandinsky decoder loaded alone: guidance needs the null embedding of its prior's CLIP model."""
    alone = with_conditioning(tiny.decoder, learned_null=False, null_picture=True)
    (null,) = run("UnCLIPNullEmbedding", decoder=alone, clip=tiny.clip)
    other = Embedding(torch.randn(1, DIM, generator=torch.Generator().manual_seed(4)), null.space)
    (text,) = run("UnCLIPTextEncode", clip=tiny.clip, text="a red fox")
    given = {"decoder": alone, "embedding": Embedding(-other.vectors, null.space), "text": text, "steps": 12}
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))

    def off_by(negative, negative_text=None):
        found = {"negative_embedding": negative, "negative_text": negative_text}
        (noise,) = run("UnCLIPInvert", **given, image=image, refinements=4, **found)
        (back,) = run("UnCLIPDecode", **given, noise=noise, negative_embedding=null, negative_text=text)
        return (back - image).square().mean().sqrt()

    with pytest.raises(ValueError, match=r"^negative_embedding: guidance needs .* unCLIP Null Embedding"):
        off_by(None)
    assert "negative_embedding" in NODE_CLASS_MAPPINGS["UnCLIPInvert"].INPUT_TYPES()["optional"]
    right = off_by(null, text)
    wrong = off_by(other, text), off_by(null)
    assert 3 * right < min(wrong)


def test_a_decoder_of_captions_alone_has_none(tiny) -> None:
    captions = with_conditioning(tiny.decoder, clip_dim=None, clip_tokens=0)
    with pytest.raises(ValueError, match="takes no image embedding, so it has none to leave out; connect"):
        run("UnCLIPNullEmbedding", decoder=captions)
    with pytest.raises(ValueError, match=r"^decoder: nothing arrived"):
        run("UnCLIPNullEmbedding", decoder=None)
