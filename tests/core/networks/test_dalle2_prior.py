"""DALLE2-pytorch's prior against upstream's network, in parts against the whole, and its files."""

from __future__ import annotations

import json
import re
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from packaging import version
from safetensors.torch import save_file
from torch import Tensor
from unclip.core.acceleration.packed import packed_copy
from unclip.core.formats.detect import identify
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.layouts.dalle2_pytorch import load_dalle2_prior
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.networks.dalle2_prior import Dalle2Prior, Dalle2PriorConfig
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers.dalle2 import DIM, LENGTH, NETWORK, TIMESTEPS, captions, dalle2_state

WITHIN, OUTSIDE = 1e-4, 1e-2
T = torch.tensor([0, 17, 49])
LENGTHS = (3, LENGTH, 1)

# The first four values of each row, made by dalle2-pytorch 1.15.6 with rotary-embedding-torch 0.9.1:
# `DiffusionPriorNetwork(**NETWORK)` with `dalle2_state()`, called with `noised()`, T, `captions(*LENGTHS)`
# normalised and with zeros for padding; for NULL with both drop probabilities 1.
CONDITIONAL = [
    [-0.121235, -1.095134, 0.370445, -0.583235],
    [0.170281, -1.830001, -0.968537, 1.171592],
    [0.143640, -0.993500, 0.390940, -0.638946],
]
NULL = [
    [0.133181, -1.002064, 0.423222, -0.806606],
    [-0.044629, -0.871546, 0.652512, -0.911188],
    [0.127490, -1.010813, 0.404165, -0.797786],
]
# The same of `DiffusionPriorNetwork(**{**NETWORK, "norm_in": True, "normformer": False})`.
OTHER = [
    [0.488512, 1.099564, -2.147184, 0.951914],
    [-0.091100, 1.737117, -1.872268, 0.557065],
    [1.687342, 1.163944, -2.888639, 0.546617],
]


def prior(state: dict[str, Tensor] | None = None, **options: bool) -> PriorStage:
    state = dalle2_state(**options) if state is None else state
    tensors = {f"net.{name}": value for name, value in state.items()}
    return load_dalle2_prior(source_of_tensors(Path("best.pth"), tensors))


@pytest.fixture(scope="module")
def stage() -> PriorStage:
    return prior()


def noised() -> Tensor:
    return torch.randn(3, DIM, generator=torch.Generator().manual_seed(5)) * 1.3


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    text = captions(*LENGTHS)
    return text.tokens, torch.nn.functional.normalize(text.pooled, dim=-1), text.mask


def whole(network: Dalle2Prior, t: Tensor = T) -> Tensor:
    return network(noised(), t, *inputs())


def off(found: Tensor, expected: list[list[float]]) -> float:
    return (found[:, :4] - torch.tensor(expected)).abs().max().item()


def test_it_gives_what_upstream_gave(stage: PriorStage) -> None:
    assert off(whole(stage.network), CONDITIONAL) <= WITHIN
    assert off(stage.network.null_table(T), NULL) <= WITHIN
    assert off(whole(prior(norm_in=True, normformer=False).network), OTHER) <= WITHIN
    assert off(whole(stage.network, T.flip(0)), CONDITIONAL) > OUTSIDE


def test_it_gives_what_upstream_gives(stage: PriorStage) -> None:
    upstream = pytest.importorskip("dalle2_pytorch", reason="dalle2-pytorch is not installed")
    network = upstream.DiffusionPriorNetwork(**NETWORK).eval()
    network.load_state_dict(dalle2_state())
    tokens, pooled, mask = inputs()
    expected = network(noised(), T, text_embed=pooled, text_encodings=tokens.masked_fill(~mask[..., None], 0))
    assert (whole(stage.network) - expected).abs().max() <= WITHIN


WRONG = {
    "padding is not marked": lambda tokens, pooled, mask: (tokens, pooled, torch.ones_like(mask)),
    "z_t is not of unit length": lambda tokens, pooled, mask: (tokens, 2 * pooled, mask),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_inputs_that_are_slightly_wrong_are_told_apart(stage: PriorStage, wrong: str) -> None:
    assert off(stage.network(noised(), T, *WRONG[wrong](*inputs())), CONDITIONAL) > OUTSIDE


@pytest.mark.parametrize(
    "name",
    ["null_kv", "rel_pos_bias", "freqs", "null_text_encodings", "norm.g", "1.3.g"],
)
def test_every_kind_of_weight_matters(name: str) -> None:
    state = {key: value * 1.5 if name in key else value for key, value in dalle2_state().items()}
    assert off(whole(prior(state).network), CONDITIONAL) > 1e-3


@pytest.mark.parametrize("pack", [False, True])
def test_the_parts_give_what_the_whole_gives(stage: PriorStage, pack: bool) -> None:
    network = stage.network
    running = packed_copy(network) if pack else network
    cache = running.prefill(*inputs(), T)
    for step, t in enumerate(T):
        expected = whole(network, t.expand(3))
        assert (running.step(noised(), step, cache) - expected).abs().max() <= WITHIN
    candidates = torch.stack([noised(), -noised()], dim=1)  # [3, 2, D]
    found = running.step(candidates, 2, cache)
    for index in range(2):
        alone = network(candidates[:, index], T[2].expand(3), *inputs())
        assert (found[:, index] - alone).abs().max() <= WITHIN
    assert (found[:, 0] - found[:, 1]).abs().max() > OUTSIDE


def test_short_captions_may_be_cut(stage: PriorStage) -> None:
    tokens, pooled, mask = (part[:1] for part in inputs())
    cut = stage.network(noised()[:1], T[:1], tokens[:, :3], pooled, mask[:, :3])
    assert off(cut, CONDITIONAL[:1]) <= WITHIN


def test_sampling_makes_embeddings_of_the_unit_space(stage: PriorStage) -> None:
    text = captions(3, 9)
    options = PriorOptions(steps=6, guidance_scale=2.0, candidates=2)
    found = sample_diffusion_prior(stage, text, seed=3, batch_size=2, options=options)
    assert found.space.norm == "unit"
    assert found.vectors.shape == (2, DIM)
    assert 0.3 < found.vectors.norm(dim=1).mean() < 3  # divided by √D again
    longer = replace(text, pooled=3 * text.pooled)  # raw embeddings of CLIP are brought to unit length
    again = sample_diffusion_prior(stage, longer, seed=3, batch_size=2, options=options)
    torch.testing.assert_close(again.vectors, found.vectors)
    plain = sample_diffusion_prior(
        stage, text, seed=3, batch_size=2, options=replace(options, guidance_scale=1)
    )
    assert (plain.vectors - found.vectors).abs().max() > 1e-3


def test_candidates_are_ranked_by_cosine_as_upstream_ranks_them(stage: PriorStage) -> None:
    """`DiffusionPrior.sample` compares both embeddings at unit length; its samples are not of that length."""
    text, seen = captions(3), []
    options = PriorOptions(steps=4, candidates=4, sampler="ddim")
    kept = sample_diffusion_prior(
        stage, text, seed=3, batch_size=32, options=options, callback=seen.append
    ).vectors
    candidates = stage.space.unstandardise(seen[-1].x0).unflatten(0, (32, 4))  # ddim ends in its last x̂0
    pooled = torch.nn.functional.normalize(text.pooled, dim=-1)[0]
    by_cosine = torch.nn.functional.cosine_similarity(candidates, pooled, dim=-1).argmax(dim=1)
    by_product = (candidates @ pooled).argmax(dim=1)
    assert (by_cosine != by_product).any()
    torch.testing.assert_close(kept, candidates[torch.arange(32), by_cosine])


def test_guidance_is_that_of_two_full_passes(stage: PriorStage) -> None:
    text, network = captions(7), stage.network
    options = PriorOptions(steps=2, guidance_scale=3.0, candidates=1, sampler="ddim", pack_weights=False)
    seen = []
    sample_diffusion_prior(stage, text, seed=1, options=options, callback=seen.append)
    t = torch.tensor([0])  # of the last step
    pooled = torch.nn.functional.normalize(text.pooled, dim=-1)
    conditional = network(seen[0].x, t, text.tokens, pooled, text.mask)
    null = network(seen[0].x, t, text.tokens, pooled, text.mask, torch.tensor([False]))
    guided = null + 3 * (conditional - null)
    torch.testing.assert_close(seen[1].x0, guided, atol=WITHIN, rtol=0)
    assert (conditional - null).abs().max() > OUTSIDE


# --- files ---


def test_a_whole_model_is_recognised(tmp_path: Path) -> None:
    """With CLIP, the tables of the schedule, and a version that is an object, as LAION's files have it."""
    model = {f"net.{name}": value for name, value in dalle2_state().items()}
    model |= {"clip.clip.logit_scale": torch.ones(()), "noise_scheduler.betas": torch.ones(TIMESTEPS)}
    path = tmp_path / "best.pth"
    torch.save({"version": version.parse("1.10.9"), "model": model, "ema": {"step": torch.ones(1)}}, path)
    source = open_weights(path)
    layout = identify(source)
    stage = layout.load(source, "cpu", torch.float32)
    assert (layout.stage, layout.space(source)) == ("prior", "clip-24")
    assert layout.config(source) == stage.network.config
    assert off(whole(stage.network), CONDITIONAL) <= WITHIN
    assert stage.diffusion.num_timesteps == TIMESTEPS
    assert stage.diffusion.prediction == "x0"
    assert stage.diffusion.clip_x0 is None


def test_a_version_of_an_older_package_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the packaging of 2022 a version held a named tuple and objects of two further classes."""
    Parts = namedtuple("_Version", ["epoch", "release"])
    classes = {
        "packaging.version": [type("Version", (), {}), Parts],
        "packaging._structures": [type("InfinityType", (), {}), type("NegativeInfinityType", (), {})],
    }
    for name, members in classes.items():
        module = ModuleType(name)
        for each in members:
            each.__module__ = name
            setattr(module, each.__name__, each)
        monkeypatch.setitem(sys.modules, name, module)
    old, infinity, negative = (
        classes["packaging.version"][0](),
        *(each() for each in classes["packaging._structures"]),
    )
    old._version, old._key = Parts(0, (1, 10, 9)), (0, (1, 10, 9), infinity, infinity, negative)
    torch.save({"version": old, "model": {"net.learned_query": torch.ones(3)}}, tmp_path / "old.pth")
    monkeypatch.undo()
    assert open_weights(tmp_path / "old.pth").shapes == {"net.learned_query": (3,)}
    object.__setattr__(old, "_key", Path("a"))  # anything else is still refused
    for name, members in classes.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**{each.__name__: each for each in members}))
    torch.save({"version": old, "model": {"net.learned_query": torch.ones(3)}}, tmp_path / "old.pth")
    with pytest.raises(ValueError, match="holds Python objects"):
        open_weights(tmp_path / "old.pth")


def test_the_defaults_have_the_size_of_laions_prior() -> None:
    with torch.device("meta"):
        network = Dalle2Prior(Dalle2PriorConfig(dim=768))
    # as upstream's network of `prior_config.json`, without the frequencies of its rotations
    assert sum(value.numel() for value in network.parameters()) == 101_756_544


def test_it_can_be_saved_in_our_format(stage: PriorStage, tmp_path: Path) -> None:
    save_stage(stage, tmp_path / "prior.safetensors")
    again = load_stage(tmp_path / "prior.safetensors", expect="prior")
    assert torch.equal(whole(again.network), whole(stage.network))
    assert again.space == stage.space


QUERY, NULL_KV = (f"net.causal_transformer.layers.1.0.{name}" for name in ("to_q.weight", "null_kv"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (QUERY, None, f"lacks {QUERY}; found"),
        (NULL_KV, None, f"lacks {NULL_KV}; found"),
        ("net.to_text_embeds.0.weight", torch.ones(2, 2), "holds net.to_text_embeds.0.weight, for which"),
        (QUERY, torch.ones(120, 23), f"found the shape {QUERY} [120, 23], expected [120, 24]"),
        ("net.learned_query", None, "lacks net.learned_query"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str, value: Tensor | None, message: str) -> None:
    state = {f"net.{key}": tensor for key, tensor in dalle2_state().items()}
    state.pop(name, None)
    if value is not None:
        state[name] = value
    save_file(state, tmp_path / "prior.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_dalle2_prior(open_weights(tmp_path / "prior.safetensors"))
    assert "prior.safetensors" in str(error.value)


def test_a_part_of_a_decoder_of_the_same_release_is_named() -> None:
    state = {"unets.0.downs.0.0.weight": torch.ones(1), "unets.0.to_time_hiddens.0.weights": torch.ones(1)}
    with pytest.raises(ValueError, match="is a part of a decoder of DALLE2-pytorch, without a whole network"):
        identify(source_of_tensors(Path("latest.pth"), state))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_schedule": "jsd"}, "beta_schedule is 'jsd', expected cosine or linear"),
        ({"predict_x_start": False}, "predict_x_start is False, expected True. Only a prior like LAION's"),
        ({"net": {"self_cond": True}}, "self_cond is True, expected False. Only a prior like LAION's"),
    ],
)
def test_the_config_beside_a_file_is_read(tmp_path: Path, options: dict, message: str) -> None:
    state = {f"net.{key}": tensor for key, tensor in dalle2_state().items()}
    save_file(state, tmp_path / "prior.safetensors")
    config = tmp_path / "prior_config.json"
    config.write_text(json.dumps({"prior": {"beta_schedule": "linear", "net": {"dim": DIM}}}))
    assert load_dalle2_prior(open_weights(tmp_path / "prior.safetensors")).diffusion.schedule == "linear"
    config.write_text(json.dumps({"prior": options}))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_dalle2_prior(open_weights(tmp_path / "prior.safetensors"))


def test_shapes_that_do_not_fit_are_errors(stage: PriorStage) -> None:
    tokens, pooled, mask = inputs()
    network = stage.network
    with pytest.raises(ValueError, match=re.escape("caption features must be [captions, up to 40, 24]")):
        network.prefill(tokens[..., :5], pooled, mask, T)
    with pytest.raises(ValueError, match=re.escape("timesteps must be [S], one a step, found [1, 3]")):
        network.prefill(tokens, pooled, mask, T[None])
    cache = network.prefill(tokens, pooled, mask, T)
    with pytest.raises(ValueError, match="there is no step 3 in a cache of 3 steps"):
        network.step(noised(), 3, cache)
    with pytest.raises(ValueError, match="for a cache of 3 captions x must be"):
        network.step(noised()[:2], 0, cache)
    with pytest.raises(ValueError, match=re.escape("expected x [3, 24] and t [3]")):
        network(noised()[:2], T, tokens, pooled, mask)
    with pytest.raises(ValueError, match="layers is 0, expected more than 0"):
        replace(network.config, layers=0)
