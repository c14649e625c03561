"""What the pipelines share: where a network runs, how many rows a batch has, and checks of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..config import require_kind
from ..diffusion.samplers import SamplerStep, StepCallback
from ..embeddings.batches import common_batch as common_batch

PICTURES = "a tensor [batch, 3, height, width] of values in 0..1"
EMBEDDINGS = "an Embedding, as a prior and encode_images give it"
CAPTION = "a caption, a string"
CAPTIONS = "TextFeatures, as encode_text gives them"
MASKS = "a tensor [batch, 1, height, width] of values in 0..1"

# Mean of a batch: scenes of high dynamic range stay below, and what is counted to 255 is near 100.
_BRIGHTEST = 2.0


def device_and_dtype(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating-point type of a network's parameters."""
    parameter = next(network.parameters())
    return parameter.device, parameter.dtype


def to_batch(rows: Tensor, batch: int) -> Tensor:
    """[1 or B, …] → [B, …]."""
    return rows if rows.shape[0] == batch else rows.expand(batch, *rows.shape[1:])


def require_pictures(image: Tensor, name: str = "image") -> None:
    """Raise a ValueError unless this is a non-empty batch [B, 3, H, W] of finite floating-point pictures.

    Single values above 1 pass, as bright lights have them; pictures that are counted to 255 do not.
    """
    require_kind(Tensor, PICTURES, **{name: image})
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"{name}: found shape {tuple(image.shape)}, expected [batch, 3, height, width]")
    if not image.is_floating_point():
        raise ValueError(f"{name}: found {image.dtype}, expected floating-point values in 0..1")
    require_finite(**{name: image})
    brightness = image.float().abs().mean().item()
    if brightness > _BRIGHTEST:
        raise ValueError(
            f"{name}: found values of {brightness:.4g} on average, expected 0..1; divide what is counted to "
            f"255 by 255"
        )


def require_finite(**values: Tensor) -> None:
    """Raise a ValueError that names the first picture, mask or noise that is not finite."""
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"{name}: found NaN or infinite values; what made it has failed: make or load it again"
            )


def masked_picture(known: Tensor, repaint: Tensor) -> Tensor:
    """What inpainting networks see beside x_t: the known part and a mask that is 1 there (GLIDE, Kandinsky).

    Args:
        known: [B, C, H, W], as the network knows pictures.
        repaint: [B, 1, H, W] bool.

    Returns:
        [B, C + 1, H, W].
    """
    keep = (~repaint).to(known)
    return torch.cat([known * keep, keep], dim=1)


def count_on(
    callback: StepCallback | None,
    index: int,
    parts: int,
    finished: Sequence[Tensor] = (),
    waiting: Callable[[], Tensor] | None = None,
) -> StepCallback | None:
    """The callback for one part of several: steps count on through all of them, and x̂0 has all their rows.

    Args:
        finished: pictures of the parts before, in 0..1; read at each step.
        waiting: gives what stands for the rows of the parts to come, in −1..1; None leaves them out.
    """
    if callback is None or parts == 1:
        return callback

    def counted(step: SamplerStep) -> None:
        rows = [*(pixels * 2 - 1 for pixels in finished), step.x0]
        if waiting is not None:
            rows.append(waiting().to(step.x0))
        shown = torch.cat(rows)
        callback(replace(step, index=step.index + index * step.total, total=step.total * parts, x0=shown))

    return counted
