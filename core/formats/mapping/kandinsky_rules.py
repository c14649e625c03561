"""What conditions Kandinsky's decoders, under its two published namings: the original's and diffusers'."""

from __future__ import annotations

from ...networks.conditioning import ConditioningConfig
from ..files.weight_source import WeightSource
from .keymap import Rule, shape_of

# Theirs → ours. The layers of diffusers' hint network have an activation between each two.
_DIFFUSERS_21 = {
    "encoder_hid_proj.image_embeds": "clip_context",
    "encoder_hid_proj.text_proj": "text_context",
    "add_embedding.image_proj": "clip_embedding",
    "add_embedding.text_proj": "text_embedding",
    "add_embedding.text_norm": "text_embedding_norm",
}
_DIFFUSERS_22 = {
    "encoder_hid_proj.image_embeds": "clip_context",
    "encoder_hid_proj.norm": "clip_context_norm",
    "add_embedding.image_proj": "clip_embedding",
    "add_embedding.image_norm": "clip_embedding_norm",
}
_HINT_LAYERS = 7
_DIFFUSERS_HINT = {
    **{f"add_embedding.input_hint_block.{2 * n}": f"hint_layout.layers.{n}" for n in range(_HINT_LAYERS)},
    f"add_embedding.input_hint_block.{2 * _HINT_LAYERS}": "hint_layout.out",
}
_ORIGINAL = {
    "clip_to_seq": "clip_context",
    "to_model_dim_n": "text_context",
    "img_layer": "clip_embedding",
    "proj_n": "text_embedding",
    "ln_model_n": "text_embedding_norm",
}
HINT_OUT = f"add_embedding.input_hint_block.{2 * _HINT_LAYERS}.weight"
"""The last layer of the hint network, by which a file shows that it has one."""


def diffusers_conditioner_rules(config: ConditioningConfig, target: str = "conditioner.") -> list[Rule]:
    """Rules for ``encoder_hid_proj`` and ``add_embedding`` of diffusers' U-Net.

    Args:
        target: prefix of our names, with its final dot.
    """
    names = _DIFFUSERS_22 if config.text_dim is None else _DIFFUSERS_21
    if config.hint_channels:
        names = names | _DIFFUSERS_HINT
    return [Rule(theirs, target + ours) for theirs, ours in names.items()]


def original_conditioner_rules(target: str = "conditioner.") -> list[Rule]:
    """Rules for Kandinsky 2.1's own file, see :func:`diffusers_conditioner_rules`."""
    return [Rule(theirs, target + ours) for theirs, ours in _ORIGINAL.items()]


def diffusers_conditioning(source: WeightSource) -> ConditioningConfig:
    """How a decoder in diffusers' naming is conditioned: 2.1's by pictures and captions, 2.2's by pictures.

    Raises:
        ValueError: what tells it is missing, or does not fit together.
    """
    tokens, clip_dim = shape_of(source, "encoder_hid_proj.image_embeds.weight", 2)
    if "encoder_hid_proj.text_proj.weight" in source.shapes:
        context_dim, text_dim = shape_of(source, "encoder_hid_proj.text_proj.weight", 2)
        pooled_dim = shape_of(source, "add_embedding.text_proj.weight", 2)[1]
        return _captioned(source, tokens, clip_dim, context_dim, text_dim, pooled_dim)
    (context_dim,) = shape_of(source, "encoder_hid_proj.norm.weight", 1)
    return ConditioningConfig(
        clip_dim=clip_dim,
        clip_tokens=_number_of_tokens(source, tokens, context_dim),
        context_dim=context_dim,
        learned_null=False,
        null_picture=True,
        norm_clip=True,
        hint_channels=shape_of(source, HINT_OUT, 4)[0] if HINT_OUT in source.shapes else 0,
    )


def original_conditioning(source: WeightSource) -> ConditioningConfig:
    """How 2.1's decoder is conditioned, see :func:`diffusers_conditioning`."""
    tokens, clip_dim = shape_of(source, "clip_to_seq.weight", 2)
    context_dim, text_dim = shape_of(source, "to_model_dim_n.weight", 2)
    pooled_dim = shape_of(source, "proj_n.weight", 2)[1]
    return _captioned(source, tokens, clip_dim, context_dim, text_dim, pooled_dim)


def _captioned(
    source: WeightSource, tokens: int, clip_dim: int, context_dim: int, text_dim: int, pooled_dim: int
) -> ConditioningConfig:
    return ConditioningConfig(
        clip_dim=clip_dim,
        clip_tokens=_number_of_tokens(source, tokens, context_dim),
        text_dim=text_dim,
        text_pooled_dim=pooled_dim,
        context_dim=context_dim,
        learned_null=False,
        null_picture=True,
        null_text="empty_caption",
        norm_text=False,
        norm_pooled=True,
        read_padding=True,
    )


def _number_of_tokens(source: WeightSource, rows: int, context_dim: int) -> int:
    if rows % context_dim:
        raise ValueError(
            f"{source.path}: makes {rows} values of an image embedding, expected a multiple of the "
            f"{context_dim} of a context token. The file is incomplete or damaged: get it again"
        )
    return rows // context_dim
