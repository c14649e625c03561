"""How well pictures come back: through their noise x_T, and embeddings through their principal components."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...embeddings.pca import fit_pca
from ...embeddings.space import Embedding
from ...pipelines.decode import DecodeOptions, decode
from ...pipelines.invert import invert
from .measured_bundle import Counter, MeasuredBundle

PERFECT = 1e-12
"""Mean squared error of pictures in 0..1 below which none is counted: 120 dB."""


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio −10·log10(MSE) of pictures [B, 3, H, W] in 0..1: [B] dB, at most 120."""
    error = (first.double() - second.double()).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=PERFECT).log10()


@torch.no_grad()
def measure_inversion(measured: MeasuredBundle, pictures: Tensor) -> dict[str, Any]:
    """Round trips of pictures [N, 3, S, S] through x_T, at every number of steps of the config.

    Both ways are deterministic (ddim, eta 0) and without guidance, with the embeddings of the pictures.

    Returns:
        ``curves``, one for each number of refinements: at each number of steps the mean PSNR in dB, that of
        the worst and the best picture, and the standard deviation of x_T, which is 1 for true noise.
    """
    settings = measured.config.inversion
    work = sum((2 + refinements) * sum(steps) for refinements, steps in settings.curves())
    counter = measured.counter("inversion", work * len(pictures))
    embedding = measured.encode(pictures)
    curves = []
    for refinements, all_steps in settings.curves():
        points = []
        for steps in all_steps:
            found, noise = _round_trip(measured, pictures, embedding, steps, refinements, counter)
            decibels = psnr(found, pictures)
            points.append(
                {
                    "steps": steps,
                    "psnr": decibels.mean().item(),
                    "worst": decibels.min().item(),
                    "best": decibels.max().item(),
                    "noise_std": noise.std().item(),
                }
            )
        curves.append({"refinements": refinements, "points": points})
    return {"pictures": len(pictures), "curves": curves}


def _round_trip(
    measured: MeasuredBundle,
    pictures: Tensor,
    embedding: Embedding,
    steps: int,
    refinements: int,
    counter: Counter,
) -> tuple[Tensor, Tensor]:
    """The pictures again, and their x_T."""
    decoder, options = measured.bundle.decoder, DecodeOptions(steps=steps, guidance_scale=1.0)
    found, noises = [], []
    for rows in measured.batches(len(pictures)):
        count = rows.stop - rows.start
        part = replace(embedding, vectors=embedding.vectors[rows])
        noise = invert(
            decoder,
            pictures[rows],
            part,
            measured.text,
            steps=steps,
            guidance_scale=options.guidance_scale,
            refinements=refinements,
            callback=counter.stage(count * steps * (1 + refinements)),
        )
        again = decode(
            decoder,
            part,
            measured.text,
            seed=measured.config.seed,
            batch_size=count,
            options=options,
            noise=noise,
            callback=counter.stage(count * steps),
        )
        found.append(again.cpu())
        noises.append(noise.cpu())
    return torch.cat(found), torch.cat(noises)


@torch.no_grad()
def measure_pca(measured: MeasuredBundle, pictures: Tensor) -> dict[str, Any]:
    """Errors of embeddings that are rebuilt from their first principal components.

    The components are those of the first ``fitted`` pictures; the others are rebuilt.

    Returns:
        ``error``: mean squared error with 0, 1, … ``components``, as a share of that with none; ``fitted``
        and ``measured``, the numbers of pictures; ``within_1_percent``, how many components leave an error of
        at most 1%, None where all leave more.
    """
    fitted = measured.config.fitted
    known, others = measured.encode(pictures[:fitted]), measured.encode(pictures[fitted:])
    pca = fit_pca(known, explained_variance=1.0)
    coefficients = pca.project(others)  # [N, K]
    errors = torch.stack(
        [
            (pca.reconstruct(coefficients, count).vectors - others.vectors)
            .double()
            .square()
            .sum(dim=1)
            .mean()
            for count in range(len(pca) + 1)
        ]
    )
    shares = (errors / errors[0]).tolist()
    return {
        "fitted": len(known),
        "measured": len(others),
        "components": list(range(len(pca) + 1)),
        "error": shares,
        "within_1_percent": next((count for count, share in enumerate(shares) if share <= 0.01), None),
    }
