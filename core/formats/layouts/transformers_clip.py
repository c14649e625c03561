"""CLIP encoders in transformers' layout.

That is ``CLIPTextModelWithProjection``, ``CLIPVisionModelWithProjection``, and ``CLIPModel``, which is both.
A folder holds the weights and ``config.json``; the two encoders of a model may lie in two folders, as Karlo's
and Kandinsky's do. A file alone works as well: its shapes tell all but what ``clip_settings`` reads beside
it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...embeddings.space import EmbeddingSpace
from ...networks.clip import (
    FULL_MERGES,
    OPENAI_MEAN,
    OPENAI_STD,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
)
from ...stages import ClipStage
from ..files.clip_tokenizer import END, START, ClipTokenizer
from ..files.json_files import read_json
from ..files.source import open_weights
from ..files.weight_source import WeightSource, join_sources, source_of_tensors
from ..mapping.clip_towers import MAX_LOGIT_SCALE, clip_model_space, load_clip, text_config, vision_config
from ..mapping.keymap import Rule, concatenated, count_layers, shape_of
from .clip_settings import PICTURE_CONFIGS, ClipSettings, assume_gelu, joined_settings, read_clip_settings
from .diffusers_files import open_component
from .layout import Layout, has_keys

_TEXT, _VISION = "text_model.", "vision_model."


def _transposed(weight: Tensor) -> Tensor:
    return weight.T


def _block_rules(source: str, target: str) -> tuple[Rule, ...]:
    """The layers of a transformer; queries, keys and values lie apart in the file."""
    layer, block = f"{source}encoder.layers.{{n}}.", f"{target}transformer.resblocks.{{n}}."
    joined = (
        Rule(
            tuple(f"{layer}self_attn.{part}_proj.{kind}" for part in "qkv"),
            f"{block}attn.in_proj_{kind}",
            concatenated,
        )
        for kind in ("weight", "bias")
    )
    return (
        *joined,
        Rule(f"{layer}self_attn.out_proj", f"{block}attn.out_proj"),
        Rule(f"{layer}layer_norm1", f"{block}ln_1"),
        Rule(f"{layer}layer_norm2", f"{block}ln_2"),
        Rule(f"{layer}mlp.fc1", f"{block}mlp.c_fc"),
        Rule(f"{layer}mlp.fc2", f"{block}mlp.c_proj"),
    )


_TEXT_RULES = (
    Rule("text_model.embeddings.token_embedding.weight", "clip.token_embedding.weight"),
    Rule("text_model.embeddings.position_embedding.weight", "clip.positional_embedding"),
    Rule("text_model.embeddings.position_ids", None),
    Rule("text_model.final_layer_norm", "clip.ln_final"),
    Rule("text_projection.weight", "clip.text_projection", _transposed),
    *_block_rules(_TEXT, "clip."),
)
_VISION_RULES = (
    Rule("vision_model.embeddings.class_embedding", "clip.visual.class_embedding"),
    Rule("vision_model.embeddings.patch_embedding.weight", "clip.visual.conv1.weight"),
    Rule("vision_model.embeddings.position_embedding.weight", "clip.visual.positional_embedding"),
    Rule("vision_model.embeddings.position_ids", None),
    Rule("vision_model.pre_layrnorm", "clip.visual.ln_pre"),  # transformers' spelling
    Rule("vision_model.post_layernorm", "clip.visual.ln_post"),
    Rule("visual_projection.weight", "clip.visual.proj", _transposed),
    *_block_rules(_VISION, "clip.visual."),
)
_SCALE_RULE = Rule("logit_scale", "clip.logit_scale")


def load_transformers_clip(
    text_encoder: str | Path | None = None,
    image_encoder: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    space: EmbeddingSpace | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ClipStage:
    """Load a CLIP model from the folders (or files) of its encoders.

    Args:
        text_encoder, image_encoder: folder or weights of each; one of them may be missing, and one folder
            of a ``CLIPModel`` holds both.
        tokenizer: folder of the tokenizer, checked to be CLIP's own, which is open_clip's; None checks
            nothing.
        space: of the embeddings, where it is known; None tells it by ``clip_model_space``.

    Raises:
        ValueError: nothing to load, folders without weights, encoders that do not belong together, another
            kind of transformer or tokenizer than CLIP's, or weights that are incomplete.
    """
    paths = [Path(path) for path in (text_encoder, image_encoder) if path is not None]
    if not paths:
        raise ValueError("CLIP: neither a text encoder nor an image encoder is given; expected at least one")
    sources = [
        open_component(path, dtype) if path.is_dir() else open_weights(path) for path in dict.fromkeys(paths)
    ]
    if tokenizer is not None:
        require_clip_tokenizer(Path(tokenizer))
    return _load(sources, space, device, dtype)


def require_clip_tokenizer(folder: Path) -> None:
    """Raise a ValueError unless the ``vocab.json`` of a tokenizer's folder is CLIP's vocabulary."""
    path = folder / "vocab.json"
    if not path.is_file():
        raise ValueError(
            f"{folder}: has no vocab.json; expected the folder of CLIP's tokenizer. Download it again"
        )
    found, own = read_json(path), ClipTokenizer(FULL_MERGES, context_length=77).vocabulary
    names = {START: "<|startoftext|>", END: "<|endoftext|>"}
    if found != {names.get(token, token): index for token, index in own.items()}:
        raise ValueError(
            f"{path}: is not the vocabulary of CLIP ({len(own)} tokens), found {len(found)} tokens; unclip "
            f"reads captions with CLIP's own. Choose a CLIP model with that tokenizer"
        )


def _load_file(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ClipStage:
    return _load([source], None, device, dtype)


def _load(
    sources: list[WeightSource],
    space: EmbeddingSpace | None,
    device: torch.device | str,
    dtype: torch.dtype | None,
) -> ClipStage:
    parts = [("", source) for source in sources]
    path = sources[0].path
    if not any("logit_scale" in source.shapes for source in sources):
        dtype_of_file = next((kind for kind in sources[0].dtypes.values() if kind.is_floating_point), None)
        scale = torch.tensor(MAX_LOGIT_SCALE, dtype=dtype_of_file)
        parts.append(("", source_of_tensors(path, {"logit_scale": scale})))
    joined = join_sources(path, parts)
    if len(joined.shapes) != sum(len(source.shapes) for _, source in parts):
        raise ValueError(
            f"{path} and {sources[-1].path}: hold the same encoder twice; give a text encoder and an image "
            f"encoder"
        )
    settings = [read_clip_settings(source.path, transformers=True) for source in sources]
    config = _config(joined, joined_settings(path, settings))
    return load_clip(config, joined, _rules(config), space=space, device=device, dtype=dtype)


def _rules(config: ClipConfig) -> tuple[Rule, ...]:
    return (
        *(_TEXT_RULES if config.text is not None else ()),
        *(_VISION_RULES if config.vision is not None else ()),
        _SCALE_RULE,
    )


def transformers_clip_config(source: WeightSource) -> ClipConfig:
    """The config from the shapes and the files beside the weights, as the loaded network has it."""
    return _config(source, read_clip_settings(source.path, transformers=True), tell=False)


def _config(source: WeightSource, settings: ClipSettings, tell: bool = True) -> ClipConfig:
    """The config from the shapes and from what lies beside the weights; ``tell`` what had to be assumed."""
    text = vision = None
    widths = []
    if any(name.startswith(_TEXT) for name in source.shapes):
        text = _text(source, settings, tell)
        widths.append(shape_of(source, "text_projection.weight", 2)[0])
    if any(name.startswith(_VISION) for name in source.shapes):
        vision = _vision(source, settings, tell)
        widths.append(shape_of(source, "visual_projection.weight", 2)[0])
        settings.require_picture_size(source.path, vision.image_size)
    if len(set(widths)) != 1:
        raise ValueError(
            f"{source.path}: its text encoder has embeddings of {widths[0]} dimensions and its image encoder "
            f"of {widths[1]}; they belong to different CLIP models. Choose the two of one model"
            if widths
            else f"{source.path}: holds no CLIP encoder; expected text_model. or vision_model. tensors"
        )
    quick = settings.quick_gelu
    if quick is None:
        quick = widths[0] <= 768  # OpenAI's sizes
        if tell:
            assume_gelu(source.path, quick, f"as the published models of {widths[0]} dimensions have it")
    return ClipConfig(
        widths[0],
        vision,
        text,
        quick_gelu=quick,
        image_mean=settings.image_mean or OPENAI_MEAN,
        image_std=settings.image_std or OPENAI_STD,
    )


def _text(source: WeightSource, settings: ClipSettings, tell: bool) -> ClipTextConfig:
    embedding = shape_of(source, "text_model.embeddings.token_embedding.weight", 2)
    return text_config(
        source.path,
        embedding,
        shape_of(source, "text_model.embeddings.position_embedding.weight", 2),
        count_layers(source, "text_model.encoder.layers.{n}"),
        shape_of(source, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        settings.heads_of_text(source.path, embedding[1], tell),
    )


def _vision(source: WeightSource, settings: ClipSettings, tell: bool) -> ClipVisionConfig:
    patches = shape_of(source, "vision_model.embeddings.patch_embedding.weight", 4)
    return vision_config(
        source.path,
        patches,
        shape_of(source, "vision_model.embeddings.position_embedding.weight", 2),
        count_layers(source, "vision_model.encoder.layers.{n}"),
        shape_of(source, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        settings.heads_of_vision(source.path, patches[0], tell),
    )


def _matches(source: WeightSource) -> bool:
    text = has_keys("text_model.embeddings.token_embedding.weight", "text_projection.weight")
    vision = has_keys("vision_model.embeddings.patch_embedding.weight", "visual_projection.weight")
    return text(source) or vision(source)


def _space(source: WeightSource) -> str:
    config = transformers_clip_config(source)
    return clip_model_space(config).id


TRANSFORMERS_CLIP_LAYOUTS = (
    Layout(
        "CLIP (transformers)",
        "clip",
        _matches,
        _load_file,
        transformers_clip_config,
        _space,
        reads=PICTURE_CONFIGS,
    ),
)
