"""Our U-Net against diffusers' on the same random weights: Karlo's, GLIDE's, one of convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet import UNet, UNetCondition
from unclip.core.networks.unet_config import UNetConfig

from ...helpers.karlo import UnCLIPTextProjModel
from ...helpers.published import conditional_diffusers_unet, plain_diffusers_unet
from ...helpers.unet import (
    GLIDE_BASE,
    GLIDE_INPAINT,
    GLIDE_UPSAMPLER,
    GLIDE_UPSAMPLER_INPAINT,
    KARLO_DECODER,
    KARLO_UPSAMPLER,
    difference,
    random_tensor,
    randomised,
)
from ...helpers.unet_keys import State, conditioner_state_from_diffusers, unet_state_from_diffusers
from ...helpers.unet_small import tiny_unet

WITHIN, OUTSIDE = 1e-5, 1e-3
CLIP_DIM, CONTEXT_DIM, TEXT_LENGTH, TOKENS = 24, 40, 9, 4
T = torch.tensor([0, 7, 500, 981])
LENGTHS = torch.tensor([2, 9, 4, 6])  # of the captions

# Karlo's decoder (kakaobrain/karlo-v1-alpha, `decoder/config.json`) in small.
DECODER = tiny_unet(
    channel_mult=(1, 2, 3),
    blocks=2,
    out_channels=6,
    attention=(8, 4),
    conditioning=ConditioningConfig(
        clip_dim=CLIP_DIM,
        clip_tokens=TOKENS,
        text_dim=CLIP_DIM,
        text_pooled_dim=CLIP_DIM,
        context_dim=CONTEXT_DIM,
        null_text="empty_caption",
    ),
)
# Karlo's upsampler (`super_res_first/config.json`) in small.
UPSAMPLER = tiny_unet(blocks=2, concat_channels=3, film=False)
# GLIDE's inpainting upsampler: more input channels, and captions as its transformer gives them.
GLIDE = tiny_unet(
    channel_mult=(1, 1, 2),
    out_channels=6,
    concat_channels=7,
    attention=(4,),
    head_dim=32,
    conditioning=ConditioningConfig(
        text_dim=CONTEXT_DIM, text_pooled_dim=CONTEXT_DIM, context_dim=CONTEXT_DIM, project_text=False
    ),
)
# No context, resampling by convolutions, as in mini's networks. (diffusers' has no such network with FiLM.)
CONVOLUTIONS = tiny_unet(attention=(8,), film=False, resample_in_block=False)


Change = Callable[[State], None]


def ours(config: UNetConfig, theirs: nn.Module, projection: nn.Module | None, change: Change | None) -> UNet:
    state = unet_state_from_diffusers(theirs.state_dict(), config)
    if projection is not None:
        parts = conditioner_state_from_diffusers(projection.state_dict(), TOKENS)
        state |= {f"conditioner.{name}": value for name, value in parts.items()}
    if change is not None:
        change(state)
    network = UNet(config)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


# --- Karlo's decoder, from CLIP embeddings and captions on ---


class DecoderCase:
    """Both networks' outputs for four captions and embeddings, and the null branch behind them."""

    def __init__(self) -> None:
        self.theirs = randomised(conditional_diffusers_unet(DECODER), 0)
        projection = UnCLIPTextProjModel(
            clip_extra_context_tokens=TOKENS,
            clip_embeddings_dim=CLIP_DIM,
            time_embed_dim=DECODER.embedding_dim,
            cross_attention_dim=CONTEXT_DIM,
        )
        self.projection = randomised(projection, 1)
        self.x = random_tensor(2, 4, 3, 16, 16)
        self.z_i = random_tensor(3, 4, CLIP_DIM)
        self.tokens = random_tensor(4, 4, TEXT_LENGTH, CLIP_DIM)
        self.pooled = random_tensor(5, 4, CLIP_DIM)
        self.mask = torch.arange(TEXT_LENGTH) < LENGTHS[:, None]
        self.empty_tokens = random_tensor(6, 1, TEXT_LENGTH, CLIP_DIM)
        self.empty_pooled = random_tensor(7, 1, CLIP_DIM)
        self.empty_mask = torch.arange(TEXT_LENGTH)[None] < 2
        self.expected = self._expected()

    def _expected(self) -> Tensor:
        """As in UnCLIPPipeline: [8, 6, 16, 16], the null branch first."""
        mask = torch.cat([self.empty_mask.expand(4, -1), self.mask])
        context, additive = self.projection(
            image_embeddings=self.z_i,
            prompt_embeds=torch.cat([self.empty_pooled.expand(4, -1), self.pooled]),
            text_encoder_hidden_states=torch.cat([self.empty_tokens.expand(4, -1, -1), self.tokens]),
            do_classifier_free_guidance=True,
        )
        return self.theirs(
            torch.cat([self.x, self.x]),
            torch.cat([T, T]),
            encoder_hidden_states=context,
            class_labels=additive,
            attention_mask=nn.functional.pad(mask, (TOKENS, 0), value=True),
        ).sample

    def found(
        self, config: UNetConfig = DECODER, change: Change | None = None, masked: bool = True
    ) -> Tensor:
        network = ours(config, self.theirs, self.projection, change)
        null = network.condition(
            text_tokens=self.empty_tokens[:, :2].expand(4, -1, -1),  # padding left out
            text_pooled=self.empty_pooled.expand(4, -1),
        )
        conditional = network.condition(
            clip_embedding=self.z_i,
            text_tokens=self.tokens,
            text_mask=self.mask if masked else None,
            text_pooled=self.pooled,
        )
        return network(torch.cat([self.x, self.x]), torch.cat([T, T]), UNetCondition.cat(null, conditional))


@pytest.fixture(scope="module")
def decoder() -> DecoderCase:
    return DecoderCase()


def test_karlos_decoder_gives_what_diffusers_gives(decoder: DecoderCase) -> None:
    assert 0.3 < decoder.expected.std() < 10
    assert difference(decoder.found(), decoder.expected) < WITHIN


def test_the_projected_conditions_are_those_of_diffusers(decoder: DecoderCase) -> None:
    network = ours(DECODER, decoder.theirs, decoder.projection, None)
    context, additive = decoder.projection(
        image_embeddings=decoder.z_i,
        prompt_embeds=decoder.pooled,
        text_encoder_hidden_states=decoder.tokens,
        do_classifier_free_guidance=False,
    )
    found = network.conditioner(4, decoder.z_i, None, decoder.tokens, decoder.mask, decoder.pooled)
    assert difference(found.embedding, additive) < WITHIN
    assert difference(found.tokens, context) < WITHIN
    assert found.mask[:, :TOKENS].all()
    assert torch.equal(found.mask[:, TOKENS:], decoder.mask)


def swapped(name: str, parts: int, order: tuple[int, ...]) -> Change:
    """Exchanges equal parts of every weight and bias whose name contains ``name``."""

    def change(state: State) -> None:
        for key in [key for key in state if name in key]:
            chunks = state[key].chunk(parts)
            state[key] = torch.cat([chunks[index] for index in order])

    return change


def no_null_embedding(state: State) -> None:
    state["conditioner.null_clip"] = torch.zeros(CLIP_DIM)


def token_order(state: State) -> None:
    for name in ("weight", "bias"):
        value = state[f"conditioner.clip_context.{name}"]
        state[f"conditioner.clip_context.{name}"] = (
            value.unflatten(0, (TOKENS, CONTEXT_DIM)).transpose(0, 1).flatten(0, 1)
        )


WRONG: dict[str, dict] = {
    "padding is attended": {"masked": False},
    "heads of another width": {"config": replace(DECODER, head_dim=32)},
    "keys and values of the context exchanged": {"change": swapped("context_kv", 2, (1, 0))},
    "keys and values of the picture exchanged": {"change": swapped("qkv", 3, (0, 2, 1))},
    "gain and shift exchanged": {"change": swapped("residual.embedding", 2, (1, 0))},
    "token-major CLIP tokens": {"change": token_order},
    "zeros for the null embedding": {"change": no_null_embedding},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_decoder_that_is_slightly_wrong_is_told_apart(decoder: DecoderCase, wrong: str) -> None:
    assert difference(decoder.found(**WRONG[wrong]), decoder.expected) > OUTSIDE


# --- the others ---


def test_karlos_upsampler_gives_what_diffusers_gives() -> None:
    theirs = randomised(plain_diffusers_unet(UPSAMPLER), 0)
    x, low = random_tensor(1, 4, 3, 16, 24), random_tensor(2, 4, 3, 16, 24)
    expected = theirs(torch.cat([x, low], dim=1), T).sample
    network = ours(UPSAMPLER, theirs, None, None)
    assert 0.3 < expected.std() < 10
    assert difference(network(x, T, concat=low), expected) < WITHIN
    assert difference(network(low, T, concat=x), expected) > OUTSIDE
    assert difference(network(x, T + 1, concat=low), expected) > OUTSIDE


def test_glides_inpainting_upsampler_gives_what_diffusers_gives() -> None:
    theirs = randomised(conditional_diffusers_unet(GLIDE), 0)
    project = randomised(nn.Linear(CONTEXT_DIM, GLIDE.embedding_dim), 1)  # GLIDE's transformer_proj
    x, concat = random_tensor(2, 4, 3, 16, 16), random_tensor(3, 4, 7, 16, 16)
    tokens, pooled = random_tensor(4, 4, TEXT_LENGTH, CONTEXT_DIM), random_tensor(5, 4, CONTEXT_DIM)
    expected = theirs(
        torch.cat([x, concat], dim=1), T, encoder_hidden_states=tokens, class_labels=project(pooled)
    ).sample

    def projected(state: State) -> None:
        state["conditioner.text_embedding.weight"] = project.weight
        state["conditioner.text_embedding.bias"] = project.bias

    network = ours(GLIDE, theirs, None, projected)
    found = network(x, T, network.condition(text_tokens=tokens, text_pooled=pooled), concat=concat)
    assert difference(found, expected) < WITHIN
    without_pooled = network(x, T, network.condition(text_tokens=tokens), concat=concat)
    assert difference(without_pooled, expected) > OUTSIDE


def test_resampling_by_convolutions_gives_what_diffusers_gives() -> None:
    theirs = randomised(plain_diffusers_unet(CONVOLUTIONS), 0)
    x = random_tensor(1, 4, 3, 16, 16)
    expected = theirs(x, T).sample
    assert difference(ours(CONVOLUTIONS, theirs, None, None)(x, T), expected) < WITHIN

    def unattended(state: State) -> None:
        for key in [key for key in state if ".attention.out." in key]:
            state[key] = torch.zeros_like(state[key])

    assert difference(ours(CONVOLUTIONS, theirs, None, unattended)(x, T), expected) > OUTSIDE


# --- the real sizes, without their memory ---

REAL = {
    "Karlo's decoder": (KARLO_DECODER, conditional_diffusers_unet),
    "Karlo's upsampler": (KARLO_UPSAMPLER, plain_diffusers_unet),
    "GLIDE's base": (GLIDE_BASE, conditional_diffusers_unet),
    "GLIDE's base, inpainting": (GLIDE_INPAINT, conditional_diffusers_unet),
    "GLIDE's upsampler": (GLIDE_UPSAMPLER, conditional_diffusers_unet),
    "GLIDE's upsampler, inpainting": (GLIDE_UPSAMPLER_INPAINT, conditional_diffusers_unet),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_size_has_the_tensors_of_diffusers(name: str) -> None:
    config, build = REAL[name]
    with torch.device("meta"):
        network = UNet(config)
        expected = unet_state_from_diffusers(build(config).state_dict(), config)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    found = {key: shape for key, shape in shapes.items() if not key.startswith("conditioner.")}
    assert found == {key: value.shape for key, value in expected.items()}


def test_karlos_conditioner_has_the_tensors_of_diffusers() -> None:
    with torch.device("meta"):
        network = UNet(KARLO_DECODER)
        projection = UnCLIPTextProjModel(time_embed_dim=1280, cross_attention_dim=1536)
        expected = conditioner_state_from_diffusers(projection.state_dict())
    found = network.conditioner.state_dict()
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in expected.items()
    }
