"""OpenAI's CLIP files (TorchScript or state dict) and open_clip's checkpoints, which share one layout.

The layout is that of openai/CLIP, `model.py`: the image encoder under ``visual.``, the text encoder bare.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...networks.clip import OPENAI_MEAN, OPENAI_STD, ClipConfig
from ...stages import ClipStage
from ..files.weight_source import WeightSource
from ..mapping.clip_towers import clip_model_space, load_clip, text_config, vision_config
from ..mapping.keymap import Rule, count_layers, shape_of
from ..mapping.number_types import computable
from .clip_settings import ClipSettings, assume_gelu, read_clip_settings
from .layout import Layout, has_keys

_PARTS = (
    "visual",
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "text_projection",
    "logit_scale",
)
_RULES = tuple(Rule(name, f"clip.{name}") for name in _PARTS)

# Numbers and masks that OpenAI's archives hold beside the weights (openai/CLIP's `build_model` drops them).
_ARCHIVE = ("input_resolution", "context_length", "vocab_size")
_NOT_WEIGHTS = (*_ARCHIVE, "attn_mask")


def load_openai_clip(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ClipStage:
    """Load both encoders.

    Raises:
        ValueError: tensors that are missing, left over or of a wrong shape; another vocabulary than CLIP's.
    """
    settings = read_clip_settings(source.path, transformers=False)
    weights = _weights(source)
    config = _config(weights, settings, _quick_gelu(source, settings, tell=True), tell=True)
    return load_clip(config, weights, _RULES, device=device, dtype=dtype)


def openai_clip_config(source: WeightSource, quick_gelu: bool | None = None) -> ClipConfig:
    """The config from the shapes and the files beside the weights; None asks these for the kind of GELU."""
    settings = read_clip_settings(source.path, transformers=False)
    quick = _quick_gelu(source, settings, tell=False) if quick_gelu is None else quick_gelu
    return _config(source, settings, quick, tell=False)


def _config(source: WeightSource, settings: ClipSettings, quick_gelu: bool, tell: bool) -> ClipConfig:
    conv = shape_of(source, "visual.conv1.weight", 4)
    vision = vision_config(
        source.path,
        conv,
        shape_of(source, "visual.positional_embedding", 2),
        count_layers(source, "visual.transformer.resblocks.{n}"),
        shape_of(source, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        settings.heads_of_vision(source.path, conv[0], tell),
    )
    settings.require_picture_size(source.path, vision.image_size)
    embedding = shape_of(source, "token_embedding.weight", 2)
    text = text_config(
        source.path,
        embedding,
        shape_of(source, "positional_embedding", 2),
        count_layers(source, "transformer.resblocks.{n}"),
        shape_of(source, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        settings.heads_of_text(source.path, embedding[1], tell),
    )
    return ClipConfig(
        shape_of(source, "text_projection", 2)[1],
        vision,
        text,
        quick_gelu=quick_gelu,
        image_mean=settings.image_mean or OPENAI_MEAN,
        image_std=settings.image_std or OPENAI_STD,
    )


def _weights(source: WeightSource) -> WeightSource:
    shapes = {
        name: shape for name, shape in source.shapes.items() if name.rpartition(".")[2] not in _NOT_WEIGHTS
    }
    return replace(source, shapes=shapes, dtypes={name: source.dtypes[name] for name in shapes})


def _quick_gelu(source: WeightSource, settings: ClipSettings, tell: bool) -> bool:
    """Whether the weights need the quick GELU, as OpenAI's do: the layout of LAION's is the same.

    What lies beside the file counts first. OpenAI's own archives are known by the numbers beside the weights.
    Otherwise: OpenAI published half precision, and files made from theirs hold its values, in whatever type;
    LAION's are in full precision, and their larger models have sizes that OpenAI did not publish.
    """
    if settings.quick_gelu is not None:
        return settings.quick_gelu
    if all(name in source.shapes for name in _ARCHIVE):
        return True
    if shape_of(source, "visual.conv1.weight", 4)[0] > 1024:
        quick, why = False, "since OpenAI published none of this size"
    else:
        weight = computable(source.tensor("visual.conv1.weight"))
        quick = torch.equal(weight, weight.half().to(weight.dtype))
        why = "since its weights have full precision, unlike OpenAI's"
        if quick:
            why = "since its weights are those of half precision, as OpenAI's are"
    return assume_gelu(source.path, quick, why) if tell else quick


def _space(source: WeightSource) -> str:
    config = openai_clip_config(source)
    return clip_model_space(config).id


OPENAI_CLIP_LAYOUTS = (
    Layout(
        "CLIP (OpenAI's, open_clip's)",
        "clip",
        has_keys("visual.conv1.weight", "visual.proj", "token_embedding.weight", "text_projection"),
        load_openai_clip,
        openai_clip_config,
        _space,
    ),
)
