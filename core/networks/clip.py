"""CLIP behind the three calls that unCLIP needs of it.

Configs, parameters and tokenizer are open_clip's; what is added is the sequence of text features (open_clip
returns only the pooled one), the image normalisation, and a shorter merge table for small models.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import config_from_dict
from .clip_model import ClipModel, Shape, TextTransformer, VisionTransformer
from .sizes import MAX_CONTEXT, MAX_LAYERS, MAX_SIZE, require_finite, require_size

# Normalisation of OpenAI's CLIP (openai/CLIP, clip.py `_transform`); every open_clip ViT preset uses it.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

FULL_MERGES = 49152 - 256 - 2
"""Number of merges of CLIP's byte-pair encoding, which give its vocabulary of 49408."""

LONGEST_STRIP = 16  # times its breadth: what longer pictures have more is cut off before scaling

NO_TEXT_ENCODER = (
    "this CLIP model was loaded without a text encoder, so it cannot encode captions; load the text encoder "
    "that belongs to it"
)
NO_IMAGE_ENCODER = (
    "this CLIP model was loaded without an image encoder, so it cannot encode pictures; load the image "
    "encoder that belongs to it"
)

# What makes up the text encoder in ``ClipModel``.
TEXT_PARTS = (
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "text_projection",
    "attn_mask",
)

ImageFit = Literal["crop", "squash"]


@dataclass(frozen=True)
class ClipVisionConfig:
    """Vision transformer of open_clip's ``vision_cfg``; ``head_width`` is the width of one attention head."""

    width: int
    layers: int
    image_size: int = 224
    patch_size: int = 14
    head_width: int = 64
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class ClipTextConfig:
    """Text transformer of open_clip's ``text_cfg``."""

    width: int
    heads: int
    layers: int
    context_length: int = 77
    vocab_size: int = 49408
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class ClipTokenizerConfig:
    """CLIP's byte-pair encoding cut to its first ``merges`` merges.

    Merges are ordered by frequency: the first few thousand hold the common words, and rarer words are spelt
    from more pieces. The vocabulary is 512 + merges + 2: bytes, bytes that end a word, merges, start and end.
    """

    merges: int = FULL_MERGES

    @property
    def vocab_size(self) -> int:
        return 512 + self.merges + 2


@dataclass(frozen=True)
class ClipConfig:
    """A CLIP model: open_clip's ``model_cfg``, the tokenizer and the image normalisation.

    Attributes:
        embed_dim: width D of the joint space.
        vision, text: the two encoders. Public checkpoints may lack one of them, which is None then.
        quick_gelu: the sigmoid approximation of GELU with which OpenAI's weights were trained.
        image_mean, image_std: per-channel statistics by which images in 0..1 are normalised.
    """

    embed_dim: int
    vision: ClipVisionConfig | None
    text: ClipTextConfig | None
    tokenizer: ClipTokenizerConfig = ClipTokenizerConfig()
    quick_gelu: bool = False
    image_mean: tuple[float, float, float] = OPENAI_MEAN
    image_std: tuple[float, float, float] = OPENAI_STD

    def __post_init__(self) -> None:
        if self.vision is None and self.text is None:
            raise ValueError("CLIP config: vision and text are both missing; expected at least one encoder")
        if not 0 < self.tokenizer.merges <= FULL_MERGES:
            raise ValueError(
                f"CLIP config: tokenizer.merges is {self.tokenizer.merges}, expected 1 to {FULL_MERGES}"
            )
        for value in self.image_mean:
            require_finite("CLIP config: image_mean", value, -MAX_SIZE, MAX_SIZE)
        for name in ("embed_dim", "image_std"):
            require_size(f"CLIP config: {name}", getattr(self, name))
        if self.text is not None:
            self._check_text(self.text)
        if self.vision is not None:
            self._check_vision(self.vision)

    def _check_text(self, text: ClipTextConfig) -> None:
        limits = {"layers": MAX_LAYERS, "context_length": MAX_CONTEXT, "mlp_ratio": MAX_LAYERS}
        for field in fields(text):
            limit = limits.get(field.name, MAX_SIZE)
            require_size(f"CLIP config: text.{field.name}", getattr(text, field.name), limit)
        if text.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"CLIP config: text.vocab_size is {text.vocab_size}, but a tokenizer of "
                f"{self.tokenizer.merges} merges has {self.tokenizer.vocab_size} tokens; "
                f"set text.vocab_size to that"
            )
        if text.width % text.heads:
            raise ValueError(
                f"CLIP config: text.width {text.width} is not a multiple of text.heads {text.heads}"
            )

    def _check_vision(self, vision: ClipVisionConfig) -> None:
        for field in fields(vision):
            limit = MAX_LAYERS if field.name in ("layers", "mlp_ratio") else MAX_SIZE
            require_size(f"CLIP config: vision.{field.name}", getattr(vision, field.name), limit)
        if vision.image_size % vision.patch_size:
            raise ValueError(
                f"CLIP config: vision.image_size {vision.image_size} is not a multiple of "
                f"vision.patch_size {vision.patch_size}"
            )
        if vision.width % vision.head_width:
            raise ValueError(
                f"CLIP config: vision.width {vision.width} is not a multiple of "
                f"vision.head_width {vision.head_width}"
            )


def preset(name: str) -> ClipConfig:
    """The config of one of open_clip's presets, for example ``"ViT-L-14-quickgelu"`` or ``"ViT-bigG-14"``.

    Raises:
        ValueError: open_clip has no such preset, or it is not a plain CLIP with two transformers.
    """
    import open_clip  # lazy: it takes seconds

    found = open_clip.get_model_config(name)
    if found is None:
        near = [model for model in open_clip.list_models() if model.lower() == name.lower()]
        hint = f"; did you mean {near[0]!r}?" if near else "; open_clip.list_models() lists them"
        raise ValueError(f"open_clip has no CLIP preset {name!r}{hint}")
    described = {
        **{key: value for key, value in found.items() if key not in ("vision_cfg", "text_cfg")},
        "vision": found.get("vision_cfg"),
        "text": found.get("text_cfg"),
    }
    try:
        return config_from_dict(ClipConfig, described, "preset")
    except ValueError as error:  # an option outside the two plain transformers
        raise ValueError(
            f"CLIP preset {name!r} is not a plain ViT with a text transformer, which is all that works here: "
            f"{error}"
        ) from error


class ClipNetwork(nn.Module):
    """A CLIP model: its encoders in the attribute ``clip``, without the one that the config lacks."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = ClipModel(_visual(config), _text(config))

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the inverse temperature, a scalar: logits are exp(logit_scale)·cosine."""
        return self.clip.logit_scale

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For contrastive training: unit-length embeddings [B, D] of both, and exp(logit_scale)."""
        image, (_, _, text) = self.encode_pixels(images), self.encode_tokens(ids)
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.logit_scale.exp()

    def encode_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids → features of the caption, token by token and as a whole.

        Args:
            ids: [B, L] int64, start token, caption, end token (the highest id), padding of 0. L is the
                context length or less: no token sees those behind it, so padding that all captions share can
                be cut off.

        Returns:
            tokens: [B, L, W], output of the final LayerNorm before the projection.
            mask: [B, L] bool, True from the start token to the end token.
            pooled: [B, D], projection of the end token's features, not normalised.

        Raises:
            ValueError: no text encoder, or more ids than the config's context length.
        """
        if self.config.text is None:
            raise ValueError(NO_TEXT_ENCODER)
        clip, length = self.clip, self.config.text.context_length
        if ids.ndim != 2 or ids.shape[1] > length:
            raise ValueError(f"token ids have shape {tuple(ids.shape)}, expected [batch, {length}]")
        length = ids.shape[1]
        x = clip.token_embedding(ids) + clip.positional_embedding[:length]  # [B, L, W]
        tokens = clip.ln_final(clip.transformer(x, clip.attn_mask[:length, :length]))  # [B, L, W]
        end = ids.argmax(dim=-1)  # [B]
        mask = torch.arange(length, device=ids.device) <= end[:, None]  # [B, L]
        pooled = tokens[torch.arange(len(ids), device=ids.device), end] @ clip.text_projection  # [B, D]
        return tokens, mask, pooled

    def encode_pixels(self, images: Tensor, fit: ImageFit = "crop") -> Tensor:
        """Pictures → image embeddings.

        Args:
            images: [B, 3, H, W] in 0..1, of any size; :func:`fit_images` brings them to the config's size.
            fit: ``"crop"`` keeps the aspect ratio and the middle, as CLIP was trained; ``"squash"`` keeps all
                of the picture and lets go of the aspect ratio.

        Returns:
            [B, D], not normalised.

        Raises:
            ValueError: no image encoder, or not three channels.
        """
        if self.config.vision is None:
            raise ValueError(NO_IMAGE_ENCODER)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected [batch, 3, height, width]")
        images = fit_images(images, self.config.vision.image_size, fit)  # [B, 3, S, S]
        mean = images.new_tensor(self.config.image_mean).view(3, 1, 1)
        std = images.new_tensor(self.config.image_std).view(3, 1, 1)
        visual = self.clip.visual
        return visual(((images - mean) / std).to(visual.conv1.weight.dtype))


def zero_picture(network: ClipNetwork) -> Tensor:
    """[1, 3, S, S] in 0..1 that is zero everywhere once it is normalised.

    Its embedding is what Kandinsky's decoders were given in training where theirs was dropped. Without an
    image encoder a ValueError is raised.
    """
    if network.config.vision is None:
        raise ValueError(NO_IMAGE_ENCODER)
    mean, size = network.config.image_mean, network.config.vision.image_size
    return torch.tensor(mean, device=network.logit_scale.device)[:, None, None].expand(3, size, size)[None]


def fit_images(images: Tensor, size: int, fit: ImageFit = "crop") -> Tensor:
    """[B, C, H, W] in 0..1 → [B, C, size, size] in 0..1, float32; bicubic with antialias, as CLIP's own.

    ``"crop"`` scales the shorter side to ``size`` and cuts the middle out of the longer one; ``"squash"``
    scales both sides to ``size``.

    Raises:
        ValueError: another ``fit``, whatever the pictures' size.
    """
    if fit not in get_args(ImageFit):
        raise ValueError(f"fit: {fit!r} is not known; expected 'crop' or 'squash'")
    images = images.float()
    if fit == "crop":
        images = _without_far_ends(images)
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if fit == "crop":
        # Rounded down, and the cut below to the nearest, as torchvision's Resize and CenterCrop do.
        target = (size * height // min(height, width), size * width // min(height, width))
    else:
        target = (size, size)
    # The clamp removes the over- and undershoot of the bicubic kernel, as 8-bit resizing does.
    images = F.interpolate(images, target, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return images[..., top : top + size, left : left + size]


def _without_far_ends(images: Tensor) -> Tensor:
    """The middle of long strips [..., H, W], LONGEST_STRIP times as long as broad.

    No more of them than a square is kept in the end, and one pixel by 30000, scaled whole, takes gigabytes.
    An even number of pixels goes, half from each end, so that the middle stays where it is.
    """
    for axis in (-2, -1):
        side, room = images.shape[axis], LONGEST_STRIP * min(images.shape[-2:])
        cut = max(0, side - room) // 2
        images = images.narrow(axis, cut, side - 2 * cut)
    return images


def _visual(config: ClipConfig) -> VisionTransformer | None:
    if (own := config.vision) is None:
        return None
    heads = own.width // own.head_width
    shape = Shape(own.width, own.layers, heads, own.mlp_ratio, config.quick_gelu)
    return VisionTransformer(shape, own.image_size, own.patch_size, config.embed_dim)


def _text(config: ClipConfig) -> TextTransformer | None:
    if (own := config.text) is None:
        return None
    shape = Shape(own.width, own.layers, own.heads, own.mlp_ratio, config.quick_gelu)
    return TextTransformer(shape, own.context_length, own.vocab_size, config.embed_dim)
