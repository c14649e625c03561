"""What the layouts of CLIP checkpoints share: sizes that shapes tell, and what they do not tell."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from ...embeddings.space import EmbeddingSpace
from ...networks.clip import ClipConfig, ClipNetwork, ClipTextConfig, ClipVisionConfig
from ...stages import ClipStage
from ..files.weight_source import WeightSource
from .keymap import Rule, load_network
from .spaces import clip_space, space_id
from .tokenizing import build_tokenizer

_Shape = tuple[int, int, int, int]  # of an image encoder: width, layers, side of a patch and of a picture
_L14, _H14, _BIG_G14 = (1024, 24, 14, 224), (1280, 32, 14, 224), (1664, 48, 14, 224)
# The models that stand for the widths in `spaces`, and whether they have the quick GELU.
_STANDARD: dict[int, tuple[_Shape, bool]] = {
    768: (_L14, True),
    1024: (_H14, False),
    1280: (_BIG_G14, False),
}
# Published models of the same widths; OpenAI's have the quick GELU.
_OTHERS: dict[tuple[int, _Shape, bool], str] = {
    (768, _L14, False): "laion/ViT-L-14",
    (768, (1024, 24, 14, 336), True): "openai/ViT-L-14-336",
    (1024, (1408, 40, 14, 224), False): "laion/ViT-g-14",
}

STANDARD_VOCABULARY = 49408
"""Tokens of CLIP's byte-pair encoding, which every public CLIP of this kind has."""

MAX_LOGIT_SCALE = math.log(100)
"""Where the temperature of published models ended: training clips it there (CLIP 2103.00020, section 2.5)."""

_HEAD_WIDTH = 64
# open_clip's presets ViT-H-14, ViT-g-14, ViT-bigG-14 and ViT-e-14, by the width of their vision transformers.
_VISION_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}

KNOWN_TEXT_WIDTHS = frozenset((256, 384, 512, 640, 768, 1024, 1280))
KNOWN_VISION_WIDTHS = frozenset((384, 512, 768, 896, 1024, *_VISION_HEAD_WIDTHS))
"""Of open_clip's presets: one width, one number of heads."""


def vision_head_width(width: int) -> int:
    """Width of an attention head in the published vision transformer of a width."""
    return _VISION_HEAD_WIDTHS.get(width, _HEAD_WIDTH)


def text_heads(width: int) -> int:
    """Number of attention heads in the published text transformer of a width."""
    return max(1, width // _HEAD_WIDTH)


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio with which open_clip arrives at a hidden width, which it rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def text_config(
    path: Path,
    embedding: tuple[int, ...],
    positions: tuple[int, ...],
    layers: int,
    hidden: int,
    heads: int | None,
) -> ClipTextConfig:
    """The text encoder from the shapes of its tables, [vocabulary, W] and [positions, W].

    Raises:
        ValueError: a vocabulary that is not CLIP's, so that no tokenizer would fit.
    """
    vocabulary, width = embedding
    if vocabulary != STANDARD_VOCABULARY:
        raise ValueError(
            f"{path}: its text encoder has a vocabulary of {vocabulary} tokens, expected CLIP's "
            f"{STANDARD_VOCABULARY}; unclip has no tokenizer for it. Choose another CLIP model"
        )
    return ClipTextConfig(
        width=width,
        heads=heads or text_heads(width),
        layers=layers,
        context_length=positions[0],
        vocab_size=vocabulary,
        mlp_ratio=mlp_ratio(width, hidden),
    )


def vision_config(
    path: Path,
    patches: tuple[int, ...],
    positions: tuple[int, ...],
    layers: int,
    hidden: int,
    heads: int | None,
) -> ClipVisionConfig:
    """The image encoder from the shapes of its patch convolution [W, 3, P, P] and positions [1 + grid², W].

    Raises:
        ValueError: positions that are no square and a class token.
    """
    width, patch = patches[0], patches[-1]
    grid = math.isqrt(max(positions[0] - 1, 0))
    if grid**2 + 1 != positions[0] or grid == 0:
        raise ValueError(
            f"{path}: its image encoder has {positions[0]} positions, expected those of a square and a class "
            f"token; it is not a plain vision transformer. Choose another CLIP model"
        )
    return ClipVisionConfig(
        width=width,
        layers=layers,
        image_size=grid * patch,
        patch_size=patch,
        head_width=width // heads if heads else vision_head_width(width),
        mlp_ratio=mlp_ratio(width, hidden),
    )


def clip_model_space(config: ClipConfig) -> EmbeddingSpace:
    """The space of a CLIP model as its towers give it.

    Stages of other systems are known by their width alone, see :func:`spaces.space_id`; so a model has that
    space only where its image encoder and GELU are those of the model that stands for the width. A text
    encoder alone tells no more than its width and GELU.
    """
    return replace(clip_space(config.embed_dim), id=_model_id(config))


def _model_id(config: ClipConfig) -> str:
    dim, quick, vision = config.embed_dim, config.quick_gelu, config.vision
    if dim not in _STANDARD:
        return space_id(dim)
    if vision is None:
        return _OTHERS.get((dim, _STANDARD[dim][0], quick), space_id(dim))
    shape = (vision.width, vision.layers, vision.patch_size, vision.image_size)
    if (shape, quick) == _STANDARD[dim]:
        return space_id(dim)
    width, layers, patch, size = shape
    made_up = f"clip-{dim}-{width}x{layers}-{patch}-{size}{'-quickgelu' if quick else ''}"
    return _OTHERS.get((dim, shape, quick), made_up)


def load_clip(
    config: ClipConfig,
    source: WeightSource,
    rules: tuple[Rule, ...],
    *,
    space: EmbeddingSpace | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ClipStage:
    """Build the stage."""
    network = load_network(lambda: ClipNetwork(config), source, rules, device=device, dtype=dtype)
    space = space or clip_model_space(config)
    return ClipStage(network, build_tokenizer(config), space, str(source.path))
