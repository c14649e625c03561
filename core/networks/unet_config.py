"""Shape of the U-Nets: what a checkpoint's header holds, and what a network is built from."""

from __future__ import annotations

from dataclasses import dataclass

from .conditioning import ConditioningConfig
from .sizes import MAX_WIDTH, require_size

GROUPS = 32
"""Groups of every GroupNorm: all numbers of channels are multiples of it."""

_LIMITS = {
    "image_size": MAX_WIDTH,
    "in_channels": MAX_WIDTH,
    "out_channels": MAX_WIDTH,
    "concat_channels": MAX_WIDTH,
    "patch_size": 64,
    "channels": MAX_WIDTH,
    "channel_mult": 64,
    "res_blocks": 100,
    "head_dim": MAX_WIDTH,
}
_MAX_LEVELS = 16


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net.

    Attributes:
        image_size: side of the pictures it makes. Networks without attention run at any size.
        in_channels, out_channels: of x_t and of the output (twice ``in_channels`` with learned variance).
        concat_channels: of the condition concatenated to x_t (low resolution, masked image, mask).
        patch_size: x_t is pixel-unshuffled by this factor first, and the output is shuffled back.
        channels: width, a multiple of 32.
        channel_mult, res_blocks: factor of the width, and residual blocks, per level.
        attention: grid sizes with attention, counted after unshuffling. With any, the middle has it too.
        head_dim: width of an attention head.
        film: the embedding scales and shifts (FiLM); otherwise it is added.
        resample_in_block: up- and downsampling inside residual blocks; otherwise by a convolution.
        positions: a learned vector is added at every place of the grid, so that a small network knows the
            places that it would otherwise have to infer from the borders. Fixes the size.
        residual: the output corrects the first ``out_channels`` concatenated channels: an upsampler that
            predicts x0 starts from its interpolated condition.
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
    positions: bool = False
    residual: bool = False
    noise_level: bool = False
    conditioning: ConditioningConfig | None = None

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            if name != "concat_channels" or self.concat_channels:  # 0 for no condition
                require_size(f"U-Net config: {name}", getattr(self, name), limit)
        if len(self.res_blocks) != len(self.channel_mult):
            raise ValueError(
                f"res_blocks has {len(self.res_blocks)} levels and channel_mult {len(self.channel_mult)}: "
                f"both need one number per level"
            )
        require_size("U-Net config: the number of levels", len(self.channel_mult), _MAX_LEVELS)
        if self.channels % GROUPS:
            raise ValueError(f"channels is {self.channels}, expected a multiple of {GROUPS}")
        if self.residual and self.concat_channels < self.out_channels:
            raise ValueError(
                f"residual needs at least {self.out_channels} concat_channels, found {self.concat_channels}"
            )
        if self.image_size % self.multiple_of:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {self.multiple_of}")
        if self.context_dim is not None and not self.attention:
            raise ValueError("conditioning has context tokens, but without attention nothing reads them")
        unknown = sorted(set(self.attention) - set(self.grids))
        if unknown:
            raise ValueError(
                f"attention names the grids {', '.join(map(str, unknown))}, but this network has the grids "
                f"{', '.join(map(str, self.grids))}"
            )

    @property
    def embedding_dim(self) -> int:
        return 4 * self.channels

    @property
    def multiple_of(self) -> int:
        """Heights and widths must be multiples of this."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of the grid at each level, at ``image_size``."""
        grid = self.image_size // self.patch_size
        return tuple(grid // 2**level for level in range(len(self.channel_mult)))

    @property
    def layout_channels(self) -> int:
        conditioning = self.conditioning
        return 0 if conditioning is None else conditioning.clip_layout + conditioning.hint_channels

    @property
    def fixed_size(self) -> bool:
        """Whether it works at ``image_size`` only: something in it is tied to the places of the grid."""
        return self.positions or (self.conditioning is not None and self.conditioning.clip_layout > 0)

    @property
    def context_dim(self) -> int | None:
        if self.conditioning is None or not self.conditioning.has_context:
            return None
        return self.conditioning.context_dim
