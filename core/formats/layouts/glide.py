"""GLIDE's published files (openai/glide-text2im): ``base.pt``, ``upsample.pt`` and both for inpainting.

Each holds a text encoder and a U-Net that were trained together, unprefixed in one state dict: as a CLIP
model it gives its text encoder, as a decoder or upsampler its U-Net. Text features belong to the file they
come from, so every file has a space of its own. What `model_creation.py` says and the weights do not is
written down here.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from ...diffusion.spec import DiffusionSpec
from ...embeddings.space import EmbeddingSpace
from ...networks.conditioning import ConditioningConfig
from ...networks.glide_text import GlideText, GlideTextConfig
from ...networks.unet import UNet
from ...networks.unet_config import UNetConfig
from ...stages import ClipStage, DecoderStage, UpsamplerConditions, UpsamplerStage
from ..files.gpt2_tokenizer import TABLES, VOCABULARY, load_gpt2_tokenizer
from ..files.weight_source import WeightSource
from ..mapping.keymap import Rule, count_layers, load_network, shape_of
from ..mapping.unet_rules import heads_last, original_config, original_rules
from .layout import Layout

LICENCE = "MIT"
HEAD_DIM = 64
SCALE = 4

BASE_DIFFUSION = DiffusionSpec("cosine", prediction="eps", variance="learned_range", clip_x0=1.0)
UPSAMPLER_DIFFUSION = replace(BASE_DIFFUSION, schedule="linear")
UPSAMPLER_RECIPE = UpsamplerConditions(resize="bilinear", quantise=True, noise_scale=0.997)

_KINDS = {3: "base", 6: "upsample", 7: "base-inpaint", 10: "upsample-inpaint"}  # by input channels
_INPUT = "input_blocks.0.0.weight"
_UPSAMPLING = re.compile(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight")  # behind each level but one
_TEXT = ("transformer", "final_ln", "token_embedding", "positional_embedding", "padding_embedding")
_BLOCK = "transformer.resblocks.{n}."
_TEXT_RULES = (
    Rule("token_embedding", "token_embedding"),
    Rule("positional_embedding", "positions"),
    Rule("padding_embedding", "padding"),
    Rule("final_ln", "norm_out"),
    Rule(f"{_BLOCK}ln_1", "blocks.{n}.attention_norm"),
    Rule(f"{_BLOCK}attn.c_qkv", "blocks.{n}.qkv", heads_last(3, HEAD_DIM)),
    Rule(f"{_BLOCK}attn.c_proj", "blocks.{n}.attention_out"),
    Rule(f"{_BLOCK}ln_2", "blocks.{n}.mlp_norm"),
    Rule(f"{_BLOCK}mlp.c_fc", "blocks.{n}.mlp_in"),
    Rule(f"{_BLOCK}mlp.c_proj", "blocks.{n}.mlp_out"),
)


def _fast27() -> tuple[int, ...]:
    """The upsampler's timesteps (`respace.py`, "fast27"): denser where there is little noise."""
    sections = (10, 10, 3, 2, 2)
    length = 1000 // len(sections)
    steps = {
        start * length + round(index * (length - 1) / (count - 1))
        for start, count in enumerate(sections)
        for index in range(count)
    }
    return tuple(sorted(steps - {999} | {997}))


UPSAMPLER_TIMESTEPS = _fast27()


def glide_text_config(source: WeightSource) -> GlideTextConfig:
    """The shape of the text encoder from its weights."""
    vocabulary, width = shape_of(source, "token_embedding.weight", 2)
    return GlideTextConfig(
        width=width,
        layers=count_layers(source, "transformer.resblocks.{n}"),
        heads=max(1, width // HEAD_DIM),
        text_length=shape_of(source, "positional_embedding", 2)[0],
        vocab_size=vocabulary,
    )


def glide_unet_config(source: WeightSource) -> UNetConfig:
    """The shape of the U-Net from its weights."""
    width = shape_of(source, "transformer_proj.weight", 2)[1]
    conditioning = ConditioningConfig(
        text_dim=width,
        text_pooled_dim=width,
        context_dim=width,
        project_text=False,
        null_text="empty_caption",
    )
    levels = 1 + sum(_UPSAMPLING.fullmatch(name) is not None for name in source.shapes)
    return original_config(
        source,
        "",
        image_size=2 ** (levels + 2),  # `create_model`: 64 pixels have four levels, 256 six
        head_dim=HEAD_DIM,
        conditioning=conditioning,
    )


def load_glide_text(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ClipStage:
    """The text encoder, which stands where a CLIP model does.

    Raises:
        ValueError: tensors that are missing, left over or of a wrong shape; no GPT-2 tokenizer at hand.
    """
    part = _part(source, text=True)
    config = glide_text_config(part)
    if config.vocab_size != VOCABULARY:
        raise ValueError(
            f"{source.path}: token_embedding.weight has {config.vocab_size} tokens, expected {VOCABULARY} as "
            f"GPT-2's tokenizer has. Get the original file"
        )
    network = load_network(lambda: GlideText(config), part, _TEXT_RULES, device=device, dtype=dtype)
    tokenizer = load_gpt2_tokenizer(source.path.parent, config.text_length)
    return ClipStage(network, tokenizer, glide_space(source), str(source.path))


def load_glide_decoder(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> DecoderStage:
    """The U-Net of a base model.

    Raises:
        ValueError: tensors that are missing, left over or of a wrong shape.
    """
    return DecoderStage(
        _load_unet(source, device, dtype), glide_space(source), BASE_DIFFUSION, str(source.path)
    )


def load_glide_upsampler(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> UpsamplerStage:
    """The U-Net of an upsampler, which reads captions as well; see :func:`load_glide_decoder`."""
    network = _load_unet(source, device, dtype)
    return UpsamplerStage(
        network,
        network.config.image_size // SCALE,
        UPSAMPLER_DIFFUSION,
        UPSAMPLER_TIMESTEPS,
        str(source.path),
        glide_space(source),
        UPSAMPLER_RECIPE,
    )


def glide_space(source: WeightSource) -> EmbeddingSpace:
    """The space of a file's text features; its name tells which of the four files it is."""
    channels = shape_of(source, _INPUT, 4)[1]
    if channels not in _KINDS:
        raise ValueError(
            f"{source.path}: its U-Net has {channels} input channels, expected one of "
            f"{', '.join(map(str, _KINDS))} as GLIDE's files have. Get the original file"
        )
    return EmbeddingSpace(f"glide/{_KINDS[channels]}", shape_of(source, "transformer_proj.weight", 2)[1])


def _load_unet(source: WeightSource, device: torch.device | str, dtype: torch.dtype | None) -> UNet:
    part = _part(source, text=False)
    config = glide_unet_config(part)
    rules = [*original_rules(config), Rule("transformer_proj", "conditioner.text_embedding")]
    return load_network(lambda: UNet(config), part, rules, device=device, dtype=dtype)


def _part(source: WeightSource, text: bool) -> WeightSource:
    """The text encoder of a file, or all of the rest."""
    shapes = {name: shape for name, shape in source.shapes.items() if (name.split(".")[0] in _TEXT) == text}
    return replace(source, shapes=shapes, dtypes={name: source.dtypes[name] for name in shapes})


def _matches(source: WeightSource, upsampler: bool) -> bool:
    names = (_INPUT, "transformer_proj.weight", "padding_embedding")
    if not all(name in source.shapes for name in names):
        return False
    shape = source.shapes[_INPUT]
    # An inpainting base has more channels than an upsampler: the low resolution is what makes the difference.
    return (len(shape) == 4 and _KINDS.get(shape[1], "").startswith("upsample")) == upsampler


GLIDE_LAYOUTS = (
    Layout(
        "GLIDE base",
        "decoder",
        lambda source: _matches(source, upsampler=False),
        load_glide_decoder,
        glide_unet_config,
        lambda source: glide_space(source).id,
        LICENCE,
    ),
    Layout(
        "GLIDE upsampler",
        "upsampler",
        lambda source: _matches(source, upsampler=True),
        load_glide_upsampler,
        glide_unet_config,
        lambda source: glide_space(source).id,
        LICENCE,
    ),
    Layout(
        "GLIDE text encoder",
        "clip",
        lambda source: _matches(source, upsampler=False) or _matches(source, upsampler=True),
        load_glide_text,
        glide_text_config,
        lambda source: glide_space(source).id,
        LICENCE,
        reads=TABLES,
    ),
)
