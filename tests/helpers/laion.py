"""LAION's DALL·E 2 as ``unclip download laion`` lays it out, with small networks of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

from . import dalle2, dalle2_decoder
from .clip import randomise
from .clip_jit import save_torchscript

DIM, LENGTH = 64, 77  # of embeddings, and a head of OpenAI's CLIP; of captions
CLIP, PRIOR = "ViT-L-14.pt", "prior/best.pth"
DECODER, UPSAMPLER = "decoder/v1.0.2/latest.pth", "upsampler/working/latest.pth"
PRIOR_NETWORK = {**dalle2.NETWORK, "dim": DIM, "max_text_len": LENGTH}
UNET = {
    **dalle2_decoder.LAION,
    "image_embed_dim": DIM,
    "text_embed_dim": DIM,
    "max_text_len": LENGTH,
}
UPSAMPLER_UNET = {**UNET, "cond_on_text_encodings": False}


def write_laion(folder: Path) -> Path:
    """All four files, with the configs beside the prior and the upsampler; the decoder holds its own."""
    write_clip(folder / CLIP)
    write_prior(folder / PRIOR)
    write_decoder(folder / DECODER)
    write_upsampler(folder / UPSAMPLER)
    return folder


def write_clip(file: Path) -> None:
    model = open_clip.CLIP(
        embed_dim=DIM,
        vision_cfg=open_clip.CLIPVisionCfg(image_size=32, patch_size=8, width=DIM, layers=2, head_width=64),
        text_cfg=open_clip.CLIPTextCfg(width=DIM, heads=1, layers=2),
        quick_gelu=True,
    )
    state = {name: value.half() for name, value in randomise(model).state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_torchscript(state, file)


def write_prior(file: Path) -> None:
    """As releases before 1.9.0, of which LAION's seems to be: without an unconditional branch."""
    state = dalle2.early_state(network=PRIOR_NETWORK)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {f"net.{name}": value for name, value in state.items()}}, file)
    config = {"prior": {"net": PRIOR_NETWORK, "timesteps": dalle2.TIMESTEPS, "sample_timesteps": 5}}
    (file.parent / "prior_config.json").write_text(json.dumps(config))


def write_decoder(file: Path) -> None:
    """With the version and the whole config of the training in the file."""
    state = dalle2_decoder.upstream(UNET).state_dict()
    own = {name: value for name, value in state.items() if not name.startswith("unets.1.")}
    config = dalle2_decoder.described(UNET)
    config["decoder"] |= {"unets": config["decoder"]["unets"][:1], "image_sizes": [dalle2_decoder.SIZES[0]]}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": own, "config": {**config, "seed": 1}, "version": "1.0.2"}, file)


def write_upsampler(file: Path) -> None:
    """The weights alone, a placeholder in the decoder's stead, and the config beside them."""
    state = dalle2_decoder.upstream(UPSAMPLER_UNET).state_dict()
    own = {name: value for name, value in state.items() if not name.startswith("unets.0.")}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**own, "unets.0.dummy_parameter": torch.zeros(1)}, file)
    config = json.dumps(dalle2_decoder.described(UPSAMPLER_UNET))
    (file.parent / "decoder_config.json").write_text(config)
