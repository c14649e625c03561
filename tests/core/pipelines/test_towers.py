"""The encoders of a CLIP stage apart."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from unclip.core.networks.clip import ClipNetwork
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.towers import image_tower, text_tower

from ...helpers.bundle import tiny_bundle

PICTURE = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0))


def test_each_encodes_as_the_whole_does():
    clip = tiny_bundle().clip
    text, image = text_tower(clip), image_tower(clip)
    whole, alone = encode_text(clip, ["a red fox"]), encode_text(text, ["a red fox"])
    assert torch.equal(whole.tokens, alone.tokens) and torch.equal(whole.pooled, alone.pooled)
    assert torch.equal(encode_images(clip, PICTURE).vectors, encode_images(image, PICTURE).vectors)
    with pytest.raises(ValueError, match="loaded without an image encoder"):
        encode_images(text, PICTURE)
    with pytest.raises(ValueError, match="loaded without a text encoder"):
        image.network.encode_tokens(torch.zeros(1, 4, dtype=torch.long))
    assert encode_images(clip, PICTURE).vectors.isfinite().all(), "the whole is left whole"


def test_they_share_their_weights_and_have_none_in_common():
    clip = tiny_bundle().clip
    own = [{id(value) for value in tower(clip).network.parameters()} for tower in (text_tower, image_tower)]
    assert own[0] | own[1] == {id(value) for value in clip.network.parameters()}
    assert own[0] and own[1] and not own[0] & own[1]


def test_a_stage_has_one_of_each_for_as_long_as_it_lives():
    clip = tiny_bundle().clip
    assert text_tower(clip) is text_tower(clip) and image_tower(clip) is image_tower(clip)
    assert text_tower(replace(clip, source="another")).source == "another"
    gone = weakref.ref(text_tower(clip).network)
    gc.disable()
    try:
        del clip
        assert gone() is None, "without the garbage collector"
    finally:
        gc.enable()


def test_a_stage_of_one_encoder_is_returned():
    clip = tiny_bundle().clip
    for changes in ({"vision": None}, {"text": None}):
        half = replace(clip, network=ClipNetwork(replace(clip.network.config, **changes)))
        assert text_tower(half) is half and image_tower(half) is half
    other = replace(clip, network=torch.nn.Linear(2, 2))
    assert text_tower(other) is other
