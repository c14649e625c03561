"""Noise schedules: immutable float64 tables of a discrete diffusion process, and their respacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import get_args

import torch
from torch import Tensor

from .spacing import SPACINGS
from .spec import DiffusionSpec, ScheduleName, Spacing

CPU = torch.device("cpu")

# What `Schedule.table` may be asked for.
TABLES = (
    "betas",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "snr",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "log_betas",
)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete diffusion process q(x_t | x_0) = N(√ᾱ_t·x_0, (1−ᾱ_t)·I), index 0 the least noise.

    A respaced schedule is again a Schedule: its ᾱ are those of the kept timesteps, and every derived table
    follows from them (Improved DDPM, eq. 19), so samplers never need to know that steps were skipped.

    Attributes:
        alphas_cumprod: ᾱ, [S] float64 on the CPU, strictly decreasing within [0, 1).
        timesteps: [S] int64, ascending: what the network is told at each index.
        num_train_timesteps: T of the full schedule; timesteps lie in [0, T).
        spacing: with which :meth:`respace` takes fewer steps unless told otherwise.

    Raises:
        ValueError: for tables of a wrong shape, type, order or range.
    """

    alphas_cumprod: Tensor
    timesteps: Tensor
    num_train_timesteps: int
    spacing: Spacing = "even"
    _tables: dict[tuple[str, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        a, t = self.alphas_cumprod, self.timesteps
        if a.dtype != torch.float64 or t.dtype != torch.int64 or a.device.type != "cpu":
            raise ValueError(
                "Schedule: alphas_cumprod must be float64 and timesteps int64, on the CPU; "
                f"found {a.dtype} on {a.device} and {t.dtype}"
            )
        if a.ndim != 1 or a.shape != t.shape or len(a) == 0:
            raise ValueError(
                "Schedule: alphas_cumprod and timesteps must be two non-empty lists of one length; "
                f"found shapes {tuple(a.shape)} and {tuple(t.shape)}"
            )
        in_range = bool(torch.isfinite(a).all()) and bool((a >= 0).all()) and bool((a < 1).all())
        if not in_range or not bool((a.diff() < 0).all()):
            raise ValueError(
                "Schedule: alphas_cumprod must decrease strictly within [0, 1), least noise first; "
                f"found values from {a[0].item():g} to {a[-1].item():g}"
            )
        if int(t[0]) < 0 or int(t[-1]) >= self.num_train_timesteps or not bool((t.diff() > 0).all()):
            raise ValueError(
                f"Schedule: timesteps must ascend within 0…{self.num_train_timesteps - 1}; found {t.tolist()}"
            )

        # Filled here rather than when first asked for: torch.compile cannot trace cached_property's lock, but
        # does trace the copy to a device in `table`. Neither may make inference tensors: training could not
        # save them for its backward pass.
        with torch.inference_mode(False):
            for name in TABLES:
                self._tables[name, CPU] = getattr(self, name).float()

    def __len__(self) -> int:
        return self.alphas_cumprod.shape[0]

    # --- derived tables, all [S] float64 ---

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """ᾱ of the next less noisy index; 1 (the clean sample) for index 0."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @cached_property
    def betas(self) -> Tensor:
        """β = 1 − ᾱ/ᾱ_prev, of the respaced process (Improved DDPM, eq. 19)."""
        return 1 - self.alphas_cumprod / self.alphas_cumprod_prev

    @cached_property
    def log_betas(self) -> Tensor:
        return self.betas.log()

    @cached_property
    def sqrt_alphas_cumprod(self) -> Tensor:
        return self.alphas_cumprod.sqrt()

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor:
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio ᾱ/(1−ᾱ)."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> Tensor:
        """β̃, the variance of q(x_{t−1} | x_t, x_0) (DDPM, eq. 7); 0 at index 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """log β̃ with index 0 (where β̃ = 0) given the value of index 1, or log β where there is only one."""
        variance = self.posterior_variance.clone()
        variance[0] = variance[1] if len(self) > 1 else self.betas[0]
        return variance.log()

    @cached_property
    def posterior_mean_coef1(self) -> Tensor:
        """Factor of x_0 in the mean of q(x_{t−1} | x_t, x_0) (DDPM, eq. 7)."""
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Tensor:
        """Factor of x_t in the mean of q(x_{t−1} | x_t, x_0) (DDPM, eq. 7)."""
        return (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)

    # --- use ---

    def table(self, name: str, device: torch.device | str) -> Tensor:
        """One of ``TABLES`` as float32 [S] on a device, moved there once and kept."""
        if name not in TABLES:
            raise ValueError(f"Schedule.table: unknown table {name!r}; known are {', '.join(TABLES)}")
        key = (name, torch.device(device))
        if key not in self._tables:
            with torch.inference_mode(False):
                self._tables[key] = self._tables[name, CPU].to(device, copy=True)
        return self._tables[key]

    def gather(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Table entries at the indices t [B], as [B, 1, …, 1] float32 that broadcast over ``like`` [B, …]."""
        values = self.table(name, t.device)[t]  # [B]
        return values.reshape(-1, *(1,) * (like.ndim - 1))

    def respace(self, steps: int | Sequence[int], *, spacing: Spacing | None = None) -> Schedule:
        """The same process with fewer steps.

        Args:
            steps: how many steps to keep, or exactly which timesteps (of ``timesteps``, in any order).
            spacing: where a number is given, one of ``spacing.SPACINGS``; None is the schedule's own.

        Raises:
            ValueError: more steps than the schedule has, less than one, or timesteps that it lacks.
        """
        if isinstance(steps, (int, Integral)):  # NumPy's too
            indices = _spaced_indices(steps, self.alphas_cumprod, spacing or self.spacing)
        else:
            indices = self._indices_of(steps)
        return Schedule(
            self.alphas_cumprod[indices], self.timesteps[indices], self.num_train_timesteps, self.spacing
        )

    def start(self, steps: int) -> Schedule:
        """The first ``steps`` indices, the least noise: the rest of the way for what is not all noise."""
        if not 1 <= steps <= len(self):
            raise ValueError(f"steps: found {steps}, expected 1…{len(self)}")
        return replace(self, alphas_cumprod=self.alphas_cumprod[:steps], timesteps=self.timesteps[:steps])

    def _indices_of(self, timesteps: Sequence[int]) -> Tensor:
        wanted = sorted(int(t) for t in timesteps)
        index = {t: i for i, t in enumerate(self.timesteps.tolist())}
        unknown = [t for t in wanted if t not in index]
        if not wanted or unknown or len(set(wanted)) != len(wanted):
            problem = (
                f"{unknown} are not"
                if unknown
                else "an empty list is not"
                if not wanted
                else "twice the same is not"
            )
            raise ValueError(
                f"timesteps: {problem} possible; give different ones out of "
                f"{int(self.timesteps[0])}…{int(self.timesteps[-1])}, of which the schedule has {len(self)}"
            )
        return torch.tensor([index[t] for t in wanted])


def _spaced_indices(steps: int, alphas_cumprod: Tensor, spacing: Spacing) -> Tensor:
    length = len(alphas_cumprod)
    if isinstance(steps, bool) or not 1 <= steps <= length:
        raise ValueError(
            f"steps: found {steps}, but the noise schedule has {length} timesteps; choose 1…{length} steps"
        )
    if spacing not in SPACINGS:
        raise ValueError(f"spacing: found {spacing!r}, expected one of {', '.join(SPACINGS)}")
    return SPACINGS[spacing](int(steps), alphas_cumprod)


def _float64(values: Tensor | Sequence[float]) -> Tensor:
    # The dtype goes into as_tensor, so that Python floats do not pass through float32.
    return torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()


def schedule_from_alphas_cumprod(alphas_cumprod: Tensor | Sequence[float]) -> Schedule:
    """A full schedule of given ᾱ, [T], strictly decreasing within [0, 1)."""
    table = _float64(alphas_cumprod)
    return Schedule(table, torch.arange(table.shape[0] if table.ndim else 0), table.numel())


def schedule_from_betas(betas: Tensor | Sequence[float]) -> Schedule:
    """A full schedule of given β, [T], each within (0, 1]; 1 only at the end (ᾱ = 0: zero terminal SNR)."""
    table = _float64(betas)
    if table.ndim != 1 or not bool(((table > 0) & (table <= 1)).all()):
        raise ValueError(
            f"betas: expected a list of numbers within (0, 1]; found shape {tuple(table.shape)}, values from "
            f"{table.min().item() if table.numel() else math.nan:g} to "
            f"{table.max().item() if table.numel() else math.nan:g}"
        )
    return schedule_from_alphas_cumprod(torch.cumprod(1 - table, dim=0))


def schedule_of(spec: DiffusionSpec) -> Schedule:
    """The full schedule with which a network was trained."""
    if spec.beta_start is None or spec.beta_end is None:
        schedule = make_schedule(spec.schedule, spec.num_timesteps)
    else:
        betas = torch.linspace(spec.beta_start, spec.beta_end, spec.num_timesteps, dtype=torch.float64)
        schedule = schedule_from_betas(betas)
    # A copy only where it differs: each has its tables.
    return schedule if spec.spacing == schedule.spacing else replace(schedule, spacing=spec.spacing)


def make_schedule(name: ScheduleName, num_timesteps: int) -> Schedule:
    """A named schedule.

    ``cosine``: Improved DDPM, eq. 17, with s = 0.008 and β ≤ 0.999 (``squaredcos_cap_v2`` of diffusers).
    ``linear``: DDPM's β from 1e-4 to 2e-2 at 1000 timesteps, scaled by 1000/T for other T
    (``get_named_beta_schedule`` of guided-diffusion).
    """
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps: found {num_timesteps}, expected at least 1")
    if name == "cosine":
        u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        alpha_bar = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2  # [T + 1]
        return schedule_from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))
    if name == "linear":
        scale = 1000 / num_timesteps
        if scale * 2e-2 > 1:
            raise ValueError(f"num_timesteps: the linear schedule needs at least 20, found {num_timesteps}")
        return schedule_from_betas(
            torch.linspace(scale * 1e-4, scale * 2e-2, num_timesteps, dtype=torch.float64)
        )
    raise ValueError(f"schedule: found {name!r}, expected one of {', '.join(get_args(ScheduleName))}")
