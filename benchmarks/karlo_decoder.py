"""Karlo's decoder for `decoder.py`: ours, and the decoder's part of diffusers' UnCLIPPipeline.

Theirs is `UNet2DConditionModel`, `UnCLIPTextProjModel` and `UnCLIPScheduler`. Both get one image embedding
and its caption, and are guided.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import SEED, caption, exact_scheduler
from torch import Tensor, nn
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures
from unclip.core.formats.layouts.diffusers import text_projection_rules
from unclip.core.formats.mapping.unet_rules import diffusers_rules
from unclip.core.networks.unet import UNet, UNetCondition
from unclip.core.pipelines.conditioning import text_inputs
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.stages import DecoderStage
from unclip.tests.helpers import published
from unclip.tests.helpers.unet import KARLO_DECODER as KARLO
from unets import Pair, denoised

TEXT_LENGTH, TOKENS = 77, KARLO.conditioning.clip_tokens
SPACE = EmbeddingSpace("benchmark", KARLO.conditioning.clip_dim)
RULES = diffusers_rules(KARLO, "decoder.") + text_projection_rules(TOKENS, "text_proj.", "conditioner.")
DIFFUSION = DiffusionSpec(prediction="eps", variance="learned_range", clip_x0=1.0)


def random_decoder() -> nn.ModuleDict:
    """diffusers' ``decoder`` and ``text_proj``."""
    decoder = published.conditional_diffusers_unet(KARLO)
    return nn.ModuleDict({"decoder": decoder, "text_proj": published.karlo_text_projection()})


def pair(ours: UNet, theirs: nn.ModuleDict, valid: int, batch: int, options: DecodeOptions) -> Pair:
    parameter = next(ours.parameters())
    text = caption(SPACE, TEXT_LENGTH, KARLO.conditioning.text_dim, valid).to(parameter.device)
    vectors = torch.randn(batch, SPACE.dim, generator=torch.Generator().manual_seed(2))
    vectors = vectors.to(parameter)  # in the type of the networks, so that both round alike
    shape = (KARLO.in_channels, KARLO.image_size, KARLO.image_size)
    x = draw_noise(image_generators(SEED, 2 * batch), shape, parameter.device).to(parameter)
    t = torch.full((2 * batch,), 500, device=parameter.device)

    @torch.no_grad()
    def evaluate_ours() -> Tensor:
        given = text_inputs(ours, text, batch)
        conditional = ours.condition(clip_embedding=vectors, **given)
        null = ours.condition(batch=batch, **text_inputs(ours, text.null, batch))
        rows = x.contiguous(memory_format=torch.channels_last)
        return with_packed_weights(ours)(rows, t, UNetCondition.cat(null, conditional))

    def sample_ours() -> Tensor:
        states: list[Tensor] = []
        stage = DecoderStage(ours, SPACE, DIFFUSION)
        embedding = Embedding(vectors.float(), SPACE)
        decode(stage, embedding, text, seed=SEED, options=options, callback=lambda s: states.append(s.x))
        return states[-1]

    return Pair(
        evaluate_ours,
        lambda: network_call(theirs, vectors, text)(x, t),
        sample_ours,
        lambda: sample_diffusers(theirs, vectors, text, shape, options),
    )


@torch.no_grad()
def sample_diffusers(
    theirs: nn.ModuleDict,
    vectors: Tensor,
    text: TextFeatures,
    shape: tuple[int, ...],
    options: DecodeOptions,
) -> Tensor:
    """The decoder's part of UnCLIPPipeline, its noise drawn from the generators that serve ours."""
    generators = image_generators(SEED, len(vectors))
    call = network_call(theirs, vectors, text)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        null, conditional = call(torch.cat([x, x]).to(vectors.dtype), t).float().chunk(2)
        null, _ = null.chunk(2, dim=1)
        conditional, variance = conditional.chunk(2, dim=1)
        return torch.cat([null + options.guidance_scale * (conditional - null), variance], dim=1)

    scheduler = exact_scheduler(options.steps, variance_type="learned_range", prediction_type="epsilon")
    return denoised(guided, scheduler, draw_noise(generators, shape, vectors.device), generators)


@torch.no_grad()
def network_call(theirs: nn.ModuleDict, vectors: Tensor, text: TextFeatures):
    """Their network as a function of x_t [2B, 3, H, W], null rows first, and t."""
    batch = len(vectors)
    both = [text.null.expand(batch), text.expand(batch)]
    context, additive = theirs["text_proj"](
        image_embeddings=vectors,
        prompt_embeds=torch.cat([features.pooled for features in both]).to(vectors.dtype),
        text_encoder_hidden_states=torch.cat([features.tokens for features in both]).to(vectors.dtype),
        do_classifier_free_guidance=True,
    )
    mask = F.pad(torch.cat([features.mask for features in both]), (TOKENS, 0), value=True)

    @torch.no_grad()
    def call(x: Tensor, t: Tensor) -> Tensor:
        return theirs["decoder"](
            x, t, encoder_hidden_states=context, class_labels=additive, attention_mask=mask
        ).sample

    return call
