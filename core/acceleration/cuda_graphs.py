"""Calls recorded as CUDA graphs, so that a GPU gets all kernels of a network at once.

Networks of this family run a thousand small kernels. For few pictures a GPU is done with them sooner than
Python launches them one by one; a recording is launched as one, and leaves the GPU no gaps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

Pool: TypeAlias = Any
"""Memory that recordings share, ``torch.cuda.graph_pool_handle``."""

_KEPT = 4  # recordings of a function: with and without guidance, and a last batch that is smaller
_WARM_UP = 2  # calls before a recording, in which libraries choose kernels and the compiler compiles


class Inputs(Protocol):
    """What a recorded function is called with: a frozen dataclass of tensors, None, and tuples of tensors."""

    def map(self, function: Callable[[Tensor], Any]) -> Any:
        """The same dataclass with every tensor replaced."""


AnyInputs = TypeVar("AnyInputs", bound=Inputs)


class Recorder(Generic[AnyInputs]):
    """A function on a GPU, recorded when its inputs first have these shapes and replayed afterwards.

    A recording reads weights where they lay when it was made; once they were moved it is made again. It keeps
    the memory that the function takes until then, see :meth:`forget_if_moved`. Wherever :func:`can_record`
    says no, the function simply runs.

    Args:
        function: what is recorded; it computes without gradients and does not wait for the GPU.
        weights: what it reads beside its inputs.
        pool: for several recorders that share memory, which must not run at the same time.
    """

    def __init__(
        self, function: Callable[[AnyInputs], Tensor], weights: Iterable[Tensor], pool: Pool | None = None
    ) -> None:
        self._function, self._weights, self._pool = function, list(weights), pool
        self._recordings: OrderedDict[object, _Recording] = OrderedDict()
        self._lie_at: tuple[int, ...] = ()

    @torch.inference_mode(False)  # what is made in inference mode could not be written to outside of it
    @torch.no_grad()
    def __call__(self, inputs: AnyInputs) -> Tensor:
        if not can_record(_tensors(inputs)):
            return self._function(inputs)
        self.forget_if_moved()
        shapes = inputs.map(lambda tensor: (tensor.shape, tensor.stride(), tensor.dtype))
        if shapes not in self._recordings:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            self._recordings[shapes] = _Recording(self._function, inputs, self._pool)
            if len(self._recordings) > _KEPT:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(shapes)
        return self._recordings[shapes](inputs)

    def forget_if_moved(self) -> None:
        """Let go of all recordings, and of their memory, where the weights lie elsewhere now."""
        lie_at = tuple(weight.data_ptr() for weight in self._weights)
        if lie_at != self._lie_at:
            self._recordings.clear()
            self._lie_at = lie_at


class _Recording:
    """One recorded call; its inputs are copied to the places that it reads."""

    def __init__(self, function: Callable[[Any], Tensor], inputs: Inputs, pool: Pool) -> None:
        inputs = inputs.map(torch.clone)
        self._places = _tensors(inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                function(inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # What other threads do on the GPU meanwhile (previews) is no part of it.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = function(inputs)

    def __call__(self, inputs: Inputs) -> Tensor:
        torch._foreach_copy_(self._places, _tensors(inputs))
        self._graph.replay()
        return self._result.clone()  # the next replay, of any recording in the pool, may overwrite it


def can_record(tensors: Iterable[Tensor]) -> bool:
    """Whether a function of these tensors can be recorded: all on a CUDA GPU, see also below."""
    return all(tensor.is_cuda for tensor in tensors) and allocator_keeps_recordings()


def allocator_keeps_recordings() -> bool:
    """Whether the memory that a recording reads stays its own, as PyTorch's own allocator sees to.

    cudaMallocAsync, which ComfyUI chooses by default, does not: with torch 2.11 recordings of compiled
    networks read memory that was no longer there.
    """
    return torch.cuda.get_allocator_backend() == "native"


def _tensors(inputs: Inputs) -> list[Tensor]:
    found: list[Tensor] = []
    inputs.map(found.append)
    return found
