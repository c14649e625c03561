"""Files of DALLE2-pytorch's decoders: found, loaded, saved as our own, and sampled as the package samples."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from unclip.core.diffusion.samplers import sample_ddim
from unclip.core.diffusion.schedule import schedule_of
from unclip.core.embeddings.space import Embedding, TextFeatures
from unclip.core.formats.layouts.dalle2_decoder import load_dalle2_decoder, load_dalle2_upsampler
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.networks.dalle2_unet import Dalle2UNet
from unclip.core.pipelines.conditioning import null_embedding
from unclip.core.pipelines.conditions import Conditions
from unclip.core.pipelines.decode import DecodeOptions, decode, decoder_denoiser, limited
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import DecoderStage, UpsamplerConditions, UpsamplerStage

from ...helpers.dalle2_decoder import (
    CLIP_DIM,
    LAION,
    SIZES,
    captions,
    described,
    source_of,
    upstream,
)

TIMESTEPS = 30


def written(path: Path, options: dict[str, Any], version: str | None = "1.1.0", config: bool = True) -> Path:
    """A checkpoint as the package's tracker saves it."""
    facts: dict[str, Any] = {"model": upstream(options).state_dict(), "version": version}
    if config:
        facts["config"] = described(options)
    torch.save({key: value for key, value in facts.items() if value is not None}, path)
    return path


def test_a_file_is_a_decoder_and_an_upsampler(tmp_path: Path) -> None:
    path = written(tmp_path / "latest.pth", LAION)
    decoder = load_any_stage(path)
    assert isinstance(decoder, DecoderStage)
    assert (decoder.picture_size, decoder.space.id, decoder.space.norm) == (16, f"clip-{CLIP_DIM}", "unit")
    assert decoder.diffusion.variance == "learned_range"
    config = decoder.network.config
    assert (config.memory_efficient, config.linear_attention) == (True, True)
    assert config.self_attention == (False, True, True)
    assert (config.normalised_values, config.self_scale) == (False, 0.5), "as version 1.1.0"
    upsampler = load_any_stage(path, expect="upsampler")
    assert isinstance(upsampler, UpsamplerStage)
    assert (upsampler.low_size, upsampler.network.config.image_size) == SIZES
    assert upsampler.recipe == UpsamplerConditions("nearest", noise_level=0.2, noise_on="large")
    assert (upsampler.diffusion.schedule, upsampler.diffusion.variance) == ("linear", "fixed_small")


def test_of_a_trainers_file_the_averaged_weights_are_read(tmp_path: Path) -> None:
    """``DecoderTrainer.save`` keeps them apart, and samples from them."""
    decoder = upstream(LAION)
    state = decoder.state_dict()
    means = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    ema: dict[str, Tensor] = {}
    for name, value in means.items():
        if name.startswith("unets."):
            number, rest = name.removeprefix("unets.").split(".", 1)
            ema[f"{number}.ema_model.{rest}"] = value
            ema[f"{number}.online_model.{rest}"] = state[name]
            ema[f"{number}.initted"] = torch.tensor(True)
    facts = {"version": "1.1.0", "config": described(LAION)}
    torch.save({"model": state, "ema": ema, "steps": torch.tensor([1, 1]), **facts}, tmp_path / "all.pth")
    torch.save({"model": means, **facts}, tmp_path / "means.pth")
    for stage in ("decoder", "upsampler"):
        found = load_any_stage(tmp_path / "all.pth", expect=stage).network.state_dict()
        expected = load_any_stage(tmp_path / "means.pth", expect=stage).network.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_config_lies_beside_or_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "latest.pth", LAION, version=None, config=False)
    with caplog.at_level(logging.WARNING):
        decoder = load_any_stage(path)
    assert decoder.picture_size == 64, "the first of the paper's sizes"
    assert decoder.network.config.groups == (8, 8, 8), "the package's default"
    assert caplog.text == "", "pixels are unshuffled from a later version on, which tells enough"
    facts = {**described(LAION), "version": "1.4.1"}
    (tmp_path / "decoder_config.json").write_text(json.dumps(facts))
    config = load_any_stage(path).network.config
    assert (config.image_size, config.groups) == (16, (4, 4, 4))
    assert (config.normalised_values, config.self_scale) == (True, 0.5)


def test_an_old_file_without_a_version_says_so(caplog: pytest.LogCaptureFixture) -> None:
    decoder = upstream({"dim_mults": [1, 2]})
    state = dict(decoder.state_dict())
    weight = state.pop("unets.0.downs.0.4.1.weight")
    state["unets.0.downs.0.4.weight"] = weight.repeat(1, 1, 4, 4)[:, :16]
    state["unets.0.downs.0.4.bias"] = state.pop("unets.0.downs.0.4.1.bias")
    source = replace_state(source_of(decoder, {"dim_mults": [1, 2]}, None), state)
    with caplog.at_level(logging.WARNING):
        config = load_dalle2_decoder(source).network.config
    assert (config.shrink, config.normalised_values) == ("convolution", False)
    assert (
        "does not say by which version of DALLE2-pytorch it was made; it is read as of 1.1.0" in caplog.text
    )


def replace_state(source: Any, state: dict[str, Tensor]) -> Any:
    from unclip.core.formats.files.weight_source import source_of_tensors

    return source_of_tensors(source.path, state, source.metadata)


def test_other_parts_of_a_file_are_left(tmp_path: Path) -> None:
    """A file of an upsampler alone has a placeholder for the decoder (Veldrovive's)."""
    decoder = upstream(LAION)
    state = {name: each for name, each in decoder.state_dict().items() if not name.startswith("unets.0.")}
    state |= {"unets.0.dummy_parameter": torch.zeros(1), "clip.x": torch.zeros(2)}
    source = replace_state(source_of(decoder, LAION), state)
    network = load_dalle2_upsampler(source).network
    assert isinstance(network, Dalle2UNet)
    torch.save({"model": state, "config": described(LAION)}, tmp_path / "latest.pth")
    assert isinstance(load_any_stage(tmp_path / "latest.pth"), UpsamplerStage)
    with pytest.raises(ValueError, match=r"latest\.pth.*holds a.* upsampler"):
        load_any_stage(tmp_path / "latest.pth", expect="decoder")


def test_what_is_missing_or_left_over_is_named() -> None:
    decoder = upstream(LAION)
    state = decoder.state_dict()
    less = {name: each for name, each in state.items() if name != "unets.0.mid_block2.block1.norm.bias"}
    with pytest.raises(ValueError, match=r"lacks unets\.0\.mid_block2\.block1\.norm\.bias"):
        load_dalle2_decoder(replace_state(source_of(decoder, LAION), less))
    more = {**state, "unets.0.upsample_combiner.fmap_convs.0.project.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"holds unets\.0\.upsample_combiner"):
        load_dalle2_decoder(replace_state(source_of(decoder, LAION), more))
    with pytest.raises(ValueError, match=r"was made by DALLE2-pytorch 0\.20\.0, whose network is not read"):
        load_dalle2_decoder(source_of(decoder, LAION, "0.20.0"))


def test_stages_are_saved_in_our_format(tmp_path: Path) -> None:
    source = source_of(upstream(LAION), LAION, "1.1.0")
    decoder, upsampler = load_dalle2_decoder(source), load_dalle2_upsampler(source)
    for stage in (decoder, upsampler):
        again = load_stage(save_stage(stage, tmp_path / f"{type(stage).__name__}.safetensors"))
        assert again.network.config == stage.network.config
        assert again.diffusion == stage.diffusion
        for name, tensor in stage.network.state_dict().items():
            assert torch.equal(again.network.state_dict()[name], tensor)
    assert again.recipe == upsampler.recipe


# --- sampling ---


def given(decoder: DecoderStage, lengths: tuple[int, ...]) -> tuple[Embedding, TextFeatures, Tensor, Tensor]:
    """An embedding and a caption, ours and as the package is given them."""
    generator = torch.Generator().manual_seed(3)
    z = torch.nn.functional.normalize(torch.randn(1, CLIP_DIM, generator=generator), dim=-1)
    tokens, mask = captions(*lengths)
    text = TextFeatures(tokens, mask, torch.zeros(1, CLIP_DIM), decoder.space)
    return Embedding(z, decoder.space), text, z, tokens


def test_ancestral_sampling_is_the_packages() -> None:
    """All timesteps, learned variance, the same noise: the generator of a seed draws what the seed draws."""
    theirs = upstream(LAION, timesteps=TIMESTEPS)
    decoder = load_dalle2_decoder(source_of(theirs, LAION, timesteps=TIMESTEPS))
    embedding, text, z, tokens = given(decoder, (5,))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = theirs.sample(image_embed=z, text_encodings=tokens, stop_at_unet_number=1)
    options = DecodeOptions(steps=TIMESTEPS, sampler="ddpm", guidance_scale=1)
    found = decode(decoder, embedding, text, seed=11, options=options)
    torch.testing.assert_close(found, expected.clamp(0, 1), atol=1e-4, rtol=0)
    assert found.std() > 0.1


def test_ddim_with_guidance_is_the_packages() -> None:
    """The package stops at the noise of t = 0; we take the step to the picture as well."""
    theirs = upstream(LAION, timesteps=TIMESTEPS, sample_timesteps=5, ddim_sampling_eta=0.0)
    if not hasattr(theirs, "predict_v"):
        pytest.skip("versions before 1.11 add the noise that belongs to x0 before it is clamped, not after")
    decoder = load_dalle2_decoder(source_of(theirs, LAION, timesteps=TIMESTEPS))
    embedding, text, z, tokens = given(decoder, (5,))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = theirs.sample(image_embed=z, text_encodings=tokens, stop_at_unet_number=1, cond_scale=2.5)
        torch.manual_seed(11)
        x = torch.randn(1, 3, SIZES[0], SIZES[0])
    steps = sorted({int(t) for t in torch.linspace(0, TIMESTEPS, 7)[:-1].tolist()})
    options = DecodeOptions(steps=len(steps), guidance_scale=2.5)
    schedule = schedule_of(decoder.diffusion).respace(steps)
    with torch.no_grad():
        denoiser = decoder_denoiser(decoder, schedule, Conditions(embedding, text), 1, options)
        denoiser = limited(denoiser, decoder, options)
        found = sample_ddim(denoiser, x, schedule)
        last = denoiser(expected * 2 - 1, 0).x0
    torch.testing.assert_close(found, last, atol=2e-4, rtol=0)
    assert found.std() > 0.1


@pytest.mark.parametrize("level", [0.2, 0.6])
def test_upsampling_is_the_packages(level: float) -> None:
    options = {"memory_efficient": True, "sparse_attn": True}
    settings = {"timesteps": TIMESTEPS, "lowres_noise_sample_level": level}
    theirs = upstream(options, **settings)
    upsampler = load_dalle2_upsampler(source_of(theirs, options, **settings))
    assert upsampler.recipe.noise_level == level
    low = torch.rand(1, 3, SIZES[0], SIZES[0], generator=torch.Generator().manual_seed(2))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = theirs.sample(image=low, image_embed=torch.zeros(1, CLIP_DIM), start_at_unet_number=2)
    made = UpsampleOptions(steps=TIMESTEPS, sampler="ddpm")
    found = upsample(upsampler, low, seed=11, options=made)
    torch.testing.assert_close(found, expected.clamp(0, 1), atol=1e-4, rtol=0)
    other = upsample(upsampler, low, seed=11, options=replace(made, noise_level=0.0))
    assert (other - found).abs().max() > 1e-2


def test_there_is_no_embedding_for_a_dropped_one() -> None:
    decoder = load_dalle2_decoder(source_of(upstream(LAION), LAION))
    with pytest.raises(ValueError, match="has learned tokens for a picture whose embedding was left out"):
        null_embedding(decoder)


def test_perturbed_attention_is_refused() -> None:
    decoder = load_dalle2_decoder(source_of(upstream(LAION), LAION))
    embedding, text, _, _ = given(decoder, (5,))
    options = DecodeOptions(steps=1, guidance="pag", guidance_scale=2.0)
    with pytest.raises(ValueError, match="'pag' changes an attention that decoders of DALLE2-pytorch"):
        decode(decoder, embedding, text, seed=0, options=options)
