"""One picture of several denoisers, each with its own part of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .denoiser import Denoiser, Prediction


class RegionalDenoiser:
    """x̂_0 = Σ w_k·x̂_0,k, and the log-variance likewise where there is one.

    At a given x_t the mean of weights that add up to one is the same on x̂_0, ε̂ and v̂, so this is the
    blending of noise predictions by masks of MultiDiffusion (Bar-Tal et al. 2302.08113, eq. 5), without its
    overlapping windows. Wrap it around guidance, and the clamping of x̂_0 around it.

    Args:
        denoisers: of B rows each, at least one.
        weights: for each denoiser, [1 or B, 1, …] float32 against x_t; they add up to 1 at every place.

    Raises:
        ValueError: none at all, or another number of weights.
    """

    def __init__(self, denoisers: Sequence[Denoiser], weights: Sequence[Tensor]) -> None:
        if not denoisers or len(denoisers) != len(weights):
            raise ValueError(
                f"regions: found {len(denoisers)} denoisers and {len(weights)} weights, expected as many of "
                f"both, at least one"
            )
        self.denoisers = tuple(denoisers)
        self.weights = tuple(weights)

    def __call__(self, x: Tensor, step: int) -> Prediction:
        parts = [denoiser(x, step) for denoiser in self.denoisers]
        x0 = self._blend([part.x0 for part in parts])
        assert x0 is not None  # there is at least one, and each has one
        # A part without guidance of its own adds the noise of its x̂_0 again.
        renoise = None
        if any(part.renoise is not None for part in parts):
            renoise = self._blend([part.x0 if part.renoise is None else part.renoise for part in parts])
        return Prediction(x0, self._blend([part.log_variance for part in parts]), renoise)

    def _blend(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        """Σ w_k·part_k of the parts that there are."""
        total: Tensor | None = None
        for weight, part in zip(self.weights, parts, strict=True):
            if part is not None:
                total = weight * part if total is None else total + weight * part
        return total
