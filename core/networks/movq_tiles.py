"""MoVQ by tiles, for pictures that would not fit into memory as a whole; it computes the same.

The coarse levels, whose attention reaches across the picture, are small and run as a whole. Of the fine ones
block after block runs tile by tile, twice as far as its second norm: first to measure each norm over all
tiles, then with the same statistics everywhere. With those fixed a block sees two pixels beyond a tile, which
one place of the latent as a margin holds. Between blocks the picture rests in ordinary memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import product

import torch
from einops import rearrange
from torch import Tensor, nn

from .movq import Halved, Level, MoVQ, Norm, ResidualBlock, require_latent, require_pictures
from .unet_blocks import silu

_MARGIN = 1  # places of the latent; of the fine levels each has at least 2 pixels
_CPU = torch.device("cpu")


OnTile = Callable[[int, int], object]
"""Told after each run of a tile how many are done, and how many there are; what it raises ends the work."""


def decode_in_tiles(movq: MoVQ, latent: Tensor, tile: int, on_tile: OnTile | None = None) -> Tensor:
    """As ``MoVQ.decode``, its fine levels by tiles; the pictures are on the CPU.

    Args:
        tile: side of a tile in places of the latent, without its margin.
    """
    require_latent(movq.config, latent)
    decoder = movq.decoder
    h = decoder.whole(movq.post_quant_conv(latent), latent).to(_CPU)
    levels = decoder.levels[decoder.whole_levels :]
    run = _Tiled(latent, tile, _passes(levels) + 2, on_tile, spatial=True)
    for level in levels:
        h = run.level(h, level)
    norm = _with_statistics(decoder.norm_out, run.statistics(h, decoder.norm_out))
    return run.map(h, lambda h, z: decoder.conv_out(silu(norm(h, z))))


def encode_in_tiles(movq: MoVQ, pictures: Tensor, tile: int, on_tile: OnTile | None = None) -> Tensor:
    """As ``MoVQ.encode``, its fine levels by tiles; ``tile`` and ``on_tile`` as of :func:`decode_in_tiles`.

    ``pictures`` may rest on another device than the network, on which the latent is.
    """
    require_pictures(movq.config, pictures)
    encoder, scale = movq.encoder, movq.config.scale
    grid = movq.quant_conv.weight.new_empty(len(pictures), 1, *(side // scale for side in pictures.shape[2:]))
    levels = encoder.levels[: encoder.local_levels]
    run = _Tiled(grid, tile, _passes(levels) + 1, on_tile, spatial=False)
    h = run.map(pictures, lambda h, _: encoder.conv_in(h))
    for level in levels:
        h = run.level(h, level)
    return movq.quant_conv(encoder.whole(h.to(grid.device)))


@dataclass(frozen=True)
class _Span:
    """A stretch of a side, and what of it is the tile itself without its margin, in places of the latent."""

    start: int
    stop: int
    core_start: int
    core_stop: int

    def outer(self, factor: int) -> slice:
        return slice(factor * self.start, factor * self.stop)

    def placed(self, factor: int) -> slice:
        """The core, counted from the beginning of the side."""
        return slice(factor * self.core_start, factor * self.core_stop)

    def core(self, factor: int) -> slice:
        """The core, counted from the beginning of the stretch."""
        return slice(factor * (self.core_start - self.start), factor * (self.core_stop - self.start))


def _passes(levels: Iterable[Level]) -> int:
    """How often levels go over all tiles: for each norm of a block and for the block, and to resample."""
    return sum(3 * len(level.blocks) + (level.resample is not None) for level in levels)


Statistics = tuple[Tensor, Tensor]
"""Mean and variance [B, groups] of a norm over the whole picture."""


class _Tiled:
    """Runs parts of a network tile by tile over a map as large as a multiple of the latent.

    Args:
        latent: [B, C, H, W] on the device of the network; with ``spatial`` its norms see it.
        passes: how often all tiles will be run.
    """

    def __init__(
        self, latent: Tensor, tile: int, passes: int, on_tile: OnTile | None, *, spatial: bool
    ) -> None:
        if tile < 1:
            raise ValueError(f"tile is {tile}, expected at least 1 place of the latent")
        self._latent, self._spatial = latent, spatial
        self._tiles = list(product(*(_spans(side, tile) for side in latent.shape[2:])))
        self._on_tile, self._done, self._total = on_tile, 0, passes * len(self._tiles)

    def level(self, h: Tensor, level: Level) -> Tensor:
        for block in level.blocks:
            h = self._block(h, block)
        resample = level.resample
        if resample is None:
            return h
        return self.map(h, lambda h, _: resample(h), 0.5 if isinstance(resample, Halved) else 2)

    def _block(self, h: Tensor, block: ResidualBlock) -> Tensor:
        twin = copy(block)
        norm_in = _with_statistics(block.norm_in, self.statistics(h, block.norm_in))
        measured = self.statistics(h, block.norm_out, lambda h, z: block.conv_in(silu(norm_in(h, z))))
        norm_out = _with_statistics(block.norm_out, measured)
        twin._modules = block._modules | {"norm_in": norm_in, "norm_out": norm_out}
        return self.map(h, twin)

    def map(self, h: Tensor, function: Callable[[Tensor, Tensor | None], Tensor], scale: float = 1) -> Tensor:
        """What a function of a tile and its latent makes of all tiles, on the CPU.

        Args:
            scale: the side of what the function gives divided by that of the tile.
        """
        factor = h.shape[2] // self._latent.shape[2]
        after = int(scale * factor)
        whole: Tensor | None = None
        for rows, columns in self._tiles:
            made = function(*self._tile(h, rows, columns, factor))
            if whole is None:
                sides = (after * side for side in self._latent.shape[2:])
                whole = torch.empty(*made.shape[:2], *sides, dtype=made.dtype)
            whole[..., rows.placed(after), columns.placed(after)] = made[
                ..., rows.core(after), columns.core(after)
            ]
            self._tell()
        assert whole is not None, "a latent has at least one tile"
        return whole

    def statistics(
        self, h: Tensor, norm: Norm, function: Callable[[Tensor, Tensor | None], Tensor] | None = None
    ) -> Statistics:
        """Mean and variance of each group of a norm's input, which the function makes of a tile."""
        factor, groups = h.shape[2] // self._latent.shape[2], norm.norm.num_groups
        parts: list[tuple[int, Tensor, Tensor]] = []
        for rows, columns in self._tiles:
            made, latent = self._tile(h, rows, columns, factor)
            if function is not None:
                made = function(made, latent)
            core = made[..., rows.core(factor), columns.core(factor)].float()
            core = rearrange(core, "b (g c) h w -> b g (c h w)", g=groups)
            parts.append((core.shape[-1], *torch.var_mean(core, dim=-1, correction=0)))
            self._tell()
        count = sum(n for n, _, _ in parts)
        mean = _sum([n * own for n, _, own in parts]) / count
        return mean, _sum([n * (variance + (own - mean).square()) for n, variance, own in parts]) / count

    def _tell(self) -> None:
        self._done += 1
        if self._on_tile is not None:
            self._on_tile(self._done, self._total)

    def _tile(self, h: Tensor, rows: _Span, columns: _Span, factor: int) -> tuple[Tensor, Tensor | None]:
        latent = self._latent[..., rows.outer(1), columns.outer(1)] if self._spatial else None
        return h[..., rows.outer(factor), columns.outer(factor)].to(self._latent), latent


def _spans(side: int, tile: int) -> Iterator[_Span]:
    for start in range(0, side, tile):
        stop = min(start + tile, side)
        yield _Span(max(start - _MARGIN, 0), min(stop + _MARGIN, side), start, stop)


def _sum(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


def _with_statistics(norm: Norm, statistics: Statistics) -> Norm:
    """A norm over the same parameters that applies these statistics whatever it is given."""
    twin = copy(norm)
    twin._modules = norm._modules | {"norm": _FixedGroupNorm(norm.norm, statistics)}
    return twin


class _FixedGroupNorm(nn.Module):
    def __init__(self, norm: nn.GroupNorm, statistics: Statistics) -> None:
        super().__init__()
        each = norm.num_channels // norm.num_groups
        mean, variance = (value.repeat_interleave(each, dim=1) for value in statistics)  # [B, C]
        gain = (variance + norm.eps).rsqrt() * norm.weight.float()
        self.gain, self.shift = gain[..., None, None], (norm.bias.float() - mean * gain)[..., None, None]

    def forward(self, h: Tensor) -> Tensor:
        return (h * self.gain + self.shift).to(h.dtype)
