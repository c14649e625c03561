"""Our decoder against diffusers' at Karlo's size, with the same random weights, noise and type.

Ours is `decode`; theirs the decoder's part of diffusers' UnCLIPPipeline: `UNet2DConditionModel`,
`UnCLIPTextProjModel` and `UnCLIPScheduler`. Both get one image embedding and its caption, and are guided.

    python benchmarks/decoder.py [--steps 3] [--batch 1] [--dtype bf16] [--device cpu] [--help]
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from common import DTYPES, SEED, caption, choose_devices, exact_scheduler, introduce, random_weights
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures
from unclip.core.formats.diffusers import text_projection_rules
from unclip.core.formats.unet_rules import diffusers_rules
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet import UNet, UNetCondition, UNetConfig
from unclip.core.pipelines.decode import DecodeOptions, decode, text_inputs
from unclip.core.pipelines.running import with_packed_weights
from unclip.core.stages import DecoderStage
from unets import Pair, compare, denoised, diffusers_shape, in_ours

try:  # where it lies has changed between versions of diffusers
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
except ImportError:
    from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel

TEXT_LENGTH, TOKENS = 77, 4
SPACE = EmbeddingSpace("benchmark", 768)
KARLO = UNetConfig(
    image_size=64,
    out_channels=6,
    channels=320,
    channel_mult=(1, 2, 3, 4),
    res_blocks=(3, 3, 3, 3),
    attention=(32, 16, 8),
    conditioning=ConditioningConfig(
        clip_dim=SPACE.dim,
        clip_tokens=TOKENS,
        text_dim=768,
        text_pooled_dim=SPACE.dim,
        context_dim=1536,
        null_text="empty_caption",
    ),
)
DIFFUSION = DiffusionSpec(prediction="eps", variance="learned_range", clip_x0=1.0)


def main(
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 3,
    batch: Annotated[int, typer.Option(help="Pictures.")] = 1,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 8.0,
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    caption_tokens: Annotated[int, typer.Option(help="Tokens of the caption, with start and end.")] = 12,
    device: Annotated[list[str], typer.Option(help="May be repeated; the CPU and a GPU by default.")] = (),
    channels_last: Annotated[bool, typer.Option(help="Give diffusers' network that layout too.")] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each system, in turn; the median counts.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves PyTorch's choice.")] = 0,
) -> None:
    """Time both systems and compare what they give."""
    if threads:
        torch.set_num_threads(threads)
    for index, name in enumerate(choose_devices(device)):
        theirs = random_decoder(name, DTYPES[dtype])
        rules = diffusers_rules(KARLO, "decoder.")
        rules += text_projection_rules(TOKENS, "text_proj.", "conditioner.")
        ours = in_ours(theirs, KARLO, rules)
        if channels_last:
            theirs.to(memory_format=torch.channels_last)
        if not index:
            what = (
                f"{steps} steps, batch {batch}, guidance {guidance:g}, a caption of {caption_tokens} tokens"
            )
            introduce(what, ours, dtype)
        options = DecodeOptions(steps=steps, guidance_scale=guidance, sampler="ddpm")
        compare(name, pair(ours, theirs, caption_tokens, batch, options), steps, repeats)


def random_decoder(device: str, dtype: torch.dtype) -> nn.ModuleDict:
    """diffusers' ``decoder`` and ``text_proj``."""
    with torch.device("meta"):
        network = UNet2DConditionModel(
            **diffusers_shape(KARLO),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            cross_attention_dim=KARLO.context_dim,
            attention_head_dim=KARLO.head_dim,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        projection = UnCLIPTextProjModel(
            clip_extra_context_tokens=TOKENS,
            clip_embeddings_dim=SPACE.dim,
            time_embed_dim=KARLO.embedding_dim,
            cross_attention_dim=KARLO.context_dim,
        )
    modules = nn.ModuleDict({"decoder": network, "text_proj": projection})
    return random_weights(modules, device, dtype)


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
        lambda: with_packed_weights(ours),
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


if __name__ == "__main__":
    typer.run(main)
