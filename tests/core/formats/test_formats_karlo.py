"""Karlo's and Kandinsky's checkpoints against diffusers' pipelines: the same weights, captions and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import pytest
import torch
from diffusers import PriorTransformer
from torch import Tensor
from unclip.core.diffusion.noise import image_generators
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.detect import identify
from unclip.core.formats.files.weight_source import WeightSource, source_of_tensors
from unclip.core.formats.layouts.karlo import pair_config
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.networks.diffusion_prior import DiffusionPriorConfig
from unclip.core.networks.unet_pair import UNetPair
from unclip.core.pipelines import decode as decoding
from unclip.core.pipelines import prior as sampling
from unclip.core.pipelines import upsample as upsampling
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import Bundle, PriorStage

from ...helpers import karlo as karlo
from ...helpers import karlo_original as originals
from ...helpers.karlo_original import State
from ...helpers.published import conditional_diffusers_unet, plain_diffusers_unet
from ...helpers.unet import KARLO_DECODER, KARLO_UPSAMPLER, difference, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-3
PROMPTS = ["a red fox", "two blue cats in snow"]
T = torch.tensor([0, 7, 500, 981])
FOLDERS = {"prior": "prior", "decoder": "decoder", "upsampler": "super_res_first"}


@pytest.fixture(scope="module")
def pipeline():
    return karlo.with_exact_tables(karlo.tiny_pipeline())


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> Path:
    return karlo.save_as_published(pipeline, tmp_path_factory.mktemp("diffusers") / "karlo")


@pytest.fixture(scope="module")
def bundle(folder) -> Bundle:
    return load_any_bundle(folder)


@pytest.fixture(scope="module")
def original(pipeline, tmp_path_factory) -> dict[str, Path]:
    return originals.write_original(tmp_path_factory.mktemp("original"), pipeline)


@pytest.fixture
def generators(monkeypatch) -> list[torch.Generator]:
    """One generator an image for all stages, as diffusers' pipelines go on drawing from theirs."""
    shared = image_generators(7, len(PROMPTS))
    for module in (sampling, decoding, upsampling):
        monkeypatch.setattr(module, "image_generators", lambda seed, batch: shared)
    return shared


def as_pictures(images) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# --- the networks ---


def test_the_prior_predicts_what_diffusers_predicts(pipeline, bundle, original) -> None:
    x, pooled, tokens = random_tensor(1, 4, 32), random_tensor(2, 4, 32), random_tensor(3, 4, 12, 32)
    mask = torch.arange(12) < torch.tensor([2, 12, 5, 7])[:, None]
    expected = torch.cat(
        [
            pipeline.prior(x[i : i + 1], T[i], pooled[i : i + 1], tokens[i : i + 1], mask[i : i + 1])[0]
            for i in range(4)
        ]
    ).detach()
    for prior in (bundle.prior, load_any_stage(original["prior"], expect="prior")):
        assert difference(prior.network(x, T, tokens, pooled, mask), expected) < 1e-5
        assert difference(prior.network(x, T + 1, tokens, pooled, mask), expected) > OUTSIDE
        mean, std = (getattr(pipeline.prior, name)[0].tolist() for name in ("clip_mean", "clip_std"))
        assert (prior.space.mean, prior.space.std) == (tuple(mean), tuple(std))


@pytest.mark.parametrize("t", [0, 166, 999])
def test_both_networks_of_the_upsampler_have_their_steps(pipeline, bundle, original, t: int) -> None:
    x, low = random_tensor(1, 2, 3, 32, 32), random_tensor(2, 2, 3, 32, 32)
    right, wrong = pipeline.super_res_last, pipeline.super_res_first
    if t > 0:
        right, wrong = wrong, right
    expected = right(torch.cat([x, low], dim=1), t).sample.detach()
    for upsampler in (bundle.upsamplers[0], load_any_stage(original["upsampler"])):
        found = upsampler.network(x, torch.full((2,), t), concat=low)
        assert difference(found, expected) < 1e-5
        assert difference(found, wrong(torch.cat([x, low], dim=1), t).sample) > OUTSIDE


def test_steps_of_the_two_networks_do_not_mix(bundle) -> None:
    x = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"found the timesteps \[0, 5\], expected 0 in all rows or in none"):
        bundle.upsamplers[0].network(x, torch.tensor([0, 5]), concat=x)


# --- both layouts ---


@pytest.mark.parametrize("stage", FOLDERS)
def test_both_layouts_give_the_same_network(folder, original, stage: str) -> None:
    found = load_any_stage(original[stage], expect=stage)
    expected = load_any_stage(folder / FOLDERS[stage], expect=stage)
    state, reference = found.network.state_dict(), expected.network.state_dict()
    assert list(state) == list(reference)
    assert all(torch.equal(state[name], reference[name]) for name in reference)
    assert getattr(found, "space", None) == getattr(expected, "space", None)
    assert found.source == str(original[stage])


def test_what_karlos_configs_say_is_known(original) -> None:
    prior, decoder, upsampler = (load_any_stage(original[stage]) for stage in FOLDERS)
    assert (prior.diffusion.prediction, prior.diffusion.clip_x0) == ("x0", 10.0)
    assert prior.network.config.heads == prior.network.config.width // 64
    assert (decoder.diffusion.prediction, decoder.diffusion.variance) == ("eps", "learned_range")
    assert decoder.network.config.image_size == 64
    assert decoder.network.config.attention == (32,)
    assert decoder.network.config.conditioning.null_text == "empty_caption"
    assert decoder.network.config.conditioning.clip_tokens == 4
    assert isinstance(upsampler.network, UNetPair)
    assert (upsampler.low_size, upsampler.network.config.image_size) == (64, 256)
    assert upsampler.timesteps == (0, 166, 333, 500, 666, 832, 999)
    assert upsampler.diffusion.variance == "fixed_small"


def test_kandinskys_prior_is_karlos_without_a_wrapper(pipeline, original, tmp_path) -> None:
    state = {name: value.half() for name, value in originals.original_prior(pipeline.prior).items()}
    state["cf_mask"] = torch.ones(1, 12, dtype=torch.bool)  # a constant that its own loader passes over
    torch.save(state, tmp_path / "prior_fp16.ckpt")
    with pytest.raises(ValueError, match=r"prior_fp16.ckpt: needs ViT-L-14_stats.th.*Put it into"):
        load_any_stage(tmp_path / "prior_fp16.ckpt")
    statistics = original["prior"].with_name("ViT-L-14_stats.th")
    (tmp_path / "ViT-L-14_stats.th").write_bytes(statistics.read_bytes())
    prior = load_any_stage(tmp_path / "prior_fp16.ckpt", expect="prior")
    assert {value.dtype for value in prior.network.parameters()} == {torch.float16}
    assert prior.diffusion.clip_x0 == 10.0
    expected = load_any_stage(original["prior"], dtype=torch.float16)
    assert torch.equal(prior.network.out.weight, expected.network.out.weight)


def test_the_folders_of_karlos_download_script_are_searched(original, tmp_path) -> None:
    prior, statistics = tmp_path / ("8" * 32) / "prior.ckpt", tmp_path / ("0b" * 16) / "ViT-L-14_stats.th"
    for target, source in (
        (prior, original["prior"]),
        (statistics, original["prior"].with_name(statistics.name)),
    ):
        target.parent.mkdir()
        target.write_bytes(source.read_bytes())
    assert load_any_stage(prior).space == load_any_stage(original["prior"]).space


def test_statistics_of_another_model_are_named(original, tmp_path) -> None:
    prior = tmp_path / "prior.ckpt"
    prior.write_bytes(original["prior"].read_bytes())
    torch.save((torch.zeros(8), torch.ones(8)), tmp_path / "ViT-L-14_stats.th")
    with pytest.raises(ValueError, match=r"ViT-L-14_stats.th: found tensors of shape \[8\], \[8\], expected"):
        load_any_stage(prior)


# --- the real sizes, without their memory ---


def at_real_size(build: Callable[[], State], folder: Path) -> WeightSource:
    with torch.device("meta"):
        return source_of_tensors(folder / "x.safetensors", build())


def parameters(source) -> int:
    return sum(map(prod, source.shapes.values()))


def test_shapes_tell_the_published_networks_of_the_original(tmp_path) -> None:
    decoder = at_real_size(
        lambda: originals.original_decoder(
            conditional_diffusers_unet(KARLO_DECODER),
            karlo.UnCLIPTextProjModel(time_embed_dim=1280, cross_attention_dim=1536),
        ),
        tmp_path,
    )
    assert identify(decoder).config(decoder) == KARLO_DECODER
    assert identify(decoder).space(decoder) == "openai/ViT-L-14"
    assert round(parameters(decoder) / 1e6) == 893
    unet = partial(plain_diffusers_unet, KARLO_UPSAMPLER)
    upsampler = at_real_size(lambda: originals.original_upsampler(unet(), unet()), tmp_path)
    assert round(parameters(upsampler) / 2e6) == 692
    assert identify(upsampler).config(upsampler) == pair_config(KARLO_UPSAMPLER)
    prior = at_real_size(lambda: originals.original_prior(PriorTransformer()), tmp_path)
    assert identify(prior).config(prior) == DiffusionPriorConfig(dim=768, text_dim=768)
    assert round(parameters(prior) / 1e7) == 102


def test_shapes_tell_the_published_networks_of_diffusers(tmp_path) -> None:
    prior = at_real_size(lambda: PriorTransformer(embedding_dim=1280).state_dict(), tmp_path)
    assert identify(prior).config(prior) == DiffusionPriorConfig(dim=1280, text_dim=1280)
    assert identify(prior).space(prior) == "laion/ViT-bigG-14"
    upsampler = at_real_size(lambda: plain_diffusers_unet(KARLO_UPSAMPLER).state_dict(), tmp_path)
    assert identify(upsampler).config(upsampler) == pair_config(KARLO_UPSAMPLER)


# --- whole runs ---


def run(bundle: Bundle, *, clamp: float | None = None, guidance: float = 4.0) -> dict[str, Tensor]:
    """Captions to pictures, as ``UnCLIPPipeline`` does it."""
    text = encode_text(bundle.clip, PROMPTS)
    prior = bundle.prior
    if clamp is not None:
        prior = replace(prior, diffusion=replace(prior.diffusion, clip_x0=clamp))
    options = PriorOptions(steps=4, guidance_scale=guidance, candidates=1)
    embedding = sample_diffusion_prior(prior, text, seed=7, options=options)
    small = decode(
        bundle.decoder,
        embedding,
        text,
        seed=7,
        options=DecodeOptions(steps=4, guidance_scale=3.0, sampler="ddpm"),
    )
    large = upsample(bundle.upsamplers[0], small, seed=7, options=UpsampleOptions(steps=7, sampler="ddpm"))
    return {"embedding": embedding.vectors, "small": small, "large": large}


@pytest.fixture(scope="module")
def expected(pipeline) -> Tensor:
    return as_pictures(
        pipeline(
            PROMPTS,
            prior_num_inference_steps=4,
            decoder_num_inference_steps=4,
            prior_guidance_scale=4.0,
            decoder_guidance_scale=3.0,
            generator=image_generators(7, len(PROMPTS)),
            output_type="np",
        ).images
    )


def test_captions_become_the_pictures_of_unclip_pipeline(bundle, expected, generators) -> None:
    found = run(bundle)["large"]
    inside = ((expected > 0) & (expected < 1)).float().mean()
    assert expected.shape == found.shape == (2, 3, 32, 32)
    assert expected.std() > 0.2
    assert inside > 0.3  # not all clamped
    assert difference(found, expected) < WITHIN


@pytest.mark.parametrize("change", [{"clamp": 0.5}, {"guidance": 3.9}])
def test_a_run_that_differs_a_little_is_told_apart(bundle, expected, generators, change: dict) -> None:
    assert difference(run(bundle, **change)["large"], expected) > OUTSIDE


def test_the_last_step_is_made_by_the_second_network(bundle, expected, generators) -> None:
    (upsampler,) = bundle.upsamplers
    one = replace(upsampler, network=upsampler.network.first)
    assert difference(run(replace(bundle, upsamplers=(one,)))["large"], expected) > OUTSIDE


def test_pictures_become_those_of_the_variation_pipeline(tmp_path, generators) -> None:
    pipeline = karlo.with_exact_tables(karlo.tiny_variation_pipeline())
    bundle = load_any_bundle(karlo.save_as_published(pipeline, tmp_path / "variations"))
    assert bundle.prior is None
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    embedding = encode_images(bundle.clip, pictures)
    normalised = pipeline.feature_extractor(
        images=list(pictures), do_rescale=False, do_resize=False, do_center_crop=False, return_tensors="pt"
    ).pixel_values
    theirs = pipeline.image_encoder(normalised).image_embeds
    assert difference(embedding.vectors, theirs) < WITHIN
    expected = as_pictures(
        pipeline(
            image_embeddings=theirs,
            decoder_num_inference_steps=4,
            decoder_guidance_scale=3.0,
            generator=image_generators(7, 2),
            output_type="np",
        ).images
    )
    text = encode_text(bundle.clip, [""])
    options = DecodeOptions(steps=4, guidance_scale=3.0, sampler="ddpm")
    small = decode(bundle.decoder, Embedding(theirs, bundle.decoder.space), text, seed=7, options=options)
    found = upsample(bundle.upsamplers[0], small, seed=7, options=UpsampleOptions(sampler="ddpm"))
    assert difference(found, expected) < WITHIN
    assert difference(found, expected.flip(0)) > OUTSIDE


def test_captions_become_the_embeddings_of_kandinskys_prior(tmp_path, generators) -> None:
    pipeline = karlo.with_exact_tables(karlo.tiny_kandinsky_prior())
    bundle = load_any_bundle(karlo.save_as_published(pipeline, tmp_path / "prior"))
    assert (bundle.decoder, bundle.upsamplers) == (None, ())
    assert bundle.prior.diffusion.clip_x0 == 10.0
    assert bundle.clip.space == bundle.prior.space
    expected = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=4.0, generator=image_generators(7, 2)
    ).image_embeds
    text = encode_text(bundle.clip, PROMPTS)

    def found(prior: PriorStage) -> Tensor:
        for index, generator in enumerate(generators):
            generator.manual_seed(7 + index)
        options = PriorOptions(steps=5, guidance_scale=4.0, candidates=1)
        return sample_diffusion_prior(prior, text, seed=7, options=options).vectors

    assert difference(found(bundle.prior), expected) < WITHIN
    clamped = replace(bundle.prior, diffusion=replace(bundle.prior.diffusion, clip_x0=0.5))
    assert difference(found(clamped), expected) > OUTSIDE


# --- kept in our own format ---


def test_an_upsampler_of_two_networks_comes_back(bundle, tmp_path) -> None:
    stage = bundle.upsamplers[0]
    path = save_stage(stage, tmp_path / "upsampler.safetensors")
    found = load_stage(path, expect="upsampler")
    assert found.network.config == stage.network.config
    assert isinstance(found.network, UNetPair)
    assert (found.timesteps, found.low_size) == (stage.timesteps, stage.low_size)
    state, reference = found.network.state_dict(), stage.network.state_dict()
    assert all(torch.equal(state[name], reference[name]) for name in reference)
