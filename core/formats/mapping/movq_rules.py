"""MoVQ under its two published namings: that of Kandinsky's own files, and diffusers' ``VQModel``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ...networks.movq import Attention, Decoder, MoVQ, MoVQConfig, ResidualBlock
from ...networks.without_memory import without_memory
from ..files.weight_source import WeightSource
from .keymap import Rule, concatenated, count_layers, shape_of


@dataclass(frozen=True)
class _Naming:
    """What a naming calls the parts; ``{level}`` of the encoder counts from the finest on."""

    encoder_level: str
    decoder_level: str
    reversed_decoder: bool  # its levels are counted in the order of running
    block: str
    attention: str
    middle: tuple[str, str, str]
    halved: str
    doubled: str
    skip: str
    norm_out: str
    attention_norm: tuple[str, str]  # plain, spatial
    qkv: tuple[str, str, str]
    out: str


_DIFFUSERS = _Naming(
    encoder_level="encoder.down_blocks.{level}",
    decoder_level="decoder.up_blocks.{level}",
    reversed_decoder=True,
    block="resnets.{n}",
    attention="attentions.{n}",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    halved="downsamplers.0.conv",
    doubled="upsamplers.0.conv",
    skip="conv_shortcut",
    norm_out="conv_norm_out",
    attention_norm=("group_norm", "spatial_norm"),
    qkv=("to_q", "to_k", "to_v"),
    out="to_out.0",
)
_ORIGINAL = _Naming(
    encoder_level="encoder.down.{level}",
    decoder_level="decoder.up.{level}",
    reversed_decoder=False,
    block="block.{n}",
    attention="attn.{n}",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    halved="downsample.conv",
    doubled="upsample.conv",
    skip="nin_shortcut",
    norm_out="norm_out",
    attention_norm=("norm", "norm"),
    qkv=("q", "k", "v"),
    out="proj_out",
)
_SPATIAL = {"norm_layer": "norm", "conv_y": "gain", "conv_b": "shift"}


def diffusers_movq_rules(config: MoVQConfig, source: str = "", target: str = "") -> list[Rule]:
    """Rules for diffusers' ``VQModel``; prefixes as of ``unet_rules.original_rules``."""
    return _rules(config, _DIFFUSERS, source, target)


def original_movq_rules(config: MoVQConfig, source: str = "", target: str = "") -> list[Rule]:
    """Rules for Kandinsky's own files, see :func:`diffusers_movq_rules`."""
    return _rules(config, _ORIGINAL, source, target)


def diffusers_movq_config(source: WeightSource, prefix: str = "") -> MoVQConfig:
    """The shape of a ``VQModel`` from its weights.

    Raises:
        ValueError: what tells it is missing, or does not fit together.
    """
    return _config(source, _DIFFUSERS, prefix)


def original_movq_config(source: WeightSource, prefix: str = "") -> MoVQConfig:
    """The shape of Kandinsky's own file, see :func:`diffusers_movq_config`."""
    return _config(source, _ORIGINAL, prefix)


def _rules(config: MoVQConfig, naming: _Naming, source: str, target: str) -> list[Rule]:
    names = {
        "quant_conv": "quant_conv",
        "post_quant_conv": "post_quant_conv",
        "quantize.embedding.weight": "codebook",
        "encoder.conv_in": "encoder.conv_in",
        "encoder.conv_out": "encoder.conv_out",
        "decoder.conv_in": "decoder.conv_in",
        "decoder.conv_out": "decoder.conv_out",
    }
    rules = [Rule(source + theirs, target + ours) for theirs, ours in names.items()]
    with without_memory():
        network = MoVQ(config)
    for theirs, ours, module in _parts(network, naming):
        rules += _part_rules(source + theirs, target + ours, module, naming)
    return rules


def _parts(network: MoVQ, naming: _Naming) -> Iterator[tuple[str, str, nn.Module]]:
    """All blocks, attentions, changes of size and last norms: their name, ours, and the module."""
    for side, coder in (("encoder", network.encoder), ("decoder", network.decoder)):
        decodes = isinstance(coder, Decoder)
        count = len(coder.levels)
        for position, level in enumerate(coder.levels):
            number = count - 1 - position if decodes and not naming.reversed_decoder else position
            pattern = naming.decoder_level if decodes else naming.encoder_level
            theirs, ours = pattern.format(level=number), f"{side}.levels.{position}"
            for n, block in enumerate(level.blocks):
                yield f"{theirs}.{naming.block.format(n=n)}", f"{ours}.blocks.{n}", block
            for n, attention in enumerate(level.attention):
                yield f"{theirs}.{naming.attention.format(n=n)}", f"{ours}.attention.{n}", attention
            if level.resample is not None:
                own = f"{ours}.resample" if decodes else f"{ours}.resample.conv"
                yield f"{theirs}.{naming.doubled if decodes else naming.halved}", own, level.resample
        for theirs, ours in zip(naming.middle, ("first", "attention", "last"), strict=True):
            yield f"{side}.{theirs}", f"{side}.middle.{ours}", getattr(coder.middle, ours)
        yield f"{side}.{naming.norm_out}", f"{side}.norm_out", coder.norm_out


def _part_rules(theirs: str, ours: str, module: nn.Module, naming: _Naming) -> Iterator[Rule]:
    if isinstance(module, ResidualBlock):
        yield Rule(f"{theirs}.conv1", f"{ours}.conv_in")
        yield Rule(f"{theirs}.conv2", f"{ours}.conv_out")
        yield Rule(f"{theirs}.{naming.skip}", f"{ours}.skip")
        yield from _norm_rules(f"{theirs}.norm1", f"{ours}.norm_in", module.norm_in.gain is not None)
        yield from _norm_rules(f"{theirs}.norm2", f"{ours}.norm_out", module.norm_out.gain is not None)
    elif isinstance(module, Attention):
        spatial = module.norm.gain is not None
        qkv = tuple(f"{theirs}.{name}" for name in naming.qkv)
        yield Rule(qkv, f"{ours}.qkv", _joined)
        yield Rule(f"{theirs}.{naming.out}", f"{ours}.out", _joined)
        yield from _norm_rules(f"{theirs}.{naming.attention_norm[spatial]}", f"{ours}.norm", spatial)
    elif ours.endswith("norm_out"):
        yield from _norm_rules(theirs, ours, module.gain is not None)
    else:
        yield Rule(theirs, ours)


def _norm_rules(theirs: str, ours: str, spatial: bool) -> list[Rule]:
    if not spatial:
        return [Rule(theirs, f"{ours}.norm")]
    return [Rule(f"{theirs}.{name}", f"{ours}.{own}") for name, own in _SPATIAL.items()]


def _joined(*parts: Tensor) -> Tensor:
    """Rows of the parts below each other; 1×1 convolutions [O, I, 1, 1] become Linears [O, I]."""
    return concatenated(*(part.flatten(1) if part.ndim == 4 else part for part in parts))


def _config(source: WeightSource, naming: _Naming, prefix: str) -> MoVQConfig:
    level = f"{prefix}{naming.encoder_level}"
    first = f"{naming.block.format(n=0)}.conv2.weight"
    levels = [
        level.format(level=n) for n in range(count_layers(source, level.replace("level", "n") + f".{first}"))
    ]
    widths = [shape_of(source, f"{each}.{first}", 4)[0] for each in levels]
    channels = shape_of(source, f"{prefix}encoder.conv_in.weight", 4)[0]
    codes, latent_channels = shape_of(source, f"{prefix}quantize.embedding.weight", 2)
    if not widths or channels < 1 or any(width % channels for width in widths):
        raise ValueError(
            f"{source.path}: its levels have {widths} channels, expected multiples of the first layer's "
            f"{channels}. The file is incomplete or damaged: get it again"
        )
    attention = naming.attention.format(n=0)
    return MoVQConfig(
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        res_blocks=count_layers(source, f"{levels[0]}.{naming.block}.conv2.weight"),
        attention=tuple(
            number
            for number, each in enumerate(levels)
            if any(name.startswith(f"{each}.{attention}.") for name in source.shapes)
        ),
        latent_channels=latent_channels,
        picture_channels=shape_of(source, f"{prefix}encoder.conv_in.weight", 4)[1],
        codes=codes,
    )
