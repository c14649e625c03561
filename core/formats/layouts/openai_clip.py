"""OpenAI's CLIP files (TorchScript or state dict) and open_clip's checkpoints, which share one layout.

The layout is that of openai/CLIP, `model.py`: the image encoder under ``visual.``, the text encoder bare.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...networks.clip import ClipConfig
from ...stages import ClipStage
from ..files.weight_source import WeightSource
from ..mapping.clip_towers import clip_model_space, load_clip, text_config, vision_config
from ..mapping.keymap import Rule, count_layers, shape_of
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
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def load_openai_clip(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ClipStage:
    """Load both encoders.

    Raises:
        ValueError: tensors that are missing, left over or of a wrong shape; another vocabulary than CLIP's.
    """
    source = _weights(source)
    quick_gelu = _is_from_openai(source)
    return load_clip(openai_clip_config(source, quick_gelu), source, _RULES, device=device, dtype=dtype)


def openai_clip_config(source: WeightSource, quick_gelu: bool = True) -> ClipConfig:
    """The config from the shapes; ``quick_gelu`` counts for the sizes that OpenAI published, too."""
    conv = shape_of(source, "visual.conv1.weight", 4)
    vision = vision_config(
        source.path,
        conv,
        shape_of(source, "visual.positional_embedding", 2),
        count_layers(source, "visual.transformer.resblocks.{n}"),
        shape_of(source, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        None,
    )
    text = text_config(
        source.path,
        shape_of(source, "token_embedding.weight", 2),
        shape_of(source, "positional_embedding", 2),
        count_layers(source, "transformer.resblocks.{n}"),
        shape_of(source, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        None,
    )
    return ClipConfig(shape_of(source, "text_projection", 2)[1], vision, text, quick_gelu=quick_gelu)


def _weights(source: WeightSource) -> WeightSource:
    shapes = {
        name: shape for name, shape in source.shapes.items() if name.rpartition(".")[2] not in _NOT_WEIGHTS
    }
    return replace(source, shapes=shapes, dtypes={name: source.dtypes[name] for name in shapes})


def _is_from_openai(source: WeightSource) -> bool:
    """Whether the weights are OpenAI's, which need the quick GELU: the layout of LAION's is the same.

    OpenAI published half precision, and files made from theirs hold its values, in whatever type; LAION's are
    in full precision. LAION's larger models have sizes that OpenAI did not publish.
    """
    if shape_of(source, "visual.conv1.weight", 4)[0] > 1024:
        return False
    weight = source.tensor("visual.conv1.weight")
    return torch.equal(weight, weight.half().to(weight.dtype))


OPENAI_CLIP_LAYOUTS = (
    Layout(
        "CLIP (OpenAI's, open_clip's)",
        "clip",
        has_keys("visual.conv1.weight", "visual.proj", "token_embedding.weight", "text_projection"),
        load_openai_clip,
        openai_clip_config,
        lambda source: clip_model_space(shape_of(source, "text_projection", 2)[1], True).id,
    ),
)
