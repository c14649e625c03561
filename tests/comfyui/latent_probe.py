"""What the bridge gives to ComfyUI's own code of decoders with an autoencoder: JSON on stdout.

Run by test_bridge_kandinsky22.py with ComfyUI's Python: latent_probe.py CHECKOUT. Differences are means, in
steps of 8 bits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from bridge_probe import ROOT, SEED, STEPS, in_comfyui, load_package

WIDTH, HEIGHT = 192, 128
CFG = 2.0


def native(decoder, given, latent, mask=None, steps=STEPS, denoise=1.0, change=None):
    """A latent through ComfyUI's sampler; gives the noise as well.

    With a mask by euler, which is ddim, but that what is kept gets the noise of the rest.
    """
    import comfy.sample
    from unclip.nodes.native_model import native_conditioning, native_model

    noise = comfy.sample.prepare_noise(latent, SEED)
    conditionings = native_conditioning(decoder, given)
    if change is not None:
        conditionings = [change(each) for each in conditionings]
    sampler = "ddim" if mask is None else "euler"
    settings = {"denoise": denoise, "noise_mask": mask, "disable_pbar": True, "seed": SEED}
    x = comfy.sample.sample(
        native_model(decoder), noise, steps, CFG, sampler, "normal", *conditionings, latent, **settings
    )
    return x, noise


def shown(decoder, x):
    from unclip.nodes.native_vae import native_vae

    return native_vae(decoder).decode(x).movedim(-1, 1)


def apart(first, second) -> float:
    return float((first - second).abs().mean() * 255)


def decoders() -> dict[str, SimpleNamespace]:
    """Each of Kandinsky's in miniature, loaded from its published folder, with conditions."""
    import torch
    from unclip.core.embeddings.space import Embedding
    from unclip.core.formats.load import load_any_bundle
    from unclip.core.pipelines.conditions import Conditions
    from unclip.core.pipelines.encode import encode_text
    from unclip.tests.helpers import kandinsky_files as files
    from unclip.tests.helpers import karlo

    draw = torch.Generator().manual_seed(3)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("2.2", "2.2 depth", "2.2 inpaint", "2.1"):
            root = Path(folder) / kind
            if kind == "2.1":
                files.save_21(files.tiny_21(), root / "decoder")
                karlo.save_as_published(karlo.tiny_kandinsky_prior(), root / "prior")
            else:
                karlo.save_as_published(karlo.tiny_kandinsky_prior(), root / "prior")
                files.tiny_22(kind).save_pretrained(root / "decoder")
            bundle = load_any_bundle(root)
            space = bundle.decoder.space
            vectors = [torch.randn(1, space.dim, generator=draw) for _ in range(2)]
            given = Conditions(Embedding(vectors[0], space))
            if kind == "2.2 depth":
                given = replace(given, hint=torch.rand(1, 3, HEIGHT, WIDTH, generator=draw))
            if bundle.decoder_text is not None:
                given = replace(given, text=encode_text(bundle.decoder_text, ["a red fox"]))
            other = replace(given, embedding=Embedding(vectors[1], space))
            # As ComfyUI's scheduler "normal" spreads the steps; Kandinsky's own way leaves the noisiest out.
            spec = replace(bundle.decoder.diffusion, spacing="even")
            decoder = replace(bundle.decoder, diffusion=spec)
            found[kind] = SimpleNamespace(decoder=decoder, given=given, other=other)
    return found


def ours(decoder, given, noise, **changes):
    from unclip.core.pipelines.decode import DecodeOptions, decode

    image = changes.pop("image", None)
    size = {} if noise is not None else {"width": WIDTH, "height": HEIGHT}
    options = DecodeOptions(guidance_scale=CFG, sampler="ddim", eta=0.0, **{"steps": STEPS} | size | changes)
    told = {name: getattr(given, name) for name in ("negative_embedding", "negative_text", "hint")}
    return decode(
        decoder, given.embedding, given.text, seed=SEED, options=options, noise=noise, image=image, **told
    )


def sampling(each: dict[str, SimpleNamespace]) -> dict[str, dict[str, float]]:
    """Pictures from nothing: those of our own decode, and of another embedding."""
    import torch

    found = {}
    for kind, this in each.items():
        x, noise = native(this.decoder, this.given, torch.zeros(2, 4, HEIGHT // 8, WIDTH // 8))
        pictures = shown(this.decoder, x)
        found[kind] = {
            "difference": apart(pictures, ours(this.decoder, this.given, noise)),
            "other": apart(pictures, ours(this.decoder, this.other, noise)),
            "spread": float(pictures.std() * 255),
        }
    this = each["2.2"]
    negative = replace(this.given, negative_embedding=this.other.embedding)
    x, noise = native(this.decoder, negative, torch.zeros(1, 4, HEIGHT // 8, WIDTH // 8))
    found["negative"] = {
        "difference": apart(shown(this.decoder, x), ours(this.decoder, negative, noise)),
        "other": apart(shown(this.decoder, x), ours(this.decoder, this.given, noise)),
    }
    return found


def from_a_picture(each: dict[str, SimpleNamespace]) -> dict[str, dict[str, float]]:
    """A picture encoded by the VAE: changed in part (denoise 0.5), with and without a mask."""
    import torch
    from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
    from unclip.nodes.native_vae import native_vae

    draw = torch.Generator().manual_seed(4)
    picture = torch.rand(1, 3, HEIGHT // 16, WIDTH // 16, generator=draw).repeat_interleave(16, 2)
    picture = picture.repeat_interleave(16, 3)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., 32:96, 64:160] = 1
    half = {"steps": STEPS // 2, "denoise": 0.5}
    found = {}
    for kind in ("2.2", "2.2 inpaint"):
        this = each[kind]
        latent = native_vae(this.decoder).encode(picture.movedim(1, -1))
        if kind == "2.2":
            x, noise = native(this.decoder, this.given, latent, **half)
            expected = ours(this.decoder, this.given, noise, image=picture, strength=0.5)
            found["image"] = {
                "difference": apart(shown(this.decoder, x), expected),
                "other": apart(picture, expected),
            }
            continue
        x, noise = native(this.decoder, this.given, latent, mask, **half)
        options = InpaintOptions(STEPS, CFG, eta=0.0, strength=0.5, width=WIDTH, height=HEIGHT)
        embedding = this.given.embedding
        with drawn(noise):
            expected = inpaint(this.decoder, picture, mask, embedding, seed=SEED, options=options)
        painted = torch.where(mask > 0, shown(this.decoder, x), picture)
        unseen, _ = native(blind(this.decoder), this.given, latent, mask, **half)
        found["mask"] = {
            "difference": apart(painted, expected),
            "other": apart(torch.where(mask > 0, shown(this.decoder, unseen), picture), expected),
            "kept": float((x - latent)[..., :4, :].abs().max()),
        }
    return found


def drawn(noise):
    """Ours starts from this noise."""
    from unclip.core.pipelines import inpaint

    return mock.patch.object(inpaint, "draw_noise", lambda *_: noise)


def blind(decoder):
    """The same decoder, whose network is never told of a picture."""
    from copy import copy

    network = copy(decoder.network)
    forward = decoder.network.forward
    network.forward = lambda x, t, condition, concat: forward(x, t, condition, concat=concat * 0)
    return replace(decoder, network=network)


def areas(each: dict[str, SimpleNamespace]) -> dict[str, float]:
    """A condition that holds in the left half only sees the left half of its hint."""
    import torch
    from unclip.core.networks.conditioning import HintLayout

    import nodes as comfy_nodes

    this, width = each["2.2 depth"], WIDTH // 2
    set_area = comfy_nodes.ConditioningSetArea()

    def change(conditioning):
        return set_area.append(conditioning, width, HEIGHT, 0, 0, 1.0)[0]

    latent = torch.zeros(1, 4, HEIGHT // 8, WIDTH // 8)
    x, noise = native(this.decoder, this.given, latent, change=change)
    x, noise = x[..., : width // 8], noise[..., : width // 8]
    pictures = shown(this.decoder, x)
    made = this.decoder.network.conditioner.hint_layout(this.given.hint)
    hint, found = this.given.hint[..., :width], {}
    for name, half in (("difference", made[..., : width // 8]), ("other", made[..., width // 8 :])):
        with mock.patch.object(HintLayout, "forward", lambda _, rows, half=half: half):
            found[name] = apart(pictures, ours(this.decoder, replace(this.given, hint=hint), noise))
    return found


def autoencoding(this: SimpleNamespace) -> dict[str, float]:
    """The VAE against our own way, whole and by tiles; and ComfyUI's preview against ours."""
    import latent_preview
    import numpy as np
    import torch
    from unclip.core.diffusion.samplers import SamplerStep
    from unclip.core.pipelines.canvas import to_network, to_pictures, with_previews
    from unclip.nodes.native_model import native_model
    from unclip.nodes.native_vae import native_vae

    draw = torch.Generator().manual_seed(5)
    vae, decoder = native_vae(this.decoder), this.decoder
    latent = torch.randn(2, 4, 24, 40, generator=draw)
    pictures = torch.rand(2, 192, 320, 3, generator=draw)
    whole, known = to_pictures(decoder, latent), to_network(decoder, pictures.movedim(-1, 1))
    tiled = vae.decode_tiled(latent, tile_x=16, tile_y=16, overlap=4).movedim(-1, 1)
    encoded = vae.encode_tiled(pictures, tile_x=128, tile_y=128, overlap=32)
    model = native_model(decoder)
    form = model.get_model_object("latent_format")
    previewer = latent_preview.Latent2RGBPreviewer(form.latent_rgb_factors, form.latent_rgb_factors_bias)
    preview = torch.tensor(np.array(previewer.decode_latent_to_preview(latent))).flatten(0, 1).float()
    steps = []
    with_previews(decoder, steps.append)(SamplerStep(index=0, total=1, x=latent, x0=latent))
    colours = (steps[0].x0[0].flatten(1).T + 1) * 127.5
    return {
        "decode": apart(vae.decode(latent).movedim(-1, 1), whole),
        "decode_tiled": apart(tiled, whole),
        "encode": float((vae.encode(pictures) - known).abs().max()),
        "encode_tiled": float((encoded - known).abs().max()),
        "latent": float(known.std()),
        "preview": float((preview - colours).abs().max()),
        "colours": float(colours.std()),
        "compression": float(vae.spacial_compression_decode()),
        "channels": float(vae.latent_channels),
        "memory_of_a_batch": vae.memory_used_decode((60, *latent.shape[1:]), torch.float32)
        / vae.memory_used_decode((1, *latent.shape[1:]), torch.float32),
    }


def refusals(each: dict[str, SimpleNamespace]) -> dict[str, str]:
    """Messages for what cannot be."""
    import torch
    from unclip.nodes.native_model import native_conditioning
    from unclip.nodes.native_vae import native_vae
    from unclip.tests.helpers.bundle import tiny_bundle

    this, depth = each["2.2"], each["2.2 depth"]
    config = this.decoder.network.config
    unknown = replace(config, conditioning=replace(config.conditioning, learned_null=False))
    nameless = SimpleNamespace(config=unknown, condition=this.decoder.network.condition)
    tries = {
        "size": lambda: native(this.decoder, this.given, torch.zeros(1, 4, 15, 16)),
        "null": lambda: native_conditioning(replace(this.decoder, network=nameless), this.given),
        "hint": lambda: native_conditioning(depth.decoder, replace(depth.given, hint=None)),
        "pictures": lambda: native_vae(tiny_bundle().decoder),
        "saved": lambda: native_vae(this.decoder).get_sd(),
    }
    found = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except ValueError as error:
            found[name] = str(error)
    return found


def main() -> None:
    in_comfyui(Path(sys.argv[1]))
    import torch

    load_package("unclip", ROOT)
    with torch.inference_mode():
        each = decoders()
        measured = {
            "sampling": sampling(each),
            "from_a_picture": from_a_picture(each),
            "areas": areas(each),
            "autoencoding": autoencoding(each["2.2"]),
            "refusals": refusals(each),
        }
    sys.stdout.write("\n" + json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
