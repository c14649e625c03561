"""Load LoRA node: a prior or a decoder with what a LoRA file changes in it."""

from __future__ import annotations

from typing import Any

from ..core.formats.lora import read_lora, settings_beside
from ..core.pipelines.lora import with_loras
from ..core.stages import DecoderStage, PriorStage
from . import catalogue, inputs, lora_files, messages, placement, sockets


class UnCLIPLoadLoRA:
    """A LoRA on a prior, a decoder, or both."""

    CATEGORY = "unCLIP/load"
    DESCRIPTION = (
        "Changes a prior or a decoder by a LoRA file: a style or a subject that was learned apart from the "
        "model. The file tells which of the two it was trained on; the other one passes. Several such nodes "
        "in a row add up. Files of unclip train, diffusers and peft are read."
    )
    SEARCH_ALIASES = [
        "lora",
        "lora loader",
        "load lora",
        "style",
        "fine-tune",
        "adapter",
        "peft",
        "kandinsky lora",
    ]
    RETURN_TYPES = (sockets.PRIOR, sockets.DECODER)
    RETURN_NAMES = ("prior", "decoder")
    OUTPUT_TOOLTIPS = (
        "The prior, changed where the file is for it. Empty where none is connected.",
        "The decoder, changed where the file is for it. Empty where none is connected.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "lora": inputs.choice(
                    lora_files.list_loras(),
                    "File in models/loras, or in a folder loras in models/unclip. none leaves the models as "
                    "they are.",
                ),
                "strength": inputs.number(
                    1.0,
                    -10.0,
                    10.0,
                    0.05,
                    "How much of it: 1 as it was trained, 0 nothing at all, below 0 the opposite.",
                ),
            },
            "optional": {
                "prior": inputs.socket(sockets.PRIOR, "A prior, for files that were trained on one."),
                "decoder": inputs.socket(sockets.DECODER, "A decoder, for files that were trained on one."),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora: Any = None) -> bool | str:  # noqa: N802
        return messages.refusal(lora_files.find_lora, lora)

    @classmethod
    def IS_CHANGED(cls, lora: Any = None, **_: Any) -> str:  # noqa: N802
        return catalogue.state_of(lora_files.find_lora, lora, beside=settings_beside)

    def execute(
        self,
        lora: str,
        strength: float,
        prior: PriorStage | None = None,
        decoder: DecoderStage | None = None,
    ) -> tuple[PriorStage | None, DecoderStage | None]:
        if prior is None and decoder is None:
            raise ValueError(
                "prior, decoder: nothing arrived at either; connect the model that the LoRA was trained on"
            )
        networks = (None if stage is None else stage.network for stage in (prior, decoder))
        path = lora_files.find_lora(lora)
        if path is None:
            return prior, decoder
        prior, decoder = with_loras((prior, decoder), read_lora(path).for_networks(*networks), strength)
        return placement.managed(prior), placement.managed(decoder)
