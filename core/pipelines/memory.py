"""How much memory the pipelines need beside the weights, so that it can be made free before they run.

Estimates, from above: every tensor that is alive at the worst moment of a pass, counted by the shapes of
the network, with the sampler's float32 state. tests/core/pipelines/test_memory.py holds them to at least the
tensors that a run really has, and at most three times as much; what an allocator or a convolution's workspace
takes on top is left to the reserve that ComfyUI keeps.
"""

from __future__ import annotations

from collections.abc import Sized

from torch import Tensor

from ..memory import memory_of
from ..networks.clip import ClipConfig, ClipTextConfig
from ..networks.dalle2_unet import Dalle2UNet
from ..networks.unet import UNet
from ..networks.unet_blocks import Block, Downsample, ResidualBlock, Upsample
from ..networks.unet_pair import UNetPair
from ..stages import ClipStage, DecoderStage, PriorStage
from .canvas import Size, autoencoder_memory, network_shape, picture_size
from .encode import CAPTIONS_AT_ONCE, IMAGES_AT_ONCE
from .rows import device_and_dtype

_FLOAT32 = 4  # bytes
_STATE = 14
"""Float32 tensors in the shape of x_t that samplers and guidance hold, the network's output among them."""
_CLIP_TOKENS = 16
_CAPTION = 128
"""Tokens of a caption at the most: CLIP's have 77, GLIDE's 128."""


def decode_memory(
    decoder: DecoderStage, guidance_scale: float, *batch: int | Sized | None, size: Size | None = None
) -> int:
    """Bytes to decode, invert or inpaint pictures.

    Of an autoencoder, whose weights count too, as much as it takes of memory that a whole picture needs:
    where there is less, it works by tiles.

    Args:
        guidance_scale: with guidance, which 1 is without, every picture passes twice.
        batch: numbers of pictures, or inputs with a row for each; the largest counts.
        size: of the pictures; None for the decoder's own.
    """
    rows = max(1 if each is None else each if isinstance(each, int) else len(each) for each in batch)
    _, height, width = network_shape(decoder, size or picture_size(decoder))
    sampling = rows * sampling_memory(decoder.network, height, width, 1 if guidance_scale == 1 else 2)
    if decoder.autoencoder is None:
        return sampling
    movq = decoder.autoencoder.network
    pictures = 4 * rows * 3 * _FLOAT32 * height * width * decoder.scale**2
    return max(sampling, memory_of(movq) + autoencoder_memory(movq, height, width) + pictures)


def prior_memory(prior: PriorStage, captions: int, rows: int, steps: int = 0) -> int:
    """Bytes to sample, with guidance, ``rows`` embeddings in all: the candidates of every image.

    Args:
        steps: of the sampler; an autoregressive prior has one for each of its codes.
    """
    config, (_, dtype) = prior.network.config, device_and_dtype(prior.network)
    width = getattr(config, "width", config.dim)
    steps = getattr(config, "components", steps)
    captions, rows = 2 * captions, 2 * rows  # both branches of guidance
    tokens = config.text_length + 1 + steps
    # Keys and values of all layers: an autoregressive prior has them for each row, the others for each
    # caption, and both join the two branches of guidance from parts that are alive as well.
    cached = 2 * config.layers * width * tokens * (rows if prior.diffusion is None else captions)
    passing = 16 * width * max(captions * tokens, 2 * rows)  # the first pass, and one of the steps
    return dtype.itemsize * (2 * cached + passing) + _FLOAT32 * _STATE * rows * config.dim


def encode_memory(clip: ClipStage, images: Tensor | int | None = None, captions: int = 0) -> int:
    """Bytes to encode pictures and a number of captions, whichever takes more.

    Args:
        images: [B, 3, H, W], or the number of pictures that come in the network's size.
    """
    config, (_, dtype) = clip.network.config, device_and_dtype(clip.network)
    vision, text = (config.vision, config.text) if isinstance(config, ClipConfig) else (None, config)
    needed = 0
    if vision is not None and images is not None:
        size = vision.image_size
        if isinstance(images, int):
            at_once, pixels = min(images, IMAGES_AT_ONCE), size**2
        else:
            at_once, pixels = min(len(images), IMAGES_AT_ONCE), images[0, 0].numel()
        tokens = 1 + (size // vision.patch_size) ** 2
        brought = 3 * _FLOAT32 * (3 * pixels + 4 * size**2)  # as it comes, and resized
        needed = at_once * (brought + 16 * dtype.itemsize * tokens * vision.width)
    if text is not None and captions:
        length = text.context_length if isinstance(text, ClipTextConfig) else text.text_length
        rows = captions + 1  # with the empty caption
        at_once = min(rows, CAPTIONS_AT_ONCE)
        needed = max(needed, (16 * dtype.itemsize * at_once + 2 * _FLOAT32 * rows) * length * text.width)
    return needed


def sampling_memory(network: UNet | UNetPair | Dalle2UNet, height: int, width: int, passes: int) -> int:
    """Bytes for one picture: the sampler's state, and the network's activations.

    Args:
        height, width: of the picture that is made.
        passes: rows of the network for it, 2 with guidance.
    """
    config, (_, dtype) = network.config, device_and_dtype(network)
    channels = _STATE * config.in_channels + 3 * config.concat_channels
    state = _FLOAT32 * height * width * channels
    if isinstance(network, Dalle2UNet):
        elements = _dalle2_activations(network, height * width)
    else:
        elements = _activations(network.first if isinstance(network, UNetPair) else network, height, width)
    return state + passes * dtype.itemsize * elements


def _activations(unet: UNet, height: int, width: int) -> int:
    """Elements alive at the worst moment of a pass of one picture."""
    config = unet.config
    places = height * width // config.patch_size**2
    h = config.channels * places
    skips, worst = [h], h
    for block in unet.encoder:
        h, working, places = _pass(block, places)
        worst = max(worst, sum(skips) + working)
        skips.append(h)
    for block in unet.middle:
        h, working, places = _pass(block, places)
        worst = max(worst, sum(skips) + working)
    for block in unet.decoder:
        skip = skips.pop()
        joined = h + skip
        after, working, places = _pass(block, places)
        worst = max(worst, sum(skips) + h + joined + working)
        h = after
    worst = max(worst, 3 * h)
    attended = [b.attention.heads for b in unet.modules() if isinstance(b, Block) and b.attention is not None]
    keys = 2 * config.head_dim * sum(attended) * _CAPTION if config.context_dim is not None else 0
    return worst + 2 * keys  # of each branch of guidance, and of both joined


def _dalle2_activations(unet: Dalle2UNet, places: int) -> int:
    """Elements alive at the worst moment of a pass of one picture, all places of the first grid given."""
    config = unet.config
    inner, crossed = config.heads * config.head_dim, config.cross_heads * config.cross_head_dim

    def inside(inputs: int, width: int, grid: int, attends: bool) -> int:
        """In a block or the attention behind it: norms work in float32, and heads beside their input."""
        residual = grid * (2 * inputs + 5 * width)
        attention = grid * (7 * width + 5 * (max(inner, crossed) if attends else crossed))
        return max(residual, attention)

    start = config.channels * places
    skips, worst, grids = start, 6 * start, []
    for level, block in enumerate(unet.encoder):
        first = level == 0
        if config.memory_efficient or not first:
            places //= 4
        grids.append(places)
        attends = config.self_attention[level] or config.linear_attention
        worst = max(worst, skips + inside(block.width, block.width, places, attends))
        skips += (config.res_blocks[level] + 1) * block.width * places
    middle = config.widths[-1]
    worst = max(worst, skips + inside(middle, middle, places, True))
    for level in reversed(range(len(grids))):
        width, taken, places = config.widths[level + 1], unet.encoder[level].width, grids[level]
        attends = config.self_attention[level] or config.linear_attention
        worst = max(worst, skips + (width + taken) * places + inside(width + taken, width, places, attends))
        skips -= (config.res_blocks[level] + 1) * taken * places
        worst = max(worst, skips + 13 * width * places)  # grown
    context = 4 * (config.text_length + config.time_tokens + _CLIP_TOKENS) * (config.context_dim + crossed)
    return worst + context


def _pass(block: Block | Downsample, places: int) -> tuple[int, int, int]:
    """Of a block on a grid of so many places: elements of its output, elements alive inside beside its input,
    and places of its output."""
    if isinstance(block, Downsample):
        if block.in_block:
            return _residual(block.residual, places)
        h = block.conv.out_channels * places // 4
        return h, h, places // 4
    h, worst, places = _residual(block.residual, places)
    if block.attention is not None:
        context = 2 * block.attention.heads * _CAPTION * (h // places // block.attention.heads)
        worst = max(worst, 10 * h + context)
    if isinstance(block.upsample, Upsample):
        before = h
        if block.upsample.in_block:
            h, working, places = _residual(block.upsample.residual, places)
        else:
            h, working, places = 4 * before, 8 * before, 4 * places
        worst = max(worst, before + working)
    return h, worst, places


def _residual(block: ResidualBlock, places: int) -> tuple[int, int, int]:
    inputs, outputs = block.conv_in.in_channels, block.conv_in.out_channels
    after = int(places * block.scale**2)
    # Normalised and activated, both resampled; then normalised, modulated, activated, and added to the skip.
    return outputs * after, 2 * inputs * max(places, after) + 4 * outputs * after, after
