"""A Gaussian data distribution: everything about its diffusion is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from unclip.core.diffusion.denoiser import NetworkDenoiser
from unclip.core.diffusion.schedule import Schedule
from unclip.core.diffusion.spec import DiffusionSpec


def turn(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix·x over the last axis. Not a matmul: its threads cost more than this little work."""
    return (x[..., None, :] * matrix).sum(dim=-1)


@dataclass(frozen=True)
class Gaussian:
    """N(mean, basis·diag(std²)·basisᵀ) over the last axis, D dimensions; all float64."""

    mean: Tensor  # [D]
    std: Tensor  # [D]
    basis: Tensor  # [D, D], orthonormal columns

    @property
    def covariance(self) -> Tensor:
        return self.basis @ torch.diag(self.std**2) @ self.basis.T

    def _along_axes(self, factors: Tensor) -> Tensor:
        return (self.basis * factors) @ self.basis.T  # [D, D]

    def denoise(self, x: Tensor, alpha: float) -> Tensor:
        """E[x_0 | x_t]: along each axis of the basis, a linear shrinkage towards the mean."""
        gain = math.sqrt(alpha) * self.std**2 / (alpha * self.std**2 + 1 - alpha)  # [D]
        return self.mean + turn(x.double() - math.sqrt(alpha) * self.mean, self._along_axes(gain))

    def flow(self, x: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
        """The probability-flow ODE: it keeps every axis at the same number of standard deviations."""
        scale = ((alpha_to * self.std**2 + 1 - alpha_to) / (alpha_from * self.std**2 + 1 - alpha_from)).sqrt()
        offset = x.double() - math.sqrt(alpha_from) * self.mean
        return math.sqrt(alpha_to) * self.mean + turn(offset, self._along_axes(scale))

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        z = torch.randn((*shape, len(self.mean)), generator=generator, dtype=torch.float64)
        return self.mean + (z * self.std) @ self.basis.T

    def network(self, schedule: Schedule, prediction: str):
        """A 'network' that puts out exactly ε, x_0 or v. x [B, …, D] float32 → float32.

        All of them are affine in x_t; their maps at each step are made at once, for tests with many steps.
        """
        alphas = schedule.alphas_cumprod[:, None, None]  # [S, 1, 1]
        signal, sigma = alphas.sqrt(), (1 - alphas).sqrt()
        squared = self.std**2
        gain = self.basis * (signal * squared / (alphas * squared + 1 - alphas)) @ self.basis.T  # [S, D, D]
        x0 = torch.cat([gain, (self.mean - signal[..., 0] * (gain @ self.mean))[..., None]], dim=-1)
        eps = (torch.eye(len(self.mean), len(self.mean) + 1) - signal * x0) / sigma
        affine = {"eps": eps, "x0": x0, "v": signal * eps - sigma * x0}[prediction]  # [S, D, D + 1]
        matrix, shift = affine[..., :-1], affine[..., -1]

        def call(x: Tensor, step: int) -> Tensor:
            return (turn(x.double(), matrix[step]) + shift[step]).float()

        return call

    def denoiser(self, schedule: Schedule, prediction: str = "x0", **spec) -> NetworkDenoiser:
        return NetworkDenoiser(
            self.network(schedule, prediction), schedule, DiffusionSpec(prediction=prediction, **spec)
        )


def example_gaussian() -> Gaussian:
    """Three dimensions, spreads from narrow to wider than the noise, axes turned against the coordinates."""
    basis = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )[0]
    return Gaussian(
        mean=torch.tensor([0.8, -0.5, 0.1], dtype=torch.float64),
        std=torch.tensor([0.3, 0.5, 1.5], dtype=torch.float64),
        basis=basis,
    )
