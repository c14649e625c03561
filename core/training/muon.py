"""Muon with the matrices of one shape in one product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Muon  # an extra, needed for training only
from timm.optim.muon import _COEFFICIENTS as PRESETS
from timm.optim.muon import _is_suitable_for_muon as is_matrix
from timm.optim.muon import get_lr_scale, resolve_ns_coefficients, zeropower_via_newtonschulz
from torch import Tensor

from ..precision import has_fast_bf16
from .newton_schulz import Coefficients, gram_is_cheaper, orthogonalised_by_gram


class BatchedMuon(Muon):
    """timm's Muon (nesterov, kernels flattened), whose matrices of equal shape are made orthogonal together.

    A network of equal blocks has dozens of matrices of each shape: one by one, most of a step is waiting for
    small products, on a GPU for their launches. Vectors are left to timm; the state is as timm has it.

    The products are bfloat16's where the device is fast at that, and float32's elsewhere: on a CPU that only
    emulates it, they would take many times what the network takes.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        done: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            shapes: dict[tuple[Any, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None and self._is_matrix(parameter):
                    matrix = parameter.flatten(1)
                    shapes.setdefault((*matrix.shape, parameter.dtype, parameter.device), []).append(
                        parameter
                    )
            for parameters in shapes.values():
                self._step_together(parameters, group)
                done += [(parameter, parameter.grad) for parameter in parameters]
        for parameter, _ in done:
            parameter.grad = None  # which timm passes over
        super().step()
        for parameter, gradient in done:
            parameter.grad = gradient
        return loss

    def _is_matrix(self, parameter: Tensor) -> bool:
        """Whether it is ours to step; of one that is seen for the first time, the state is begun."""
        state = self.state[parameter]
        if "use_muon" not in state and is_matrix(parameter):
            state["use_muon"] = True
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state.get("momentum_buffer") is not None

    def _step_together(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        rate, momentum = group["lr"], group["momentum"]
        gradients = [parameter.grad for parameter in parameters]
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        stacked = torch.stack([update.flatten(1) for update in updates])  # [N, out, in]
        coefficients = resolve_ns_coefficients(group["ns_coefficients"], PRESETS)
        whitened = _orthogonalised(stacked, coefficients, group["ns_steps"], group["eps"])
        scale = get_lr_scale(stacked.shape[1:], group["adjust_lr_fn"])
        whitened = whitened.to(parameters[0].dtype)
        steps = [each.view(parameter.shape) for each, parameter in zip(whitened, parameters, strict=True)]
        torch._foreach_add_(parameters, steps, alpha=-rate * scale)


def _orthogonalised(stacked: Tensor, coefficients: Coefficients, steps: int, eps: float) -> Tensor:
    """[N, out, in] → the same, nearly orthogonal, in the type that the device is fast at."""
    dtype = torch.bfloat16 if has_fast_bf16(stacked.device) else torch.float32
    if dtype == torch.float32 and len(coefficients) == steps and gram_is_cheaper(*stacked.shape[1:]):
        return orthogonalised_by_gram(stacked.float(), coefficients, eps)
    return zeropower_via_newtonschulz(stacked, steps, list(coefficients), eps=eps, dtype=dtype)
