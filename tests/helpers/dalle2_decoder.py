"""Small decoders of DALLE2-pytorch: settings, and files of random weights as the package writes them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unclip.core.formats.files.weight_source import WeightSource, source_of_tensors

VERSION = "1.15.6"
CLIP_DIM, TEXT_DIM, TEXT_LENGTH, SIZES, TIMESTEPS = 24, 24, 9, (16, 32), 30
UNET: dict[str, Any] = {
    "dim": 16,
    "image_embed_dim": CLIP_DIM,
    "text_embed_dim": TEXT_DIM,
    "max_text_len": TEXT_LENGTH,
    "cond_dim": 12,
    "dim_mults": [1, 2, 3],
    "num_resnet_blocks": 2,
    "attn_heads": 2,
    "attn_dim_head": 8,
    "resnet_groups": 4,
}
# Settings of `decoder/1.5B` in miniature: text, sparse attention, memory efficient, attention by level.
LAION: dict[str, Any] = {
    "cond_on_text_encodings": True,
    "memory_efficient": True,
    "sparse_attn": True,
    "self_attn": [False, True, True],
}
# The U-Net of `decoder/1.5B` as its config has it.
LAION_1_5B: dict[str, Any] = {
    **LAION,
    "dim": 320,
    "cond_dim": 512,
    "image_embed_dim": 768,
    "text_embed_dim": 768,
    "channels": 3,
    "dim_mults": [1, 2, 3, 4],
    "num_resnet_blocks": 4,
    "attn_heads": 8,
    "attn_dim_head": 64,
    "self_attn": [False, True, True, True],
}
# An upsampler of the decoder's weight, for benchmarks: the size of Veldrovive's stands in its config alone.
UPSAMPLER: dict[str, Any] = {
    "dim": 128,
    "cond_dim": 128,
    "channels": 3,
    "dim_mults": [1, 2, 4, 8, 16],
    "image_embed_dim": 768,
    "memory_efficient": True,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "laion": LAION,
    "text": {"cond_on_text_encodings": True},
    "self": {"self_attn": [False, True, True]},
    "sparse": {"sparse_attn": True, "self_attn": [False, False, True]},
    "efficient": {"memory_efficient": True},
    "cosine": {"cosine_sim_self_attn": True, "cosine_sim_cross_attn": True, "self_attn": True},
    "single": {
        "init_cross_embed": False,
        "final_conv_kernel_size": 3,
        "pixel_shuffle_upsample": False,
        "scale_skip_connection": True,
        "num_resnet_blocks": [1, 2, 3],
    },
    "kernels": {"cross_embed_downsample": True, "add_image_embeds_to_time": False},
}


def package() -> ModuleType:
    """The package's module: 1.10.9 is what the tests install; 1.15.6, by ``--no-deps``, does as well."""
    return pytest.importorskip("dalle2_pytorch.dalle2_pytorch", reason="dalle2-pytorch is not installed")


def upstream(options: dict[str, Any], **decoder: Any) -> nn.Module:
    """The package's decoder and upsampler, with weights of which everything matters."""
    module = package()
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in {**UNET, **options}.items()}
    unets = module.Unet(**settings), module.Unet(**{**settings, "lowres_cond": True})
    common = {"image_sizes": SIZES, "timesteps": TIMESTEPS, "learned_variance": (True, False)}
    noise = {"use_noise_for_lowres_cond": True, "use_blur_for_lowres_cond": False}
    return filled(module.Decoder(unets, **{**common, **noise, **decoder}))


def real_shapes(unets: list[dict[str, Any]], sizes: list[int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a whole decoder of the package, built without memory."""
    module = package()
    settings = [
        {
            name: tuple(v) if isinstance(v, list) else v
            for name, v in {**each, "lowres_cond": number > 0}.items()
        }
        for number, each in enumerate(unets)
    ]
    with torch.device("meta"):
        made = tuple(module.Unet(**each) for each in settings)
        learned = (True, *[False] * (len(made) - 1))
        decoder = module.Decoder(made, image_sizes=tuple(sizes), timesteps=1000, learned_variance=learned)
    return {name: tuple(value.shape) for name, value in decoder.state_dict().items()}


def filled(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "null" not in name:
                parameter.copy_(drawn / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.3 * drawn)
    return network.eval()


def described(options: dict[str, Any], **decoder: Any) -> dict[str, Any]:
    """The config as a checkpoint holds it."""
    facts = {"unets": [{**UNET, **options}] * 2, "image_sizes": list(SIZES), "timesteps": TIMESTEPS}
    return {"decoder": {**facts, **decoder}}


def source_of(
    network: nn.Module, options: dict[str, Any], version: str | None = VERSION, **decoder: Any
) -> WeightSource:
    facts = {"config": described(options, **decoder), "version": version}
    return source_of_tensors(Path("latest.pth"), network.state_dict(), facts)


def captions(*lengths: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Features of captions with so many valid tokens, zero behind them as in the package, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(TEXT_LENGTH - 2)[None] < torch.tensor(lengths)[:, None]
    tokens = torch.randn(len(lengths), TEXT_LENGTH - 2, TEXT_DIM, generator=generator)
    return tokens * mask[:, :, None], mask
