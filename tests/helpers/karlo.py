"""Karlo and a Kandinsky prior in miniature: diffusers' pipelines with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    DiffusionPipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from open_clip.tokenizer import SimpleTokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from unclip.core.diffusion.schedule import make_schedule

try:  # where it lies has changed between versions of diffusers
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
except ImportError:
    from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel

from .unet import randomised

DIM, LENGTH, CONTEXT_DIM, TOKENS = 32, 12, 40, 4
SIZE, UPSAMPLED = 16, 32
HEAD_DIM = 64  # of the original's attention; it is in no config there
VOCABULARY = 49408


def tiny_prior(dim: int = DIM, seed: int = 0) -> PriorTransformer:
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        embedding_dim=dim,
        num_embeddings=LENGTH,
    )
    randomised(prior, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    prior.clip_mean.data = torch.randn(1, dim, generator=generator)
    prior.clip_std.data = 0.5 + torch.rand(1, dim, generator=generator)
    return prior


def tiny_decoder(seed: int = 1) -> UNet2DConditionModel:
    return randomised(
        UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=3,
            out_channels=6,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(64, 128),
            layers_per_block=1,
            cross_attention_dim=CONTEXT_DIM,
            attention_head_dim=HEAD_DIM,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        ),
        seed,
    )


def tiny_text_projection(seed: int = 2) -> UnCLIPTextProjModel:
    projection = UnCLIPTextProjModel(
        clip_extra_context_tokens=TOKENS,
        clip_embeddings_dim=DIM,
        time_embed_dim=256,
        cross_attention_dim=CONTEXT_DIM,
    )
    return randomised(projection, seed)


def tiny_upsampler(seed: int = 3) -> UNet2DModel:
    return randomised(
        UNet2DModel(
            sample_size=UPSAMPLED,
            in_channels=6,
            out_channels=3,
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            block_out_channels=(32, 64),
            layers_per_block=1,
            add_attention=False,
        ),
        seed,
    )


def tiny_text_encoder(seed: int = 5) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        intermediate_size=4 * DIM,
        projection_dim=DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=0,
    )
    return randomised(CLIPTextModelWithProjection(config), seed)


def tiny_tokenizer(length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's tokenizer for short captions. It pads with "!", which has the id 0."""
    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for token, index in own.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks), pad_token="!", model_max_length=length)


def tiny_pipeline() -> UnCLIPPipeline:
    return UnCLIPPipeline(
        prior=tiny_prior(),
        decoder=tiny_decoder(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        text_proj=tiny_text_projection(),
        super_res_first=tiny_upsampler(3),
        super_res_last=tiny_upsampler(4),
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=UnCLIPScheduler(prediction_type="epsilon"),
    )


def tiny_variation_pipeline() -> UnCLIPImageVariationPipeline:
    """The pipeline without a prior; all weights but the image encoder's are those of ``tiny_pipeline``."""
    parts = dict(tiny_pipeline().components)
    for name in ("prior", "prior_scheduler"):
        del parts[name]
    return UnCLIPImageVariationPipeline(
        image_encoder=tiny_image_encoder(), feature_extractor=image_processor(), **parts
    )


def tiny_kandinsky_prior() -> KandinskyV22PriorPipeline:
    prior = tiny_prior(seed=8)
    return KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=tiny_image_encoder(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
        image_processor=image_processor(),
    )


def tiny_image_encoder(seed: int = 6) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        projection_dim=DIM,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=32,
        patch_size=16,
    )
    return randomised(CLIPVisionModelWithProjection(config), seed)


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(crop_size=32, size=32)


def save_as_published(pipeline: DiffusionPipeline, folder: Path) -> Path:
    """Save a pipeline; the vocabulary of its tokenizer too, which newer transformers leave out."""
    pipeline.save_pretrained(folder)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(pipeline.tokenizer.get_vocab()))
    return folder


def with_exact_tables(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """diffusers makes its tables in float32; with ours in their place only networks and formulas differ."""
    schedule = make_schedule("cosine", 1000)
    for name, scheduler in pipeline.components.items():
        if name.endswith("scheduler"):
            scheduler.betas = schedule.betas
            scheduler.alphas = 1 - schedule.betas
            scheduler.alphas_cumprod = schedule.alphas_cumprod
            scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
