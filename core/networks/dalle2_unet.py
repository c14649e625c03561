"""The U-Nets of DALLE2-pytorch: LAION's decoders and upsamplers.

Source: lucidrains/DALLE2-pytorch, `dalle2_pytorch.py` (`Unet`), of versions 0.24 to 1.15.6.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .dalle2_unet_blocks import Grown, Kernels, LinearAttention, ResidualBlock, SelfAttention, Shrunk
from .dalle2_unet_config import Dalle2UNetConfig
from .layers import Stack
from .unet import UNetCondition, require_inputs


class Level(nn.Module):
    """A level on the way down: shrinking, residual blocks, attention, and a convolution to the next width."""

    def __init__(self, config: Dalle2UNetConfig, index: int) -> None:
        super().__init__()
        inputs, outputs = config.widths[index : index + 2]
        width = outputs if config.memory_efficient else inputs
        last = index == len(config.channel_mult) - 1
        groups = config.groups[index]
        self.shrink = Shrunk(config.shrink, inputs, outputs) if config.memory_efficient else nn.Identity()
        self.first = ResidualBlock(config, width, width, groups)
        self.blocks: Stack[ResidualBlock] = Stack(
            ResidualBlock(config, width, width, groups, cross=index > 0)
            for _ in range(config.res_blocks[index])
        )
        self.attention = _attention(config, index, width)
        self.out: nn.Module = nn.Conv2d(width, outputs, 1)
        if not last and not config.memory_efficient:
            self.out = Shrunk(config.shrink, width, outputs)
        self.width = width


class UpLevel(nn.Module):
    """A level on the way up: residual blocks that take the skips, attention, growing."""

    def __init__(self, config: Dalle2UNetConfig, index: int, skip: int) -> None:
        super().__init__()
        outputs, width = config.widths[index : index + 2]
        groups = config.groups[index]

        def block() -> ResidualBlock:
            return ResidualBlock(config, width + skip, width, groups, cross=index > 0)

        self.first = block()
        self.blocks: Stack[ResidualBlock] = Stack(block() for _ in range(config.res_blocks[index]))
        self.attention = _attention(config, index, width)
        grows = index > 0 or config.memory_efficient
        self.grow = Grown(config.grow, width, outputs) if grows else nn.Identity()


class Dalle2UNet(nn.Module):
    """x_t, timestep and condition → what the network was trained to predict; called as a ``UNet``."""

    def __init__(self, config: Dalle2UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, dim, context = config.channels, config.embedding_dim, config.context_dim
        inputs = config.in_channels + config.concat_channels
        self.conv_in = Kernels(inputs, width, config.first_kernels, stride=1)
        self.time_hidden = nn.Linear(width, dim)
        self.time_tokens = nn.Linear(dim, config.time_tokens * context)
        self.time_embed = nn.Linear(dim, dim)
        if config.noise_level:
            self.noise_hidden = nn.Linear(width, dim)
            self.noise_embed = nn.Linear(dim, dim)
        given = config.conditioning
        if given is not None and given.clip_dim is not None:
            self.clip_tokens = nn.Linear(given.clip_dim, given.clip_tokens * context)
            self.null_clip_tokens = nn.Parameter(torch.zeros(given.clip_tokens, context))
            if config.clip_hidden:
                self.clip_embed = nn.Linear(given.clip_dim, dim)
                self.null_clip_embed = nn.Parameter(torch.zeros(dim))
        if given is not None and given.text_dim is not None:
            self.text_tokens = nn.Linear(given.text_dim, context)
            self.null_text_tokens = nn.Parameter(torch.zeros(config.text_length, context))
        self.norm_context = nn.LayerNorm(context)
        self.norm_middle_context = nn.LayerNorm(context)

        groups = config.groups
        self.first = ResidualBlock(config, width, width, groups[0]) if config.memory_efficient else None
        self.encoder: Stack[Level] = Stack(Level(config, n) for n in range(len(config.channel_mult)))
        middle = config.widths[-1]
        self.middle: Stack[ResidualBlock] = Stack(
            ResidualBlock(config, middle, middle, groups[-1], cross=True) for _ in range(2)
        )
        self.middle_attention = SelfAttention(config, middle)
        self.decoder: Stack[UpLevel] = Stack(
            UpLevel(config, n, self.encoder[n].width) for n in reversed(range(len(config.channel_mult)))
        )
        self.last = ResidualBlock(config, 2 * width, width, groups[0])
        kernel = config.last_kernel
        self.conv_out = nn.Conv2d(
            width + config.concat_channels, config.out_channels, kernel, padding=kernel // 2
        )
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def condition(
        self,
        *,
        batch: int | None = None,
        clip_embedding: Tensor | None = None,
        keep_clip: Tensor | None = None,
        text_tokens: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_pooled: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> UNetCondition:
        """Embed the conditions, see ``UNet.condition``; ``text_pooled`` and ``hint`` are not read.

        Raises:
            ValueError: shapes that do not fit the network or each other, or no way to tell B.
        """
        config, given = self.config, self.config.conditioning
        if given is None:
            return UNetCondition()
        rows = next((len(each) for each in (clip_embedding, text_tokens) if each is not None), batch)
        if rows is None:
            raise ValueError("the batch size is not known: give batch, or at least one condition")
        embedding, tokens = None, []
        if given.clip_dim is not None:
            _require("clip_embedding", clip_embedding, (rows, given.clip_dim))
            keep = torch.ones(rows, dtype=torch.bool, device=self.null_clip_tokens.device)
            keep = keep & (clip_embedding is not None) & (True if keep_clip is None else keep_clip)
            z = self.null_clip_tokens.new_zeros(rows, given.clip_dim)
            z = z if clip_embedding is None else clip_embedding.to(z)
            made = rearrange(self.clip_tokens(z), "b (n c) -> b n c", n=given.clip_tokens)
            tokens.append(torch.where(keep[:, None, None], made, self.null_clip_tokens))
            if config.clip_hidden:
                hidden = F.gelu(self.clip_embed(z))
                embedding = torch.where(keep[:, None], hidden, self.null_clip_embed)
        if given.text_dim is not None:
            tokens.append(self._text_tokens(rows, text_tokens, text_mask))
        joined = torch.cat(tokens, dim=1)[:, None]  # [B, 1, N, C], as keys and values are
        return UNetCondition(embedding, None, ((joined, joined),))

    def _text_tokens(self, rows: int, tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, L, C] of captions [B, M, W]; the learned tokens at padding and behind it."""
        given, length = self.config.conditioning, self.config.text_length
        null = self.null_text_tokens.expand(rows, -1, -1)
        if tokens is None or given is None or given.text_dim is None:
            return null
        _require("text_tokens", tokens, (rows, tokens.shape[1], given.text_dim))
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        _require("text_mask", mask, tuple(tokens.shape[:2]))
        made = self.text_tokens(tokens[:, :length].to(null.dtype))
        missing = length - made.shape[1]
        made, valid = F.pad(made, (0, 0, 0, missing)), F.pad(mask[:, :length], (0, missing))
        return torch.where(valid[:, :, None], made, null)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: UNetCondition | None = None,
        *,
        concat: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> Tensor:
        """One evaluation, see ``UNet.forward``."""
        condition = condition or UNetCondition()
        require_inputs("DALLE2 U-Net", self.config, x, condition, concat)
        embedding, context, middle_context = self._embed(x, t, condition, noise_level)
        h = self.conv_in(x if concat is None else torch.cat([x, concat], dim=1))
        start = h
        if self.first is not None:
            h = self.first(h, embedding, context)
        skips: list[Tensor] = []
        for level in self.encoder:
            h = level.first(level.shrink(h), embedding, context)
            for block in level.blocks:
                h = block(h, embedding, context)
                skips.append(h)
            h = level.attention(h)
            skips.append(h)
            h = level.out(h)
        h = self.middle[0](h, embedding, middle_context)
        h = self.middle[1](self.middle_attention(h), embedding, middle_context)
        scale = math.sqrt(0.5) if self.config.scale_skips else 1.0
        for up in self.decoder:
            for block in (up.first, *up.blocks):
                h = block(torch.cat([h, skips.pop() * scale], dim=1), embedding, context)
            h = up.grow(up.attention(h))
        h = self.last(torch.cat([h, start], dim=1), embedding, context)
        return self.conv_out(h if concat is None else torch.cat([h, concat], dim=1))

    def _embed(
        self, x: Tensor, t: Tensor, condition: UNetCondition, noise_level: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The activated embedding [B, E], and the context of the levels and of the middle."""
        config = self.config
        hidden = F.gelu(self.time_hidden(_sinusoids(t, config.channels).to(x.dtype)))
        embedding = self.time_embed(hidden)
        tokens = [rearrange(self.time_tokens(hidden), "b (n c) -> b n c", n=config.time_tokens)]
        if config.noise_level:
            level = torch.zeros_like(t, dtype=torch.float32) if noise_level is None else noise_level
            # Upstream's levels are the 1000 timesteps of a schedule.
            level = _sinusoids((1000 * level).round(), config.channels).to(x.dtype)
            embedding = embedding + self.noise_embed(F.gelu(self.noise_hidden(level)))
        if condition.embedding is not None:
            embedding = embedding + condition.embedding
        given = config.conditioning
        if given is not None:
            own = condition.context[0][0][:, 0]  # [B, N, C]
            ahead = given.clip_tokens if given.clip_dim is not None else 0
            tokens += [own[:, :ahead], own[:, ahead:]]
        context = self.norm_context(torch.cat(tokens[:2], dim=1))
        return F.silu(embedding), context, self.norm_middle_context(torch.cat(tokens, dim=1))


def _attention(config: Dalle2UNetConfig, index: int, width: int) -> nn.Module:
    if config.self_attention[index]:
        return SelfAttention(config, width)
    return LinearAttention(config, width) if config.linear_attention else nn.Identity()


def _sinusoids(t: Tensor, dim: int) -> Tensor:
    """[B] → [B, dim] float32: sines first, the longest wavelength is 2π·10000 (`SinusoidalPosEmb`)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _require(name: str, found: Tensor | None, expected: tuple[int, ...]) -> None:
    if found is not None and tuple(found.shape) != expected:
        raise ValueError(f"DALLE2 U-Net: {name} has shape {list(found.shape)}, expected {list(expected)}")
