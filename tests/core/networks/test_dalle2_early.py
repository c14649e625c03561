"""DALLE2-pytorch's prior as early versions of the package computed it: LAION's published one is of those."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from unclip.core.formats.detect import identify
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.files.torch_pickle import release_of
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.layouts import dalle2_settings
from unclip.core.formats.layouts.dalle2_pytorch import load_dalle2_prior
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers.dalle2 import DIM, LENGTH, NETWORK, TIMESTEPS, captions, dalle2_state, early_state

WITHIN, OUTSIDE = 1e-4, 1e-2
T = torch.tensor([0, 17, 49])

# The first four values of each row, made by the package itself with rotary-embedding-torch 0.1.5:
# `DiffusionPriorNetwork(**NETWORK)` with `early_state()`, called with `noised()`, T, `inputs()` and zeros for
# padding. Versions 0.23.3, 1.1.0 and 1.4.2 give the first, 1.4.3 and 1.8.4 the last; with `cond_drop_prob` of
# 1, their unconditional branch, each gives the same numbers again.
DOT_PRODUCT = [
    [-1.304773, -0.073982, 0.793325, 0.075085],
    [0.294215, -1.597013, -0.826880, 0.675380],
    [-1.389676, -0.198879, 0.887305, 0.196270],
]
# The same of `DiffusionPriorNetwork(**{**NETWORK, "norm_in": True, "normformer": False})`, version 1.1.0.
OTHER = [
    [0.671390, 0.597908, -3.203786, 0.469751],
    [0.931197, 0.320847, -1.975793, 0.091861],
    [0.671390, 0.597908, -3.203786, 0.469751],
]
COSINE = [
    [-0.121235, -1.095134, 0.370445, -0.583235],
    [0.170281, -1.830001, -0.968537, 1.171592],
    [0.143641, -0.993500, 0.390940, -0.638946],
]


def early(version: object = None, **options: bool) -> PriorStage:
    tensors = {f"net.{name}": value for name, value in early_state(**options).items()}
    metadata = {} if version is None else {"version": version}
    return load_dalle2_prior(source_of_tensors(Path("best.pth"), tensors, metadata))


def noised() -> Tensor:
    return torch.randn(3, DIM, generator=torch.Generator().manual_seed(5)) * 1.3


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    text = captions(3, LENGTH, 1)
    return text.tokens, torch.nn.functional.normalize(text.pooled, dim=-1), text.mask


def off(stage: PriorStage, expected: list[list[float]]) -> float:
    found = stage.network(noised(), T, *inputs())
    return (found[:, :4] - torch.tensor(expected)).abs().max().item()


@pytest.mark.parametrize("version", ["0.23.3", "1.1.0", "1.4.2"])
def test_dot_products_are_compared_as_upstream_did(version: str) -> None:
    assert off(early(version), DOT_PRODUCT) <= WITHIN
    assert off(early(version), COSINE) > OUTSIDE
    assert off(early(version, norm_in=True, normformer=False), OTHER) <= WITHIN


@pytest.mark.parametrize("version", ["1.4.3", "1.8.4"])
def test_cosines_are_compared_as_upstream_did(version: str) -> None:
    assert off(early(version), COSINE) <= WITHIN
    assert off(early(version), DOT_PRODUCT) > OUTSIDE


def test_the_bias_of_positions_counts_as_upstream_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unclip.core.networks.dalle2_prior.DOT_PRODUCT_BIAS", 1.0)
    assert off(early("1.1.0"), DOT_PRODUCT) > OUTSIDE


def test_the_parts_give_what_the_whole_gives() -> None:
    network = early("1.1.0").network
    cache = network.prefill(*inputs(), T)
    for step, t in enumerate(T):
        whole = network(noised(), t.expand(3), *inputs())
        assert (network.step(noised(), step, cache) - whole).abs().max() <= WITHIN


def test_guidance_changes_nothing_as_upstream() -> None:
    """Before 1.9.0 what was marked to be dropped was not looked at: both branches gave the same."""
    stage, text = early("1.1.0"), captions(7)
    options = PriorOptions(steps=3, guidance_scale=4.0, candidates=1)
    guided = sample_diffusion_prior(stage, text, seed=1, options=options)
    plain = sample_diffusion_prior(stage, text, seed=1, options=replace(options, guidance_scale=1.0))
    assert torch.equal(guided.vectors, plain.vectors)
    assert 0.3 < guided.vectors.norm(dim=1).mean() < 3
    with pytest.raises(ValueError, match="this version has no unconditional branch"):
        stage.network.null_table(T)
    with pytest.raises(ValueError, match="this version has no unconditional branch"):
        stage.network(noised(), T, *inputs(), torch.zeros(3, dtype=torch.bool))


def test_it_can_be_saved_in_our_format(tmp_path: Path) -> None:
    stage = early("1.1.0")
    save_stage(stage, tmp_path / "prior.safetensors")
    again = load_stage(tmp_path / "prior.safetensors", expect="prior")
    assert again.network.config == stage.network.config
    assert off(again, DOT_PRODUCT) <= WITHIN


# --- which version a file is of ---


def checkpoint(tmp_path: Path, **beside: object) -> Path:
    model = {f"net.{name}": value for name, value in early_state().items()}
    torch.save({"model": model, "step": torch.ones(1), **beside}, tmp_path / "latest.pth")
    return tmp_path / "latest.pth"


@pytest.mark.parametrize(
    ("version", "cosine"),
    [(Version("1.1.0"), False), ("1.4.2", False), (Version("1.4.3"), True), ("1.8.4", True)],
)
def test_the_version_in_a_file_counts(tmp_path: Path, caplog, version: object, cosine: bool) -> None:
    """The trainer of priors writes an object, the one of decoders text."""
    source = open_weights(checkpoint(tmp_path, version=version))
    layout = identify(source)
    stage = layout.load(source, "cpu", None)
    assert (stage.network.config.cosine, stage.network.config.unconditional) == (cosine, False)
    assert off(stage, COSINE if cosine else DOT_PRODUCT) <= WITHIN
    assert layout.config(source) == stage.network.config
    assert layout.space(source) == "clip-24"
    assert caplog.text == ""


def test_without_a_version_the_assumed_one_is_told(tmp_path: Path, caplog) -> None:
    path = checkpoint(tmp_path)
    assert off(load_any_stage(path, expect="prior"), DOT_PRODUCT) <= WITHIN
    assert f"{path}: was made by a version of DALLE2-pytorch before 1.9.0, and does not say" in caplog.text
    assert 'put {"version": "1.8.4"}' in caplog.text
    caplog.clear()
    (tmp_path / "prior_config.json").write_text('{"version": "1.8.4"}')  # as the message says
    assert off(load_any_stage(path, expect="prior"), COSINE) <= WITHIN
    assert caplog.text == ""


@pytest.mark.parametrize("version", ["0.23.2", Version("0.22.0")])
def test_a_version_that_is_not_read_is_named(tmp_path: Path, version: object) -> None:
    path = checkpoint(tmp_path, version=version)
    with pytest.raises(ValueError, match=re.escape(f"{path}: was made by DALLE2-pytorch {version}, whose")):
        load_any_stage(path, expect="prior")


@pytest.mark.parametrize(("version", "taken"), [("1.9.0", False), ("1.10.3", False), ("1.10.4", True)])
def test_a_version_whose_guidance_was_another_is_named(tmp_path: Path, version: str, taken: bool) -> None:
    """It meant to drop z_t as well, and kept it."""
    model = {f"net.{name}": value for name, value in dalle2_state().items()}
    torch.save({"model": model, "version": Version(version)}, tmp_path / "best.pth")
    if taken:
        assert off(load_any_stage(tmp_path / "best.pth"), COSINE) <= WITHIN
        return
    with pytest.raises(
        ValueError, match=re.escape(f"DALLE2-pytorch {version}, whose unconditional branch is")
    ):
        load_any_stage(tmp_path / "best.pth")


def test_a_version_is_text_or_an_object() -> None:
    assert release_of("1.10.9") == (1, 10, 9)
    assert release_of(None) is None
    assert release_of("latest") is None
    assert release_of(Version("1.1.0")) is None  # only what stands for one in a file


# --- settings ---

# The arguments of upstream's classes, versions 1.1.0 to 1.15.6; the network passes its transformer's on.
DIFFUSION_PRIOR = """
net clip image_embed_dim image_size image_channels timesteps sample_timesteps cond_drop_prob
text_cond_drop_prob image_cond_drop_prob loss_type predict_x_start predict_v beta_schedule
condition_on_text_encodings sampling_clamp_l2norm sampling_final_clamp_l2norm training_clamp_l2norm
init_image_embed_l2norm image_embed_scale clip_adapter_overrides
"""
PRIOR_NETWORK = """
dim num_timesteps num_time_embeds num_image_embeds num_text_embeds max_text_len self_cond depth dim_head heads
ff_mult norm_in norm_out attn_dropout ff_dropout final_proj normformer rotary_emb
"""


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (DIFFUSION_PRIOR, dalle2_settings.PRIOR),
        (PRIOR_NETWORK, dalle2_settings.NETWORK),
        ("make model base_model_kwargs", dalle2_settings.ADAPTER),
    ],
)
def test_every_setting_is_decided(names: str, settings) -> None:
    assert set(names.split()) - set(settings.fixed) - settings.free == set()
    assert not set(settings.fixed) & settings.free


def with_config(tmp_path: Path, prior: dict) -> PriorStage:
    model = {f"net.{name}": value for name, value in dalle2_state().items()}
    torch.save({"model": model}, tmp_path / "best.pth")
    (tmp_path / "prior_config.json").write_text(json.dumps({"prior": prior}))
    return load_any_stage(tmp_path / "best.pth", expect="prior")


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"sampling_final_clamp_l2norm": True}, "sampling_final_clamp_l2norm is True, expected False"),
        ({"init_image_embed_l2norm": True}, "init_image_embed_l2norm is True, expected False"),
        ({"predict_v": True}, "predict_v is True, expected False"),
        ({"image_embed_scale": 0}, "image_embed_scale is 0, expected a number above 0"),
        ({"image_embed_scale": "wide"}, "image_embed_scale is 'wide', expected a number above 0"),
        ({"timesteps": "many"}, "timesteps is 'many', expected a whole number"),
        ({"net": {"num_time_embeds": 2}}, "num_time_embeds is 2, expected 1"),
        ({"net": {"final_proj": False}}, "final_proj is False, expected True"),
        ({"clip": {"make": "x-clip"}}, "make is 'x-clip', expected 'openai'"),
        ({"clip": {"model": "ViT-B/32"}}, "model is 'ViT-B/32', expected 'ViT-L/14'"),
        ({"new_scale": 3}, "has the setting new_scale = 3, which is not known here"),
    ],
)
def test_settings_of_another_value_are_named(tmp_path: Path, prior: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'prior_config.json'}: {message}")):
        with_config(tmp_path, prior)


def test_settings_that_are_honoured(tmp_path: Path, caplog) -> None:
    stage = with_config(tmp_path, {"timesteps": 20, "image_embed_scale": 24**0.5, "net": NETWORK})
    assert stage.diffusion.num_timesteps == 20
    assert with_config(tmp_path, {}).diffusion.num_timesteps == TIMESTEPS
    assert (stage.diffusion.norm_x0, stage.diffusion.embedding_scale) == (None, 24**0.5)
    assert with_config(tmp_path, {"sampling_clamp_l2norm": True}).diffusion.norm_x0 == 24**0.5
    # Beyond its table of embeddings nothing can have been trained.
    assert with_config(tmp_path, {"timesteps": 1000}).diffusion.num_timesteps == TIMESTEPS
    assert caplog.text == ""
    with_config(tmp_path, {"cond_drop_prob": 0.0})
    assert "cond_drop_prob is 0: it was trained without guidance" in caplog.text
