"""What a decoder is told, as its network takes it: checked, in its space and size, for both branches."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..embeddings.space import Embedding, TextFeatures, require_same_space, require_text_of
from ..networks.clip import ClipNetwork, zero_picture
from ..networks.conditioning import ConditioningConfig
from ..networks.dalle2_unet import Dalle2UNet
from ..networks.unet import UNet, UNetCondition
from ..stages import ClipStage, DecoderStage, require_stage
from .canvas import Size, fit_to, picture_size
from .conditions import Conditions
from .rows import common_batch, device_and_dtype, require_pictures, to_batch

logger = logging.getLogger(__name__)


def decoder_conditions(
    decoder: DecoderStage, given: Conditions, batch: int, guided: bool, size: Size | None = None
) -> tuple[UNetCondition, UNetCondition | None]:
    """The conditions of the B conditional rows, and of as many null (or negative) rows when guided."""
    network = decoder.network
    config = _config(decoder)
    _require_embedding(decoder, given.embedding, "embedding")
    reads_text = config.text_dim is not None or config.text_pooled_dim is not None
    empty_caption = reads_text and config.null_text == "empty_caption"
    null_text = given.text.null if empty_caption and given.text is not None else None
    if empty_caption and null_text is None:
        raise ValueError("text: this decoder needs a caption; connect an encoded one, which may be empty")
    if given.negative_embedding is not None:
        _require_embedding(decoder, given.negative_embedding, "negative_embedding")
    for name, text in (("text", given.text), ("negative_text", given.negative_text)):
        if reads_text and text is not None:
            require_text_of(name, text, decoder.space)

    hint = hint_input(decoder, given.hint, batch, size or picture_size(decoder))

    def condition(name: str, embedding: Embedding | None, text: TextFeatures | None) -> UNetCondition:
        if text is not None and text.space.norm != decoder.space.norm:
            text = text.in_convention_of(decoder.space)
        inputs = text_inputs(network, text if reads_text else None, batch)
        if embedding is not None:
            inputs["clip_embedding"] = _embedding_input(decoder, name, embedding, batch)
        return network.condition(batch=batch, **inputs, hint=hint)

    conditional = condition("embedding", given.embedding, given.text)
    if not guided:
        return conditional, None
    if given.negative_embedding is None:
        _require_null(decoder)
    negative = null_text if given.negative_text is None else given.negative_text
    return conditional, condition("negative_embedding", given.negative_embedding, negative)


def _config(decoder: DecoderStage) -> ConditioningConfig:
    config = decoder.network.config.conditioning
    if config is None:
        raise ValueError(
            f"decoder: {decoder.source or 'this one'} takes no conditions, so it cannot decode an embedding"
        )
    return config


def _require_embedding(decoder: DecoderStage, embedding: Embedding | None, name: str) -> None:
    """Raise a ValueError unless an embedding is there, of the decoder's space, exactly if it takes one."""
    takes_one = _config(decoder).clip_dim is not None
    if takes_one and embedding is None:
        raise ValueError(
            f"{name}: this decoder paints image embeddings, and none is given; connect one, from a prior or "
            f"from encoded pictures"
        )
    if not takes_one and embedding is not None:
        raise ValueError(
            f"{name}: this decoder paints captions and takes no image embedding; disconnect it, and connect "
            f"a caption that the decoder's own text encoder has encoded"
        )
    if embedding is not None:
        require_same_space(name, embedding.space, decoder.space)


def _require_null(decoder: DecoderStage) -> None:
    """Raise a ValueError where a decoder's null embedding is a picture's that is not known."""
    conditioning = decoder.network.config.conditioning
    if conditioning is not None and not conditioning.null_known:
        raise ValueError(
            f"negative_embedding: guidance needs the CLIP embedding of an all-zero picture, which "
            f"{decoder.source or 'this decoder'} does not hold. Connect one from unCLIP Null Embedding with "
            f"the CLIP model of the prior, load decoder and prior as one bundle, or set guidance_scale to 1"
        )


def hint_input(decoder: DecoderStage, hint: Tensor | None, batch: int, size: Size) -> Tensor | None:
    """What ``UNet.condition`` takes of hints [1 or B, 3, h, w] in 0..1: [B, 3, *size], or None.

    Raises:
        ValueError: a decoder with hints gets none, or something that is no picture.
    """
    device, dtype = device_and_dtype(decoder.network)
    if not _config(decoder).hint_channels:
        if hint is not None:
            logger.warning(
                "%s takes no hint picture: it has no effect. Kandinsky 2.2's decoder for depth takes one",
                decoder.source or "this decoder",
            )
        return None
    if hint is None:
        raise ValueError(
            f"hint: {decoder.source or 'this decoder'} needs a picture that shows where what is, such as a "
            f"depth map; connect one"
        )
    require_pictures(hint, "hint")
    hint = fit_to(hint.to(device, torch.float32).clamp(0, 1), size)
    return to_batch(hint, batch).to(dtype)


def warn_of_negatives(given: Conditions, guidance: str) -> None:
    """Say of negatives that a guidance, which leads away from something else, does not use them."""
    for name in ("negative_embedding", "negative_text"):
        if getattr(given, name) is not None:
            logger.warning(
                "%s has no effect: guidance %s leads away from something else. Choose cfg, cfg_pp or apg",
                name,
                guidance,
            )


def _embedding_input(decoder: DecoderStage, name: str, embedding: Embedding, batch: int) -> Tensor:
    device, dtype = device_and_dtype(decoder.network)
    vectors = embedding.in_norm_of(decoder.space, name).to(device, torch.float32)
    if _config(decoder).standardised:
        vectors = decoder.space.standardise(vectors)
    return to_batch(vectors, batch).to(dtype)


def text_inputs(network: UNet | Dalle2UNet, text: TextFeatures | None, batch: int) -> dict[str, Tensor]:
    """What ``UNet.condition`` takes of captions, for a batch; nothing where there are none."""
    if text is None:
        return {}
    device, dtype = device_and_dtype(network)
    text = text.to(device).expand(batch)
    # Where padding is masked out, what lies behind the longest caption can be left out altogether.
    length = text.tokens.shape[1]
    config = network.config.conditioning
    if config is None or not config.read_padding:
        length = int(text.mask.any(dim=0).nonzero().max()) + 1
    return {
        "text_tokens": text.tokens[:, :length].to(dtype),
        "text_mask": text.mask[:, :length],
        "text_pooled": text.pooled.to(dtype),
    }


@torch.no_grad()
def null_embedding(decoder: DecoderStage, batch_size: int = 1, clip: ClipStage | None = None) -> Embedding:
    """What a decoder sees in training where z_i is dropped: decoded, it gives pictures of the caption alone.

    The vector that the decoder has learnt for it, or zeros (unCLIP, sections 2.1 and 5.1, figure 8). It means
    nothing to other decoders or to CLIP. Kandinsky's is the CLIP embedding of an all-zero picture: it comes
    from ``clip`` unless the decoder holds it.

    Returns:
        [batch_size, D] float32 on the CPU.

    Raises:
        ValueError: a decoder that takes no image embedding, or one whose null embedding is a picture's and
            not known; then also a ``clip`` without an image encoder.
    """
    require_stage(DecoderStage, decoder=decoder)
    batch = common_batch(batch_size=batch_size)
    conditioning = decoder.network.config.conditioning
    if conditioning is None or conditioning.clip_dim is None:
        raise ValueError(
            f"decoder: {decoder.source or 'this one'} takes no image embedding, so it has none to leave out; "
            f"connect the caption alone"
        )
    if clip is not None:
        require_same_space("clip", clip.space, decoder.space)
    if not conditioning.null_known and clip is not None:
        return Embedding(zero_embedding(clip).vectors.repeat(batch, 1), clip.space)
    _require_null(decoder)
    null = torch.zeros(conditioning.clip_dim)
    if isinstance(decoder.network, Dalle2UNet):
        raise ValueError(
            f"decoder: {decoder.source or 'this one'} has learned tokens for a picture whose embedding was "
            f"left out, and no embedding; to paint a caption alone take another decoder"
        )
    if conditioning.learned_null:
        null = decoder.network.conditioner.null_clip.detach().float().cpu()
    if conditioning.standardised:
        null = decoder.space.unstandardise(null)
    return Embedding(null.repeat(batch, 1), decoder.space)


@torch.no_grad()
def zero_embedding(clip: ClipStage) -> Embedding:
    """The embedding of an all-zero picture, which Kandinsky and λ-ECLIPSE take for none; [1, D] on the CPU.

    Raises:
        ValueError: a text encoder alone.
    """
    require_stage(ClipStage, clip=clip)
    network = clip.network
    if not isinstance(network, ClipNetwork):
        raise ValueError(
            "clip: this is a text encoder alone, which cannot encode an all-zero picture; connect the CLIP "
            "model of the prior"
        )
    zero = network.encode_pixels(zero_picture(network)).float().cpu()
    return Embedding(clip.space.in_convention(zero), clip.space)
