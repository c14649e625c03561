"""Prompts in the API form for any node, with all that has to feed it, after what /object_info declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OUTPUT = "output"

# Which output makes what a socket takes.
PRODUCERS = {
    "UNCLIP_CLIP": ("UnCLIPLoadBundle", 0),
    "UNCLIP_PRIOR": ("UnCLIPLoadBundle", 1),
    "UNCLIP_DECODER": ("UnCLIPLoadBundle", 2),
    "UNCLIP_UPSAMPLER": ("UnCLIPLoadBundle", 3),
    "UNCLIP_TEXT": ("UnCLIPTextEncode", 0),
    "UNCLIP_EMBEDDING": ("UnCLIPTextAsImageEmbedding", 0),
    "UNCLIP_NOISE": ("UnCLIPNoise", 0),
    "UNCLIP_PCA": ("UnCLIPPCAFit", 0),
    "CLIP_VISION_OUTPUT": ("UnCLIPToClipVision", 0),
    "IMAGE": ("EmptyImage", 0),
    "MASK": ("SolidMask", 0),
}

# Every stage that samples, one behind the other, with the sockets that are not fed by a bundle's stage.
STAGES = {
    "UnCLIPDiffusionPrior": {},
    "UnCLIPAutoregressivePrior": {"prior": ["UnCLIPLoadPrior", 0]},
    "UnCLIPDecode": {"embedding": ["UnCLIPDiffusionPrior", 0]},
    "UnCLIPInpaint": {"image": ["UnCLIPDecode", 0], "embedding": ["UnCLIPAutoregressivePrior", 0]},
    "UnCLIPInvert": {"image": ["UnCLIPInpaint", 0], "embedding": ["UnCLIPDiffusionPrior", 0]},
    "UnCLIPGuidanceSweep": {"noise": ["UnCLIPInvert", 0], "embedding": ["UnCLIPAutoregressivePrior", 0]},
    "UnCLIPUpsample": {"image": ["UnCLIPGuidanceSweep", 0]},
}


def graph_of(
    info: Mapping[str, Any], class_type: str, given: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """A prompt that runs a node of this class, with one node, named as its class, for every class it needs.

    Args:
        info: the server's /object_info.
        given: inputs by class; the others are left at their defaults, sockets are fed by `PRODUCERS`.
    """
    prompt: dict[str, Any] = {}
    _add(prompt, info, class_type, given or {})
    if not info[class_type]["output_node"]:
        prompt[OUTPUT] = {"class_type": "PreviewAny", "inputs": {"source": [class_type, 0]}}
    return prompt


def all_stages(info: Mapping[str, Any], *, seed: int, steps: int) -> dict[str, Any]:
    """A prompt that goes through every stage in `STAGES` with the bundle `tiny` and saves two pictures."""
    given: dict[str, dict[str, Any]] = {
        "UnCLIPLoadBundle": {"bundle": "tiny", "precision": "fp32"},
        "UnCLIPLoadPrior": {"file": "tiny/ar-prior.safetensors", "precision": "fp32"},
        "UnCLIPTextEncode": {"text": "a red fox"},
        "SaveImage": {"images": ["UnCLIPUpsample", 0], "filename_prefix": "stages"},
    }
    for class_type, sockets in STAGES.items():
        declared = info[class_type]["input"]["required"]
        common = {name: value for name, value in (("seed", seed), ("steps", steps)) if name in declared}
        given[class_type] = {**sockets, **common}
    given["UnCLIPGuidanceSweep"]["guidance_scales"] = "1, 2"
    return graph_of(info, "SaveImage", given)


def _add(
    prompt: dict[str, Any],
    info: Mapping[str, Any],
    class_type: str,
    given: Mapping[str, Mapping[str, Any]],
) -> None:
    if class_type in prompt:
        return
    inputs = dict(given.get(class_type, {}))
    prompt[class_type] = {"class_type": class_type, "inputs": inputs}
    for name, (kind, *options) in info[class_type]["input"].get("required", {}).items():
        if name in inputs:
            continue
        if isinstance(kind, list):
            inputs[name] = options[0].get("default", kind[0])
        elif options and "default" in options[0]:
            inputs[name] = options[0]["default"]
        else:
            inputs[name] = list(PRODUCERS[kind.split(",")[0]])
    for value in inputs.values():
        if isinstance(value, list):
            _add(prompt, info, value[0], given)
