"""The U-Net's conditions: what each does, and what they are when cached, joined, padded or left out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet import UNet, UNetCondition

from ...helpers.unet import difference, random_tensor, randomised
from ...helpers.unet_small import (
    CLIP_DIM,
    CONDITIONING,
    DECODER,
    LENGTH,
    MASK,
    POOLED,
    POOLED_DIM,
    ROWS,
    TEXT,
    TEXT_DIM,
    TOKENS,
    Z_I,
    T,
    X,
    tiny_unet,
)


@pytest.fixture(scope="module")
def network() -> UNet:
    return randomised(UNet(DECODER)).requires_grad_(False)


def test_positions_tell_places_apart_and_fix_the_size() -> None:
    config = tiny_unet(32, channel_mult=(1,), positions=True)
    network = randomised(UNet(config)).requires_grad_(False)
    t, grey = torch.tensor([10]), torch.zeros(1, 3, 32, 32)
    assert network(grey, t)[..., 14:18, 14:18].std(dim=(-2, -1)).min() > 1e-3  # far from the borders
    network.positions.zero_()
    assert network(grey, t)[..., 14:18, 14:18].std(dim=(-2, -1)).max() < 1e-5
    with pytest.raises(ValueError, match="learned positions or a layout works at 32×32 only"):
        network(torch.zeros(1, 3, 16, 32), t)


def test_a_layout_brings_the_embedding_to_its_places_and_fixes_the_size() -> None:
    conditioning = ConditioningConfig(clip_dim=8, clip_layout=2)
    config = tiny_unet(32, channel_mult=(1,), conditioning=conditioning)
    network = randomised(UNet(config)).requires_grad_(False)
    t, grey, z_i = torch.tensor([10, 10]), torch.zeros(2, 3, 32, 32), torch.randn(2, 8)
    condition = network.condition(clip_embedding=z_i)
    assert condition.layout.shape == (2, 2, 32, 32)
    assert network(grey, t, condition)[..., 14:18, 14:18].std(dim=(-2, -1)).min() > 1e-3

    flat = replace(condition, layout=torch.zeros_like(condition.layout))
    assert network(grey, t, flat)[..., 14:18, 14:18].std(dim=(-2, -1)).max() < 1e-5
    halves = [network.condition(clip_embedding=row) for row in z_i.split(1)]
    assert torch.allclose(
        network(grey, t, UNetCondition.cat(*halves)), network(grey, t, condition), atol=1e-5
    )
    with pytest.raises(ValueError, match="a layout works at 32×32 only"):
        network(torch.zeros(2, 3, 16, 32), t, condition)
    with pytest.raises(ValueError, match="clip_layout needs clip_dim"):
        ConditioningConfig(text_pooled_dim=8, clip_layout=2)


def test_a_condition_serves_all_steps(network: UNet) -> None:
    cached = network.condition(clip_embedding=Z_I, **TEXT)
    for t in (T, T.flip(0), T.float() + 0.5):
        recomputed = network.condition(clip_embedding=Z_I, **TEXT)
        assert torch.equal(network(X, t, cached), network(X, t, recomputed))


def test_every_condition_acts(network: UNet) -> None:
    expected = network(X, T, network.condition(clip_embedding=Z_I, **TEXT))
    inputs = {"clip_embedding": Z_I, **TEXT}
    for name in ("clip_embedding", "text_tokens", "text_pooled"):
        changed = network.condition(**{**inputs, name: inputs[name] + 0.3})
        assert difference(network(X, T, changed), expected) > 1e-3, name
    assert difference(network(X, T + 50, network.condition(**inputs)), expected) > 1e-3


def test_a_row_does_not_depend_on_the_others(network: UNet) -> None:
    together = network(X, T, network.condition(clip_embedding=Z_I, **TEXT))
    for row in range(ROWS):
        rows = slice(row, row + 1)
        text = {name: value[rows] for name, value in TEXT.items()}
        alone = network(X[rows], T[rows], network.condition(clip_embedding=Z_I[rows], **text))
        assert difference(alone, together[rows]) < 1e-5


def test_joined_conditions_of_different_lengths_equal_separate_runs(network: UNet) -> None:
    short = network.condition(clip_embedding=Z_I[:1], text_tokens=TOKENS[:1, :2], text_pooled=POOLED[:1])
    long = network.condition(clip_embedding=Z_I[1:], **{name: value[1:] for name, value in TEXT.items()})
    null = network.condition(batch=2)
    conditions, rows = (short, long, null), (X[:1], X[1:], X[:2])
    steps = (T[:1], T[1:], T[:2])
    separate = torch.cat([network(x, t, c) for x, t, c in zip(rows, steps, conditions, strict=True)])
    for joined in (
        UNetCondition.cat(UNetCondition.cat(short, long), null),
        UNetCondition.cat(short, UNetCondition.cat(long, null)),
    ):
        assert joined.batch == 5
        assert difference(network(torch.cat(rows), torch.cat(steps), joined), separate) < 1e-5


def test_conditions_of_equal_length_need_no_mask(network: UNet) -> None:
    condition = network.condition(clip_embedding=Z_I, text_tokens=TOKENS, text_pooled=POOLED)
    assert condition.mask is None
    assert UNetCondition.cat(condition, condition).mask is None


def test_padding_has_no_influence(network: UNet) -> None:
    expected = network(X, T, network.condition(clip_embedding=Z_I, **TEXT))
    padded = torch.where(MASK[..., None], TOKENS, 100.0)
    found = network(X, T, network.condition(clip_embedding=Z_I, **{**TEXT, "text_tokens": padded}))
    assert torch.equal(found, expected)
    longer = {
        "text_tokens": F.pad(TOKENS, (0, 0, 0, 3), value=-7.0),
        "text_mask": F.pad(MASK, (0, 3), value=False),
        "text_pooled": POOLED,
    }
    assert difference(network(X, T, network.condition(clip_embedding=Z_I, **longer)), expected) < 1e-5
    valid = torch.where(MASK[..., None], TOKENS + 0.3, TOKENS)
    changed = network.condition(clip_embedding=Z_I, **{**TEXT, "text_tokens": valid})
    assert difference(network(X, T, changed), expected) > 1e-3


def test_a_row_of_padding_alone_has_no_caption(network: UNet) -> None:
    mask = MASK.clone()
    mask[1] = False
    found = network(X, T, network.condition(clip_embedding=Z_I, **{**TEXT, "text_mask": mask}))
    expected = network(X, T, network.condition(clip_embedding=Z_I, **TEXT))
    uncaptioned = network(X, T, network.condition(clip_embedding=Z_I))
    assert difference(found[1], uncaptioned[1]) < 1e-5
    assert difference(found[[0, 2]], expected[[0, 2]]) < 1e-5
    assert difference(uncaptioned[1], expected[1]) > 1e-3


def test_dropped_embeddings_become_the_learned_null(network: UNet) -> None:
    keep = torch.tensor([True, False, True])
    mixed = network(X, T, network.condition(clip_embedding=Z_I, keep_clip=keep, **TEXT))
    kept = network(X, T, network.condition(clip_embedding=Z_I, **TEXT))
    null = network(X, T, network.condition(**TEXT))
    assert difference(mixed, torch.where(keep[:, None, None, None], kept, null)) < 1e-5
    assert difference(kept[1], null[1]) > 1e-3
    as_given = network.conditioner.null_clip.expand(ROWS, -1)
    assert torch.equal(network(X, T, network.condition(clip_embedding=as_given, **TEXT)), null)


def test_without_a_learned_null_zeros_stand_for_it() -> None:
    config = replace(DECODER, conditioning=replace(CONDITIONING, learned_null=False))
    network = randomised(UNet(config)).requires_grad_(False)
    assert not any("null" in name for name in network.state_dict())
    zeros = network(X, T, network.condition(clip_embedding=torch.zeros(ROWS, CLIP_DIM)))
    assert torch.equal(network(X, T, network.condition(batch=ROWS)), zeros)


@pytest.mark.parametrize(
    "conditioning",
    [
        ConditioningConfig(text_dim=24, context_dim=24, project_text=False),
        ConditioningConfig(text_dim=TEXT_DIM, text_pooled_dim=POOLED_DIM, context_dim=24),
        ConditioningConfig(text_pooled_dim=POOLED_DIM),
        ConditioningConfig(clip_dim=CLIP_DIM),
    ],
    ids=["tokens", "tokens and pooled", "pooled", "clip"],
)
def test_any_inputs_can_be_guided(conditioning: ConditioningConfig) -> None:
    """Conditional and null rows of guidance in one pass, for networks with some of the inputs only."""
    network = randomised(UNet(replace(DECODER, conditioning=conditioning))).requires_grad_(False)
    tokens = random_tensor(4, ROWS, LENGTH, conditioning.text_dim or 1)
    conditional = network.condition(
        clip_embedding=Z_I, text_tokens=tokens, text_mask=MASK, text_pooled=POOLED
    )
    null = network.condition(batch=ROWS)
    both = network(torch.cat([X, X]), torch.cat([T, T]), UNetCondition.cat(conditional, null))
    assert difference(both[:ROWS], network(X, T, conditional)) < 1e-5
    assert difference(both[ROWS:], network(X, T, null)) < 1e-5
    assert difference(both[:ROWS], both[ROWS:]) > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_dim": None}, "clip_tokens needs clip_dim"),
        ({"context_dim": 0}, "context_dim is 0, expected the width of the context tokens"),
        ({"project_text": False}, "without projection text_dim 20 must be context_dim 24"),
        (
            {"clip_dim": None, "clip_tokens": 0, "text_dim": None, "text_pooled_dim": None},
            "conditioning needs at least one of clip_dim, text_dim and text_pooled_dim",
        ),
    ],
)
def test_wrong_conditioning_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        replace(CONDITIONING, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_embedding": Z_I[:, :7]}, "clip_embedding: found shape [3, 7], expected [3, 12]"),
        ({"keep_clip": torch.ones(2).bool()}, "keep_clip: found shape [2], expected [3]"),
        ({"text_tokens": TOKENS[:2]}, "text_tokens: found shape [2, 6, 20], expected [3, 6, 20]"),
        ({"text_tokens": TOKENS[0]}, "text_tokens: found shape [6, 20], expected [3, any, 20]"),
        ({"text_pooled": POOLED[:1]}, "text_pooled: found shape [1, 16], expected [3, 16]"),
        ({"text_mask": MASK[:, :4]}, "text_mask: found shape [3, 4], expected [3, 6]"),
        ({"text_mask": MASK.float()}, "text_mask: found torch.float32, expected bool"),
    ],
)
def test_a_wrong_condition_is_named(network: UNet, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        network.condition(**{"clip_embedding": Z_I, **TEXT, **change})


def test_a_batch_that_nothing_tells_is_an_error(network: UNet) -> None:
    with pytest.raises(ValueError, match="the batch size is not known"):
        network.condition()


def test_conditions_of_different_networks_are_not_joined(network: UNet) -> None:
    other = UNet(replace(DECODER, conditioning=ConditioningConfig(text_dim=24, context_dim=24)))
    with pytest.raises(ValueError, match="conditions of different networks cannot be joined"):
        UNetCondition.cat(network.condition(batch=1), other.condition(batch=1))
