"""A run ends at its first loss or gradient that is not finite, before it has saved anything of it."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteWatch:
    """Looks at the numbers of each step; on a GPU one step late, so that it need not be waited for."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._pending: tuple[int, Tensor, Tensor, torch.cuda.Event | None] | None = None

    def see(self, step: int, loss: Tensor, gradient: Tensor) -> None:
        """Take the loss and the norm of the gradient of a step, scalars, and check what is there already.

        Raises:
            ValueError: one of them is not finite; names the step, counted from 1.
        """
        self.check()
        event = None
        if self._on_gpu:
            loss, gradient = (value.detach().to("cpu", non_blocking=True) for value in (loss, gradient))
            event = torch.cuda.Event()
            event.record()
        self._pending = (step, loss.detach(), gradient.detach(), event)
        if event is None:
            self.check()

    def check(self) -> None:
        """Check what has not been checked yet. Raises as ``see`` does."""
        if self._pending is None:
            return
        step, loss, gradient, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        for name, value in (("loss", loss), ("gradient", gradient)):
            if not value.isfinite():
                raise ValueError(
                    f"the {name} of step {step} is {value.item()}: the run ends here, and its last "
                    f"checkpoint stays what it is. Lower loop.learning_rate or raise loop.warmup, or take "
                    f'loop.precision "bf16" or "no" instead of "fp16"; look at the data if it is the first'
                    f" step"
                )
