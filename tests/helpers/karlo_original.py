"""The weights of diffusers' networks as Karlo's original checkpoints hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UnCLIPPipeline
from einops import rearrange
from torch import Tensor, nn

from .karlo import HEAD_DIM

State = dict[str, Tensor]


def original_prior(prior: nn.Module) -> State:
    """As Karlo's prior-ckpt holds it under ``state_dict``."""
    theirs = prior.state_dict()
    names = {
        "proj_in": "clip_img_proj",
        "embedding_proj": "text_emb_proj",
        "encoder_hidden_states_proj": "text_enc_proj",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "norm_out": "final_ln",
        "proj_to_clip_embeddings": "out_proj",
    }
    state = {"positional_embedding": theirs["positional_embedding"], "prd_emb": theirs["prd_embedding"]}
    for index in range(prior.config.num_layers):
        block, original = f"transformer_blocks.{index}", f"transformer.resblocks.{index}"
        names |= {
            f"{block}.norm1": f"{original}.ln_1",
            f"{block}.norm3": f"{original}.ln_2",
            f"{block}.ff.net.0.proj": f"{original}.mlp.c_fc",
            f"{block}.ff.net.2": f"{original}.mlp.c_proj",
            f"{block}.attn1.to_out.0": f"{original}.attn.c_proj",
        }
        for kind in ("weight", "bias"):
            parts = [theirs[f"{block}.attn1.to_{part}.{kind}"] for part in "qkv"]
            state[f"{original}.attn.c_qkv.{kind}"] = head_by_head(parts)
    state |= _renamed(theirs, names)
    return {f"model.{name}": value for name, value in state.items()}


def original_decoder(decoder: nn.Module, projection: nn.Module) -> State:
    """As Karlo's decoder-ckpt holds it under ``state_dict``."""
    theirs = projection.state_dict()
    names = {
        "encoder_hidden_states_proj": "text_seq_proj.0",
        "text_encoder_hidden_states_norm": "text_seq_proj.1",
        "clip_extra_context_tokens_proj": "clip_tok_proj",
        "embedding_proj": "text_feat_proj",
        "clip_image_embeddings_project_to_time_embeddings": "clip_emb",
    }
    state = {"cf_param": theirs["learned_classifier_free_guidance_embeddings"], **_renamed(theirs, names)}
    state |= original_unet(decoder)
    return {f"model.{name}": value for name, value in state.items()}


def original_upsampler(first: nn.Module, last: nn.Module) -> State:
    """As Karlo's improved-sr-ckpt holds it under ``state_dict``."""
    prefixes = {"model_first_steps.": first, "model_last_step.": last}
    return {
        prefix + name: value
        for prefix, unet in prefixes.items()
        for name, value in original_unet(unet).items()
    }


def original_unet(unet: nn.Module) -> State:
    """diffusers' U-Net in guided-diffusion's naming."""
    theirs = unet.state_dict()
    state = _renamed(
        theirs,
        {
            "time_embedding.linear_1": "time_embed.0",
            "time_embedding.linear_2": "time_embed.2",
            "conv_in": "input_blocks.0.0",
            "conv_norm_out": "out.0",
            "conv_out": "out.2",
        },
    )
    position = 1
    for level, block in enumerate(unet.down_blocks):
        for index in range(len(block.resnets)):
            state |= _residual(theirs, f"down_blocks.{level}.resnets.{index}", f"input_blocks.{position}.0")
            state |= _attention(
                theirs, f"down_blocks.{level}.attentions.{index}", f"input_blocks.{position}.1"
            )
            position += 1
        if block.downsamplers is not None:
            state |= _residual(theirs, f"down_blocks.{level}.downsamplers.0", f"input_blocks.{position}.0")
            position += 1
    attention = _attention(theirs, "mid_block.attentions.0", "middle_block.1")
    state |= _residual(theirs, "mid_block.resnets.0", "middle_block.0") | attention
    state |= _residual(theirs, "mid_block.resnets.1", f"middle_block.{2 if attention else 1}")
    position = 0
    for level, block in enumerate(unet.up_blocks):
        for index in range(len(block.resnets)):
            at = f"output_blocks.{position}"
            attention = _attention(theirs, f"up_blocks.{level}.attentions.{index}", f"{at}.1")
            state |= _residual(theirs, f"up_blocks.{level}.resnets.{index}", f"{at}.0") | attention
            position += 1
        if block.upsamplers is not None:  # in the output block of the last residual block
            place = f"output_blocks.{position - 1}.{2 if attention else 1}"
            state |= _residual(theirs, f"up_blocks.{level}.upsamplers.0", place)
    return state


def head_by_head(parts: list[Tensor]) -> Tensor:
    """Queries, keys, values, each head after head → head by head, in each its queries, keys and values."""
    return rearrange(torch.stack(parts), "parts (h d) ... -> (h parts d) ...", d=HEAD_DIM)


def _residual(theirs: State, source: str, target: str) -> State:
    names = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return _renamed(theirs, {f"{source}.{a}": f"{target}.{b}" for a, b in names.items()})


def _attention(theirs: State, source: str, target: str) -> State:
    """With 1×1 convolutions; empty where there is none."""
    if f"{source}.to_q.weight" not in theirs:
        return {}
    state = _renamed(theirs, {f"{source}.group_norm": f"{target}.norm"})
    for kind in ("weight", "bias"):
        qkv = head_by_head([theirs[f"{source}.to_{part}.{kind}"] for part in "qkv"])
        context = head_by_head([theirs[f"{source}.add_{part}_proj.{kind}"] for part in "kv"])
        out = theirs[f"{source}.to_out.0.{kind}"]
        for name, value in (("qkv", qkv), ("encoder_kv", context), ("proj_out", out)):
            state[f"{target}.{name}.{kind}"] = value[..., None] if kind == "weight" else value
    return state


def _renamed(theirs: State, names: dict[str, str]) -> State:
    return {
        f"{target}.{kind}": theirs[f"{source}.{kind}"]
        for source, target in names.items()
        for kind in ("weight", "bias")
        if f"{source}.{kind}" in theirs
    }


def write_original(folder: Path, pipeline: UnCLIPPipeline) -> dict[str, Path]:
    """Karlo's four files, under the names under which they are published."""
    folder.mkdir(parents=True, exist_ok=True)
    states = {
        "prior-ckpt-step=01000000-of-01000000.ckpt": original_prior(pipeline.prior),
        "decoder-ckpt-step=01000000-of-01000000.ckpt": original_decoder(pipeline.decoder, pipeline.text_proj),
        "improved-sr-ckpt-step=1.2M.ckpt": original_upsampler(
            pipeline.super_res_first, pipeline.super_res_last
        ),
    }
    for name, state in states.items():
        torch.save({"state_dict": {key: value.clone() for key, value in state.items()}}, folder / name)
    statistics = tuple(getattr(pipeline.prior, name).data[0].clone() for name in ("clip_mean", "clip_std"))
    torch.save(statistics, folder / "ViT-L-14_stats.th")
    files = (folder / name for name in states)
    return dict(zip(("prior", "decoder", "upsampler"), files, strict=True))
