"""What travels along the wires: names of socket types, and pictures between ComfyUI's layout and the core's.

ComfyUI's IMAGE is [B, H, W, C] float32 in 0..1, its MASK [B, H, W] with 1 = repaint; the core's pictures are
[B, 3, H, W] float32 in 0..1 and its masks [B, 1, H, W]. Ranges and layouts change here and nowhere else.

The core's objects among them tell how much memory they hold (``core.memory.InMemory``), which ComfyUI's cache
asks before it lets go of some.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..core.embeddings import pca
from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.noise import StartingNoise
from ..core.pipelines.regions import Regions
from ..core.stages import ClipStage, DecoderStage, PriorStage, UpsamplerStage

CLIP = "UNCLIP_CLIP"  # core.stages.ClipStage
TEXT = "UNCLIP_TEXT"  # core.embeddings.space.TextFeatures
EMBEDDING = "UNCLIP_EMBEDDING"  # core.embeddings.space.Embedding
PRIOR = "UNCLIP_PRIOR"  # core.stages.PriorStage
DECODER = "UNCLIP_DECODER"  # core.stages.DecoderStage
UPSAMPLER = "UNCLIP_UPSAMPLER"  # core.stages.UpsamplerStage
NOISE = "UNCLIP_NOISE"  # a decoder's starting noise x_T
PCA = "UNCLIP_PCA"  # principal components of a CLIP space
REGIONS = "UNCLIP_REGIONS"  # core.pipelines.regions.Regions
STAGE = f"{CLIP},{PRIOR},{DECODER}"  # any stage that works in a CLIP space
IMAGE = "IMAGE"
MASK = "MASK"
CLIP_VISION_OUTPUT = "CLIP_VISION_OUTPUT"
MODEL = "MODEL"
VAE = "VAE"
CONDITIONING = "CONDITIONING"
EMBEDS = "EMBEDS"  # of the node pack ComfyUI_IPAdapter_plus
INT = "INT"
FLOAT = "FLOAT"
STRING = "STRING"

KINDS: dict[type, str] = {
    ClipStage: CLIP,
    TextFeatures: TEXT,
    Embedding: EMBEDDING,
    PriorStage: PRIOR,
    DecoderStage: DECODER,
    UpsamplerStage: UPSAMPLER,
    StartingNoise: NOISE,
    pca.PCA: PCA,
    Regions: REGIONS,
}

Stage = TypeVar("Stage")


def require_stage(stage: Stage | None, name: str) -> Stage:
    """The stage, or a ValueError where none arrived: the loaded bundle had none, or a node between got none.

    Args:
        stage: what arrived at the input.
        name: of the input, for the message.
    """
    if stage is None:
        raise ValueError(
            f"{name}: nothing arrived. Either the loaded bundle has no such stage: use an output of the "
            f"loader that the bundle fills, choose another bundle, or load this stage from its own file. Or "
            f"a node between, such as unCLIP Load LoRA or unCLIP Compile, got none."
        )
    return stage


def image_to_core(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE [B, H, W, C] → [B, 3, H, W] float32 in 0..1. Alpha is dropped; grey becomes RGB.

    Whole numbers of 8 bits, which some nodes give, are taken as 0..255.
    """
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name}: found {describe(image)}, expected pictures [batch, height, width, 3], as Load Image "
            f"gives them"
        )
    if 0 in image.shape:
        raise ValueError(
            f"{name}: found {describe(image)}, which has no pixels; expected at least one picture"
        )
    pixels = rearrange(_fractions(image[..., :3], name), "b h w c -> b c h w").clamp(0, 1)
    return pixels.expand(-1, 3, -1, -1).contiguous()


def has_alpha(image: Tensor) -> bool:
    """Whether an IMAGE brings its transparency along."""
    return image.shape[-1] == 4


def image_with_alpha(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE [B, H, W, C] → [B, 4, H, W] float32 in 0..1, opaque where it has no alpha."""
    pixels = image_to_core(image, name)
    if not has_alpha(image):
        return torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    return torch.cat([pixels, _fractions(image[..., 3], name)[:, None].clamp(0, 1)], dim=1)


def image_from_core(pixels: Tensor) -> Tensor:
    """[B, 3 or 4, H, W] in 0..1 → IMAGE [B, H, W, 3 or 4] float32 in 0..1."""
    return rearrange(pixels.float().clamp(0, 1), "b c h w -> b h w c").contiguous()


def mask_to_core(
    mask: Tensor, height: int | None = None, width: int | None = None, name: str = "mask"
) -> Tensor:
    """MASK [B, H, W], [H, W] or [B, 1, H, W], 1 = repaint → [B, 1, height, width] float32 in 0..1, bilinear.

    Load Image gives a 64×64 mask of zeros for a picture without alpha: any size is taken, and kept where none
    is asked for.
    """
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(f"{name}: found {describe(mask)}, expected a mask [batch, height, width]")
    switches = not mask.is_floating_point() and bool((mask <= 1).all())  # whole numbers that are 0 or 1
    mask = mask.float() if switches else _fractions(mask, name)
    mask = mask.reshape(-1, 1, *mask.shape[-2:])  # [B, 1, H, W]
    size = (height or mask.shape[-2], width or mask.shape[-1])
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="bilinear", antialias=True)
    return mask.clamp(0, 1)


def _fractions(values: Tensor, name: str) -> Tensor:
    """Values as float32, 1 for the largest of whole numbers of 8 bits."""
    if torch.isnan(values).any():
        raise ValueError(
            f"{name}: holds values that are no numbers (NaN), so a node before this one has failed. Look at "
            f"its result in Preview Image; a model that overflowed in fp16 works in fp32 or bf16."
        )
    if values.is_floating_point() or values.dtype == torch.bool:
        return values.float()
    if values.dtype != torch.uint8:
        raise ValueError(
            f"{name}: found whole numbers ({values.dtype}), expected fractions from 0 to 1; the node that is "
            f"wired to it does not give pictures or masks as ComfyUI has them"
        )
    return values.float() / 255


_IN_WORDS = {str: "a text", int: "a number", float: "a number", dict: "a LATENT or the like", list: "a list"}


def describe(value: object) -> str:
    """What arrived at an input, for messages."""
    if type(value) in KINDS:
        return KINDS[type(value)]
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "nothing" if value is None else _IN_WORDS.get(type(value), "something else")
