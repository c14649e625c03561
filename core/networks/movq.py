"""MoVQ, the autoencoder in whose latent Kandinsky's decoders paint.

Sources: MoVQ (2209.09002), whose decoder is modulated by the latent at every norm; as code, `models/
autoencoders/vq_model.py` of diffusers and `kandinsky2/vqgan` of ai-forever/Kandinsky-2. Kandinsky paints and
decodes latents that are not quantised: the codebook is part of the file and not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .layers import Stack
from .sizes import MAX_LAYERS, MAX_WIDTH, require_size
from .unet_blocks import silu
from .unet_config import GROUPS
from .upsampled import UpsampledConv2d

_EPS = 1e-6
_MAX_LEVELS = 16


@dataclass(frozen=True)
class MoVQConfig:
    """Shape of the autoencoder.

    Attributes:
        channels: width of the finest level, a multiple of 32.
        channel_mult: factor of the width per level, from the finest to the coarsest.
        res_blocks: residual blocks of each level of the encoder; the decoder has one more.
        attention: levels with attention, 0 the finest. The middle always has it.
        latent_channels: of the latent, and of the codes.
        picture_channels: of pictures.
        codes: size of the codebook.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    res_blocks: int = 2
    attention: tuple[int, ...] = (3,)
    latent_channels: int = 4
    picture_channels: int = 3
    codes: int = 16384

    def __post_init__(self) -> None:
        for name in ("channels", "latent_channels", "picture_channels"):
            require_size(f"MoVQ: {name}", getattr(self, name), MAX_WIDTH)
        require_size("MoVQ: codes", self.codes)
        require_size("MoVQ: res_blocks", self.res_blocks, MAX_LAYERS)
        require_size("MoVQ: the number of levels", len(self.channel_mult), _MAX_LEVELS)
        for width in self.widths:
            require_size("MoVQ: the width of a level", width, MAX_WIDTH)
        if self.channels % GROUPS:
            raise ValueError(f"channels is {self.channels}, expected a multiple of {GROUPS}")
        unknown = sorted(set(self.attention) - set(range(len(self.channel_mult))))
        if unknown:
            raise ValueError(
                f"attention names the levels {', '.join(map(str, unknown))}, but there are "
                f"{len(self.channel_mult)}, from 0 on"
            )

    @property
    def scale(self) -> int:
        """Side of a picture divided by that of its latent."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * factor for factor in self.channel_mult)

    @property
    def local_levels(self) -> int:
        """Levels, from the finest on, that see no further than their convolutions reach."""
        return min(self.attention, default=len(self.channel_mult) - 1)


class MoVQ(nn.Module):
    """Pictures in −1..1 to latents and back; sides of pictures are multiples of ``config.scale``.

    The two directions are run apart, see :meth:`encode` and :meth:`decode`.
    """

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(channels, channels, 1)
        self.codebook = nn.Parameter(torch.zeros(config.codes, channels))
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.decoder = Decoder(config)

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, scale·H, scale·W] in −1..1 → [B, C, H, W]; a ValueError for other shapes."""
        require_pictures(self.config, pictures)
        return self.quant_conv(self.encoder(pictures))

    def decode(self, latent: Tensor) -> Tensor:
        """[B, C, H, W] → [B, 3, scale·H, scale·W], about −1..1; a ValueError for other shapes."""
        require_latent(self.config, latent)
        return self.decoder(self.post_quant_conv(latent), latent)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures as the autoencoder reconstructs them."""
        return self.decode(self.encode(pictures))


def require_pictures(config: MoVQConfig, pictures: Tensor) -> None:
    """Raise a ValueError unless the encoder takes pictures of this shape."""
    shape = list(pictures.shape)
    fits = pictures.ndim == 4 and shape[1] == config.picture_channels and 0 not in shape
    if not fits or any(side % config.scale for side in shape[2:]):
        raise ValueError(
            f"MoVQ: pictures have shape {shape}, expected [batch, {config.picture_channels}, height, width] "
            f"with height and width multiples of {config.scale}"
        )


def require_latent(config: MoVQConfig, latent: Tensor) -> None:
    """Raise a ValueError unless the decoder takes a latent of this shape."""
    if latent.ndim != 4 or latent.shape[1] != config.latent_channels or 0 in latent.shape:
        raise ValueError(
            f"MoVQ: the latent has shape {list(latent.shape)}, expected [batch, {config.latent_channels}, "
            f"height, width]"
        )


class Encoder(nn.Module):
    """A VQGAN's encoder: ``local`` sees as far as its convolutions reach, ``whole`` has the attention."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        self.local_levels = config.local_levels
        self.conv_in = nn.Conv2d(config.picture_channels, config.channels, 3, padding=1)
        self.levels: Stack[Level] = Stack()
        inputs = config.channels
        for number, width in enumerate(config.widths):
            halved = Halved(width) if number + 1 < len(config.widths) else None
            attention = number in config.attention
            self.levels.append(Level(inputs, width, config.res_blocks, attention, halved))
            inputs = width
        self.middle = Middle(inputs)
        self.norm_out = Norm(inputs)
        self.conv_out = nn.Conv2d(inputs, config.latent_channels, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.whole(self.local(pictures))

    def local(self, pictures: Tensor) -> Tensor:
        h = self.conv_in(pictures)
        for level in self.levels[: self.local_levels]:
            h = level(h)
        return h

    def whole(self, h: Tensor) -> Tensor:
        for level in self.levels[self.local_levels :]:
            h = level(h)
        return self.conv_out(silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """MoVQ's decoder, see :class:`Encoder`; its levels stand in the order of running, the coarsest first."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        latent = config.latent_channels
        self.whole_levels = len(config.widths) - config.local_levels
        self.levels: Stack[Level] = Stack()
        inputs = config.widths[-1]
        self.conv_in = nn.Conv2d(latent, inputs, 3, padding=1)
        self.middle = Middle(inputs, latent)
        for number in reversed(range(len(config.widths))):
            width = config.widths[number]
            doubled = UpsampledConv2d(width, width) if number > 0 else None
            attention = number in config.attention
            self.levels.append(Level(inputs, width, config.res_blocks + 1, attention, doubled, latent))
            inputs = width
        self.norm_out = Norm(inputs, latent)
        self.conv_out = nn.Conv2d(inputs, config.picture_channels, 3, padding=1)

    def forward(self, h: Tensor, latent: Tensor) -> Tensor:
        return self.local(self.whole(h, latent), latent)

    def whole(self, h: Tensor, latent: Tensor) -> Tensor:
        h = self.middle(self.conv_in(h), latent)
        for level in self.levels[: self.whole_levels]:
            h = level(h, latent)
        return h

    def local(self, h: Tensor, latent: Tensor) -> Tensor:
        for level in self.levels[self.whole_levels :]:
            h = level(h, latent)
        return self.conv_out(silu(self.norm_out(h, latent)))


class Level(nn.Module):
    """Residual blocks, attention behind each where the level has it, then another size where one follows."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        attention: bool,
        resample: nn.Module | None,
        latent_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.blocks: Stack[ResidualBlock] = Stack(
            ResidualBlock(inputs if index == 0 else outputs, outputs, latent_channels)
            for index in range(blocks)
        )
        attended = blocks if attention else 0
        self.attention: Stack[Attention] = Stack(Attention(outputs, latent_channels) for _ in range(attended))
        self.resample = resample

    def forward(self, h: Tensor, latent: Tensor | None = None) -> Tensor:
        for index, block in enumerate(self.blocks):
            h = block(h, latent)
            if len(self.attention):
                h = self.attention[index](h, latent)
        return h if self.resample is None else self.resample(h)


class Middle(nn.Module):
    """A residual block, attention, a residual block."""

    def __init__(self, channels: int, latent_channels: int | None = None) -> None:
        super().__init__()
        self.first = ResidualBlock(channels, channels, latent_channels)
        self.attention = Attention(channels, latent_channels)
        self.last = ResidualBlock(channels, channels, latent_channels)

    def forward(self, h: Tensor, latent: Tensor | None = None) -> Tensor:
        return self.last(self.attention(self.first(h, latent), latent), latent)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice: [B, inputs, H, W] → [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, latent_channels: int | None = None) -> None:
        super().__init__()
        self.norm_in = Norm(inputs, latent_channels)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_out = Norm(outputs, latent_channels)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        h = self.conv_in(silu(self.norm_in(x, latent)))
        h = self.conv_out(silu(self.norm_out(h, latent)))
        return h + self.skip(x)


class Attention(nn.Module):
    """Self-attention of one head over all places; ``qkv`` gives queries, then keys, then values."""

    def __init__(self, channels: int, latent_channels: int | None = None) -> None:
        super().__init__()
        self.norm = Norm(channels, latent_channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        height = x.shape[2]
        h = rearrange(self.norm(x, latent), "b c h w -> b 1 (h w) c")
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(q, k, v))
        return x + rearrange(h, "b 1 (h w) c -> b c h w", h=height)


class Norm(nn.Module):
    """GroupNorm; with a latent it is spatial: GroupNorm(h)·gain(z) + shift(z), z repeated to the size of h.

    MoVQ, section 3.2. Gain and shift are 1×1 convolutions, which do not mind whether z is repeated before or
    after: they run on the small grid.
    """

    def __init__(self, channels: int, latent_channels: int | None = None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=_EPS)
        self.gain: nn.Conv2d | None = None
        self.shift: nn.Conv2d | None = None
        if latent_channels is not None:
            self.gain = nn.Conv2d(latent_channels, channels, 1)
            self.shift = nn.Conv2d(latent_channels, channels, 1)

    def forward(self, h: Tensor, latent: Tensor | None = None) -> Tensor:
        """h [B, C, s·H, s·W] and, where it is spatial, a latent [B, Z, H, W]."""
        h = self.norm(h)
        if self.gain is None or self.shift is None:
            return h
        assert latent is not None, "a spatial norm sees the latent"
        gain, shift = self.gain(latent)[:, :, :, None, :, None], self.shift(latent)[:, :, :, None, :, None]
        rows, columns = latent.shape[2:]
        blocks = h.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # [B, C, H, s, W, s]
        if torch.is_grad_enabled():
            return (blocks * gain + shift).flatten(4, 5).flatten(2, 3)
        blocks.mul_(gain).add_(shift)  # h is fresh, and large: in place
        return h


class Halved(nn.Module):
    """Half the size by a convolution of stride 2, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.pad(h, (0, 1, 0, 1)))
