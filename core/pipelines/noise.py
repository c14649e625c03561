"""The noise x_T that a decoder starts from: drawn, interpolated, or found by inverting pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..config import require_at_least
from ..diffusion.noise import draw_noise, image_generators
from ..embeddings.arithmetic import Ease, positions, slerp_frames
from ..embeddings.batches import common_batch
from ..memory import InMemory
from ..stages import DecoderStage, require_stage
from .canvas import network_shape, picture_size


@dataclass(frozen=True, eq=False)
class StartingNoise(InMemory):
    """A batch of x_T.

    Attributes:
        values: [B, C, h, w] float32, about standard normal, in the size of x_t.
        scale: side of the pictures divided by that of the noise.
        made_for: the decoder, for messages.
    """

    values: Tensor
    made_for: str = ""
    scale: int = 1

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or len(self.values) == 0:
            raise ValueError(
                f"noise: found shape {tuple(self.values.shape)}, expected [batch, channels, height, width]"
            )

    def __len__(self) -> int:
        return len(self.values)


def draw_starting_noise(
    decoder: DecoderStage, *, seed: int, batch_size: int = 1, width: int = 0, height: int = 0
) -> StartingNoise:
    """The x_T that ``decode`` draws for these seeds: row i is that of seed + i.

    Args:
        width, height: of the pictures, see ``canvas.picture_size``.
    """
    require_stage(DecoderStage, decoder=decoder)
    shape = network_shape(decoder, picture_size(decoder, width, height))
    values = draw_noise(image_generators(seed, batch_size), shape)
    return StartingNoise(values, decoder.source, decoder.scale)


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
    require_at_least(2, "the two ends", frames=frames)
    a, b = first.values.flatten(1), second.values.to(first.values.device).flatten(1)  # [B, C·S·S]
    between = slerp_frames(a, b, positions(frames, curve))  # [B·frames, C·S·S]
    return replace(first, values=between.reshape(-1, *first.values.shape[1:]))


def _size(noise: StartingNoise) -> str:
    return f"{noise.scale * noise.values.shape[3]}×{noise.scale * noise.values.shape[2]} pixels"
