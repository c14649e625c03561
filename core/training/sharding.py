"""Weights in shards over the processes (FSDP, 2304.11277, as torch's ``fully_shard`` has it).

Weights, gradients, averages and the optimizer's state are cut along their first axis; a block's weights are
whole while it computes. Checkpoints hold everything whole, so that a run goes on with or without shards.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..networks.unet_blocks import Block


def require_shardable(network: nn.Module, optimizer: str, precision: str) -> None:
    """Raise a ValueError that names what does not go together with ``loop.parallel = "fsdp"``."""
    what = 'loop.parallel is "fsdp"'
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"{what}, but there is one process only: start several with torchrun, or leave it out"
        )
    import torch.distributed.fsdp as fsdp  # which nothing else may have imported

    if not hasattr(fsdp, "fully_shard"):
        raise ValueError(f"{what}, which needs PyTorch 2.6, found {torch.__version__}")
    if optimizer != "adamw":
        raise ValueError(f'{what}, but {optimizer} takes whole matrices: set loop.optimizer = "adamw"')
    if precision == "fp16":
        raise ValueError(f'{what}, which goes with loop.precision "bf16" or "no", found "fp16"')
    scalars = [name for name, value in network.named_parameters() if value.ndim == 0]
    if scalars:
        raise ValueError(
            f"{what}, but {', '.join(scalars)} of this stage is a single number, which cannot be cut: take "
            f'"ddp", with loop.accumulate and loop.gradient_checkpointing where memory is short'
        )


def copy_to_shard(network: nn.Module, device: torch.device) -> nn.Module:
    """A copy of ``network`` on ``device``; the original rests."""
    copied = copy.deepcopy(network).to(device)
    rest(network, device)
    return copied


def rest(network: nn.Module, device: torch.device) -> None:
    """Keep a network whole on the CPU, but for its buffers, which a recipe may look at."""
    network.to("cpu")
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def shard(network: nn.Module, device: torch.device) -> nn.Module:
    """Cut the parameters of a network, in place, over all processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # of newer versions

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Losses change nothing in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    network.to(memory_format=torch.contiguous_format)  # kernels that are not cannot be cut
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                # The keys and values of a U-Net's attention are computed from outside of its block.
                if not (isinstance(block, Block) and block.attention is not None):
                    fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def synchronise(network: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass shares its gradients; only for networks in shards."""
    toggle = getattr(network, "set_requires_gradient_sync", None)
    if toggle is not None:
        toggle(wanted)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor in shards, over the same memory; any other tensor as it is."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def whole(tensor: Any, keep: bool = True) -> Any:
    """A tensor in shards put together, on the CPU; anything else as it is. All processes have to call it.

    Args:
        keep: False for a process that does not need it.
    """
    full = getattr(tensor, "full_tensor", None)
    if full is None:
        return tensor
    joined = full()
    return joined.cpu() if keep else joined.new_empty(0)


def whole_state(state: Any, keep: bool = True) -> Any:
    """:func:`whole` for all that tables and lists hold."""
    if isinstance(state, dict):
        return {name: whole_state(value, keep) for name, value in state.items()}
    if isinstance(state, list):
        return [whole_state(value, keep) for value in state]
    return whole(state, keep)


def cut_like(value: Any, parameter: Tensor) -> Any:
    """A whole tensor of a parameter's shape, cut as the parameter is; anything else as it is."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    device = local(parameter).device
    # Every process has read it: nothing has to be sent.
    return distribute_tensor(value.to(device), mesh, parameter.placements, src_data_rank=None)  # type: ignore[attr-defined]


def cut_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state as a checkpoint has it, cut as the parameters are."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    if not any(hasattr(value, "device_mesh") for value in parameters):
        return state
    cut = {
        number: {name: cut_like(value, parameters[number]) for name, value in each.items()}
        for number, each in state["state"].items()
    }
    return {**state, "state": cut}
