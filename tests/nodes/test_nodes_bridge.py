"""The bridge to ComfyUI's own nodes, without ComfyUI: stand-ins for its objects."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.mapping.spaces import clip_space
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.canvas import to_network, to_pictures
from unclip.core.pipelines.conditions import Conditions
from unclip.core.stages import DecoderStage, PriorStage
from unclip.nodes.native_model import (
    CONDITION_KEY,
    _known,
    _require_area,
    _same,
    native_conditioning,
)
from unclip.nodes.native_network import NativeNetwork
from unclip.nodes.native_vae import NativeAutoencoder

from ..helpers import kandinsky_files as files
from ..helpers.bundle import tiny_bundle
from ..helpers.comfyui import Interrupted, comfyui_starter
from ..helpers.nodes import run
from ..helpers.unet_small import tiny_unet

MEAN, STD = torch.full((768,), 0.3), torch.full((768,), 0.4)
LENGTH = (768 * (0.3**2 + 0.4**2)) ** 0.5


def stage(space: EmbeddingSpace) -> PriorStage:
    return PriorStage(torch.nn.Identity(), space, None)


def some(space: EmbeddingSpace, rows: int = 1) -> Embedding:
    vectors = torch.randn(rows, space.dim, generator=torch.Generator().manual_seed(rows))
    return Embedding(space.in_convention(vectors), space)


# --- to CLIP vision outputs


def test_each_embedding_becomes_an_output_of_its_own():
    embedding = some(clip_space(768, mean=MEAN, std=STD), rows=3)
    (outputs,) = run("UnCLIPToClipVision", embedding=embedding, target="sd21-unclip-l")
    assert len(outputs) == 3
    for row, output in zip(embedding.vectors, outputs, strict=True):
        assert torch.equal(output.image_embeds, row[None]), "raw, neither standardised nor of length 1"
        attributes = {name: value for name, value in vars(output).items() if name != "image_embeds"}
        hidden = ("last_hidden_state", "penultimate_hidden_states", "mm_projected")
        assert attributes == dict.fromkeys(hidden)


def test_in_comfyui_the_outputs_are_of_its_class(monkeypatch):
    class Output:
        pass

    vision = ModuleType("comfy.clip_vision")
    vision.Output = Output
    models = ModuleType("comfy.model_management")
    models.intermediate_device = lambda: torch.device("cpu")
    utils = ModuleType("comfy.utils")
    utils.ProgressBar = None
    comfy = ModuleType("comfy")
    comfy.clip_vision, comfy.model_management, comfy.utils = vision, models, utils
    modules = {"folder_paths": ModuleType("folder_paths"), "comfy": comfy, "comfy.utils": utils}
    modules |= {"comfy.model_management": models, "comfy.clip_vision": vision}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    ((output,),) = run("UnCLIPToClipVision", embedding=some(clip_space(1280)))
    assert type(output) is Output and output.image_embeds.shape == (1, 1280)


def test_unit_vectors_get_the_length_that_the_statistics_tell():
    unit = some(clip_space(768, "unit"), rows=2)
    karlo = stage(clip_space(768, mean=MEAN, std=STD))
    (outputs,) = run("UnCLIPToClipVision", embedding=unit, target="sd21-unclip-l", stage=karlo)
    for row, output in zip(unit.vectors, outputs, strict=True):
        torch.testing.assert_close(output.image_embeds, row[None] * LENGTH)
    own = Embedding(unit.vectors, replace(unit.space, mean=karlo.space.mean, std=karlo.space.std))
    (outputs,) = run("UnCLIPToClipVision", embedding=own)
    assert outputs[0].image_embeds.norm().item() == pytest.approx(LENGTH, rel=1e-5)


def test_raw_vectors_need_no_statistics():
    raw = some(clip_space(768))
    ((output,),) = run("UnCLIPToClipVision", embedding=raw, stage=stage(clip_space(768, mean=MEAN, std=STD)))
    assert torch.equal(output.image_embeds, raw.vectors)


@pytest.mark.parametrize(("given", "has"), [(None, "it comes with"), ("unit", "the connected stage has")])
def test_unit_vectors_without_statistics_are_an_error(given, has):
    extra = {} if given is None else {"stage": stage(clip_space(768, given))}
    with pytest.raises(
        ValueError, match=rf"embedding: .*'openai/ViT-L-14'.* length 1 .*{has} no stat.*stage"
    ):
        run("UnCLIPToClipVision", embedding=some(clip_space(768, "unit")), **extra)


@pytest.mark.parametrize(
    ("dim", "target"), [(768, "sd21-unclip-l"), (1024, "sd21-unclip-h"), (1280, "sdxl-revision")]
)
def test_a_target_takes_its_own_space_and_no_other(dim, target):
    ((output,),) = run("UnCLIPToClipVision", embedding=some(clip_space(dim)), target=target)
    assert output.image_embeds.shape == (1, dim)
    strangers = [clip_space(other) for other in (768, 1024, 1280) if other != dim]
    for space in (*strangers, EmbeddingSpace("somebody/else", dim)):
        with pytest.raises(ValueError, match=rf"embedding: is in .*{space.id}.*{target} reads .*{dim}"):
            run("UnCLIPToClipVision", embedding=some(space), target=target)
    ((output,),) = run("UnCLIPToClipVision", embedding=some(EmbeddingSpace("somebody/else", dim)))
    assert output.image_embeds.shape == (1, dim), "any does not check"


def test_a_stage_of_another_space_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"stage: is of .*'laion/ViT-bigG-14'.*'openai/ViT-L-14'"):
        run("UnCLIPToClipVision", embedding=some(clip_space(768)), stage=stage(clip_space(1280)))


# --- from CLIP vision outputs


@pytest.mark.parametrize("dim", [768, 1024, 1280])
def test_the_width_tells_the_space(dim):
    vectors = some(clip_space(dim), rows=2).vectors
    (embedding,) = run(
        "UnCLIPFromClipVision", clip_vision_output=SimpleNamespace(image_embeds=vectors.half())
    )
    assert embedding.space == clip_space(dim) and embedding.vectors.dtype == torch.float32
    torch.testing.assert_close(embedding.vectors, vectors, atol=2e-3, rtol=1e-3)


def test_a_stage_tells_the_space_and_its_convention():
    vectors = some(clip_space(768)).vectors
    output = SimpleNamespace(image_embeds=vectors)
    karlo, laion = stage(clip_space(768, mean=MEAN, std=STD)), stage(clip_space(768, "unit"))
    (raw,) = run("UnCLIPFromClipVision", clip_vision_output=output, stage=karlo)
    assert raw.space is karlo.space and torch.equal(raw.vectors, vectors)
    (unit,) = run("UnCLIPFromClipVision", clip_vision_output=output, stage=laion)
    torch.testing.assert_close(unit.vectors, vectors / vectors.norm())


def test_there_and_back():
    embedding = some(clip_space(768, mean=MEAN, std=STD), rows=2)
    (outputs,) = run("UnCLIPToClipVision", embedding=embedding)
    back = [
        run("UnCLIPFromClipVision", clip_vision_output=each, stage=stage(embedding.space)) for each in outputs
    ]
    assert torch.equal(torch.cat([each.vectors for (each,) in back]), embedding.vectors)
    assert all(each.space == embedding.space for (each,) in back)


def test_a_width_that_does_not_fit_is_an_error_that_names_both():
    output = SimpleNamespace(image_embeds=torch.zeros(1, 1280))
    with pytest.raises(ValueError, match=r"have 1280 dimensions, .*'openai/ViT-L-14' .* have 768"):
        run("UnCLIPFromClipVision", clip_vision_output=output, stage=stage(clip_space(768)))
    output = SimpleNamespace(image_embeds=torch.zeros(1, 512))
    with pytest.raises(ValueError, match=r"of 512 dimensions do not tell .* 768 \(openai/ViT-L-14\).*stage"):
        run("UnCLIPFromClipVision", clip_vision_output=output)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (SimpleNamespace(), "none"),
        (SimpleNamespace(image_embeds=torch.zeros(1, 2, 768)), r"image embeddings of shape \[1, 2, 768\]"),
        (SimpleNamespace(image_embeds=torch.zeros(0, 768)), r"image embeddings of shape \[0, 768\]"),
    ],
)
def test_an_output_without_embeddings_is_an_error(value, found):
    with pytest.raises(ValueError, match=rf"clip_vision_output: found {found}, expected"):
        run("UnCLIPFromClipVision", clip_vision_output=value)


# --- the decoder as a model


def test_the_native_model_needs_comfyui():
    with pytest.raises(ValueError, match=r"needs ComfyUI, .* Use unCLIP Decode"):
        run("UnCLIPDecoderAsModel", decoder=tiny_bundle().decoder)


@pytest.fixture(scope="module")
def decoder() -> DecoderStage:
    return tiny_bundle().decoder


def test_conditionings_carry_the_condition_and_the_null_condition(decoder):
    embedding = some(decoder.space, rows=2)
    tokens = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    text = TextFeatures(tokens, torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 32), decoder.space)
    positive, negative = native_conditioning(decoder, Conditions(embedding, text))
    ((shown, extra),) = positive
    assert torch.equal(shown[:, 0], embedding.vectors)
    condition = extra[CONDITION_KEY].condition
    assert condition.batch == 2 and condition.context[0][0].shape[2] == 2 + 4, "two CLIP tokens, four of text"
    ((shown, extra),) = negative
    assert shown.shape == (2, 2, decoder.space.dim) and not shown.any()
    assert not torch.equal(extra[CONDITION_KEY].condition.embedding, condition.embedding)
    with pytest.raises(ValueError, match="batch sizes do not match: embedding 2, text 3"):
        native_conditioning(decoder, Conditions(embedding, text.expand(3)))


def test_another_node_s_change_is_seen_where_captions_alone_differ(decoder):
    embedding = some(decoder.space)

    def conditioned(value: float) -> torch.Tensor:
        pooled = torch.full((1, 32), value)
        text = TextFeatures(
            torch.full((1, 4, 32), value), torch.ones(1, 4, dtype=torch.bool), pooled, decoder.space
        )
        return native_conditioning(decoder, Conditions(embedding, text))[0][0][0]

    red, green = conditioned(0.1), conditioned(0.2)
    assert _same(red.clone(), red) and not _same(green, red)
    assert not _same(red * 0.5 + green * 0.5, red), "Conditioning (Average)"
    # A decoder that paints captions alone has embeddings of zeros.
    assert not _same(torch.zeros_like(red)[:, 1:], red[:, 1:]), "Conditioning (Zero Out)"


def test_conditionings_take_what_the_decoder_takes(decoder):
    with pytest.raises(ValueError, match="this decoder paints image embeddings, and none is given"):
        native_conditioning(decoder, Conditions())
    with pytest.raises(ValueError, match=r"'openai/ViT-L-14' .* but 'unclip/tiny'"):
        native_conditioning(decoder, Conditions(some(clip_space(768))))


def test_the_network_leaves_out_the_learned_variance_and_knows_nothing_of_the_picture():
    config = tiny_unet(
        channel_mult=(1,),
        out_channels=6,
        concat_channels=4,
        positions=True,
        conditioning=ConditioningConfig(clip_dim=8),
    )
    network = UNet(config)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(network.conv_out.weight, generator=generator)
    space = EmbeddingSpace("a", 8)
    positive, _ = native_conditioning(DecoderStage(network, space, DiffusionSpec()), Conditions(some(space)))
    condition = positive[0][1][CONDITION_KEY].condition
    x, t = torch.randn(1, 3, 16, 16, generator=generator), torch.tensor([7.0])
    native = NativeNetwork(network)
    with torch.no_grad():
        whole = network(x, t, condition, concat=torch.zeros(1, 4, 16, 16))
        out = native(x, t, condition=condition, context=None, control=None, transformer_options={})
    assert native.dtype == torch.float32
    assert out.std() > 0.01
    torch.testing.assert_close(out, whole[:, :3])
    with pytest.raises(ValueError, match=r"latent_image: found 64×32 pixels, .* paints 16×16"):
        native(torch.zeros(1, 3, 32, 64), t, condition=condition)


def test_the_native_network_tells_what_nodes_ask_for_and_lets_wrappers_in():
    asked = []

    def around(forward, network, options):
        asked.append((network.in_channels, network.out_channels, options))
        return lambda *given, **conditions: 2 * forward(*given, **conditions)

    network = tiny_bundle().decoder.network
    native, x, t = NativeNetwork(network, around=around), torch.ones(1, 3, 16, 16), torch.tensor([7.0])
    condition = network.condition(batch=1)
    with torch.no_grad():
        plain = NativeNetwork(network)(x, t, condition=condition)
        assert torch.equal(native(x, t, condition=condition, transformer_options={"uuids": [1]}), 2 * plain)
    assert asked == [(3, 3, {"uuids": [1]})]
    assert not hasattr(native, "q_token_length")
    with pytest.raises(AttributeError, match=r"model: a node asks it for 'q_token_length', .* Take it out"):
        _ = native.q_token_length
    with pytest.raises(ValueError, match=r"model: what reaches into a network \(rope_options\)"):
        native(x, t, condition=condition, transformer_options={"rope_options": {"scale_x": 2.0}})


def test_vision_outputs_that_are_not_finite_are_named():
    output = SimpleNamespace(image_embeds=torch.full((1, 768), math.nan))
    with pytest.raises(ValueError, match="clip_vision_output: its embeddings hold NaN"):
        run("UnCLIPFromClipVision", clip_vision_output=output)


# --- decoders that paint latents


@pytest.fixture(scope="module")
def kandinsky22(tmp_path_factory):
    root = tmp_path_factory.mktemp("kandinsky22")
    files.tiny_22().save_pretrained(root)
    return load_any_stage(root / "unet", expect="decoder")


def test_a_kandinsky22_decoder_alone_needs_a_null_embedding(kandinsky22):
    embedding, negative = some(kandinsky22.space), some(kandinsky22.space, rows=2)
    with pytest.raises(ValueError, match=r"negative_embedding: .* all-zero picture, .* one bundle\.$"):
        native_conditioning(kandinsky22, Conditions(embedding))
    negative = Embedding(negative.vectors[1:], negative.space)
    positive, negatives = native_conditioning(kandinsky22, Conditions(embedding, negative_embedding=negative))
    assert torch.equal(positive[0][0][:, 0], embedding.vectors)
    assert torch.equal(negatives[0][0][:, 0], negative.vectors)


def test_kandinsky22_refuses_a_latent_between_its_sizes(kandinsky22):
    given = Conditions(some(kandinsky22.space), negative_embedding=some(kandinsky22.space))
    ((_, extra),) = native_conditioning(kandinsky22, given)[0]
    native, t = NativeNetwork(kandinsky22.network, kandinsky22.scale), torch.zeros(1)
    condition = extra[CONDITION_KEY].condition
    with torch.no_grad():
        assert native(torch.zeros(1, 4, 6, 8), t, condition=condition).shape == (1, 4, 6, 8)
        with pytest.raises(ValueError, match=r"picture of 64×40 pixels, but this decoder paints .* of 16"):
            native(torch.zeros(1, 4, 5, 8), t, condition=condition)


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    return comfyui_starter(tmp_path / "models", monkeypatch)


def test_the_native_vae_needs_comfyui_and_its_network_is_movq(kandinsky22):
    with pytest.raises(ValueError, match=r"a VAE .* needs ComfyUI, .* Use unCLIP Decode"):
        run("UnCLIPAutoencoderAsVAE", decoder=kandinsky22)
    native = NativeAutoencoder(kandinsky22.autoencoder.network)
    latent = torch.randn(2, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    pictures = native.decode(latent)
    torch.testing.assert_close((pictures + 1).div(2).clamp(0, 1), to_pictures(kandinsky22, latent))
    torch.testing.assert_close(native.decode_tiled(latent, 8), pictures, atol=2e-4, rtol=1e-4)
    encoded = native.encode(pictures.clamp(-1, 1))
    torch.testing.assert_close(encoded, to_network(kandinsky22, (pictures.clamp(-1, 1) + 1) / 2))
    torch.testing.assert_close(native.encode_tiled(pictures.clamp(-1, 1), 8), encoded, atol=1e-3, rtol=1e-3)


def test_tiles_of_the_native_vae_count_through_the_batch_and_stop(kandinsky22, comfyui):
    fake = comfyui()
    native = NativeAutoencoder(kandinsky22.autoencoder.network)
    latent = torch.zeros(2, 4, 4, 4)
    native.decode_tiled(latent, 2)
    counts = [call[1:3] for call in fake.calls if call[0] == "update"][1:]
    total = len(counts)
    assert counts == [(done, total) for done in range(1, total + 1)] and total % 8 == 0  # tiles of both
    native.encode_tiled(torch.zeros(2, 3, 32, 32), 2)
    fake.interrupted = True
    with pytest.raises(Interrupted):
        native.decode_tiled(latent, 2)
    with pytest.raises(Interrupted):
        native.encode_tiled(torch.zeros(2, 3, 32, 32), 2)


def test_what_an_inpainting_network_sees_comes_from_either_way_of_comfyui():
    latent, mask = torch.ones(1, 4, 2, 4), torch.zeros(1, 1, 2, 4)
    mask[..., 3] = 0.25  # of the edge, bilinear
    seen = _known({"latent_image": latent, "denoise_mask": mask.expand(1, 4, 2, 4)})
    assert seen.shape == (1, 5, 2, 4) and seen[..., :3].all() and not seen[..., 3].any()
    large = torch.zeros(1, 16, 32)
    large[..., 31] = 1  # one pixel makes its place repainted
    other = {"concat_latent_image": latent * 2, "concat_mask": large}
    seen_too = _known({"latent_image": latent, "denoise_mask": mask, **other})
    assert torch.equal(seen_too[:, :4], 2 * seen[:, :4]) and torch.equal(seen_too[:, 4], seen[:, 4])
    assert _known({"latent_image": latent, "denoise_mask": None}) is None


@pytest.mark.parametrize(
    ("fixed", "area", "found", "fitting"),
    [
        (True, (8, 12, 4, 0), "12×8", "paints whole pictures of 16×16 alone"),
        (False, (8, 12, 10, 0), "12×6", "paints multiples of 4"),  # cut off where the latent ends
        (True, (16, 16, 0, 0), None, None),
        (False, (8, 12, 4, 4), None, None),
        (True, None, None, None),
    ],
)
def test_an_area_in_which_a_decoder_cannot_paint_is_refused_as_one(fixed, area, found, fitting):
    config = SimpleNamespace(fixed_size=fixed, image_size=16, multiple_of=4)
    decoder = SimpleNamespace(network=SimpleNamespace(config=config), scale=1)
    if found is None:
        _require_area(decoder, area, torch.zeros(1, 3, 16, 16))
        return
    with pytest.raises(ValueError, match=r"^conditioning: .*Conditioning \(Set Mask\)") as told:
        _require_area(decoder, area, torch.zeros(1, 3, 16, 16))
    assert f"an area of {found} pixels" in str(told.value) and fitting in str(told.value)
