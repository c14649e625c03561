"""DALLE2-pytorch's U-Nets against the package, for every option that published configs use."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unclip.core.formats.layouts.dalle2_decoder import load_dalle2_decoder, load_dalle2_upsampler
from unclip.core.networks.dalle2_unet import Dalle2UNet
from unclip.core.networks.unet import UNetCondition

from ...helpers.dalle2_decoder import (
    CLIP_DIM,
    LAION,
    OPTIONS,
    SIZES,
    captions,
    filled,
    package,
    source_of,
    upstream,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([3, 0, 19])
EMBEDDINGS = normal(3, CLIP_DIM, seed=1)
TOKENS, MASK = captions(7, 4, 2)


@torch.no_grad()
def theirs(unet: nn.Module, text: bool, null: bool, large: bool) -> Tensor:
    drop = 1.0 if null else 0.0
    more: dict[str, Any] = {"text_encodings": TOKENS} if text else {}
    if large:
        more |= {"lowres_cond_img": LOW, "lowres_noise_level": torch.tensor([200, 0, 700])}
    dropped = {"image_cond_drop_prob": drop, "text_cond_drop_prob": drop}
    return unet(LARGE if large else SMALL, TIMES, image_embed=EMBEDDINGS, **dropped, **more)


@torch.no_grad()
def ours(network: Dalle2UNet, text: bool, null: bool, large: bool) -> Tensor:
    given: dict[str, Any] = {} if null or large else {"clip_embedding": EMBEDDINGS}
    if text and not null:
        given |= {"text_tokens": TOKENS, "text_mask": MASK}
    condition = network.condition(batch=3, **given)
    if not large:
        return network(SMALL, TIMES, condition)
    return network(LARGE, TIMES, condition, concat=LOW, noise_level=torch.tensor([0.2, 0.0, 0.7]))


SMALL, LARGE, LOW = (normal(3, 3, size, size, seed=size) for size in (*SIZES, SIZES[1]))


@pytest.mark.parametrize("name", OPTIONS)
def test_networks_are_the_packages(name: str) -> None:
    options = OPTIONS[name]
    text = "cond_on_text_encodings" in options
    decoder = upstream(options)
    source = source_of(decoder, options)
    for number, load in enumerate((load_dalle2_decoder, load_dalle2_upsampler)):
        network = load(source).network
        for null in (False, True):
            expected = theirs(decoder.unets[number], text, null, large=number == 1)
            found = ours(network, text, null, large=number == 1)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            assert expected.std() > 0.5
        if number == 0:
            difference = (ours(network, text, False, False) - ours(network, text, True, False)).abs().max()
            assert difference > 1e-2


class EarlyLinearAttention(nn.Module):
    """As before version 1.4.0: the values are taken as they are, and not divided by the number of places."""

    def __init__(self, now: nn.Module) -> None:
        super().__init__()
        self.now = now

    def forward(self, x: Tensor) -> Tensor:
        now, (height, width) = self.now, x.shape[2:]
        q, k, v = (
            each.unflatten(1, (now.heads, -1)).flatten(3) for each in now.to_qkv(now.norm(x)).chunk(3, dim=1)
        )  # [B, H, C, N]
        q, k = q.softmax(dim=2) * now.scale, k.softmax(dim=3)
        out = torch.einsum("bhdn,bhde->bhen", q, torch.einsum("bhdn,bhen->bhde", k, v))
        return now.to_out(now.nonlin(out.flatten(1, 2).unflatten(2, (height, width))))


def as_of(version: tuple[int, ...], decoder: nn.Module) -> nn.Module:
    """The package's network as it computed in an earlier version, by what changed since."""
    module, decoder = package(), copy.deepcopy(decoder)
    for each in list(decoder.modules()):
        for name, child in list(each.named_children()):
            if isinstance(child, module.LinearAttention) and version < (1, 4, 0):
                setattr(each, name, EarlyLinearAttention(child))
            if isinstance(child, module.Attention) and version < (1, 4, 3):
                # Scaled once: queries are multiplied by the scale and then, with the keys, by its root.
                child.to_q.weight.data.mul_(1 / child.scale)
    return decoder


@pytest.mark.parametrize("version", ["1.1.0", "1.4.0", "1.4.3"])
def test_earlier_versions_compute_what_they_did(version: str) -> None:
    """Of 1.1.0 are LAION's decoders; the package of today makes noise of them."""
    numbers = tuple(int(part) for part in version.split("."))
    decoder = upstream(LAION)
    network = load_dalle2_decoder(source_of(decoder, LAION, version)).network
    today = theirs(decoder.unets[0], True, False, False)
    expected = theirs(as_of(numbers, decoder).unets[0], True, False, False)
    found = ours(network, True, False, False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert ((today - expected).abs().max() > 0.05) == (version != "1.4.3")


def test_a_caption_is_padded_with_learned_tokens() -> None:
    network = load_dalle2_decoder(source_of(upstream(LAION), LAION)).network
    with torch.no_grad():
        whole = network.condition(clip_embedding=EMBEDDINGS, text_tokens=TOKENS, text_mask=MASK)
        short = network.condition(
            clip_embedding=EMBEDDINGS[1:2], text_tokens=TOKENS[1:2, :4], text_mask=MASK[1:2, :4]
        )
        none = network.condition(batch=1)
    torch.testing.assert_close(short.context[0][0][0], whole.context[0][0][1])
    assert none.context[0][0].shape == (1, 1, 4 + network.config.text_length, 12)
    joined = UNetCondition.cat(short, none)
    assert joined.mask is None, "conditions have one length, so that none is masked"


def test_what_does_not_fit_is_refused() -> None:
    decoder = upstream(LAION)
    network = load_dalle2_decoder(source_of(decoder, LAION)).network
    upsampler = load_dalle2_upsampler(source_of(decoder, LAION)).network
    condition = network.condition(batch=3)
    with pytest.raises(ValueError, match=r"multiples of 8"):
        network(normal(3, 3, 12, 12), TIMES, condition)
    with pytest.raises(ValueError, match="needs a condition"):
        network(SMALL, TIMES)
    with pytest.raises(ValueError, match="the condition has 3 rows and x has 2"):
        network(SMALL[:2], TIMES[:2], condition)
    with pytest.raises(ValueError, match=r"concat has shape None, expected \[3, 3, 32, 32\]"):
        upsampler(LARGE, TIMES, upsampler.condition(batch=3))
    with pytest.raises(ValueError, match=r"clip_embedding has shape \[3, 5\], expected \[3, 24\]"):
        network.condition(clip_embedding=normal(3, 5))
    with pytest.raises(ValueError, match="the batch size is not known"):
        network.condition()


def test_gradients_reach_every_weight() -> None:
    network = filled(load_dalle2_decoder(source_of(upstream(LAION), LAION)).network).requires_grad_()
    given = {"text_tokens": TOKENS, "text_mask": MASK, "keep_clip": torch.tensor([True, False, True])}
    condition = network.condition(clip_embedding=EMBEDDINGS, **given)
    network(SMALL, TIMES, condition).square().mean().backward()
    assert [name for name, each in network.named_parameters() if each.grad is None] == []


def test_settings_that_are_not_computed_are_refused() -> None:
    decoder = upstream({})
    for options, message in (
        ({"resnet_weight_standardization": True}, "resnet_weight_standardization is True, expected False"),
        ({"self_cond": True}, "self_cond is True"),
        ({"new_option": 3}, "has the setting new_option = 3"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dalle2_decoder(source_of(decoder, options))
    for settings, message in (
        ({"beta_schedule": ["sigmoid", "linear"]}, "beta_schedule is 'sigmoid'"),
        ({"use_dynamic_thres": True}, "use_dynamic_thres is True"),
        ({"learned_variance_constrain_frac": True}, "learned_variance_constrain_frac is True"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dalle2_decoder(source_of(decoder, {}, **settings))
