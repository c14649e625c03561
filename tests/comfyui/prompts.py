"""Prompts in the API form, and the same nodes run in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from unclip.nodes import NODE_CLASS_MAPPINGS

LOAD, TEXT, PRIOR, DECODE, UPSAMPLE, SAVE = "1", "2", "3", "4", "5", "6"
STEPS = 4


def text_to_image(
    *,
    bundle: str = "tiny",
    text: str = "a red fox",
    seed: int = 1,
    batch_size: int = 1,
    steps: int = STEPS,
    upsampler: int = 3,
    **decode: Any,
) -> dict[str, Any]:
    """Load, encode, prior, decode, upsample, save; in float32, so that two machines can be compared."""

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        cls = NODE_CLASS_MAPPINGS.get(class_type)
        declared = cls.INPUT_TYPES()["required"] if cls is not None else {}
        defaults = {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1]}
        return {"class_type": class_type, "inputs": {**defaults, **inputs}}

    common = {"seed": seed, "steps": steps}
    return {
        LOAD: node("UnCLIPLoadBundle", bundle=bundle, precision="fp32"),
        TEXT: node("UnCLIPTextEncode", clip=[LOAD, 0], text=text),
        PRIOR: node("UnCLIPDiffusionPrior", prior=[LOAD, 1], text=[TEXT, 0], batch_size=batch_size, **common),
        DECODE: node("UnCLIPDecode", decoder=[LOAD, 2], embedding=[PRIOR, 0], **{**common, **decode}),
        UPSAMPLE: node("UnCLIPUpsample", upsampler=[LOAD, upsampler], image=[DECODE, 0], **common),
        SAVE: node("SaveImage", images=[UPSAMPLE, 0], filename_prefix="test"),
    }


def run_here(prompt: dict[str, Any]) -> list[np.ndarray]:
    """The pictures that the prompt's SaveImage would save, [H, W, 3] uint8, made in this process."""
    results: dict[str, tuple] = {}

    def value(given: Any) -> Any:
        return results[given[0]][given[1]] if isinstance(given, list) else given

    with torch.inference_mode():
        for node_id, node in prompt.items():
            inputs = {name: value(given) for name, given in node["inputs"].items()}
            if node["class_type"] == "SaveImage":
                return [(picture.numpy() * 255).clip(0, 255).astype(np.uint8) for picture in inputs["images"]]
            cls = NODE_CLASS_MAPPINGS[node["class_type"]]
            results[node_id] = getattr(cls(), cls.FUNCTION)(**inputs)
    raise AssertionError("the prompt saves nothing")
