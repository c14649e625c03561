from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from diffusers import PriorTransformer
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor
from unclip.core.acceleration.packed import packed_copy
from unclip.core.config import config_from_dict, config_to_dict
from unclip.core.embeddings.space import TextFeatures
from unclip.core.networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from unclip.core.networks.layers import timestep_embedding
from unclip.core.networks.prior_cache import PriorCache

from ...helpers.prior import CONFIG, DIM, LENGTH, captions, diffusers_prior, small_prior, to_diffusers
from ...helpers.unet import difference

TOLERANCE, APART = 1e-5, 1e-3
TIMESTEPS = torch.tensor([0, 41, 500, 999])
PACKS = torch.backends.mkldnn.is_available()


@pytest.fixture(scope="module")
def prior() -> DiffusionPrior:
    return small_prior().network


@pytest.fixture(scope="module")
def text() -> TextFeatures:
    return captions(3, LENGTH, 6)


def noised(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed))


def full(prior: DiffusionPrior, x: Tensor, t: int, text: TextFeatures) -> Tensor:
    """Full passes of x [G, M, D], one per candidate."""
    times = torch.full((len(text),), t)
    return torch.stack([prior(x[:, j], times, *features(text)) for j in range(x.shape[1])], dim=1)


def features(text: TextFeatures) -> tuple[Tensor, Tensor, Tensor]:
    return text.tokens, text.pooled, text.mask


# --- prefill and steps are the full pass ---


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("candidates", [1, 5])
def test_steps_equal_full_passes(prior, text, candidates, packed) -> None:
    running = packed_copy(prior) if packed else prior
    cache = running.prefill(*features(text), TIMESTEPS)
    x = noised(len(text), candidates)
    for index, t in enumerate(TIMESTEPS.tolist()):
        expected = full(prior, x, t, text)
        assert difference(running.step(x, index, cache), expected) < TOLERANCE
        assert difference(running.step(x, (index + 1) % 4, cache), expected) > APART


def test_guided_branches_share_one_pass(prior, text) -> None:
    cache = prior.prefill(*features(text), TIMESTEPS)
    null = prior.prefill(*features(text.null), TIMESTEPS)
    for first, second in ((cache, null.expand(3)), (null.expand(3), cache)):  # either may be the shorter
        both = PriorCache.cat(first, second)
        x = noised(3, 2)
        found = prior.step(torch.cat([x, x]), 2, both)
        expected = [prior.step(x, 2, first), prior.step(x, 2, second)]
        assert difference(found, torch.cat(expected)) < TOLERANCE
        assert difference(*expected) > APART


def test_one_candidate_needs_no_axis(prior, text) -> None:
    cache = prior.prefill(*features(text), TIMESTEPS)
    x = noised(3)
    assert torch.equal(prior.step(x, 1, cache), prior.step(x[:, None], 1, cache)[:, 0])


def test_only_two_tokens_a_candidate_run(prior, text) -> None:
    tokens: list[int] = []
    hooks = [
        block.mlp_in.register_forward_hook(lambda _, __, out: tokens.append(out[..., 0].numel()))
        for block in prior.blocks
    ]
    try:
        one = TextFeatures(text.tokens[:1], text.mask[:1], text.pooled[:1], text.space)  # 3 valid tokens
        cache = prior.prefill(*features(one), TIMESTEPS)
        assert tokens == [3 + 1 + len(TIMESTEPS)] * (CONFIG.layers - 1)  # caption, z_t, all timesteps
        tokens.clear()
        prior.step(noised(1, 5), 0, cache)
        assert tokens == [10] * (CONFIG.layers - 1) + [5]  # of the last layer only the queries
    finally:
        for hook in hooks:
            hook.remove()


def test_a_repeated_prefix_is_not_copied(prior, text) -> None:
    cache = prior.prefill(*features(text.null), TIMESTEPS)
    repeated = cache.expand(4)
    assert len(repeated) == 4
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(cache.layers, repeated.layers, strict=True))


def test_padding_has_no_weight(prior, text) -> None:
    x, t = noised(3), torch.tensor([7, 300, 900])
    expected = prior(x, t, *features(text))
    other = torch.where(text.mask[:, :, None], text.tokens, torch.full_like(text.tokens, 50.0))
    assert torch.equal(prior(x, t, other, text.pooled, text.mask), expected)
    read = text.tokens.clone()
    read[0, 2] += 0.5  # the last valid token of the first caption
    changed = prior(x, t, read, text.pooled, text.mask)
    assert difference(changed[0], expected[0]) > APART
    assert torch.equal(changed[1:], expected[1:])


def test_captions_may_be_cut_to_their_longest(prior) -> None:
    text = captions(3, 6)
    x, t = noised(2), torch.tensor([7, 900])
    cut = prior(x, t, text.tokens[:, :6], text.pooled, text.mask[:, :6])
    assert difference(cut, prior(x, t, *features(text))) < TOLERANCE
    assert difference(prior(x, t, text.tokens[:, :5], text.pooled, text.mask[:, :5])[1], cut[1]) > APART


def test_a_caption_without_valid_tokens(prior) -> None:
    text = captions(0, 4)
    x = noised(2, 1)
    expected = full(prior, x, 41, text)
    assert torch.isfinite(expected).all()
    assert difference(prior.step(x, 1, prior.prefill(*features(text), TIMESTEPS)), expected) < TOLERANCE
    alone = captions(0)
    assert torch.isfinite(prior.step(noised(1), 0, prior.prefill(*features(alone), TIMESTEPS))).all()


# --- parity with diffusers ---


def test_parity_with_diffusers(prior, text) -> None:
    theirs = diffusers_prior(prior)
    x, t = noised(3), torch.tensor([3, 480, 999])
    call = (x, t, text.pooled, text.tokens)
    expected = theirs(*call, attention_mask=text.mask).predicted_image_embedding
    found = prior(x, t, *features(text))
    assert difference(found, expected) < TOLERANCE
    # without a mask diffusers' network is not causal either
    assert difference(found, theirs(*call).predicted_image_embedding) > APART
    # time one step off; query and key rows exchanged between heads
    assert difference(prior(x, t - 1, *features(text)), expected) > TOLERANCE
    wrong = copy.deepcopy(prior)
    wrong.blocks[0].qkv.weight.copy_(prior.blocks[0].qkv.weight.roll(CONFIG.width // CONFIG.heads, 0))
    assert difference(wrong(x, t, *features(text)), expected) > APART


def test_the_defaults_are_karlos_shape() -> None:
    with torch.device("meta"):
        ours = DiffusionPrior(DiffusionPriorConfig(dim=768, text_dim=768))
        theirs = PriorTransformer()  # its defaults are Karlo's
    expected = {name: value.shape for name, value in theirs.state_dict().items()}
    found = to_diffusers(ours)
    assert {name: value.shape for name, value in found.items()} == expected
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - 2 * 768


def test_timestep_embedding() -> None:
    t = torch.tensor([0, 1, 999])
    theirs = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert difference(timestep_embedding(t, 64), theirs) < TOLERANCE
    assert difference(timestep_embedding(t, 64), get_timestep_embedding(t, 64)) > 0.1  # sines first
    closed = torch.tensor([[2.0, 0.02]])  # frequencies 1 and 1/100
    found = timestep_embedding(torch.tensor([2.0]), 4)
    assert difference(found, torch.cat([closed.cos(), closed.sin()], dim=1)) < 1e-6
    assert timestep_embedding(t, 5).shape == (3, 5)
    assert timestep_embedding(t, 5)[:, -1].abs().max() == 0


# --- training ---


def test_every_parameter_gets_a_gradient(text) -> None:
    torch.manual_seed(0)
    network = DiffusionPrior(CONFIG)
    loss = (network(noised(3), torch.tensor([1, 2, 3]), *features(text)) - noised(3, seed=9)).square().mean()
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


# --- config and errors ---


def test_config_survives_json() -> None:
    assert config_from_dict(DiffusionPriorConfig, config_to_dict(CONFIG)) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": 5}, "width 64 is not a multiple of its 5 heads"), ({"layers": 0}, "layers is 0")],
)
def test_wrong_configs(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_wrong_inputs(prior, text) -> None:
    tokens, pooled, mask = features(text)
    t = torch.tensor([1, 2, 3])
    wrong = {
        f"up to 11, {DIM}], found [3, 11, 5]": (noised(3), t, tokens[:, :, :5], pooled, mask),
        "found [3, 22, 24]": (noised(3), t, tokens.repeat(1, 2, 1), pooled, mask.repeat(1, 2)),
        "bool mask [3, 11], found [3, 24] and torch.float32": (noised(3), t, tokens, pooled, mask.float()),
        "text embedding [3, 24]": (noised(3), t, tokens, pooled[:, :5], mask),
        "expected x [3, 24] and t [3], found [2, 24] and [3]": (noised(2), t, tokens, pooled, mask),
        "found [3, 24] and [1]": (noised(3), t[:1], tokens, pooled, mask),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            prior(*arguments)
    cache = prior.prefill(*features(text), TIMESTEPS)
    with pytest.raises(ValueError, match=re.escape("[3, 24] or [3, candidates, 24], found [2, 24]")):
        prior.step(noised(2), 0, cache)
    with pytest.raises(ValueError, match="no step 4 in a cache of 4 steps"):
        prior.step(noised(3), 4, cache)
    with pytest.raises(ValueError, match="timesteps must be"):
        prior.prefill(*features(text), TIMESTEPS[:0])
    with pytest.raises(ValueError, match="4 and 1 steps cannot be joined"):
        PriorCache.cat(cache, prior.prefill(*features(text), TIMESTEPS[:1]))
    with pytest.raises(ValueError, match="3 captions cannot be repeated to 2"):
        cache.expand(2)
    with pytest.raises(ValueError, match="t must be"):
        timestep_embedding(torch.tensor(3), 8)
    with pytest.raises(ValueError, match="at least 2"):
        timestep_embedding(t, 1)
