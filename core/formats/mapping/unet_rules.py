"""U-Nets under their two published namings: guided-diffusion's (GLIDE, Karlo) and diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor

from ...networks.conditioning import ConditioningConfig
from ...networks.unet import UNet
from ...networks.unet_blocks import Block, Downsample
from ...networks.unet_config import UNetConfig
from ...networks.without_memory import without_memory
from ..files.weight_source import WeightSource
from .keymap import Rule, concatenated, count_layers, shape_of, without_last_axis

# Layers of a residual block: theirs → ours.
_RESIDUAL_ORIGINAL = {
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "embedding",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
    "skip_connection": "skip",
}
_RESIDUAL_DIFFUSERS = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "time_emb_proj": "embedding",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "conv_shortcut": "skip",
}
# Layers outside the blocks.
_ENDS_ORIGINAL = {
    "time_embed.0": "time_embed.0",
    "time_embed.2": "time_embed.2",
    "input_blocks.0.0": "conv_in",
    "out.0": "norm_out",
    "out.2": "conv_out",
}
_ENDS_DIFFUSERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}


@dataclass(frozen=True)
class _Part:
    """Prefixes of one part of the network: in ours, in guided-diffusion's, in diffusers'."""

    kind: str  # residual, attention, or resample (a convolution)
    ours: str
    original: str
    diffusers: str


def original_rules(config: UNetConfig, source: str = "", target: str = "") -> list[Rule]:
    """Rules for a U-Net in guided-diffusion's naming, without what conditions it.

    Args:
        source, target: prefixes of its names in the file and of ours, with their final dots.
    """
    rules = [Rule(source + theirs, target + ours) for theirs, ours in _ENDS_ORIGINAL.items()]
    for part in _parts(config):
        theirs, ours = source + part.original, target + part.ours
        if part.kind == "residual":
            rules += [Rule(f"{theirs}.{a}", f"{ours}.{b}") for a, b in _RESIDUAL_ORIGINAL.items()]
        elif part.kind == "resample":
            rules.append(Rule(theirs, ours))
        else:
            rules += [
                Rule(f"{theirs}.norm", f"{ours}.norm"),
                Rule(f"{theirs}.qkv", f"{ours}.qkv", heads_last(3, config.head_dim)),
                Rule(f"{theirs}.encoder_kv", f"{ours}.context_kv", heads_last(2, config.head_dim)),
                Rule(f"{theirs}.proj_out", f"{ours}.out", without_last_axis),
            ]
    return rules


def diffusers_rules(config: UNetConfig, source: str = "", target: str = "") -> list[Rule]:
    """Rules for diffusers' ``UNet2DConditionModel`` or ``UNet2DModel``, see :func:`original_rules`."""
    rules = [Rule(source + theirs, target + ours) for theirs, ours in _ENDS_DIFFUSERS.items()]
    for part in _parts(config):
        theirs, ours = source + part.diffusers, target + part.ours
        if part.kind == "residual":
            rules += [Rule(f"{theirs}.{a}", f"{ours}.{b}") for a, b in _RESIDUAL_DIFFUSERS.items()]
        elif part.kind == "resample":
            rules.append(Rule(theirs, ours))
        else:
            qkv = tuple(f"{theirs}.to_{name}" for name in "qkv")
            context = tuple(f"{theirs}.add_{name}_proj" for name in "kv")
            rules += [
                Rule(f"{theirs}.group_norm", f"{ours}.norm"),
                Rule(qkv, f"{ours}.qkv", concatenated),
                Rule(context, f"{ours}.context_kv", concatenated),
                Rule(f"{theirs}.to_out.0", f"{ours}.out"),
            ]
    return rules


def heads_last(parts: int, head_dim: int) -> Callable[[Tensor], Tensor]:
    """Rows head by head, in each its q, k, v (or k, v) → all queries, then all keys, then all values."""
    return partial(_heads_last, parts=parts, head_dim=head_dim)


def _heads_last(tensor: Tensor, parts: int, head_dim: int) -> Tensor:
    return rearrange(without_last_axis(tensor), "(h parts d) ... -> (parts h d) ...", parts=parts, d=head_dim)


def _parts(config: UNetConfig) -> Iterator[_Part]:
    """All residual blocks, attentions and resamplings of the network, from its input to its output."""
    with without_memory():
        network = UNet(config)
    level = index = 0
    for position, block in enumerate(network.encoder):
        ours, original = f"encoder.{position}", f"input_blocks.{position + 1}"
        if isinstance(block, Downsample):
            theirs = f"down_blocks.{level}.downsamplers.0"
            yield _resampling(block.in_block, ours, f"{original}.0", "op", theirs)
            level, index = level + 1, 0
        else:
            yield from _block(block, ours, f"{original}.0", f"{original}.1", f"down_blocks.{level}", index)
            index += 1
    first, second = network.middle
    yield from _block(first, "middle.0", "middle_block.0", "middle_block.1", "mid_block", 0)
    behind = "middle_block.1" if first.attention is None else "middle_block.2"
    yield from _block(second, "middle.1", behind, "", "mid_block", 1)
    level = index = 0
    for position, block in enumerate(network.decoder):
        ours, original = f"decoder.{position}", f"output_blocks.{position}"
        yield from _block(block, ours, f"{original}.0", f"{original}.1", f"up_blocks.{level}", index)
        index += 1
        if block.upsample is not None:
            place = 1 if block.attention is None else 2
            theirs = f"up_blocks.{level}.upsamplers.0"
            yield _resampling(
                block.upsample.in_block, f"{ours}.upsample", f"{original}.{place}", "conv", theirs
            )
            level, index = level + 1, 0


def _block(
    block: Block, ours: str, residual: str, attention: str, diffusers: str, index: int
) -> Iterator[_Part]:
    yield _Part("residual", f"{ours}.residual", residual, f"{diffusers}.resnets.{index}")
    if block.attention is not None:
        yield _Part("attention", f"{ours}.attention", attention, f"{diffusers}.attentions.{index}")


def _resampling(in_block: bool, ours: str, original: str, convolution: str, diffusers: str) -> _Part:
    if in_block:
        return _Part("residual", f"{ours}.residual", original, diffusers)
    return _Part("resample", f"{ours}.conv", f"{original}.{convolution}", f"{diffusers}.conv")


# --- the shape of a network from the shapes in a file ---


def original_config(
    source: WeightSource,
    prefix: str,
    *,
    image_size: int,
    head_dim: int = 64,
    conditioning: ConditioningConfig | None = None,
    in_channels: int = 3,
) -> UNetConfig:
    """The config of a U-Net in guided-diffusion's naming.

    What leaves no trace in the weights is given: the size of the pictures, which tells at which grids the
    attention works, and the width of its heads.

    Raises:
        ValueError: what tells the config is missing, or does not fit together.
    """
    width, inputs = shape_of(source, f"{prefix}input_blocks.0.0.weight", 4)[:2]
    blocks = count_layers(source, f"{prefix}output_blocks.{{n}}.0.in_layers.0.weight")
    # The output side tells where a level ends: it has an upsampling part there.
    levels: list[list[int]] = [[]]
    in_block = True
    for position in range(blocks):
        levels[-1].append(position)
        at = f"{prefix}output_blocks.{position}"
        by_block = any(f"{at}.{place}.in_layers.0.weight" in source.shapes for place in (1, 2))
        by_convolution = any(f"{at}.{place}.conv.weight" in source.shapes for place in (1, 2))
        if by_block or by_convolution:
            in_block = by_block
            levels.append([])
    levels = [level for level in reversed(levels) if level]  # from the finest to the coarsest
    lasts = [f"{prefix}output_blocks.{level[0]}" for level in levels]
    outputs = [shape_of(source, f"{last}.0.out_layers.3.weight", 4)[0] for last in lasts]
    embedding = shape_of(source, f"{lasts[0]}.0.emb_layers.1.weight", 2)[0] if lasts else 0
    return _config(
        source,
        image_size=image_size,
        in_channels=in_channels,
        concat_channels=inputs - in_channels - _layout_channels(conditioning),
        out_channels=shape_of(source, f"{prefix}out.2.weight", 4)[0],
        channels=width,
        outputs=outputs,
        res_blocks=tuple(len(level) - 1 for level in levels),
        attended=[f"{last}.1.norm.weight" in source.shapes for last in lasts],
        head_dim=head_dim,
        film=bool(outputs) and embedding == 2 * outputs[0],
        resample_in_block=in_block,
        conditioning=conditioning,
    )


def diffusers_config(
    source: WeightSource,
    prefix: str,
    *,
    image_size: int,
    head_dim: int = 64,
    conditioning: ConditioningConfig | None = None,
    in_channels: int = 3,
) -> UNetConfig:
    """The config of diffusers' U-Net; see :func:`original_config`."""
    width, inputs = shape_of(source, f"{prefix}conv_in.weight", 4)[:2]
    levels = count_layers(source, f"{prefix}down_blocks.{{n}}.resnets.0.conv1.weight")
    blocks = [f"{prefix}down_blocks.{level}" for level in range(levels)]
    outputs = [shape_of(source, f"{block}.resnets.0.conv2.weight", 4)[0] for block in blocks]
    embedding = shape_of(source, f"{blocks[0]}.resnets.0.time_emb_proj.weight", 2)[0] if blocks else 0
    return _config(
        source,
        image_size=image_size,
        in_channels=in_channels,
        concat_channels=inputs - in_channels - _layout_channels(conditioning),
        out_channels=shape_of(source, f"{prefix}conv_out.weight", 4)[0],
        channels=width,
        outputs=outputs,
        res_blocks=tuple(count_layers(source, f"{block}.resnets.{{n}}.conv1.weight") for block in blocks),
        attended=[f"{block}.attentions.0.group_norm.weight" in source.shapes for block in blocks],
        head_dim=head_dim,
        film=bool(outputs) and embedding == 2 * outputs[0],
        resample_in_block=f"{prefix}down_blocks.0.downsamplers.0.conv.weight" not in source.shapes,
        conditioning=conditioning,
    )


def _layout_channels(conditioning: ConditioningConfig | None) -> int:
    return 0 if conditioning is None else conditioning.clip_layout + conditioning.hint_channels


def _config(
    source: WeightSource,
    *,
    channels: int,
    outputs: list[int],
    attended: list[bool],
    image_size: int,
    **values: Any,
) -> UNetConfig:
    grids = [image_size // 2**level for level in range(len(outputs))]
    if not outputs or any(each % channels for each in outputs):
        raise ValueError(
            f"{source.path}: its levels have {outputs} channels, expected multiples of the first layer's "
            f"{channels}. The file is incomplete or damaged: get it again"
        )
    try:
        return UNetConfig(
            image_size=image_size,
            channels=channels,
            channel_mult=tuple(each // channels for each in outputs),
            attention=tuple(grid for grid, has in zip(grids, attended, strict=True) if has),
            **values,
        )
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from error
