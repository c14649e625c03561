"""Upsample nodes: pictures made larger by diffusion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.pipelines.upsample import UpsampleOptions, upsample
from ..core.stages import UpsamplerStage
from . import host, inputs, sockets

CATEGORY = "unCLIP/upsample"


class UnCLIPUpsample:
    """Pictures to larger pictures."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Makes pictures larger with a diffusion upsampler, which invents the fine detail."
    SEARCH_ALIASES = ["upscale", "super resolution", "enlarge", "unclip upscaler"]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The larger pictures.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "upsampler": inputs.socket(
                    sockets.UPSAMPLER, "The upsampler; chain two of them for 64 to 256 to 1024 pixels."
                ),
                "image": inputs.socket(sockets.IMAGE, "Pictures in the size that the upsampler starts from."),
                "seed": inputs.seed(),
                "steps": inputs.steps(
                    UpsampleOptions.steps,
                    "Denoising steps. Few are enough: the small picture says most. Ignored by upsamplers "
                    "that were made for certain steps.",
                ),
                "sampler": inputs.sampler(UpsampleOptions.sampler),
            },
            "optional": {
                "eta": inputs.eta(),
                "noise_level": inputs.number(
                    UpsampleOptions.noise_level,
                    0.0,
                    1.0,
                    0.01,
                    "Noise added to the small picture, and told to the upsampler: more lets it repair flaws "
                    "and invent more. For upsamplers trained with it.",
                ),
            },
        }

    def execute(
        self,
        upsampler: UpsamplerStage | None,
        image: Tensor,
        seed: int,
        steps: int,
        sampler: str,
        eta: float = 0.0,
        noise_level: float = 0.0,
    ) -> tuple[Tensor]:
        upsampler = sockets.require_stage(upsampler, "upsampler")
        options = UpsampleOptions(steps=steps, sampler=sampler, eta=eta, noise_level=noise_level)
        pixels = sockets.image_to_core(image)
        with (
            host.on_device(upsampler.network),
            host.stage_progress("Upsample", steps, pictures=True) as on_step,
        ):
            pixels = upsample(upsampler, pixels, seed=seed, options=options, callback=on_step)
            return (sockets.image_from_core(pixels).to(host.result_device()),)
