"""The training loop: one for all stages, on one process or many (``accelerate launch``)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpoint import cut_log, load_checkpoint, remove_leftovers, save_checkpoint
from .ema import ExponentialMovingAverage
from .finite import FiniteWatch
from .optimizer import OptimizerName, make_optimizer
from .settings import LoopConfig, learning_rate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopReport:
    """Where a run stands, after a step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    images_per_second: float


class Recipe(Protocol):
    """What one stage adds to the loop.

    ``network`` is what is trained; ``stage_network`` is what of it the finished stage holds, all or a part.
    """

    network: nn.Module
    stage_network: nn.Module

    def batch(self, step: int) -> Any:
        """The data of a step, on the CPU: a pure function of the step."""

    def loss(self, network: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        """Scalar loss; ``network`` is the compiled and wrapped form of ``self.network``."""

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write the finished stage from the averaged weights."""


def train(
    recipe: Recipe,
    config: LoopConfig,
    folder: Path,
    on_step: Callable[[LoopReport], None] | None = None,
    cpu: bool = False,
) -> None:
    """Train until ``config.last_step``, resuming from ``folder`` where it holds a checkpoint, then export.

    Writes ``checkpoint.pt`` and ``log.jsonl`` to ``folder``. A killed run continues at its last checkpoint
    with the data and the noise that it would have seen.
    """
    from accelerate import Accelerator  # an extra, needed for training only

    accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu)
    checkpoint = folder / "checkpoint.pt"
    if config.start_from is not None and not checkpoint.exists():
        _start_from(Path(config.start_from), recipe.stage_network)
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        remove_leftovers(folder)
    network = recipe.network.to(accelerator.device)
    optimizer = make_optimizer(
        network, config.optimizer, config.learning_rate, config.weight_decay, (0.9, config.beta2)
    )
    ema = ExponentialMovingAverage(network, config.ema_decay)
    start = _resume(checkpoint, network, ema, optimizer, config.optimizer)
    if accelerator.is_main_process:
        cut_log(folder / "log.jsonl", start)
    wrapped = torch.compile(network) if config.compile else network
    wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
    generator = torch.Generator(accelerator.device)
    watch = FiniteWatch(accelerator.device)
    logged_at, logged_step, losses = time.perf_counter(), start, []

    # The next batch is made while the network works on this one.
    with ThreadPoolExecutor(1) as loader, _attention_for(accelerator.device):
        upcoming = loader.submit(recipe.batch, start)
        for step in range(start, config.last_step):
            batch = upcoming.result()
            if step + 1 < config.last_step:
                upcoming = loader.submit(recipe.batch, step + 1)
            generator.manual_seed(_step_seed(config.seed, step, accelerator.process_index))
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = recipe.loss(wrapped, batch, generator)  # the wrapped network runs under autocast
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(network.parameters(), config.grad_clip)
            # With fp16 an infinite gradient is the scaler's to find: it leaves the step out.
            watch.see(step + 1, loss, loss if config.precision == "fp16" else norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(network, step)

            done = step + 1
            if not accelerator.is_main_process:
                continue
            losses.append(loss.detach())
            if done % config.log_every == 0 or done == config.last_step:
                now = time.perf_counter()
                images = (done - logged_step) * config.batch_size * accelerator.num_processes
                mean_loss = torch.stack(losses).mean().item()
                report = LoopReport(done, config.last_step, mean_loss, rate, images / (now - logged_at))
                _log(folder / "log.jsonl", report)
                logged_at, logged_step, losses = now, done, []
                if on_step is not None:
                    on_step(report)
            if done % config.checkpoint_every == 0 or done == config.last_step:
                watch.check()
                save_checkpoint(checkpoint, _state(done, network, ema, optimizer, config.optimizer))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        recipe.export(ema.averaged_state(network), folder)


def _attention_for(device: torch.device) -> AbstractContextManager[None]:
    """On CPUs the backward pass of fused attention takes a quarter of a U-Net's step; plain products less."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4099 + rank


def _log(path: Path, report: LoopReport) -> None:
    row = {
        "step": report.step,
        "loss": round(report.loss, 5),
        "lr": round(report.learning_rate, 8),
        "images_per_second": round(report.images_per_second, 1),
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _state(
    step: int,
    network: nn.Module,
    ema: ExponentialMovingAverage,
    optimizer: Any,
    optimizer_name: OptimizerName,
) -> dict[str, Any]:
    return {
        "step": step,
        "network": network.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "optimizer_name": optimizer_name,
    }


def _start_from(path: Path, network: nn.Module) -> None:
    from ..formats.load import load_any_stage

    stage = load_any_stage(path)
    try:
        network.load_state_dict(stage.network.state_dict())
    except RuntimeError as error:  # torch's message lists every tensor
        raise ValueError(
            f"loop.start_from: {path} holds another network than this config describes: choose a file of "
            f"the same stage and shape, or leave start_from out"
        ) from error


def _resume(
    path: Path,
    network: nn.Module,
    ema: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
    optimizer_name: OptimizerName,
) -> int:
    state = load_checkpoint(path, next(network.parameters()).device)
    if state is None:
        return 0
    try:
        network.load_state_dict(state["network"])
        ema.load_state_dict(state["ema"])
    except (RuntimeError, LookupError) as error:  # torch's message lists every tensor
        raise ValueError(
            f"{path} is the checkpoint of another network than this config describes: train into another "
            f"folder, or remove it to start anew"
        ) from error
    saved_by = state.get("optimizer_name", optimizer_name)  # older checkpoints do not tell
    if saved_by != optimizer_name:
        raise ValueError(
            f"loop.optimizer is {optimizer_name}, but {path} was made with {saved_by}, whose state it cannot "
            f"take over: train into another folder, or start from the exported stage (loop.start_from)"
        )
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: the state of its optimizer does not fit this config ({error}): train into another "
            f"folder, or start from the exported stage (loop.start_from)"
        ) from error
    logger.info("resuming from step %d", state["step"])
    return state["step"]
