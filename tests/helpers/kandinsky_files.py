"""Kandinsky in miniature as it is published: diffusers' folders, and 2.1's own files of the same weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    KandinskyInpaintPipeline,
    KandinskyPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
)
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from einops import rearrange
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import XLMRobertaTokenizerFast
from unclip.core.diffusion.schedule import schedule_of
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.formats.mapping.kandinsky_rules import _DIFFUSERS_21, _ORIGINAL
from unclip.core.formats.mapping.unet_rules import _parts
from unclip.core.networks.unet_config import UNetConfig

from .kandinsky import HEAD_DIM, deep_movq, tiny_movq, tiny_unet
from .karlo import DIM, save_as_published, tiny_kandinsky_prior
from .unet import randomised

TEXT_WIDTH, VOCABULARY = 48, 60
BETAS = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}


def scheduler_22() -> DDPMScheduler:
    """As published with 2.2."""
    return DDPMScheduler(**BETAS, clip_sample=True, clip_sample_range=1.0, variance_type="fixed_small")


def scheduler_21() -> DDIMScheduler:
    """As published with 2.1, but for the last step, which ends at the clean latent."""
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)


PIPELINES = {
    "2.2": KandinskyV22Pipeline,
    "2.2 depth": KandinskyV22ControlnetPipeline,
    "2.2 inpaint": KandinskyV22InpaintPipeline,
    "2.1": KandinskyPipeline,
    "2.1 inpaint": KandinskyInpaintPipeline,
}
"""diffusers' pipelines of the decoders, by kind."""


def tiny_22(kind: str = "2.2"):
    """One of 2.2's decoder pipelines; its embeddings are as wide as those of ``tiny_kandinsky_prior``."""
    pipeline = PIPELINES[kind](unet=tiny_unet(kind, dim=DIM), scheduler=scheduler_22(), movq=deep_movq())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_whole_22(folder: Path) -> Path:
    """Prior and decoder of 2.2 side by side; its pictures are twice as large as the latents, to be quick."""
    decoder = tiny_22()
    decoder.register_modules(movq=tiny_movq())
    decoder.save_pretrained(folder / "decoder")
    save_as_published(tiny_kandinsky_prior(), folder / "prior")
    return folder


def tiny_21(kind: str = "2.1"):
    """One of 2.1's decoder pipelines."""
    pipeline = PIPELINES[kind](
        text_encoder=tiny_multilingual_clip(),
        tokenizer=tiny_multilingual_tokenizer(),
        unet=tiny_unet(kind, dim=DIM, text_dim=TEXT_WIDTH),
        scheduler=scheduler_21(),
        movq=deep_movq(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def tiny_multilingual_clip() -> MultilingualCLIP:
    config = MCLIPConfig(
        transformerDimSize=TEXT_WIDTH,
        imageDimSize=DIM,
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=80,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    return randomised(MultilingualCLIP(config), 30).requires_grad_(False)


def tokenizer_definition() -> str:
    """A unigram vocabulary of letters in the form of XLM-RoBERTa's ``tokenizer.json``."""
    letters = [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyzéü"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str()


def tiny_multilingual_tokenizer() -> XLMRobertaTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_definition()),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=77,
    )


def save_21(pipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer_definition())
    return folder


# --- 2.1's own files ---


def write_original_21(pipeline, folder: Path, name: str = "decoder_fp16.ckpt") -> Path:
    """Decoder and autoencoder as ai-forever/Kandinsky_2.1 publishes them; gives the decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = UNetConfig(
        image_size=64,
        in_channels=4,
        out_channels=8,
        channels=64,
        channel_mult=(1, 2),
        res_blocks=(1, 1),
        attention=(32,),
        head_dim=HEAD_DIM,
    )
    torch.save(original_unet(pipeline.unet.state_dict(), config), folder / name)
    torch.save(original_movq(pipeline.movq.state_dict()), folder / "movq_final.ckpt")
    return folder / name


def original_unet(theirs: dict[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """A state dict of diffusers under the original's names."""
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    own = {ours: theirs for theirs, ours in _ORIGINAL.items()}
    ends |= {name: own[ours] for name, ours in _DIFFUSERS_21.items()}
    residual = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    state = {}
    for kind in ("weight", "bias"):
        for name, original in ends.items():
            state[f"{original}.{kind}"] = theirs[f"{name}.{kind}"]
        for part in _parts(config):
            if part.kind == "residual":
                for name, original in residual.items():
                    if f"{part.diffusers}.{name}.{kind}" in theirs:
                        state[f"{part.original}.{original}.{kind}"] = theirs[
                            f"{part.diffusers}.{name}.{kind}"
                        ]
                continue
            state[f"{part.original}.norm.{kind}"] = theirs[f"{part.diffusers}.group_norm.{kind}"]
            for original, names in (
                ("qkv", ("to_q", "to_k", "to_v")),
                ("encoder_kv", ("add_k_proj", "add_v_proj")),
                ("proj_out", ("to_out.0",)),
            ):
                parts = torch.stack([theirs[f"{part.diffusers}.{name}.{kind}"] for name in names])
                if original != "proj_out":
                    parts = rearrange(parts, "p (h d) ... -> h p d ...", d=HEAD_DIM).flatten(0, 2)
                else:
                    parts = parts[0]
                state[f"{part.original}.{original}.{kind}"] = parts[..., None] if kind == "weight" else parts
    return state


def original_movq(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ``VQModel`` under the names of Kandinsky's own file."""
    levels = 1 + max(int(name.split(".")[2]) for name in theirs if name.startswith("encoder.down_blocks"))
    state = {}
    for name, value in theirs.items():
        parts = name.split(".")
        if parts[0] == "decoder" and parts[1] == "up_blocks":
            parts[2] = str(levels - 1 - int(parts[2]))
        renamed = ".".join(parts)
        attention = ".attentions." in name
        for old, new in (
            ("down_blocks", "down"),
            ("up_blocks", "up"),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"),
            ("resnets", "block"),
            ("attentions", "attn"),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
            ("group_norm", "norm"),
            ("spatial_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            renamed = renamed.replace(old, new)
        if attention and value.ndim == 2:
            value = value[..., None, None]
        state[renamed] = value
    return state


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_exact_tables(pipeline, spec: DiffusionSpec):
    """diffusers makes its tables in float32; with ours in their place only networks and formulas differ."""
    schedule = schedule_of(spec)
    scheduler = pipeline.scheduler
    scheduler.betas, scheduler.alphas = schedule.betas, 1 - schedule.betas
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    if hasattr(scheduler, "one"):
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return pipeline
