"""CLIP models of one width are different spaces: told by the shape of their image encoder and their GELU."""

from __future__ import annotations

import pytest
from unclip.core.embeddings.space import EmbeddingSpace, require_same_space
from unclip.core.formats.mapping.clip_towers import clip_model_space
from unclip.core.formats.mapping.spaces import clip_space
from unclip.core.networks.clip import ClipConfig, ClipTextConfig, ClipVisionConfig


def shaped(dim: int, vision: tuple[int, int, int, int] | None, quick: bool) -> ClipConfig:
    """Of a CLIP model with an image encoder of (width, layers, patch, picture) or without."""
    image = None if vision is None else ClipVisionConfig(vision[0], vision[1], vision[3], vision[2])
    return ClipConfig(dim, image, ClipTextConfig(width=dim, heads=dim // 64, layers=12), quick_gelu=quick)


@pytest.mark.parametrize(
    ("dim", "vision", "quick", "expected"),
    [
        (768, (1024, 24, 14, 224), True, "openai/ViT-L-14"),
        (768, (1024, 24, 14, 224), False, "laion/ViT-L-14"),
        (768, (1024, 24, 14, 336), True, "openai/ViT-L-14-336"),
        (768, (1024, 24, 16, 224), True, "clip-768-1024x24-16-224-quickgelu"),
        (1024, (1280, 32, 14, 224), False, "laion/ViT-H-14"),
        (1024, (1280, 32, 14, 224), True, "clip-1024-1280x32-14-224-quickgelu"),
        (1024, (1408, 40, 14, 224), False, "laion/ViT-g-14"),
        (1024, (1280, 32, 14, 378), False, "clip-1024-1280x32-14-378"),
        (1280, (1664, 48, 14, 224), False, "laion/ViT-bigG-14"),
        (1280, (1792, 56, 14, 224), False, "clip-1280-1792x56-14-224"),
        # A text encoder alone, and widths that stand for no model, tell no more.
        (768, None, True, "openai/ViT-L-14"),
        (768, None, False, "laion/ViT-L-14"),
        (1024, None, False, "laion/ViT-H-14"),
        (1024, None, True, "laion/ViT-H-14"),
        (512, (768, 12, 32, 224), True, "clip-512"),
        (512, (768, 12, 16, 224), False, "clip-512"),
    ],
)
def test_models_of_one_width_are_told_apart(dim: int, vision, quick: bool, expected: str) -> None:
    assert clip_model_space(shaped(dim, vision, quick)) == EmbeddingSpace(expected, dim)


def test_a_prior_is_refused_beside_another_model_of_its_width() -> None:
    for dim, vision, quick in ((1024, (1408, 40, 14, 224), False), (768, (1024, 24, 14, 336), True)):
        found = clip_model_space(shaped(dim, vision, quick))
        with pytest.raises(ValueError, match=r"text is in the CLIP space 'laion/ViT-g-14'|'openai/ViT-L-14-"):
            require_same_space("text", found, clip_space(dim))
