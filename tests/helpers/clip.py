"""Small CLIP models of other packages with random weights, and what they make of captions and pictures."""

from __future__ import annotations

from dataclasses import asdict

import open_clip
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection
from unclip.core.networks.clip import ClipConfig, ClipNetwork

VOCABULARY = 49408
START, END = 49406, 49407
# Two captions as CLIP's tokenizer gives them: start, words, end, and padding of 0, which is also "!".
IDS = torch.zeros(2, 77, dtype=torch.long)
IDS[0, :5] = torch.tensor([START, 320, 736, 1615, END])
IDS[1, :2] = torch.tensor([START, END])


def transformers_config(act: str = "quick_gelu", dim: int = 24) -> CLIPConfig:
    """Two transformers of two layers; the image encoder has heads of 16."""
    return CLIPConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 80,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "projection_dim": dim,
            "hidden_act": act,
            "vocab_size": VOCABULARY,
            "bos_token_id": START,
            "eos_token_id": END,
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 100,
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "projection_dim": dim,
            "image_size": 32,
            "patch_size": 8,
            "hidden_act": act,
        },
        projection_dim=dim,
    )


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of a size that lets every layer, bias and position matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * value if norm else value * (0.2 if parameter.ndim < 2 else 0.3))
    return network.eval().requires_grad_(False)


def transformers_clip(act: str = "quick_gelu", dim: int = 24) -> CLIPModel:
    return randomise(CLIPModel(transformers_config(act, dim)))


def text_part(model: CLIPModel) -> CLIPTextModelWithProjection:
    part = CLIPTextModelWithProjection(model.config.text_config).eval()
    part.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith("text_")})
    return part


def vision_part(model: CLIPModel) -> CLIPVisionModelWithProjection:
    part = CLIPVisionModelWithProjection(model.config.vision_config).eval()
    part.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith("vis")})
    return part


def pixels(seed: int = 1) -> Tensor:
    """Two pictures [2, 3, 32, 32] in 0..1."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def normalised(images: Tensor) -> Tensor:
    """As CLIP's preprocessing gives them to its network (openai/CLIP, `clip.py`)."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (images - mean) / std


def open_clip_of(config: ClipConfig) -> open_clip.CLIP:
    """open_clip's model for a config."""
    assert config.vision is not None and config.text is not None
    return open_clip.CLIP(
        config.embed_dim,
        open_clip.CLIPVisionCfg(**asdict(config.vision)),
        open_clip.CLIPTextCfg(**asdict(config.text)),
        quick_gelu=config.quick_gelu,
    )


def same_in_open_clip(network: ClipNetwork) -> open_clip.CLIP:
    """open_clip's model with the same weights."""
    model = open_clip_of(network.config).eval().requires_grad_(False)
    model.load_state_dict(network.clip.state_dict(), strict=True)
    return model
