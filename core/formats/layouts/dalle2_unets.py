"""A U-Net of DALLE2-pytorch's ``Decoder``: its shape from tensors and settings, and its layers' names.

Sources: ``Unet`` and ``Decoder`` of versions 0.24 to 1.15.6 (``dalle2_pytorch.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...networks.conditioning import ConditioningConfig
from ...networks.dalle2_unet_config import Dalle2UNetConfig, Grow, Shrink
from ..files.json_files import read_json
from ..files.torch_pickle import release_of
from ..files.weight_source import WeightSource
from ..mapping.keymap import Rule, count_layers, shape_of

CONFIG_FILE = "decoder_config.json"

_NOT_THE_NETWORK = ("clip", "vaes", "noise_schedulers", "lowres_conds")
_SIZES = (64, 256, 1024)  # of the U-Nets of a file that says nothing
# Releases of the package that changed what is computed and no name in its files.
_OLDEST, _UNIT_VALUES, _TWICE_SCALED = (0, 24, 0), (1, 4, 0), (1, 4, 3)
_ASSUMED = (1, 1, 0)

_log = logging.getLogger(__name__)


class UNetFile:
    """A U-Net of a file: its names, and the settings that are its own."""

    def __init__(self, source: WeightSource, number: int) -> None:
        self.source, self.number = source, number
        self.prefix = f"unets.{number}."
        self.whole, self.where = _described(source)
        decoder = _table(self.whole.get("decoder"))
        self.decoder: Mapping[str, Any] = decoder or self.whole
        unets = self.decoder.get("unets")
        own = unets[number] if isinstance(unets, list) and number < len(unets) else {}
        self.unet = _table(own)
        in_file = [name.split(".")[1] for name in source.shapes if name.startswith("unets.")]
        self.count = max(len(unets) if isinstance(unets, list) else 0, *(int(n) + 1 for n in in_file))

    def has(self, name: str) -> bool:
        return self.prefix + name in self.source.shapes

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        return shape_of(self.source, self.prefix + name, ndim)

    def layers(self, pattern: str) -> int:
        return count_layers(self.source, self.prefix + pattern)

    def of_unet(self, name: str, default: Any) -> Any:
        """A setting of the decoder that may be a list with a value for each U-Net; the last ones may lack."""
        value = self.decoder.get(name)
        if isinstance(value, list):
            value = value[self.number] if self.number < len(value) else None
        return default if value is None else value


def unet_config(file: UNetFile, tell: bool = True) -> Dalle2UNetConfig:
    """The shape of a U-Net from its weights, and what its version and settings make of them."""
    channels = file.shape("to_time_hiddens.1.weight", 2)[1]
    context = file.shape("norm_cond.weight", 1)[0]
    levels = file.layers("downs.{n}")
    out = file.shape("to_out.weight", 4)
    if file.has("init_conv.weight"):
        first = [file.shape("init_conv.weight", 4)]
    else:
        kernels = range(file.layers("init_conv.convs.{n}"))
        first = [file.shape(f"init_conv.convs.{n}.weight", 4) for n in kernels]
    concat = out[1] - channels
    efficient = file.has("init_resnet_block.block1.project.weight")
    middle, cross = "mid_attn.fn.fn.", f"mid_block1.{_cross(file)}"
    head_dim, cross_head_dim = file.shape(f"{middle}null_kv", 2)[1], file.shape(f"{cross}null_kv", 2)[1]
    groups = file.unet.get("resnet_groups", 8)
    shrink = _shrink(file, levels, efficient)
    version = _version(file, shrink, tell)
    self_attention = tuple(file.has(f"downs.{n}.3.fn.fn.to_q.weight") for n in range(levels))
    return Dalle2UNetConfig(
        image_size=image_size(file),
        in_channels=first[0][1] - concat,
        out_channels=out[0],
        concat_channels=concat,
        channels=channels,
        channel_mult=tuple(
            file.shape(f"ups.{levels - 1 - n}.0.block1.project.weight", 4)[0] // channels
            for n in range(levels)
        ),
        res_blocks=tuple(file.layers(f"downs.{n}.2.{{n}}") for n in range(levels)),
        self_attention=self_attention,
        linear_attention=any(file.has(f"downs.{n}.3.fn.to_qkv.weight") for n in range(levels)),
        heads=file.shape(f"{middle}to_q.weight", 2)[0] // head_dim,
        head_dim=head_dim,
        cross_heads=file.shape(f"{cross}to_q.weight", 2)[0] // cross_head_dim,
        cross_head_dim=cross_head_dim,
        groups=tuple(groups) if isinstance(groups, list) else (groups,) * levels,
        context_dim=context,
        time_tokens=file.shape("to_time_tokens.0.weight", 2)[0] // context,
        clip_hidden=file.has("to_image_hiddens.0.weight"),
        text_length=file.shape("null_text_embed", 3)[1],
        noise_level=file.has("to_lowres_noise_cond.1.weight"),
        memory_efficient=efficient,
        shrink=shrink,
        grow=_grow(file, levels),
        first_kernels=tuple(each[2] for each in first),
        last_kernel=out[2],
        scale_skips=bool(file.unet.get("scale_skip_connection", False)),
        cosine_self=bool(file.unet.get("cosine_sim_self_attn", False)),
        cosine_cross=bool(file.unet.get("cosine_sim_cross_attn", False)),
        self_scale=1.0 if version >= _TWICE_SCALED else 0.5,
        normalised_values=version >= _UNIT_VALUES,
        conditioning=_conditioning(file, context),
    )


def _conditioning(file: UNetFile, context: int) -> ConditioningConfig | None:
    clip = file.shape("image_to_tokens.0.weight", 2) if file.has("image_to_tokens.0.weight") else None
    text = file.shape("text_to_cond.weight", 2) if file.has("text_to_cond.weight") else None
    if clip is None and text is None:
        return None
    return ConditioningConfig(
        clip_dim=None if clip is None else clip[1],
        clip_tokens=0 if clip is None else clip[0] // context,
        text_dim=None if text is None else text[1],
        context_dim=context,
        norm_text=False,
        read_padding=True,
    )


def _cross(file: UNetFile) -> str:
    """Before version 1.14 another module lay around it."""
    return "cross_attn.fn." if file.has("mid_block1.cross_attn.fn.null_kv") else "cross_attn."


def _shrink_place(efficient: bool, level: int) -> str:
    return f"downs.{level}.{0 if efficient else 4}."


def _shrink(file: UNetFile, levels: int, efficient: bool) -> Shrink:
    place = _shrink_place(efficient, 0)
    if levels == 1 and not efficient:
        return "shuffle"  # nothing shrinks
    if file.has(f"{place}convs.0.weight"):
        return "kernels"
    return "shuffle" if file.has(f"{place}1.weight") else "convolution"


def _grow(file: UNetFile, levels: int) -> Grow:
    return "nearest" if any(file.has(f"ups.{n}.3.1.weight") for n in range(levels)) else "shuffle"


def image_size(file: UNetFile) -> int:
    sizes = file.decoder.get("image_sizes")
    sizes = sizes if isinstance(sizes, list) else [file.decoder.get("image_size")]
    if file.number < len(sizes) and all(type(size) is int for size in sizes):
        return sorted(sizes)[file.number]
    if file.number >= len(_SIZES):
        raise ValueError(f"{file.where}: does not say how large the pictures of U-Net {file.number + 1} are")
    return _SIZES[file.number]


def _version(file: UNetFile, shrink: Shrink, tell: bool) -> tuple[int, ...]:
    """Of which release of the package a file is: its weights have the names of several.

    Raises:
        ValueError: a release whose network is not computed here.
    """
    said = file.source.metadata.get("version"), file.whole.get("version")
    version = next((found for each in said if (found := release_of(each)) is not None), None)
    if version is None:
        if shrink == "shuffle":
            return _TWICE_SCALED  # what shrinks so is of a later release
        if tell:
            _log.warning(
                "%s: does not say by which version of DALLE2-pytorch it was made; it is read as of %s. If "
                'its pictures are noise, put {"version": "1.6.0"} (that which trained it; from 1.4.0 on '
                "attention is another) into %s beside it",
                file.source.path,
                ".".join(map(str, _ASSUMED)),
                CONFIG_FILE,
            )
        return _ASSUMED
    if version < _OLDEST:
        raise ValueError(
            f"{file.where}: was made by DALLE2-pytorch {'.'.join(map(str, version))}, whose network is not "
            f"read; expected {'.'.join(map(str, _OLDEST))} or later. Choose a later checkpoint"
        )
    return version


def dalle2_unet_rules(config: Dalle2UNetConfig, file: UNetFile) -> list[Rule]:
    """The names of a U-Net's layers, and what else the file holds."""
    p = file.prefix
    names: dict[str, str] = {
        "to_time_hiddens.1": "time_hidden",
        "to_time_tokens.0": "time_tokens",
        "to_time_cond.0": "time_embed",
        "norm_cond": "norm_context",
        "norm_mid_cond": "norm_middle_context",
        "to_out": "conv_out",
        **_kernels(file, "init_conv", "conv_in"),
        **_residual(file, "final_resnet_block", "last"),
        **_residual(file, "mid_block1", "middle.0"),
        **_attention("mid_attn.fn.fn.", "middle_attention"),
        **_residual(file, "mid_block2", "middle.1"),
    }
    if config.noise_level:
        names |= {"to_lowres_noise_cond.1": "noise_hidden", "to_lowres_noise_cond.3": "noise_embed"}
    if config.memory_efficient:
        names |= _residual(file, "init_resnet_block", "first")
    levels = len(config.channel_mult)
    for n in range(levels):
        names |= _level(file, config, f"downs.{n}.", f"encoder.{n}.", n)
        names |= _up_level(file, config, f"ups.{levels - 1 - n}.", f"decoder.{levels - 1 - n}.", n)
    given = config.conditioning
    nulls = {"null_image_embed": None, "null_image_hiddens": None, "null_text_embed": None}
    moved: dict[str, str | None] = dict(nulls)
    if given is not None and given.clip_dim is not None:
        names["image_to_tokens.0"] = "clip_tokens"
        moved["null_image_embed"] = "null_clip_tokens"
        if config.clip_hidden:
            names["to_image_hiddens.0"] = "clip_embed"
            moved["null_image_hiddens"] = "null_clip_embed"
    if given is not None and given.text_dim is not None:
        names["text_to_cond"] = "text_tokens"
        moved["null_text_embed"] = "null_text_tokens"
    others = {name.split(".")[1] for name in file.source.shapes if name.startswith("unets.")}
    return [
        # Gains of channels are [1, D, 1, 1].
        *(
            Rule(p + source, target, _flat if source.endswith(".g") else None)
            for source, target in names.items()
        ),
        *(Rule(p + source, target, _without_batch if target else None) for source, target in moved.items()),
        *(Rule(f"unets.{number}", None) for number in sorted(others) if number != str(file.number)),
        *(Rule(name, None) for name in _NOT_THE_NETWORK),
    ]


def _kernels(file: UNetFile, source: str, target: str) -> dict[str, str]:
    if file.has(f"{source}.weight"):
        return {source: f"{target}.convs.0"}
    count = file.layers(f"{source}.convs.{{n}}")
    return {f"{source}.convs.{n}": f"{target}.convs.{n}" for n in range(count)}


def _residual(file: UNetFile, source: str, target: str) -> dict[str, str]:
    names = {f"{source}.time_mlp.1": f"{target}.embed", f"{source}.res_conv": f"{target}.skip"}
    for theirs, ours in (("block1", "first"), ("block2", "second")):
        names[f"{source}.{theirs}.project"] = f"{target}.{ours}.conv"
        names[f"{source}.{theirs}.norm"] = f"{target}.{ours}.norm"
    return names | _attention(f"{source}.{_cross(file)}", f"{target}.cross")


def _attention(source: str, target: str) -> dict[str, str]:
    return {
        f"{source}norm.g": f"{target}.norm.gain",
        f"{source}to_q": f"{target}.q",
        f"{source}to_kv": f"{target}.kv",
        f"{source}null_kv": f"{target}.null_kv",
        f"{source}to_out.0": f"{target}.out",
        f"{source}to_out.1.g": f"{target}.norm_out.gain",
    }


def _places(file: UNetFile, config: Dalle2UNetConfig, source: str, target: str, level: int) -> dict[str, str]:
    """The attention of a level."""
    if config.self_attention[level]:
        return _attention(f"{source}fn.fn.", target)
    if not config.linear_attention:
        return {}
    return {
        f"{source}fn.norm.g": f"{target}.norm.norm.gain",
        f"{source}fn.to_qkv": f"{target}.qkv",
        f"{source}fn.to_out.0": f"{target}.out",
        f"{source}fn.to_out.1.g": f"{target}.norm_out.norm.gain",
    }


def _level(file: UNetFile, config: Dalle2UNetConfig, source: str, target: str, level: int) -> dict[str, str]:
    names = _residual(file, f"{source}1", f"{target}first")
    for n in range(config.res_blocks[level]):
        names |= _residual(file, f"{source}2.{n}", f"{target}blocks.{n}")
    names |= _places(file, config, f"{source}3.", f"{target}attention", level)
    last = level == len(config.channel_mult) - 1
    if config.memory_efficient:
        names |= _shrinking(config, f"{source}0", f"{target}shrink.conv")
    if config.memory_efficient or last:
        return names | {f"{source}4": f"{target}out"}
    return names | _shrinking(config, f"{source}4", f"{target}out.conv")


def _shrinking(config: Dalle2UNetConfig, source: str, target: str) -> dict[str, str]:
    if config.shrink == "kernels":
        return {f"{source}.convs.{n}": f"{target}.convs.{n}" for n in range(2)}
    return {f"{source}.1" if config.shrink == "shuffle" else source: target}


def _up_level(
    file: UNetFile, config: Dalle2UNetConfig, source: str, target: str, level: int
) -> dict[str, str]:
    names = _residual(file, f"{source}0", f"{target}first")
    for n in range(config.res_blocks[level]):
        names |= _residual(file, f"{source}1.{n}", f"{target}blocks.{n}")
    names |= _places(file, config, f"{source}2.", f"{target}attention", level)
    if level > 0 or config.memory_efficient:
        names[f"{source}3.net.0" if config.grow == "shuffle" else f"{source}3.1"] = f"{target}grow.conv"
    return names


def _described(source: WeightSource) -> tuple[Mapping[str, Any], Path]:
    """The config in the file or beside it, and where it is."""
    config, where = source.metadata.get("config"), source.path
    beside = source.path.with_name(CONFIG_FILE)
    if not isinstance(config, Mapping) and beside.is_file():
        config, where = read_json(beside), beside
    return _table(config), where


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def _without_batch(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0)
