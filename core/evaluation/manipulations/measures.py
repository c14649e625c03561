"""Do the manipulations of a bundle do what unCLIP (2204.06125, section 3) says of them?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...data.batches import load_pictograms
from ...stages import Bundle
from ..quality.prompts import draw_concepts, draw_prompts, render_prompts
from ..quality.report import Progress
from .concepts import measure_text_diff, measure_variations
from .config import ManipulationsConfig
from .exactness import measure_inpainting, measure_interpolation
from .measured_bundle import Example, MeasuredBundle
from .reconstruction import measure_inversion, measure_pca

AIM_STEPS = 50
AIM_PSNR = 25.0
AIM_KEPT = 0.8


@dataclass(frozen=True)
class Manipulations:
    """``results`` are plain JSON values, see :func:`measure_manipulations`."""

    results: dict[str, Any]
    examples: list[Example]


def measure_manipulations(
    config: ManipulationsConfig, bundle: Bundle, on_progress: Progress | None = None
) -> Manipulations:
    """Measure the manipulations of a bundle; the same config, weights and machine give the same numbers.

    Results are by measure, see the functions that make them: ``variations``, ``text_diff``,
    ``interpolation``, ``inpainting``, ``pca``, ``inversion``; and ``checks``, see :func:`checks`.

    Args:
        bundle: its networks on the device and in the type in which they are to run.
        on_progress: told title, work done and all work of a measure.

    Raises:
        ValueError: too few pictograms or concepts, or a stage that the bundle lacks; before anything runs.
    """
    measured = MeasuredBundle(bundle, config, on_progress)
    pictograms = load_pictograms(config.data, held_out=config.split == "held_out")
    concepts = draw_concepts(pictograms, config.concepts, config.seed)
    count = max(config.inversion.pictures, config.inpainted, config.fitted + config.measured)
    prompts = draw_prompts(pictograms, count, config.seed)

    results: dict[str, Any] = {}
    results["variations"], variations = measure_variations(measured, concepts)
    results["text_diff"], diffs = measure_text_diff(measured, concepts)
    results["interpolation"] = measure_interpolation(measured, concepts)
    results["inpainting"] = measure_inpainting(measured, prompts)
    results["pca"] = measure_pca(
        measured, render_prompts(prompts[: config.fitted + config.measured], measured.size)
    )
    shown = render_prompts(prompts[: config.inversion.pictures], measured.size)
    results["inversion"] = measure_inversion(measured, shown)
    results["checks"] = checks(results)
    return Manipulations(results, [variations, *diffs])


def checks(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The aims: a ``name``, what was ``found``, the ``aim`` in words, and whether it is ``met``."""
    found: list[dict[str, Any]] = []

    def check(name: str, value: Any, aim: str, met: Callable[[Any], bool]) -> None:
        found.append({"name": name, "found": value, "aim": aim, "met": met(value)})

    for curve in results["inversion"]["curves"]:
        for point in curve["points"]:
            if point["steps"] == AIM_STEPS:
                name = f"inversion, {AIM_STEPS} steps, {curve['refinements']} refinements, mean PSNR in dB"
                check(name, point["psnr"], f"{AIM_PSNR:g} or more", lambda value: value >= AIM_PSNR)
    # Of the pictures that the judge names right: what it takes for something else has no concept to keep.
    kept = results["variations"]["kept"]
    share = 0.0 if kept is None else kept["value"]
    check("variations that keep the concept", share, f"{AIM_KEPT} or more", lambda value: value >= AIM_KEPT)
    ends = results["interpolation"]["in_8_bits"]
    check("interpolation, values of the ends that differ in 8 bits", ends, "0", lambda value: value == 0)
    mean = results["text_diff"]["pictures"]["mean"]
    falls = sum(there <= here for here, there in pairwise(mean))
    check("text diff, steps at which the mean does not rise", falls, "0", lambda value: value == 0)
    errors = results["pca"]["error"]
    rises = sum(there >= here for here, there in pairwise(errors))
    check("PCA, components after which the error does not fall", rises, "0", lambda value: value == 0)
    differ = sum(results["inpainting"][size]["differ"] for size in ("decoded", "hard", "soft"))
    check("inpainting, unmasked pixels that differ", differ, "0", lambda value: value == 0)
    return found
