"""Operators of pOps against its pipeline: the prior's input, sampled by diffusers' network and scheduler."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.formats.operators import load_operator
from unclip.core.networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.operator import OperatorOptions, apply_operator
from unclip.core.stages import PriorStage
from unclip.nodes import host
from unclip.nodes import operator as node

from ...helpers import karlo
from ...helpers.nodes import run
from ...helpers.unet import difference, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-2
SEED, STEPS = 5, 4
CAPTIONS = ["shiny", "a very old thing"]


@pytest.fixture(scope="module")
def pipeline():
    return karlo.with_exact_tables(karlo.tiny_kandinsky_prior())


@pytest.fixture(scope="module")
def bundle(pipeline, tmp_path_factory):
    return load_any_bundle(karlo.save_as_published(pipeline, tmp_path_factory.mktemp("prior") / "prior"))


@pytest.fixture(scope="module")
def learned():
    """Another prior's weights, with the statistics of the first, as after training."""
    return karlo.tiny_prior(seed=40)


@pytest.fixture(scope="module")
def file(learned, tmp_path_factory):
    path = tmp_path_factory.mktemp("texturing") / "learned_prior.pth"
    state = {name: value for name, value in learned.state_dict().items() if not name.startswith("clip_")}
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def operator(file, bundle) -> PriorStage:
    return load_operator(file, bundle.prior)


@torch.no_grad()
def theirs(
    pipeline, network, hidden: list[Tensor], scale: float, rows: int, mask: Tensor | None = None
) -> Tensor:
    """pOps's loop. ``hidden``: the tokens of each row, [N, D]."""
    base, scheduler = pipeline.prior, pipeline.scheduler
    width = (rows, karlo.LENGTH, karlo.DIM)
    tokens, valid = torch.zeros(width), torch.zeros(width[:2], dtype=torch.bool)
    for row, each in enumerate(hidden):
        tokens[row, : len(each)], valid[row, : len(each)] = each, True
    pooled = torch.zeros(rows, karlo.DIM)
    scheduler.set_timesteps(STEPS)
    generators = [torch.Generator().manual_seed(SEED + row) for row in range(rows)]
    x = torch.cat([torch.randn(1, karlo.DIM, generator=each) for each in generators])

    def predicted(states: Tensor, t: Tensor) -> Tensor:
        given = {"proj_embedding": pooled, "encoder_hidden_states": states, "attention_mask": valid}
        return network(x, timestep=t, **given).predicted_image_embedding

    steps = scheduler.timesteps
    for index, t in enumerate(steps):
        found = predicted(tokens, t)
        if scale > 1:
            null = predicted(torch.zeros_like(tokens), t)
            found = null + scale * (found - null)
        before = steps[index + 1] if index + 1 < len(steps) else None
        x = torch.cat(
            [
                scheduler.step(
                    found[row : row + 1], t, x[row : row + 1], generator=generators[row], prev_timestep=before
                ).prev_sample
                for row in range(rows)
            ]
        )
    return x * base.clip_std + base.clip_mean


def standard(pipeline, vectors: Tensor) -> Tensor:
    return (vectors - pipeline.prior.clip_mean) / pipeline.prior.clip_std


def given_options(scale: float) -> OperatorOptions:
    return OperatorOptions(STEPS, scale, pack_weights=False)


A, B = random_tensor(1, 2, karlo.DIM), random_tensor(2, 2, karlo.DIM)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_two_embeddings_as_pops_puts_them_together(pipeline, bundle, learned, operator, scale) -> None:
    space = bundle.prior.space
    hidden = list(torch.stack([standard(pipeline, A), standard(pipeline, B)], dim=1))
    expected = theirs(pipeline, learned, hidden, scale, 2)
    found = apply_operator(
        operator, Embedding(A, space), Embedding(B, space), seed=SEED, options=given_options(scale)
    )
    assert difference(found.vectors, expected) < WITHIN
    swapped = apply_operator(
        operator, Embedding(B, space), Embedding(A, space), seed=SEED, options=given_options(scale)
    )
    assert difference(swapped.vectors, expected) > OUTSIDE
    plain = apply_operator(
        bundle.prior, Embedding(A, space), Embedding(B, space), seed=SEED, options=given_options(scale)
    )
    assert difference(plain.vectors, expected) > OUTSIDE


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_one_embedding_and_captions_of_different_length(pipeline, bundle, learned, operator, scale) -> None:
    """pOps takes one caption a call; its rows here are those of two calls."""
    text = encode_text(bundle.clip, CAPTIONS)
    hidden = [
        torch.cat([standard(pipeline, A[row : row + 1]), text.tokens[row][text.mask[row]]])
        for row in range(2)
    ]
    assert len(hidden[0]) != len(hidden[1])
    expected = theirs(pipeline, learned, hidden, scale, 2)
    found = apply_operator(
        operator, Embedding(A, bundle.prior.space), text=text, seed=SEED, options=given_options(scale)
    )
    assert difference(found.vectors, expected) < WITHIN
    alone = apply_operator(
        operator,
        Embedding(A[1:], bundle.prior.space),
        text=text.rows(1, 2),
        seed=SEED + 1,
        options=given_options(scale),
    )
    assert difference(alone.vectors, expected[1:]) < WITHIN


def test_a_part_of_the_weights_lies_over_the_priors(bundle, learned, operator, tmp_path) -> None:
    part = {
        name: value for name, value in learned.state_dict().items() if name.startswith("transformer_blocks.1")
    }
    torch.save(part, tmp_path / "learned_prior.pth")
    found = load_operator(tmp_path / "learned_prior.pth", bundle.prior).network.state_dict()
    whole, base = operator.network.state_dict(), bundle.prior.network.state_dict()
    for name, value in found.items():
        assert torch.equal(value, (whole if name.startswith("blocks.1.") else base)[name]), name


def test_the_prior_itself_stays(bundle, operator) -> None:
    own = bundle.prior.network.state_dict()
    assert all(not torch.equal(value, own[name]) for name, value in operator.network.state_dict().items())
    assert operator.space == bundle.prior.space and operator.diffusion == bundle.prior.diffusion


def test_loaded_as_a_prior_it_says_where_it_belongs(file) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{file}: is an operator of pOps") + ".*unCLIP Operator"):
        load_any_stage(file)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda state: state.pop("transformer_blocks.0.attn1.to_k.weight"),
            "lacks transformer_blocks.0.attn1.to_k",
        ),
        (lambda state: state.update({"proj_in.weight": torch.ones(3, 3)}), "proj_in.weight \\[3, 3\\]"),
        (lambda state: state.update({"conv.weight": torch.ones(3)}), "holds conv.weight"),
        (
            lambda state: state.update({"proj_in.bias": torch.full((128,), torch.nan)}),
            "proj_in.bias holds NaN",
        ),
    ],
)
def test_files_that_are_not_whole_are_named(file, bundle, tmp_path, change, message) -> None:
    state = torch.load(file, weights_only=True)
    change(state)
    path = tmp_path / "learned_prior.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        load_operator(path, bundle.prior)


def test_other_files_and_other_priors_are_refused(file, bundle, tmp_path) -> None:
    torch.save({"conv.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"is no operator of pOps: found conv\.weight"):
        load_operator(tmp_path / "other.pth", bundle.prior)
    config = DiffusionPriorConfig(dim=8, text_dim=16, width=32, layers=1, heads=2)
    other = PriorStage(DiffusionPrior(config), EmbeddingSpace("x", 8), bundle.prior.diffusion, "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth cannot run an operator"):
        load_operator(file, other)


def test_what_is_missing_or_of_another_space_is_named(bundle, operator) -> None:
    a = Embedding(A, bundle.prior.space)
    with pytest.raises(ValueError, match="embedding_b: nothing is connected there, nor at text"):
        apply_operator(operator, a, seed=1)
    other = Embedding(A, EmbeddingSpace("somebody/else", karlo.DIM))
    with pytest.raises(ValueError, match="embedding_b is in the CLIP space 'somebody/else'"):
        apply_operator(operator, a, other, seed=1)
    text = encode_text(bundle.clip, ["a cat"])
    with pytest.raises(ValueError, match="text: pictures stand for words of this caption"):
        apply_operator(operator, a, text=replace(text, control=text.pooled), seed=1)


def test_the_node_takes_its_operator_by_the_name_of_its_file(bundle, file, operator, tmp_path, monkeypatch):
    models = tmp_path / "models" / "pops" / "texturing"
    models.mkdir(parents=True)
    (models / "learned_prior.pth").write_bytes(file.read_bytes())
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path / "models"))
    a, b = (Embedding(each, bundle.prior.space) for each in (A, B))
    given = {"prior": bundle.prior, "file": "pops/texturing/learned_prior.pth", "embedding": a}
    (found,) = run("UnCLIPOperator", **given, embedding_b=b, seed=SEED, steps=STEPS, guidance_scale=8.0)
    options = OperatorOptions(STEPS, 8.0)
    expected = apply_operator(operator, a, b, seed=SEED, options=options)
    assert difference(found.vectors, expected.vectors) < 1e-5
    (more,) = run("UnCLIPOperator", **given, embedding_b=b, seed=SEED, steps=STEPS, repeat=2)
    assert len(more) == 4
    assert node._operator(bundle.prior, given["file"]) is node._operator(bundle.prior, given["file"])
    part = {name: value for name, value in torch.load(file, weights_only=True).items() if "blocks.1" in name}
    torch.save(part, models / "learned_prior.pth")  # another file under the name
    (other,) = run("UnCLIPOperator", **given, embedding_b=b, seed=SEED, steps=STEPS, guidance_scale=8.0)
    assert difference(other.vectors, found.vectors) > OUTSIDE
    text = encode_text(bundle.clip, CAPTIONS)
    (instructed,) = run("UnCLIPOperator", **given, text=text, seed=SEED, steps=STEPS)
    assert len(instructed) == 2
    with pytest.raises(ValueError, match="embedding_b: nothing is connected"):
        run("UnCLIPOperator", **given, seed=SEED)


def test_the_node_loads_an_operator_again_whose_shard_was_replaced(bundle, file, tmp_path, monkeypatch):
    """Its index stays the same."""
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path))
    state = torch.load(file, weights_only=True)
    save_file(state, tmp_path / "texturing-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(state, "texturing-00001-of-00001.safetensors")}
    (tmp_path / "texturing.safetensors.index.json").write_text(json.dumps(index))
    before = node._operator(bundle.prior, "texturing.safetensors")
    assert node._operator(bundle.prior, "texturing.safetensors") is before
    changed = {name: value + 1 for name, value in state.items()}
    save_file(changed, tmp_path / "texturing-00001-of-00001.safetensors")
    assert node._operator(bundle.prior, "texturing.safetensors") is not before
