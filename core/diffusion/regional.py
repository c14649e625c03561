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
        total: Prediction | None = None
        for denoiser, weight in zip(self.denoisers, self.weights, strict=True):
            part = denoiser(x, step)
            x0 = weight * part.x0
            log_variance = None if part.log_variance is None else weight * part.log_variance
            if total is not None:
                x0 = total.x0 + x0
                if log_variance is not None and total.log_variance is not None:
                    log_variance = total.log_variance + log_variance
            total = Prediction(x0, log_variance)
        assert total is not None  # there is at least one
        return total
