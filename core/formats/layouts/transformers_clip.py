"""CLIP encoders in transformers' layout.

That is ``CLIPTextModelWithProjection``, ``CLIPVisionModelWithProjection``, and ``CLIPModel``, which is both.
A folder holds the weights and ``config.json``; the two encoders of a model may lie in two folders, as Karlo's
and Kandinsky's do. A file alone works as well: its shapes tell all but the kind of GELU and the number of
heads, which are then those of the published model of its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...embeddings.space import EmbeddingSpace
from ...networks.clip import OPENAI_MEAN, OPENAI_STD, ClipConfig, ClipTextConfig, ClipVisionConfig
from ...stages import ClipStage
from ..files.json_files import read_json, read_json_object
from ..files.source import open_weights
from ..files.weight_source import WeightSource, join_sources, source_of_tensors
from ..mapping.clip_towers import MAX_LOGIT_SCALE, clip_model_space, load_clip, text_config, vision_config
from ..mapping.keymap import Rule, concatenated, count_layers, shape_of
from .diffusers_files import open_component, read_number
from .layout import Layout, has_keys

_TEXT, _VISION = "text_model.", "vision_model."
_GELU = {"quick_gelu": True, "gelu": False}  # `hidden_act`


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
        space: of the embeddings, where it is known; None tells it by width and kind of GELU.

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
    configs = [_read_config(source.path) for source in sources]
    return _load(sources, configs, space, device, dtype)


def require_clip_tokenizer(folder: Path) -> None:
    """Raise a ValueError unless the ``vocab.json`` of a tokenizer's folder is CLIP's vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer  # lazy: importing it takes seconds

    path = folder / "vocab.json"
    if not path.is_file():
        raise ValueError(
            f"{folder}: has no vocab.json; expected the folder of CLIP's tokenizer. Download it again"
        )
    found, own = read_json(path), SimpleTokenizer().encoder
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    if found != {names.get(token, token): index for token, index in own.items()}:
        raise ValueError(
            f"{path}: is not the vocabulary of CLIP ({len(own)} tokens), found {len(found)} tokens; unclip "
            f"reads captions with CLIP's own. Choose a CLIP model with that tokenizer"
        )


def _load_file(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ClipStage:
    return _load([source], [_read_config(source.path)], None, device, dtype)


def _load(
    sources: list[WeightSource],
    descriptions: list[Mapping[str, Any]],
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
    config = _config(joined, {key: value for each in descriptions for key, value in each.items()})
    return load_clip(config, joined, _rules(config), space=space, device=device, dtype=dtype)


def _rules(config: ClipConfig) -> tuple[Rule, ...]:
    return (
        *(_TEXT_RULES if config.text is not None else ()),
        *(_VISION_RULES if config.vision is not None else ()),
        _SCALE_RULE,
    )


def transformers_clip_config(source: WeightSource) -> ClipConfig:
    """The config from the shapes, as the published model of this size."""
    return _config(source, {})


def _config(source: WeightSource, described: Mapping[str, Any]) -> ClipConfig:
    """The config from the shapes and from what ``config.json`` says of ``text`` and ``vision``."""
    text = vision = None
    widths = []
    if any(name.startswith(_TEXT) for name in source.shapes):
        text = _text(source, described.get("text", {}))
        widths.append(shape_of(source, "text_projection.weight", 2)[0])
    if any(name.startswith(_VISION) for name in source.shapes):
        vision = _vision(source, described.get("vision", {}))
        widths.append(shape_of(source, "visual_projection.weight", 2)[0])
    if len(set(widths)) != 1:
        raise ValueError(
            f"{source.path}: its text encoder has embeddings of {widths[0]} dimensions and its image encoder "
            f"of {widths[1]}; they belong to different CLIP models. Choose the two of one model"
            if widths
            else f"{source.path}: holds no CLIP encoder; expected text_model. or vision_model. tensors"
        )
    kinds = {_quick_gelu(source.path, part) for part in described.values() if "hidden_act" in part}
    if len(kinds) > 1:
        raise ValueError(
            f"{source.path}: its two encoders differ in hidden_act; they belong to different CLIP models. "
            f"Choose the two of one model"
        )
    quick_gelu = kinds.pop() if kinds else widths[0] <= 768  # OpenAI's sizes
    statistics = described.get("image", {})
    return ClipConfig(
        widths[0],
        vision,
        text,
        quick_gelu=quick_gelu,
        image_mean=tuple(statistics.get("image_mean", OPENAI_MEAN)),
        image_std=tuple(statistics.get("image_std", OPENAI_STD)),
    )


def _text(source: WeightSource, described: Mapping[str, Any]) -> ClipTextConfig:
    return text_config(
        source.path,
        shape_of(source, "text_model.embeddings.token_embedding.weight", 2),
        shape_of(source, "text_model.embeddings.position_embedding.weight", 2),
        count_layers(source, "text_model.encoder.layers.{n}"),
        shape_of(source, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        read_number(described, "num_attention_heads", 0, source.path.parent) or None,
    )


def _vision(source: WeightSource, described: Mapping[str, Any]) -> ClipVisionConfig:
    return vision_config(
        source.path,
        shape_of(source, "vision_model.embeddings.patch_embedding.weight", 4),
        shape_of(source, "vision_model.embeddings.position_embedding.weight", 2),
        count_layers(source, "vision_model.encoder.layers.{n}"),
        shape_of(source, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        read_number(described, "num_attention_heads", 0, source.path.parent) or None,
    )


def _quick_gelu(path: Path, described: Mapping[str, Any]) -> bool:
    name = described["hidden_act"]
    if not isinstance(name, str) or name not in _GELU:
        raise ValueError(f"{path}: hidden_act is {name!r}, expected one of {', '.join(_GELU)} as CLIP has it")
    return _GELU[name]


def _read_config(weights: Path) -> dict[str, dict[str, Any]]:
    """What the JSON files beside the weights say of the encoders ``text`` and ``vision`` and of an ``image``.

    Raises:
        ValueError: a config that is not CLIP's.
    """
    path = weights.with_name("config.json")
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        config = read_json_object(path)
        kind = config.get("model_type")
        if kind == "clip":
            found = {name: _options(path, config, f"{name}_config") for name in ("text", "vision")}
        elif kind in ("clip_text_model", "clip_vision_model"):
            found = {"text" if kind == "clip_text_model" else "vision": config}
        else:
            raise ValueError(
                f"{path}: model_type is {kind!r}, expected a CLIP model; choose the folder of one"
            )
        # transformers' default, of `CLIPTextConfig` and `CLIPVisionConfig`
        found = {name: {"hidden_act": "quick_gelu", **part} for name, part in found.items()}
        for name, part in found.items():
            if part.get("layer_norm_eps", 1e-5) != 1e-5:
                raise ValueError(
                    f"{path}: layer_norm_eps of the {name} encoder is {part['layer_norm_eps']}, expected "
                    f"CLIP's 1e-05; choose another CLIP model"
                )
    processor = weights.with_name("preprocessor_config.json")
    if processor.is_file():
        read = read_json_object(processor)
        found["image"] = {name: read[name] for name in ("image_mean", "image_std") if name in read}
        for name, values in found["image"].items():
            if not isinstance(values, list) or not all(isinstance(value, float | int) for value in values):
                raise ValueError(f"{processor}: {name} is {values!r}, expected numbers; get the file again")
    return found


def _options(path: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table in a config; empty where it is missing or null."""
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: {name} is {found!r}, expected a JSON object; get the file again")
    return found


def _matches(source: WeightSource) -> bool:
    text = has_keys("text_model.embeddings.token_embedding.weight", "text_projection.weight")
    vision = has_keys("vision_model.embeddings.patch_embedding.weight", "visual_projection.weight")
    return text(source) or vision(source)


def _space(source: WeightSource) -> str:
    config = transformers_clip_config(source)
    return clip_model_space(config.embed_dim, config.quick_gelu).id


TRANSFORMERS_CLIP_LAYOUTS = (
    Layout("CLIP (transformers)", "clip", _matches, _load_file, transformers_clip_config, _space),
)
