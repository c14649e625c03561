"""Weights of diffusers' U-Nets and text projection, renamed and laid out for ours."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor
from unclip.core.networks.unet import UNet, UNetConfig
from unclip.core.networks.unet_blocks import Block, Downsample

State = dict[str, Tensor]

RESIDUAL = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "time_emb_proj": "embedding",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "conv_shortcut": "skip",
}
ENDS = {
    "conv_in": "conv_in",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}
TEXT_PROJECTION = {
    "clip_image_embeddings_project_to_time_embeddings": "clip_embedding",
    "embedding_proj": "text_embedding",
    "encoder_hidden_states_proj": "text_context",
    "text_encoder_hidden_states_norm": "text_norm",
}


def unet_state_from_diffusers(theirs: State, config: UNetConfig) -> State:
    """State dict of a ``UNet2DConditionModel`` or ``UNet2DModel`` → ours, without the conditioner.

    Raises:
        ValueError: tensors are left over.
    """
    left = dict(theirs)
    ours: State = {}
    for source, target in ENDS.items():
        _move(left, source, ours, target)
    with torch.device("meta"):
        network = UNet(config)
    for source, target in _blocks(network):
        for name, renamed in RESIDUAL.items():
            _move(left, f"{source.residual}.{name}", ours, f"{target}.residual.{renamed}")
        _move(left, f"{source.residual}.conv", ours, f"{target}.conv")
        if source.attention is not None:
            _move_attention(left, source.attention, ours, f"{target}.attention")
    if left:
        raise ValueError(f"left over: {', '.join(sorted(left))}")
    return ours


def conditioner_state_from_diffusers(theirs: State, tokens: int = 4) -> State:
    """State dict of ``UnCLIPTextProjModel`` → that of a ``Conditioner`` with ``tokens`` CLIP tokens."""
    left = dict(theirs)
    ours: State = {"null_clip": left.pop("learned_classifier_free_guidance_embeddings")}
    for source, target in TEXT_PROJECTION.items():
        _move(left, source, ours, target)
    for name in ("weight", "bias"):  # theirs is channel-major, ours has one token after the other
        value = left.pop(f"clip_extra_context_tokens_proj.{name}")
        ours[f"clip_context.{name}"] = rearrange(value, "(c n) ... -> (n c) ...", n=tokens)
    if left:
        raise ValueError(f"left over: {', '.join(sorted(left))}")
    return ours


class _Source:
    """Where diffusers keeps a block: prefixes of its residual (or resampling) part and of its attention."""

    def __init__(self, residual: str, attention: str | None = None) -> None:
        self.residual, self.attention = residual, attention


def _blocks(network: UNet) -> Iterator[tuple[_Source, str]]:
    """Pairs of a block of theirs and the prefix of ours, through the whole network."""
    level = index = 0
    for position, block in enumerate(network.encoder):
        if isinstance(block, Downsample):
            yield _Source(f"down_blocks.{level}.downsamplers.0"), f"encoder.{position}"
            level, index = level + 1, 0
        else:
            yield _source(f"down_blocks.{level}", index, block), f"encoder.{position}"
            index += 1
    for index, block in enumerate(network.middle):
        yield _source("mid_block", index, block), f"middle.{index}"
    level = index = 0
    for position, block in enumerate(network.decoder):
        yield _source(f"up_blocks.{level}", index, block), f"decoder.{position}"
        index += 1
        if block.upsample is not None:
            yield _Source(f"up_blocks.{level}.upsamplers.0"), f"decoder.{position}.upsample"
            level, index = level + 1, 0


def _source(prefix: str, index: int, block: Block) -> _Source:
    attention = f"{prefix}.attentions.{index}" if block.attention is not None else None
    return _Source(f"{prefix}.resnets.{index}", attention)


def _move_attention(left: State, source: str, ours: State, target: str) -> None:
    _move(left, f"{source}.group_norm", ours, f"{target}.norm")
    _move(left, f"{source}.to_out.0", ours, f"{target}.out")
    for name in ("weight", "bias"):
        ours[f"{target}.qkv.{name}"] = torch.cat(
            [left.pop(f"{source}.to_{part}.{name}") for part in ("q", "k", "v")]
        )
        if f"{source}.add_k_proj.{name}" in left:
            ours[f"{target}.context_kv.{name}"] = torch.cat(
                [left.pop(f"{source}.add_{part}_proj.{name}") for part in ("k", "v")]
            )


def _move(left: State, source: str, ours: State, target: str) -> None:
    for name in ("weight", "bias"):
        if f"{source}.{name}" in left:
            ours[f"{target}.{name}"] = left.pop(f"{source}.{name}")
