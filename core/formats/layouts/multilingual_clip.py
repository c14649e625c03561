"""Kandinsky 2.1's text encoder in transformers' layout: ``MultilingualCLIP``, its tokenizer beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from ...networks.multilingual_clip import PADDING, MultilingualClip, MultilingualClipConfig
from ...stages import ClipStage
from ..files.tokenizer_json import MultilingualTokenizer
from ..files.weight_source import WeightSource
from ..mapping.keymap import Rule, concatenated, count_layers, load_network, shape_of
from ..mapping.spaces import clip_space
from .diffusers_files import read_config, read_number
from .layout import Layout, has_keys

TEXT_LENGTH = 77
"""Tokens that Kandinsky reads; the transformer has places for more."""

TOKENIZER = "tokenizer.json"
_HEAD_WIDTH = 64
_OPTIONS = {
    "hidden_act": ("gelu",),
    "layer_norm_eps": (1e-5,),
    "position_embedding_type": ("absolute",),
    "pad_token_id": (PADDING,),
}
_BASE, _LAYER = "transformer.embeddings", "transformer.encoder.layer.{n}"
_NAMES = {
    f"{_BASE}.word_embeddings": "token_embedding",
    f"{_BASE}.position_embeddings": "positions",
    f"{_BASE}.token_type_embeddings": "segment",
    f"{_BASE}.LayerNorm": "norm_in",
    f"{_LAYER}.attention.output.dense": "blocks.{n}.attention_out",
    f"{_LAYER}.attention.output.LayerNorm": "blocks.{n}.attention_norm",
    f"{_LAYER}.intermediate.dense": "blocks.{n}.mlp_in",
    f"{_LAYER}.output.dense": "blocks.{n}.mlp_out",
    f"{_LAYER}.output.LayerNorm": "blocks.{n}.mlp_norm",
    "LinearTransformation": "projection",
}
_UNUSED = (f"{_BASE}.position_ids", "transformer.pooler.dense")


def multilingual_clip_rules() -> list[Rule]:
    """The names of ``MultilingualCLIP``."""
    qkv = tuple(f"{_LAYER}.attention.self.{name}" for name in ("query", "key", "value"))
    return [
        *(Rule(theirs, ours) for theirs, ours in _NAMES.items()),
        Rule(qkv, "blocks.{n}.qkv", concatenated),
        *(Rule(name, None) for name in _UNUSED),
    ]


def multilingual_clip_config(source: WeightSource) -> MultilingualClipConfig:
    """The shape of the text encoder from its weights and its config.json."""
    folder = source.path.parent
    described = read_config(folder, _OPTIONS if (folder / "config.json").is_file() else None)
    vocabulary, width = shape_of(source, f"{_BASE}.word_embeddings.weight", 2)
    positions = shape_of(source, f"{_BASE}.position_embeddings.weight", 2)[0]
    return MultilingualClipConfig(
        dim=shape_of(source, "LinearTransformation.weight", 2)[0],
        width=width,
        layers=count_layers(source, f"{_LAYER}.output.dense.weight"),
        heads=read_number(described, "num_attention_heads", max(1, width // _HEAD_WIDTH), folder),
        hidden=shape_of(source, "transformer.encoder.layer.0.intermediate.dense.weight", 2)[0],
        vocab_size=vocabulary,
        text_length=min(TEXT_LENGTH, positions - 2),
        positions=positions,
    )


def load_multilingual_clip(
    source: WeightSource, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ClipStage:
    """The text encoder, which stands where a CLIP model does, with the tokenizer from beside it.

    Raises:
        ValueError: tensors that are missing, left over or of a wrong shape; no tokenizer.
    """
    config = multilingual_clip_config(source)
    tokenizer = _read_tokenizer(source.path, config)
    rules = multilingual_clip_rules()
    network = load_network(lambda: MultilingualClip(config), source, rules, device=device, dtype=dtype)
    return ClipStage(network, tokenizer, clip_space(config.dim), str(source.path))


def _read_tokenizer(weights: Path, config: MultilingualClipConfig) -> MultilingualTokenizer:
    """From the folder of the weights, or from diffusers' folder ``tokenizer`` beside it."""
    folders = (weights.parent, weights.parent.parent / "tokenizer")
    path = next((folder / TOKENIZER for folder in folders if (folder / TOKENIZER).is_file()), None)
    if path is None:
        raise ValueError(
            f"{weights}: needs {TOKENIZER} of XLM-RoBERTa, which is published with it. Put it into "
            f"{folders[0]} or {folders[1]}"
        )
    try:
        definition = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    sizes = {"text_length": config.text_length, "vocab_size": config.vocab_size}
    return MultilingualTokenizer(definition, str(path), **sizes, padding=PADDING)


MULTILINGUAL_CLIP_LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="Kandinsky 2.1 text encoder (multilingual CLIP)",
        stage="clip",
        matches=has_keys("LinearTransformation.weight", f"{_BASE}.word_embeddings.weight"),
        load=load_multilingual_clip,
        config=multilingual_clip_config,
        space=lambda source: clip_space(multilingual_clip_config(source).dim).id,
        licence="Apache-2.0",
        reads=(f"../tokenizer/{TOKENIZER}",),
    ),
)
