"""What the bridge gives to ComfyUI's own code, measured in a process that has loaded ComfyUI; JSON on stdout.

Run by test_bridge.py with ComfyUI's Python: bridge_probe.py CHECKOUT.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 28  # 999 is a multiple of 27: both place the steps on the same timesteps
SEED = 5


def load_package(name: str, folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def conditioning() -> dict[str, float]:
    """Native unCLIPConditioning and the models behind it, on our outputs and on CLIP Vision Encode's."""
    import comfy.clip_vision
    import torch
    from comfy.ldm.modules.encoders.noise_aug_modules import CLIPEmbeddingNoiseAugmentation
    from comfy.model_base import unclip_adm
    from comfy.supported_models import SD21UnclipL
    from unclip.core.embeddings.space import Embedding
    from unclip.core.formats.mapping.spaces import clip_space
    from unclip.nodes import NODE_CLASS_MAPPINGS

    import nodes as comfy_nodes

    vectors = torch.randn(2, 768, generator=torch.Generator().manual_seed(0))
    to_native = NODE_CLASS_MAPPINGS["UnCLIPToClipVision"]()
    (outputs,) = to_native.execute(Embedding(vectors, clip_space(768)), "sd21-unclip-l")
    augmentor = CLIPEmbeddingNoiseAugmentation(**SD21UnclipL.noise_aug_config)
    text = [[torch.zeros(1, 77, 1024), {}]]

    def native(output) -> tuple:
        (made,) = comfy_nodes.unCLIPConditioning().apply_adm(text, output, 1.0, 0.0)
        given = made[0][1]["unclip_conditioning"]
        return given[0]["clip_vision_output"].image_embeds, unclip_adm(given, "cpu", augmentor, seed=0)

    def encoded(rows):  # as ClipVisionModel.encode_image fills it
        output = comfy.clip_vision.Output()
        output["image_embeds"] = rows
        return output

    embeds, adm = native(outputs[1])
    expected_embeds, expected_adm = native(encoded(vectors[1:]))
    _, summed = native(encoded(vectors))
    return {
        "own_class": float(all(type(each) is comfy.clip_vision.Output for each in outputs)),
        "embeds": float((embeds - expected_embeds).abs().max()),
        "adm": float((adm - expected_adm).abs().max()),
        "summed": float((summed - adm).abs().max()),
    }


def sampling() -> dict[str, dict[str, float]]:
    """Mean difference in 8-bit steps between ComfyUI's sampler and ours, by kind of decoder."""
    import comfy.sample
    import torch
    from unclip.core.diffusion.spec import DiffusionSpec
    from unclip.core.embeddings.space import Embedding
    from unclip.core.networks.unet import UNet
    from unclip.core.pipelines.conditions import Conditions
    from unclip.core.pipelines.decode import DecodeOptions, decode
    from unclip.nodes.native_model import native_conditioning, native_model
    from unclip.tests.helpers.bundle import randomised, tiny_bundle

    tiny = tiny_bundle().decoder
    size = tiny.network.config.image_size
    draw = torch.Generator().manual_seed(1)
    vectors = torch.randn(2, tiny.space.dim, generator=draw)
    options = DecodeOptions(steps=STEPS, guidance_scale=2.0)

    def pictures(decoder, embedding, seed=SEED, rows=1):
        latent = torch.zeros(rows, 3, size, size)
        noise = comfy.sample.prepare_noise(latent, seed)
        x = comfy.sample.sample(
            native_model(decoder),
            noise,
            STEPS,
            options.guidance_scale,
            "ddim",
            "normal",
            *native_conditioning(decoder, Conditions(embedding)),
            latent,
            disable_pbar=True,
            seed=seed,
        )
        return ((x + 1) / 2).clamp(0, 1), noise

    found = {}
    kinds = {
        "v": DiffusionSpec(prediction="v"),
        "x0": DiffusionSpec(prediction="x0"),
        "eps": DiffusionSpec(prediction="eps", variance="learned_range"),
        "linear": DiffusionSpec(prediction="eps", schedule="linear"),
        "unclamped": DiffusionSpec(prediction="v", clip_x0=None),
    }
    for kind, spec in kinds.items():
        network = tiny.network
        if spec.variance == "learned_range":
            network = randomised(UNet(replace(network.config, out_channels=6)), draw)
        decoder = replace(tiny, network=network, diffusion=spec)
        embedding = Embedding(vectors, tiny.space)
        native, noise = pictures(decoder, embedding, rows=2)
        ours = decode(decoder, embedding, seed=SEED, options=options, noise=noise)
        other = decode(
            decoder, Embedding(vectors.flip(0), tiny.space), seed=SEED, options=options, noise=noise
        )
        found[kind] = {
            "difference": float((native - ours).abs().mean() * 255),
            "other": float((native - other).abs().mean() * 255),
        }
    return found


def merged() -> dict[str, float]:
    """Mean differences that a merge of two decoders makes: to what it samples, and to all else that samples
    one of them."""
    import comfy.sample
    import torch
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    from unclip.core.embeddings.space import Embedding
    from unclip.core.pipelines.conditions import Conditions
    from unclip.core.pipelines.decode import DecodeOptions, decode
    from unclip.nodes.native_model import native_conditioning, native_model
    from unclip.tests.helpers.bundle import tiny_bundle

    decoder, other = tiny_bundle().decoder, tiny_bundle(seed=1).decoder
    embedding = Embedding(torch.ones(1, decoder.space.dim), decoder.space)
    positive, negative = native_conditioning(decoder, Conditions(embedding))
    latent = torch.zeros(1, 3, 16, 16)

    def sampled(model):
        noise = comfy.sample.prepare_noise(latent, SEED)
        settings = {"disable_pbar": True, "seed": SEED}
        return comfy.sample.sample(
            model, noise, 2, 2.0, "euler", "normal", positive, negative, latent, **settings
        )

    def decoded():
        return decode(decoder, embedding, seed=SEED, options=DecodeOptions(steps=2))

    model = native_model(decoder)
    expected, painted = sampled(model), decoded()
    (merge,) = ModelMergeSimple().merge(model, native_model(other), 0.5)
    both = sampled(merge)
    found = {"decode": decoded() - painted, "model": sampled(native_model(decoder)) - expected}
    found |= {"again": sampled(merge) - both, "back": sampled(model) - expected, "merge": both - expected}
    sampled(merge)
    del merge, model
    found["gone"] = decoded() - painted
    return {name: float(difference.abs().mean()) for name, difference in found.items()}


def computed_in(dtype: str) -> float:
    """Mean difference between what is sampled as it is and with ComfyUI's Model Compute Dtype."""
    import comfy.sample
    import torch
    from comfy_extras.nodes_model_advanced import ModelComputeDtype
    from unclip.core.embeddings.space import Embedding
    from unclip.core.pipelines.conditions import Conditions
    from unclip.nodes.native_model import native_conditioning, native_model
    from unclip.tests.helpers.bundle import tiny_bundle

    decoder = tiny_bundle().decoder
    embedding = Embedding(torch.ones(1, decoder.space.dim), decoder.space)
    conditionings, latent = native_conditioning(decoder, Conditions(embedding)), torch.zeros(1, 3, 16, 16)
    model = native_model(decoder)
    found = []
    for each in (model, *ModelComputeDtype().patch(model, dtype)):
        noise = comfy.sample.prepare_noise(latent, SEED)
        settings = {"disable_pbar": True, "seed": SEED}
        found.append(
            comfy.sample.sample(each, noise, 2, 2.0, "euler", "normal", *conditionings, latent, **settings)
        )
    return float((found[1] - found[0]).abs().mean())


def changed_models(model) -> dict:
    """What ComfyUI's own nodes make of a MODEL that a decoder cannot follow."""
    import comfy_extras.nodes_model_advanced as advanced
    from comfy_extras.nodes_freelunch import FreeU

    free_u = getattr(FreeU, "execute", None) or FreeU().patch  # as its version of ComfyUI calls it
    levels = advanced.ModelSamplingDiscrete().patch(model, "eps", False)[0]
    hooked = free_u(model, 1.1, 1.2, 0.9, 0.2)[0]
    attention = model.clone()
    attention.set_model_attn1_replace(lambda *_: None, "middle", 0)  # PerturbedAttentionGuidance
    return {"levels": levels, "attention": attention, "hooked": hooked}


def within_bounds(conditioning):
    """A conditioning that holds in the bounds of a mask, by ComfyUI's own node."""
    import torch

    import nodes as comfy_nodes

    mask = torch.zeros(1, 16, 16)
    mask[:, 2:13, 1:10] = 1
    return comfy_nodes.ConditioningSetMask().append(conditioning, mask, "mask bounds", 1.0)[0]


def refusals() -> dict[str, str]:
    """Messages for what ComfyUI's sampler cannot be given."""
    import comfy.sample
    import torch
    from unclip.core.embeddings.space import Embedding
    from unclip.core.pipelines.conditions import Conditions
    from unclip.nodes.native_model import native_conditioning, native_model
    from unclip.tests.helpers.bundle import tiny_bundle

    decoder = tiny_bundle().decoder
    vectors = torch.ones(3, decoder.space.dim)
    positive, negative = native_conditioning(decoder, Conditions(Embedding(vectors, decoder.space)))
    stranger = tiny_bundle(seed=1).decoder
    others, _ = native_conditioning(stranger, Conditions(Embedding(vectors, stranger.space)))
    tries = {
        "text": ([[torch.zeros(1, 77, 768), {}]], negative, 3),
        "stranger": (others, negative, 3),
        "averaged": ([[positive[0][0] * 0.5, positive[0][1]]], negative, 3),
        "batch": (positive, negative, 2),
        "area": (within_bounds(positive), negative, 3),
    }
    models = changed_models(native_model(decoder))
    tries |= dict.fromkeys(models, (positive, negative, 3))
    found = {}
    for name, (first, second, rows) in tries.items():
        latent = torch.zeros(rows, 3, 16, 16)
        try:
            comfy.sample.sample(
                models.get(name) or native_model(decoder),
                latent,
                2,
                2.0,
                "euler",
                "normal",
                first,
                second,
                latent,
                disable_pbar=True,
            )
        except ValueError as error:
            found[name] = str(error)
    try:
        native_model(decoder).model.state_dict_for_saving({})
    except ValueError as error:
        found["saved"] = str(error)
    return found


def in_comfyui(checkout: Path) -> None:
    """Make this process one that has loaded a ComfyUI, on the CPU."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path[0] = str(checkout)
    logging.disable(logging.INFO)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import folder_paths  # noqa: F401 (with these two loaded, the pack takes the process for ComfyUI)


def main() -> None:
    in_comfyui(Path(sys.argv[1]))
    import torch

    load_package("unclip", ROOT)
    with torch.inference_mode():
        measured = {
            "conditioning": conditioning(),
            "sampling": sampling(),
            "merged": merged(),
            "computed_in_fp16": computed_in("fp16"),
            "refusals": refusals(),
        }
    sys.stdout.write("\n" + json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
