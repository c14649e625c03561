"""The training loop: one for all stages, on one process or many (``accelerate launch``)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.draws import StepGenerator
from ..data.process import current_process, together
from .checkpoint import cut_log, load_checkpoint, remove_leftovers, require_same_step, save_checkpoint
from .ema import ExponentialMovingAverage
from .feed import Unusable, feed
from .held_out import Validation
from .optimizer import OptimizerName, make_optimizer
from .parallel import make_accelerator, mean_over_processes
from .recipe import Recipe
from .recompute import recompute_blocks
from .settings import LoopConfig, learning_rate
from .sharding import (
    copy_to_shard,
    cut_optimizer_state,
    require_shardable,
    rest,
    shard,
    synchronise,
    whole,
    whole_state,
)
from .sheet import Sheets, weights_replaced
from .stopping import StopSignal
from .watch import StepWatch

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopReport:
    """Where a run stands, after a step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    validation_loss: float | None = None


def train(
    recipe: Recipe,
    config: LoopConfig,
    folder: Path,
    on_step: Callable[[LoopReport], None] | None = None,
    cpu: bool = False,
    workers: int = 0,
    on_start: Callable[[], None] | None = None,
) -> bool:
    """Train until ``config.last_step``, resuming from ``folder`` where it holds a checkpoint, then export.

    Writes ``checkpoint.pt`` and ``log.jsonl`` to ``folder``. A killed run continues at its last checkpoint
    with the data and the noise that it would have seen, on any number of processes.

    Args:
        cpu: even where there is a GPU.
        workers: processes that make this process's batches; 0 for a thread.
        on_start: called on the first process before the first step, once weights and checkpoint are taken.

    Returns:
        Whether it came to its end. False after SIGTERM, which makes it write a checkpoint and return.

    Raises:
        ValueError: settings or a checkpoint that do not fit, a folder that the processes do not share, or a
            loss that is not finite.
        OSError: a checkpoint cannot be written.
    """
    accelerator = make_accelerator(config.precision, cpu, config.log_with, folder)
    device, sharded = accelerator.device, config.parallel == "fsdp"
    if sharded:
        require_shardable(recipe.network, config.optimizer, config.precision)
    shares = _Shares(config)
    checkpoint = folder / "checkpoint.pt"
    if config.start_from is not None and not checkpoint.exists():
        _start_from(Path(config.start_from), recipe)
    validation = None if config.validate_every is None else Validation(recipe, config, shares.own)
    sheets = None
    if config.sheet is not None and accelerator.is_main_process:
        sheets = Sheets(config.sheet, recipe.stage(), recipe.clip_stage)
    folder.mkdir(parents=True, exist_ok=True)
    state = load_checkpoint(checkpoint)
    start = 0 if state is None else state["step"]
    require_same_step(folder, together(current_process(), [start]))
    if state is not None:
        _take_weights(checkpoint, state, recipe.network)
    network = copy_to_shard(recipe.network, device) if sharded else recipe.network.to(device)
    recipe.paint_on(device)
    if config.gradient_checkpointing:
        recompute_blocks(network)
    if sharded:
        shard(network, device)
    optimizer = make_optimizer(
        network, config.optimizer, config.learning_rate, config.weight_decay, (0.9, config.beta2)
    )
    ema = ExponentialMovingAverage(network, config.ema_decay)
    if state is not None:
        _resume(checkpoint, state, ema, optimizer, accelerator, config.optimizer)
        del state
    if start >= config.last_step:
        logger.info(
            "nothing is left to train: the run has made %d steps, and %d were asked for",
            start,
            config.last_step,
        )
    accelerator.wait_for_everyone()  # before what is removed could be what another one reads
    if accelerator.is_main_process:
        remove_leftovers(folder)
        cut_log(folder / "log.jsonl", start)
        if on_start is not None:
            on_start()
    wrapped = torch.compile(network) if config.compile else network
    # Which leaves a network that needs no copies in step alone, but for autocast.
    wrapped = accelerator.prepare_model(wrapped, evaluation_mode=sharded)
    optimizer = accelerator.prepare_optimizer(optimizer)
    generator = StepGenerator(device, config.batch_size, slice(0))
    if config.log_with:
        accelerator.init_trackers("unclip")
    watch, saved = StepWatch(), start
    logged_at, logged_step, losses = time.perf_counter(), start, []
    done, ended, unusable = start, False, Unusable()

    with (
        StopSignal() as stop,
        _attention_for(device),
        closing(feed(recipe, start, config.last_step, workers, unusable)) as batches,
    ):
        for step, batch in enumerate(batches, start):
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            total = torch.zeros((), device=device)
            parts = list(shares.parts(batch))
            part_loss = None
            if recipe.whole_batch_loss and config.accumulate > 1:
                part_loss = recipe.part_losses(wrapped, [part for part, _ in parts], device)
            for number, (part, rows) in enumerate(parts):
                last = number + 1 == config.accumulate
                synchronise(network, last)
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    generator.start(_step_seed(config.seed, step), rows)
                    if part_loss is None:
                        loss = recipe.loss(wrapped, part, generator)  # which runs under autocast
                    else:
                        loss = part_loss(number)
                    accelerator.backward(loss / config.accumulate)
                total += loss.detach() / config.accumulate
            norm = whole(accelerator.clip_grad_norm_(network.parameters(), config.grad_clip))
            asked = torch.full_like(total, float(stop.asked))
            mean, asked = mean_over_processes(torch.stack([total, asked])).unbind()
            # With fp16 an infinite gradient is the scaler's to find: it leaves the step out.
            watch.see(step + 1, mean, mean if config.precision == "fp16" else norm, asked)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(network, step)

            done = step + 1
            ended = done == config.last_step
            stopped = watch.stop and not ended
            judged = None
            if validation is not None and validation.due(done):
                judged = validation(wrapped, generator)
            if accelerator.is_main_process:
                losses.append(mean)
                if done % config.log_every == 0 or ended or stopped or judged is not None:
                    now = time.perf_counter()
                    images = (done - logged_step) * config.batch_size
                    loss = torch.stack(losses).mean().item()
                    speed = images / (now - logged_at)
                    report = LoopReport(done, config.last_step, loss, rate, speed, judged)
                    _log(folder / "log.jsonl", report)
                    accelerator.log(_numbers(report), step=done)
                    logged_at, logged_step, losses = now, done, []
                    if on_step is not None:
                        on_step(report)
            if done % config.checkpoint_every == 0 or ended or stopped:
                watch.check()
                state = _state(done, network, ema, optimizer, accelerator, config.optimizer)
                if accelerator.is_main_process:
                    save_checkpoint(checkpoint, state, config.keep_checkpoints, saved)
                    saved = done
                del state
            if config.sheet is not None and (config.sheet.due(done) or ended):
                averages = ema.averaged_state(network, accelerator.is_main_process)
                if sheets is not None:
                    with weights_replaced(recipe.network, averages):
                        sheets.paint(recipe.stage(), folder, done, device)
                    if sharded:
                        rest(recipe.network, device)
                del averages
                logged_at, logged_step = time.perf_counter(), done
            if stopped:
                logger.warning("told to end: stopped after step %d, start again to go on", done)
                break
    for tracker in accelerator.trackers if config.log_with else ():
        tracker.finish()  # accelerate's end_training would also take the processes apart, which go on below
    left_out = set(together(current_process(), sorted(unusable.names)))
    if left_out and accelerator.is_main_process:
        logger.warning("%d pictures that could not be used were left out", len(left_out))
    accelerator.wait_for_everyone()
    if done < config.last_step:
        return False
    averages = ema.averaged_state(network, accelerator.is_main_process)
    if accelerator.is_main_process:
        recipe.network.to(device)
        recipe.export(averages, folder)
    accelerator.wait_for_everyone()
    return True


class _Shares:
    """How the rows of a batch are shared out to processes, and those of one to parts of a step."""

    def __init__(self, config: LoopConfig) -> None:
        self._process = current_process()
        self.own = self._process.rows(config.batch_size)
        own = self.own.stop - self.own.start
        if own % config.accumulate:
            raise ValueError(
                f"loop.accumulate is {config.accumulate}, which does not divide the {own} rows of a process: "
                f"loop.batch_size is {config.batch_size}, the number of processes {self._process.world}"
            )
        self._count, self._size = config.accumulate, own // config.accumulate

    def parts(self, batch: Any) -> Iterator[tuple[Any, slice]]:
        """The parts of this process's batch with the rows of the whole batch that they are."""
        for first in range(0, self._count * self._size, self._size):
            rows = slice(self.own.start + first, self.own.start + first + self._size)
            yield _rows_of(batch, slice(first, first + self._size)) if self._count > 1 else batch, rows


def _rows_of(batch: Any, rows: slice) -> Any:
    if isinstance(batch, tuple):
        return tuple(_rows_of(each, rows) for each in batch)
    return None if batch is None else batch[rows]


def _attention_for(device: torch.device) -> AbstractContextManager[None]:
    """On CPUs the backward pass of fused attention takes a quarter of a U-Net's step; plain products less."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) * 4099


def _numbers(report: LoopReport) -> dict[str, float]:
    """What trackers draw curves of."""
    numbers = {"loss": report.loss, "learning_rate": report.learning_rate}
    numbers["images_per_second"] = report.images_per_second
    if report.validation_loss is not None:
        numbers["validation_loss"] = report.validation_loss
    return numbers


def _log(path: Path, report: LoopReport) -> None:
    row = {
        "step": report.step,
        "loss": round(report.loss, 5),
        "lr": round(report.learning_rate, 8),
        "images_per_second": round(report.images_per_second, 1),
    }
    if report.validation_loss is not None:
        row["validation_loss"] = round(report.validation_loss, 5)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _state(
    step: int,
    network: nn.Module,
    ema: ExponentialMovingAverage,
    optimizer: Any,
    accelerator: Accelerator,
    optimizer_name: OptimizerName,
) -> dict[str, Any]:
    scaler = {} if accelerator.scaler is None else {"scaler": accelerator.scaler.state_dict()}
    state = {
        **scaler,
        "step": step,
        "network": network.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "optimizer_name": optimizer_name,
    }
    return whole_state(state, keep=accelerator.is_main_process)


def _start_from(path: Path, recipe: Recipe) -> None:
    weights = recipe.read_weights(path)
    try:
        recipe.stage_network.load_state_dict(weights)
    except RuntimeError as error:  # torch's message lists every tensor
        raise ValueError(
            f"loop.start_from: {path} holds another network than this config describes: choose a file of "
            f"the same stage and shape, or leave start_from out"
        ) from error


def _take_weights(path: Path, state: dict[str, Any], network: nn.Module) -> None:
    try:
        network.load_state_dict(state["network"])
        _require_averages(state["ema"], network)
    except (RuntimeError, LookupError) as error:  # torch's message lists every tensor
        raise ValueError(
            f"{path} is the checkpoint of another network than this config describes: train into another "
            f"folder, or remove it to start anew"
        ) from error


def _require_averages(averages: dict[str, Any], network: nn.Module) -> None:
    for name, value in network.named_parameters():
        if averages[name].shape != value.shape:
            raise LookupError(name)


def _resume(
    path: Path,
    state: dict[str, Any],
    ema: ExponentialMovingAverage,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    optimizer_name: OptimizerName,
) -> None:
    ema.load_state_dict(state["ema"])
    saved_by = state.get("optimizer_name", optimizer_name)  # older checkpoints do not tell
    if saved_by != optimizer_name:
        raise ValueError(
            f"loop.optimizer is {optimizer_name}, but {path} was made with {saved_by}, whose state it cannot "
            f"take over: train into another folder, or start from the exported stage (loop.start_from)"
        )
    asked = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(cut_optimizer_state(state["optimizer"], optimizer))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: the state of its optimizer does not fit this config ({error}): train into another "
            f"folder, or start from the exported stage (loop.start_from)"
        ) from error
    for group, settings in zip(optimizer.param_groups, asked, strict=True):
        group.update(settings)  # the config's, which may have changed, and not those of the checkpoint
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    logger.info("resuming from step %d", state["step"])
