"""Networks that have names and shapes and no values: what a file's tensors are measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks built inside are on the meta device, and nothing is drawn for them.

    torch answers a draw of random numbers there by Python code of its compiler, whose import takes seconds.
    Buffers that have to have values must be made on an explicit device.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        named = named or {}
        # torch's functions of initialisation come as a whole, or call these methods.
        if getattr(function, "__module__", "") == "torch.nn.init" or function in (
            Tensor.normal_,
            Tensor.uniform_,
        ):
            return arguments[0] if arguments else named["tensor"]
        return function(*arguments, **named)
