"""What ComfyUI's own nodes that change a MODEL make of a decoder's, one at a time; JSON on stdout.

Run by test_model_patches.py with ComfyUI's Python: patches_probe.py CHECKOUT. By node: how far the result is
from that without the node, or why there is none.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from bridge_probe import ROOT, SEED, in_comfyui, load_package

STEPS, CFG = 8, 2.0
# Where what is usual changes nothing, or needs more steps than there are here to be seen.
GIVEN: dict[str, dict[str, Any]] = {
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0},
    "FreSca": {"scale_high": 1.5, "freq_cutoff": 2},
    "ScaleROPE": {"scale_x": 2.0},
    "SkipLayerGuidanceDiT": {"start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceSD3": {"start_percent": 0.0, "end_percent": 1.0},
}
LEFT_OUT = {"TorchCompileModel"}  # it needs a compiler, and minutes


class NotTriedError(Exception):
    """A node that wants what there is no default of."""


def usual(name: str, declared: tuple, conditionings: dict[str, Any], model: Any) -> Any:
    """A value for an input."""
    kind, options = declared[0], declared[1] if len(declared) > 1 else {}
    if kind == "MODEL":
        return model
    if kind == "CONDITIONING":
        other = any(word in name for word in ("neg", "empty", "2"))
        return conditionings["other" if "empty" in name else "negative" if other else "positive"]
    words = kind if isinstance(kind, list) else options.get("options", []) if kind == "COMBO" else None
    if words is not None and not words:
        raise NotTriedError(f"no files for {name}")
    if "default" in options:
        return options["default"]
    plain = {"INT": options.get("min", 0), "FLOAT": options.get("min", 0.0), "BOOLEAN": False, "STRING": ""}
    if words is None and kind not in plain:
        raise NotTriedError(f"{name} is {kind}")
    return words[0] if words else plain[kind]


def wired(inputs: dict[str, Any]) -> dict[str, tuple]:
    """The inputs that get a value: those that must, and models and conditionings."""
    more = {
        key: each for key, each in inputs.get("optional", {}).items() if each[0] in ("MODEL", "CONDITIONING")
    }
    return {**inputs.get("required", {}), **more}


def called(node: Any, given: dict[str, Any]) -> tuple:
    """What a node gives, as its version of ComfyUI calls it."""
    if hasattr(node, "define_schema"):
        node.GET_SCHEMA()
        made = node.execute(**given)
        return getattr(made, "args", made)
    return getattr(node(), node.FUNCTION)(**given)


def survey() -> dict[str, Any]:
    import comfy.sample
    import comfy.samplers
    import torch
    from unclip.core.embeddings.space import Embedding
    from unclip.core.pipelines.conditions import Conditions
    from unclip.nodes.native_model import native_conditioning, native_model
    from unclip.tests.helpers.bundle import tiny_bundle

    import nodes as comfy_nodes

    load = getattr(comfy_nodes, "init_builtin_extra_nodes", None) or comfy_nodes.init_extra_nodes
    asyncio.run(load())
    decoder = tiny_bundle().decoder
    draw = torch.Generator().manual_seed(2)
    vectors = torch.randn(2, decoder.space.dim, generator=draw)
    one, two = (Embedding(row[None], decoder.space) for row in vectors)
    positive, negative = native_conditioning(decoder, Conditions(one))
    other, _ = native_conditioning(decoder, Conditions(two))
    conditionings = {"positive": positive, "negative": negative, "other": other}
    latent = torch.zeros(1, 3, 16, 16)
    noise = comfy.sample.prepare_noise(latent, SEED)

    def sampled(model: Any) -> Any:
        settings = {"disable_pbar": True, "seed": SEED}
        return comfy.sample.sample(
            model, noise, STEPS, CFG, "euler", "normal", positive, negative, latent, **settings
        )

    def guided(guider: Any) -> Any:
        levels = native_model(decoder).get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(levels, "normal", STEPS)
        return guider.sample(
            noise, latent, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=SEED
        )

    plain, found = sampled(native_model(decoder)), {}
    for name, node in sorted(comfy_nodes.NODE_CLASS_MAPPINGS.items()):
        gives = [kind for kind in node.RETURN_TYPES if kind in ("MODEL", "GUIDER")]
        declared = wired(node.INPUT_TYPES())
        if not gives or name in LEFT_OUT or "MODEL" not in (each[0] for each in declared.values()):
            continue
        try:
            given = {
                key: usual(key, each, conditionings, native_model(decoder)) for key, each in declared.items()
            }
            made = called(node, given | GIVEN.get(name, {}))[list(node.RETURN_TYPES).index(gives[0])]
            changed = sampled(made) if gives[0] == "MODEL" else guided(made)
        except NotTriedError:
            continue
        except Exception as error:  # whatever it is: the test says which may be
            found[name] = f"{type(error).__name__}: {error}"
            continue
        found[name] = float((changed - plain).abs().mean())
    return found


def main() -> None:
    in_comfyui(Path(sys.argv[1]))
    import torch

    load_package("unclip", ROOT)
    with torch.inference_mode():
        found = survey()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
