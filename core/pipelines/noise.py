"""The noise x_T that a decoder starts from: drawn, interpolated, or found by inverting pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..diffusion.noise import draw_noise, image_generators
from ..embeddings.arithmetic import Ease, positions, slerp_frames
from ..embeddings.batches import common_batch
from ..memory import InMemory
from ..stages import DecoderStage


@dataclass(frozen=True, eq=False)
class StartingNoise(InMemory):
    """A batch of x_T.

    Attributes:
        values: [B, 3, S, S] float32, about standard normal.
        made_for: the decoder, for messages.
    """

    values: Tensor
    made_for: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or len(self.values) == 0:
            raise ValueError(
                f"noise: found shape {tuple(self.values.shape)}, expected [batch, channels, height, width]"
            )

    def __len__(self) -> int:
        return len(self.values)


def draw_starting_noise(decoder: DecoderStage, *, seed: int, batch_size: int = 1) -> StartingNoise:
    """The x_T that ``decode`` draws for these seeds: row i is that of seed + i."""
    config = decoder.network.config
    shape = (config.in_channels, config.image_size, config.image_size)
    return StartingNoise(draw_noise(image_generators(seed, batch_size), shape), decoder.source)


def interpolate_noise(
    first: StartingNoise, second: StartingNoise, frames: int, curve: Ease = "linear"
) -> StartingNoise:
    """x_T on the great circle from one to the other (unCLIP, section 3.2), over all pixels as one vector.

    A straight line would pass through noise of less than unit variance, from which decoders paint flat
    pictures.

    Args:
        first, second: 1 or B; B pairs are interpolated one after the other, as embeddings are by
            ``arithmetic.interpolate``.
        frames: per pair, at least 2: both ends are among them.

    Raises:
        ValueError: noises of different size, batches that do not match, or fewer than 2 frames.
    """
    if first.values.shape[1:] != second.values.shape[1:]:
        raise ValueError(
            f"second: the noise is for {_size(second)}, the first one for {_size(first)}; make both for the "
            f"same decoder"
        )
    common_batch(first=len(first), second=len(second))
    if frames < 2:
        raise ValueError(f"frames is {frames}; expected at least 2, the two ends")
    a, b = first.values.flatten(1), second.values.to(first.values.device).flatten(1)  # [B, C·S·S]
    between = slerp_frames(a, b, positions(frames, curve))  # [B·frames, C·S·S]
    return replace(first, values=between.reshape(-1, *first.values.shape[1:]))


def _size(noise: StartingNoise) -> str:
    return f"{noise.values.shape[3]}×{noise.values.shape[2]} pixels"
