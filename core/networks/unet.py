"""The ADM U-Net of the unCLIP family: decoders and upsamplers of the paper, Karlo, GLIDE and our own.

Sources: ADM (2105.05233) and GLIDE (2112.10741); the CLIP conditioning is section 2.1 of unCLIP (2204.06125).
What does not change over the sampling steps is computed once by :meth:`UNet.condition`: embeddings, context,
and the context's keys and values per block.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditioning import Conditioner
from .dalle2_unet_config import Dalle2UNetConfig
from .layers import Stack, timestep_embedding
from .unet_blocks import Attention, Block, Context, Downsample, silu, zeroed
from .unet_config import GROUPS, UNetConfig


@dataclass(frozen=True)
class UNetCondition:
    """What a batch is conditioned on, computed once for all sampling steps.

    Attributes:
        embedding: [B, E], added to the timestep embedding; None in a network without such inputs.
        layout: [B, C, H, W], beside the unshuffled x_t, of its size; None in a network without.
        context: per attention block the keys and values of the N context tokens; empty in a network without.
        mask: [B, N] bool, True for valid context tokens; None when all are.
    """

    embedding: Tensor | None = None
    layout: Tensor | None = None
    context: tuple[Context, ...] = ()
    mask: Tensor | None = None

    @property
    def batch(self) -> int | None:
        """Number of rows B; None for the condition of a network that takes none."""
        if self.embedding is not None:
            return len(self.embedding)
        return len(self.context[0][0]) if self.context else None

    def map(self, function: Callable[[Tensor], Tensor]) -> UNetCondition:
        """Another condition, its tensors changed one by one."""
        given = (self.embedding, self.layout, self.mask)
        embedding, layout, mask = (None if tensor is None else function(tensor) for tensor in given)
        context = tuple((function(keys), function(values)) for keys, values in self.context)
        return UNetCondition(embedding, layout, context, mask)

    @staticmethod
    def cat(first: UNetCondition, second: UNetCondition) -> UNetCondition:
        """Join two conditions of one network along the batch; the shorter context is padded and masked.

        Raises:
            ValueError: conditions of networks that take different inputs.
        """
        kinds = [
            (condition.embedding is None, condition.layout is None, len(condition.context))
            for condition in (first, second)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError("conditions of different networks cannot be joined")
        embedding = _cat_given(first.embedding, second.embedding)
        layout = _cat_given(first.layout, second.layout)
        if not first.context:
            return UNetCondition(embedding, layout)
        length = max(first.context[0][0].shape[2], second.context[0][0].shape[2])
        context = tuple(
            (_cat_padded(k1, k2, length), _cat_padded(v1, v2, length))
            for (k1, v1), (k2, v2) in zip(first.context, second.context, strict=True)
        )
        if all(condition._all_valid(length) for condition in (first, second)):
            return UNetCondition(embedding, layout, context)
        mask = torch.cat([condition._padded_mask(length) for condition in (first, second)])
        return UNetCondition(embedding, layout, context, mask)

    def _all_valid(self, length: int) -> bool:
        return self.mask is None and self.context[0][0].shape[2] == length

    def _padded_mask(self, length: int) -> Tensor:
        """[B, length] bool."""
        keys, mask = self.context[0][0], self.mask
        if mask is None:
            mask = torch.ones(keys.shape[0], keys.shape[2], dtype=torch.bool, device=keys.device)
        return F.pad(mask, (0, length - mask.shape[1]), value=False)


def require_inputs(
    name: str,
    config: UNetConfig | Dalle2UNetConfig,
    x: Tensor,
    condition: UNetCondition,
    concat: Tensor | None,
) -> None:
    """Refuse shapes that do not fit a U-Net of this config, or each other.

    Raises:
        ValueError: which begins with ``name``, that of the network.
    """
    shape = list(x.shape)
    if x.ndim != 4 or shape[1] != config.in_channels or any(s % config.multiple_of for s in shape[2:]):
        raise ValueError(
            f"{name}: x has shape {shape}, expected [batch, {config.in_channels}, height, width] "
            f"with height and width multiples of {config.multiple_of}"
        )
    expected = [shape[0], config.concat_channels, *shape[2:]] if config.concat_channels else None
    found = None if concat is None else list(concat.shape)
    if found != expected:
        raise ValueError(f"{name}: concat has shape {found}, expected {expected} beside x {shape}")
    if (config.conditioning is not None) != (condition.batch is not None):
        needs = "needs a" if config.conditioning is not None else "takes no"
        raise ValueError(f"{name}: this network {needs} condition from its condition()")
    if condition.batch not in (None, shape[0]):
        raise ValueError(f"{name}: the condition has {condition.batch} rows and x has {shape[0]}")


def with_null_embedding(network: UNet, z_i: Tensor) -> UNet:
    """A U-Net over the same parameters that has [D] for a dropped z_i.

    For networks whose null embedding is that of an all-zero picture, which their files lack (Kandinsky).
    """
    assert network.config.conditioning is not None, "a network without conditions drops none"
    conditioning = replace(network.config.conditioning, learned_null=True)
    conditioner, weight = copy(network.conditioner), network.conv_in.weight
    conditioner.config = conditioning
    null = nn.Parameter(z_i.detach().to(weight.device, weight.dtype), requires_grad=False)
    conditioner._parameters = network.conditioner._parameters | {"null_clip": null}
    twin = copy(network)
    twin.config = replace(network.config, conditioning=conditioning)
    twin._modules = network._modules | {"conditioner": conditioner}
    return twin


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
            self.conditioner = Conditioner(config.conditioning, dim, config.grids[0])

        inputs = (config.in_channels + config.concat_channels) * patch**2 + config.layout_channels
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        grid = config.grids[0]
        if config.positions:
            self.positions = nn.Parameter(_sinusoids(width, grid))
        skips = [width]
        channels = width
        self.encoder: Stack[Block | Downsample] = Stack()
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

        self.middle: Stack[Block] = Stack(
            [
                Block(config, channels, channels, attention=bool(config.attention)),
                Block(config, channels, channels),
            ]
        )

        self.decoder: Stack[Block] = Stack()
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
        self.conv_out = zeroed(nn.Conv2d(channels, config.out_channels * patch**2, 3, padding=1))

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
        """Embed the conditions and compute every block's context keys and values.

        Inputs that the network does not have are ignored.

        Args:
            batch: number of rows B, needed only when no tensor tells.
            clip_embedding: [B, D] image embeddings; None for the null embedding.
            keep_clip: [B] bool, False for the null embedding in single rows.
            text_tokens: [B, L, W] caption features; None for no caption.
            text_mask: [B, L] bool, False for padding; a row without any True has no caption. None: all valid.
            text_pooled: [B, P]; None for none.
            hint: [B, 3, 8·H, 8·W] in 0..1, for x_t of H×W; needed by a network with hints.

        Raises:
            ValueError: shapes that do not fit the network or each other, no hint, or no way to tell B.
        """
        if self.config.conditioning is None:
            return UNetCondition()
        inputs = (clip_embedding, text_tokens, text_pooled, hint)
        rows = next((len(value) for value in inputs if value is not None), batch)
        if rows is None:
            raise ValueError("the batch size is not known: give batch, or at least one condition")
        given = self.conditioner(rows, clip_embedding, keep_clip, text_tokens, text_mask, text_pooled, hint)
        embedding, tokens = given.embedding, given.tokens
        # Where nothing is given they are zero, or of no length, rather than absent: any two conditions
        # of a network can be joined.
        weight, conditioning = self.conv_in.weight, self.config.conditioning
        if embedding is None and conditioning.has_embedding:
            embedding = weight.new_zeros(rows, self.config.embedding_dim)
        if tokens is None and conditioning.has_context:
            tokens = weight.new_zeros(rows, 0, conditioning.context_dim)
        if tokens is None:
            return UNetCondition(embedding, given.layout)
        context = tuple(attention.context(tokens) for attention in self._attentions())
        return UNetCondition(embedding, given.layout, context, given.mask)

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
            x: [B, in_channels, H, W] x_t; H and W multiples of ``config.multiple_of``.
            t: [B] timesteps, as trained (0..T−1).
            condition: from :meth:`condition`; needed by a network with ``config.conditioning``.
            concat: [B, concat_channels, H, W]; needed by a network with ``config.concat_channels``.
            noise_level: [B] in 0..1, the strength of the noise on ``concat``; None for none. Ignored by a
                network without ``config.noise_level``.

        Returns:
            [B, out_channels, H, W].

        Raises:
            ValueError: a condition is missing, or a shape does not fit the network.
        """
        condition = condition or UNetCondition()
        config = self.config
        self._check(x, condition, concat)
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
        h = F.pixel_unshuffle(h, config.patch_size) if config.patch_size > 1 else h
        h = self.conv_in(h if condition.layout is None else torch.cat([h, condition.layout], dim=1))
        if config.positions:
            h = h + self.positions
        skips = [h]
        for block in self.encoder:
            h = block(h, embedding, context, mask)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding, context, mask)
        for block in self.decoder:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, context, mask)
        h = self.conv_out(silu(self.norm_out(h)))
        h = F.pixel_shuffle(h, config.patch_size) if config.patch_size > 1 else h
        return h + concat[:, : config.out_channels] if config.residual and concat is not None else h

    def _check(self, x: Tensor, condition: UNetCondition, concat: Tensor | None) -> None:
        require_inputs("U-Net", self.config, x, condition, concat)
        config, shape = self.config, list(x.shape)
        if config.fixed_size and shape[2:] != [config.image_size] * 2:
            raise ValueError(
                f"U-Net: x has {shape[3]}×{shape[2]} pixels, but a network with learned positions or a "
                f"layout works at {config.image_size}×{config.image_size} only"
            )
        layout, grid = condition.layout, [side // config.patch_size for side in shape[2:]]
        if layout is not None and list(layout.shape[2:]) != grid:
            raise ValueError(
                f"U-Net: the condition's layout has {layout.shape[3]}×{layout.shape[2]} places, expected "
                f"{grid[1]}×{grid[0]} beside x {shape}"
            )

    def _attentions(self) -> list[Attention]:
        blocks = [block for block in (*self.encoder, *self.middle, *self.decoder) if isinstance(block, Block)]
        return [block.attention for block in blocks if block.attention is not None]


def _embedding_mlp(width: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim))


def _cat_given(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return torch.cat([first, second]) if first is not None and second is not None else None


def _cat_padded(first: Tensor, second: Tensor, length: int) -> Tensor:
    """Two [B, heads, N, head_dim] → [B1 + B2, heads, length, head_dim], zeros behind the shorter."""
    return torch.cat([F.pad(part, (0, 0, 0, length - part.shape[2])) for part in (first, second)])


def _sinusoids(channels: int, grid: int) -> Tensor:
    """[1, channels, grid, grid], faint: half of the channels tell the row, half the column."""
    # Small, and so on the CPU from the first, also where the network has no memory: arithmetic there is slow.
    where = torch.arange(grid, device="cpu")
    waves = timestep_embedding(where, channels // 2, max_period=4 * grid).T  # [channels / 2, grid]
    rows, columns = waves[:, :, None].expand(-1, -1, grid), waves[:, None, :].expand(-1, grid, -1)
    return 0.1 * torch.cat([rows, columns])[None]
