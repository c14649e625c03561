"""The numbers of each step: a run ends at the first that is not finite, before anything of it is saved."""

from __future__ import annotations

import torch
from torch import Tensor


class StepWatch:
    """Looks at the numbers of each step; on a GPU one step late, so that it need not be waited for.

    ``stop`` tells whether a process was asked to end, at the same step in all of them.
    """

    def __init__(self) -> None:
        self.stop = False
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def see(self, step: int, loss: Tensor, gradient: Tensor, asked: Tensor) -> None:
        """Take the numbers of a step, scalars, and look at those that are there already.

        Args:
            step: counted from 1.
            loss, gradient: the mean loss over all rows and the norm of its gradient.
            asked: more than 0 where a process was asked to end.

        Raises:
            ValueError: the loss or the gradient is not finite; names the step.
        """
        self.check()
        numbers = torch.stack([loss.detach().float(), gradient.detach().float(), asked])
        event = None
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending = (step, numbers, event)
        if event is None:
            self.check()

    def check(self) -> None:
        """Look at what has not been looked at yet. Raises as ``see`` does."""
        if self._pending is None:
            return
        step, numbers, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        loss, gradient, asked = numbers.tolist()
        self.stop = self.stop or asked > 0
        for name, value in (("loss", loss), ("gradient", gradient)):
            if not torch.tensor(value).isfinite():
                raise ValueError(
                    f"the {name} of step {step} is {value}: the run ends here, and its last checkpoint stays "
                    f"what it is. Lower loop.learning_rate or raise loop.warmup, or take loop.precision "
                    f'"bf16" or "no" instead of "fp16"; look at the data if it is the first step'
                )
