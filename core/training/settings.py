"""How a run is trained: the table ``[loop]`` of its config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..config import NOT_NEGATIVE, POSITIVE, Range, require_ranges
from .optimizer import OptimizerName
from .sheet_settings import SheetConfig

LARGEST_BATCH = 2**20  # rows of a step; the largest batches that CLIP was trained with are a sixth of it

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps of the whole run; the learning rate decays to zero over them (cosine).
        stop_at: end the run earlier, at this step of the same schedule; None for all.
        batch_size: rows of a step, over all processes.
        accumulate: parts that a process takes its rows of a step in, where memory does not hold them at once.
        warmup: steps of linear warm-up of the learning rate.
        ema_decay: of the averaged weights that are exported.
        precision: autocast type; ``"no"`` for float32, ``"auto"`` for bf16 where the device is fast at it and
            float32 elsewhere.
        compile: run the network through torch.compile.
        checkpoint_every, log_every: in steps.
        start_from: file of a stage of the same shape whose weights a new run starts from; None for random
            ones.
        optimizer: see ``make_optimizer``.
        gradient_checkpointing: keep less for the gradient and compute it again, where memory is short.
        keep_checkpoints: how many, the newest as ``checkpoint.pt``, older ones as ``checkpoint-STEP.pt``.
        validate_every: steps between two losses on what ``data.held_out`` keeps back; None for none.
        validation_batches: how many batches that loss is the mean of.
        log_with: where accelerate logs besides ``log.jsonl``; a list of ``"tensorboard"`` and ``"wandb"``.
        sheet: pictures of fixed captions while training; None for none.
        parallel: what several processes have: the same weights each (``"ddp"``), or parts of them
            (``"fsdp"``, where memory is short).
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    weight_decay: float = 0.01
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    compile: bool = True
    checkpoint_every: int = 500
    log_every: int = 20
    seed: int = 0
    stop_at: int | None = None
    start_from: str | None = None
    optimizer: OptimizerName = "adamw"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    keep_checkpoints: int = 1
    validate_every: int | None = None
    validation_batches: int = 4
    log_with: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    sheet: SheetConfig | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"

    def __post_init__(self) -> None:
        require_ranges(
            self,
            "loop",
            steps=POSITIVE,
            batch_size=Range(1, LARGEST_BATCH),
            learning_rate=POSITIVE,
            checkpoint_every=POSITIVE,
            log_every=POSITIVE,
            accumulate=POSITIVE,
            keep_checkpoints=POSITIVE,
            validate_every=POSITIVE,
            validation_batches=POSITIVE,
            stop_at=POSITIVE,
            grad_clip=POSITIVE,
            warmup=NOT_NEGATIVE,
            weight_decay=NOT_NEGATIVE,
            beta2=Range(0, 0.999999),
            ema_decay=Range(0, 1),
            seed=Range(0, LARGEST_SEED),
        )
        if self.stop_at is not None and self.stop_at > self.steps:
            raise ValueError(
                f"loop.stop_at is {self.stop_at}, expected at most loop.steps, which is {self.steps}: there "
                f"the learning rate has come to zero"
            )

    @property
    def last_step(self) -> int:
        return self.steps if self.stop_at is None else self.stop_at


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to zero at ``config.steps``."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
