"""Gradient checkpointing from outside: blocks keep their inputs only, and are computed again going backwards.

Memory for time (1604.06174): what a block needs for its gradient is there for one block at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..networks.unet_blocks import Block


def recompute_blocks(network: nn.Module) -> int:
    """Let the blocks of a network, the members of its lists of modules, be computed again; returns how many.

    Raises:
        ValueError: the network has no such blocks.
    """
    count = 0
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.forward = _of_unet(block) if isinstance(block, Block) else _again(block.forward)
                count += 1
    if not count:
        raise ValueError("loop.gradient_checkpointing is set, but this network has no blocks for it")
    return count


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return run


def _of_unet(block: Block) -> Callable[..., Tensor]:
    """A U-Net's block takes its keys and values from an iterator, which must not be read twice."""
    forward = block.forward

    def run(h: Tensor, embedding: Tensor, context: Iterator[Any] | None, mask: Tensor | None) -> Tensor:
        own = [next(context)] if context is not None and block.attention is not None else None

        def again(h: Tensor, embedding: Tensor, mask: Tensor | None) -> Tensor:
            return forward(h, embedding, None if own is None else iter(own), mask)

        return checkpoint(again, h, embedding, mask, use_reentrant=False)

    return run
