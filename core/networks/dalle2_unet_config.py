"""Shape of DALLE2-pytorch's U-Nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .conditioning import ConditioningConfig
from .sizes import MAX_LAYERS, MAX_WIDTH, require_size

Shrink = Literal["shuffle", "convolution", "kernels"]
Grow = Literal["shuffle", "nearest"]

_WIDTHS = (
    *("image_size", "in_channels", "out_channels", "channels", "context_dim", "head_dim", "cross_head_dim"),
    *("channel_mult", "groups", "first_kernels", "last_kernel", "heads", "cross_heads", "time_tokens"),
)


@dataclass(frozen=True)
class Dalle2UNetConfig:
    """Shape of a U-Net of DALLE2-pytorch; the defaults are the package's.

    Attributes:
        image_size: side of the pictures it makes.
        in_channels, out_channels: of x_t and of the output (twice ``in_channels`` with learned variance).
        concat_channels: of the small picture beside x_t; 0 for none.
        channels: width, even and at least 4.
        channel_mult, res_blocks: factor of the width, and residual blocks, per level.
        self_attention: levels with attention of all places to all; the middle has it too.
        linear_attention: the other levels attend in linear time (``sparse_attn``).
        heads, head_dim: of both.
        cross_heads, cross_head_dim: of the attention of residual blocks to the context.
        groups: of the GroupNorms, per level.
        context_dim: width of the context tokens.
        time_tokens: of the context, made from the timestep.
        clip_hidden: z_i is added to the timestep embedding as well.
        text_length: positions of captions; a learned token stands at each that is free.
        noise_level: the strength of the noise on the small picture is an input.
        memory_efficient: a level shrinks its input before its blocks instead of after them.
        shrink: how: pixels unshuffled (2208.03641), a convolution (before version 1.8 of the package), or
            several kernels beside each other (CrossFormer, 2108.00154).
        grow: pixels shuffled, or repeated.
        first_kernels: of the first convolutions, beside each other.
        last_kernel: of the last convolution.
        scale_skips: skip connections are scaled by √½ (Imagen).
        cosine_self, cosine_cross: attention compares by cosines.
        self_scale: exponent p of head_dim^−p by which dot products of self-attention are scaled; upstream
            scales twice from version 1.4.3 on.
        normalised_values: values of linear attention are unit vectors, over the number of places (from
            version 1.4.0 on).
        conditioning: CLIP and text inputs, or None. Tokens of z_i and of captions are of ``context_dim``.
    """

    image_size: int
    in_channels: int = 3
    out_channels: int = 3
    concat_channels: int = 0
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    self_attention: tuple[bool, ...] = (False, False, False, False)
    linear_attention: bool = False
    heads: int = 16
    head_dim: int = 32
    cross_heads: int = 8
    cross_head_dim: int = 64
    groups: tuple[int, ...] = (8, 8, 8, 8)
    context_dim: int = 128
    time_tokens: int = 2
    clip_hidden: bool = True
    text_length: int = 256
    noise_level: bool = False
    memory_efficient: bool = False
    shrink: Shrink = "shuffle"
    grow: Grow = "shuffle"
    first_kernels: tuple[int, ...] = (3, 7, 15)
    last_kernel: int = 1
    scale_skips: bool = False
    cosine_self: bool = False
    cosine_cross: bool = False
    self_scale: float = 1.0
    normalised_values: bool = True
    conditioning: ConditioningConfig | None = None

    def __post_init__(self) -> None:
        for name in _WIDTHS:
            require_size(f"DALLE2 U-Net: {name}", getattr(self, name), MAX_WIDTH)
        require_size("DALLE2 U-Net: res_blocks", self.res_blocks, MAX_LAYERS)
        levels = len(self.channel_mult)
        for name in ("res_blocks", "self_attention", "groups"):
            found = getattr(self, name)
            if len(found) != levels:
                raise ValueError(
                    f"DALLE2 U-Net: {name} has {len(found)} levels and channel_mult {levels}: both need one "
                    f"value per level"
                )
        if levels > 16:
            raise ValueError(f"DALLE2 U-Net: found {levels} levels, expected at most 16")
        if self.channels % 2 or self.channels < 4:
            raise ValueError(f"DALLE2 U-Net: channels is {self.channels}, expected an even number from 4 on")
        if any(kernel % 2 == 0 for kernel in (*self.first_kernels, self.last_kernel)):
            raise ValueError("DALLE2 U-Net: first_kernels and last_kernel must be odd")
        if self.image_size % self.multiple_of:
            raise ValueError(
                f"DALLE2 U-Net: image_size {self.image_size} is not a multiple of {self.multiple_of}"
            )

    @property
    def embedding_dim(self) -> int:
        return 4 * self.channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the first convolution, and of each level behind its shrinking."""
        return self.channels, *(self.channels * each for each in self.channel_mult)

    @property
    def multiple_of(self) -> int:
        """Heights and widths must be multiples of this."""
        return 2 ** (len(self.channel_mult) - (0 if self.memory_efficient else 1))

    @property
    def attention(self) -> tuple[int, ...]:
        """Sides of the grids with attention of all places to all, at ``image_size``; the middle is one."""
        first = 1 if self.memory_efficient else 0
        own = [self.image_size // 2 ** (n + first) for n, each in enumerate(self.self_attention) if each]
        return (*own, self.image_size // self.multiple_of)

    @property
    def fixed_size(self) -> bool:
        """Whether it works at ``image_size`` only: nothing in it is tied to a place."""
        return False

    @property
    def patch_size(self) -> int:
        return 1
