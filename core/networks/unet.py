"""The ADM U-Net of the unCLIP family: decoders and upsamplers of the paper, Karlo, GLIDE and our own.

Sources: ADM (2105.05233) and GLIDE (2112.10741), whose context tokens join the keys and values of
self-attention; the CLIP conditioning is section 2.1 of unCLIP (2204.06125). Everything that does not change
over the sampling steps is computed once by :meth:`UNet.condition`: embeddings, context, and the context's
keys and values per block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .conditioning import Conditioner, ConditioningConfig
from .layers import timestep_embedding

GROUPS = 32


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net.

    Attributes:
        image_size: side of the pictures it makes. Networks without attention run at any size.
        in_channels, out_channels: of x_t and of the output (twice ``in_channels`` with learned variance).
        concat_channels: of the condition concatenated to x_t (low resolution, masked image, mask).
        patch_size: x_t is pixel-unshuffled by this factor first, and the output is shuffled back.
        channels, channel_mult, res_blocks: width, width per level, residual blocks per level.
        attention: grid sizes with attention, counted after unshuffling.
        head_dim: width of an attention head.
        film: the embedding scales and shifts (FiLM); otherwise it is added.
        resample_in_block: up- and downsampling inside residual blocks; otherwise by a convolution.
        noise_level: the strength of the noise on the concatenated condition is an input (Cascaded Diffusion).
        conditioning: CLIP and text inputs, or None.
    """

    image_size: int
    in_channels: int = 3
    out_channels: int = 3
    concat_channels: int = 0
    patch_size: int = 1
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2)
    res_blocks: tuple[int, ...] = (2, 2)
    attention: tuple[int, ...] = ()
    head_dim: int = 64
    film: bool = True
    resample_in_block: bool = True
    noise_level: bool = False
    conditioning: ConditioningConfig | None = None

    def __post_init__(self) -> None:
        if len(self.res_blocks) != len(self.channel_mult):
            raise ValueError(
                f"res_blocks has {len(self.res_blocks)} levels and channel_mult {len(self.channel_mult)}: "
                f"both need one number per level"
            )
        if self.image_size % self.multiple_of:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {self.multiple_of}")

    @property
    def embedding_dim(self) -> int:
        return 4 * self.channels

    @property
    def multiple_of(self) -> int:
        """Heights and widths must be multiples of this."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def context_dim(self) -> int | None:
        has_context = self.conditioning is not None and self.conditioning.has_context
        return self.conditioning.context_dim if has_context else None


@dataclass(frozen=True)
class UNetCondition:
    """What a batch is conditioned on, computed once for all sampling steps.

    Attributes:
        embedding: [B, E], added to the timestep embedding, or None.
        context: per attention block the keys and values [B, heads, N, head_dim] of the N context tokens.
        mask: [B, N] bool, True for valid context tokens; None when all are.
    """

    embedding: Tensor | None = None
    context: tuple[tuple[Tensor, Tensor], ...] = ()
    mask: Tensor | None = None

    @staticmethod
    def cat(first: UNetCondition, second: UNetCondition) -> UNetCondition:
        """Join two conditions along the batch; the shorter context is padded and masked."""
        embedding = None
        if first.embedding is not None and second.embedding is not None:
            embedding = torch.cat([first.embedding, second.embedding])
        if not first.context:
            return UNetCondition(embedding)
        lengths = [condition.context[0][0].shape[2] for condition in (first, second)]
        length = max(lengths)
        context = tuple(
            tuple(
                torch.cat(
                    [F.pad(a, (0, 0, 0, length - lengths[0])), F.pad(b, (0, 0, 0, length - lengths[1]))]
                )
                for a, b in zip(one, other, strict=True)
            )
            for one, other in zip(first.context, second.context, strict=True)
        )
        if lengths[0] == lengths[1] and first.mask is None and second.mask is None:
            return UNetCondition(embedding, context)
        mask = torch.cat([_padded_mask(condition, length) for condition in (first, second)])
        return UNetCondition(embedding, context, mask)


class UNet(nn.Module):
    """x_t, timestep and condition → what the network was trained to predict."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, dim, patch = config.channels, config.embedding_dim, config.patch_size
        self.time_embed = _embedding_mlp(width, dim)
        if config.noise_level:
            self.noise_level_embed = _embedding_mlp(width, dim)
        if config.conditioning is not None:
            self.conditioner = Conditioner(config.conditioning, dim)

        inputs = (config.in_channels + config.concat_channels) * patch**2
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        grid = config.image_size // patch
        skips = [width]
        channels = width
        self.encoder = nn.ModuleList()
        for level, (multiplier, blocks) in enumerate(
            zip(config.channel_mult, config.res_blocks, strict=True)
        ):
            for _ in range(blocks):
                self.encoder.append(
                    Block(config, channels, multiplier * width, attention=grid in config.attention)
                )
                channels = multiplier * width
                skips.append(channels)
            if level + 1 < len(config.channel_mult):
                self.encoder.append(Downsample(config, channels))
                skips.append(channels)
                grid //= 2

        self.middle = nn.ModuleList(
            [
                Block(config, channels, channels, attention=bool(config.attention)),
                Block(config, channels, channels),
            ]
        )

        self.decoder = nn.ModuleList()
        for level in reversed(range(len(config.channel_mult))):
            for index in range(config.res_blocks[level] + 1):
                block = Block(
                    config,
                    channels + skips.pop(),
                    config.channel_mult[level] * width,
                    attention=grid in config.attention,
                    upsample=level > 0 and index == config.res_blocks[level],
                )
                self.decoder.append(block)
                channels = config.channel_mult[level] * width
            grid *= 2

        self.norm_out = nn.GroupNorm(GROUPS, channels)
        self.conv_out = _zeroed(nn.Conv2d(channels, config.out_channels * patch**2, 3, padding=1))

    def condition(
        self,
        *,
        batch: int | None = None,
        clip_embedding: Tensor | None = None,
        keep_clip: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_pooled: Tensor | None = None,
    ) -> UNetCondition:
        """Embed the conditions and compute every block's context keys and values.

        Args:
            batch: number of rows B, needed only when no tensor tells.
            clip_embedding: [B, D] image embeddings; None for the learned null embedding.
            keep_clip: [B] bool, False for the null embedding in single rows.
            text_tokens, text_mask, text_pooled: [B, L, W], [B, L] bool, [B, P]; None for no caption.
        """
        if self.config.conditioning is None:
            return UNetCondition()
        given = next(
            (value for value in (clip_embedding, text_tokens, text_pooled) if value is not None), None
        )
        if given is None and batch is None:
            raise ValueError("the batch size is not known: give batch, or at least one condition")
        embedding, tokens, mask = self.conditioner(
            given.shape[0] if given is not None else batch,
            clip_embedding,
            keep_clip,
            text_tokens,
            text_mask,
            text_pooled,
        )
        if tokens is None:
            return UNetCondition(embedding)
        return UNetCondition(
            embedding, tuple(block.attention.context(tokens) for block in self._attended()), mask
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: UNetCondition | None = None,
        *,
        concat: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """One evaluation.

        Args:
            x: [B, in_channels, H, W] x_t.
            t: [B] timesteps, as trained (0..T−1).
            condition: from :meth:`condition`.
            concat: [B, concat_channels, H, W].
            noise_level: [B] in 0..1, the strength of the noise on ``concat``.

        Returns:
            [B, out_channels, H, W].
        """
        condition = condition or UNetCondition()
        config = self.config
        embedding = self.time_embed(timestep_embedding(t, config.channels).to(x.dtype))  # [B, E]
        if config.noise_level:
            level = torch.zeros_like(t, dtype=torch.float32) if noise_level is None else noise_level
            level = timestep_embedding(1000 * level, config.channels)
            embedding = embedding + self.noise_level_embed(level.to(x.dtype))
        if condition.embedding is not None:
            embedding = embedding + condition.embedding
        embedding = F.silu(embedding)
        mask = None if condition.mask is None else condition.mask[:, None, None, :]  # [B, 1, 1, N]
        context = iter(condition.context) if condition.context else None

        h = x if concat is None else torch.cat([x, concat], dim=1)
        h = self.conv_in(F.pixel_unshuffle(h, config.patch_size) if config.patch_size > 1 else h)
        skips = [h]
        for block in self.encoder:
            h = block(h, embedding, context, mask)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding, context, mask)
        for block in self.decoder:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, context, mask)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, config.patch_size) if config.patch_size > 1 else h

    def _attended(self) -> list[Block]:
        blocks = [*self.encoder, *self.middle, *self.decoder]
        return [block for block in blocks if isinstance(block, Block) and block.attention is not None]


class Block(nn.Module):
    """A residual block, then attention, then upsampling, as far as each is there."""

    def __init__(
        self, config: UNetConfig, inputs: int, outputs: int, attention: bool = False, upsample: bool = False
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, config.embedding_dim, config.film)
        self.attention = Attention(outputs, config.head_dim, config.context_dim) if attention else None
        self.upsample = Upsample(config, outputs) if upsample else None

    def forward(self, h: Tensor, embedding: Tensor, context, mask: Tensor | None) -> Tensor:
        h = self.residual(h, embedding)
        if self.attention is not None:
            h = self.attention(h, next(context) if context is not None else None, mask)
        return h if self.upsample is None else self.upsample(h, embedding)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the embedding in between (ADM)."""

    def __init__(self, inputs: int, outputs: int, embedding_dim: int, film: bool, scale: float = 1) -> None:
        super().__init__()
        self.film, self.scale = film, scale
        self.norm_in = nn.GroupNorm(GROUPS, inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embedding = nn.Linear(embedding_dim, outputs * (2 if film else 1))
        self.norm_out = nn.GroupNorm(GROUPS, outputs)
        self.conv_out = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm_in(x))
        if self.scale != 1:  # ADM resamples between the activation and the convolution
            h, x = _resample(h, self.scale), _resample(x, self.scale)
        h = self.conv_in(h)
        modulation = self.embedding(embedding)[:, :, None, None]
        if self.film:
            gain, shift = modulation.chunk(2, dim=1)
            h = F.silu(self.norm_out(h) * (1 + gain) + shift)
        else:
            h = F.silu(self.norm_out(h + modulation))
        return self.skip(x) + self.conv_out(h)


class Downsample(nn.Module):
    """Halves the grid: a residual block over average pooling, or a strided convolution."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.in_block = config.resample_in_block
        if self.in_block:
            self.residual = ResidualBlock(channels, channels, config.embedding_dim, config.film, scale=0.5)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, embedding: Tensor, context=None, mask: Tensor | None = None) -> Tensor:
        return self.residual(h, embedding) if self.in_block else self.conv(h)


class Upsample(nn.Module):
    """Doubles the grid: a residual block over nearest neighbours, or nearest neighbours and a convolution."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.in_block = config.resample_in_block
        if self.in_block:
            self.residual = ResidualBlock(channels, channels, config.embedding_dim, config.film, scale=2)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.residual(h, embedding) if self.in_block else self.conv(_resample(h, 2))


class Attention(nn.Module):
    """Self-attention over the grid; context tokens join its keys and values (GLIDE, section 2.3)."""

    def __init__(self, channels: int, head_dim: int, context_dim: int | None) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"{channels} channels cannot be split into attention heads of {head_dim}")
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.context_kv = nn.Linear(context_dim, 2 * channels) if context_dim is not None else None
        self.out = _zeroed(nn.Linear(channels, channels))

    def context(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, C] context tokens → keys and values [B, heads, N, head_dim]."""
        k, v = rearrange(self.context_kv(tokens), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return k, v

    def forward(self, x: Tensor, context: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        h = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.qkv(h), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        if context is not None:
            k = torch.cat([context[0], k], dim=2)  # [B, heads, N + HW, head_dim]
            v = torch.cat([context[1], v], dim=2)
            if mask is not None:
                mask = F.pad(mask, (0, height * width), value=True)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if context is not None else None)
        h = self.out(rearrange(h, "b h n d -> b n (h d)"))
        return x + rearrange(h, "b (h w) c -> b c h w", h=height)


def _embedding_mlp(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim))


def _resample(x: Tensor, scale: float) -> Tensor:
    return F.avg_pool2d(x, 2) if scale == 0.5 else F.interpolate(x, scale_factor=scale, mode="nearest")


def _zeroed(module: nn.Module) -> nn.Module:
    """Zero-initialised, so that every block starts as the identity (ADM)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _padded_mask(condition: UNetCondition, length: int) -> Tensor:
    keys = condition.context[0][0]
    mask = condition.mask
    if mask is None:
        mask = torch.ones(keys.shape[0], keys.shape[2], dtype=torch.bool, device=keys.device)
    return F.pad(mask, (0, length - mask.shape[1]), value=False)
