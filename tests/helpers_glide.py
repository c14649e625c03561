"""GLIDE in miniature: random weights by upstream's names, the same everywhere, and a stand-in for GPT-2."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZE, WIDTH, MULT, ATTENDED = 32, 64, (1, 2, 2), (False, True, True)
TEXT_WIDTH, TEXT_LAYERS, TEXT_LENGTH, VOCABULARY = 128, 2, 12, 50257
PADDING = VOCABULARY - 1
KINDS = {"base": 3, "upsample": 6, "base-inpaint": 7, "upsample-inpaint": 10}  # input channels
Shapes = dict[str, tuple[int, ...]]


def unet_shapes(inputs: int) -> Shapes:
    """Names and shapes of upstream's ``UNetModel`` with one residual block per level."""
    embedding = 4 * WIDTH
    found = _layer("time_embed.0", embedding, WIDTH) | _layer("time_embed.2", embedding, embedding)
    found |= _layer("input_blocks.0.0", WIDTH, inputs, 3, 3)
    skips, channels, position = [WIDTH], WIDTH, 1
    for level, factor in enumerate(MULT):
        found |= _residual(f"input_blocks.{position}.0", channels, factor * WIDTH)
        channels = factor * WIDTH
        if ATTENDED[level]:
            found |= _attention(f"input_blocks.{position}.1", channels)
        skips.append(channels)
        position += 1
        if level + 1 < len(MULT):
            found |= _residual(f"input_blocks.{position}.0", channels, channels)
            skips.append(channels)
            position += 1
    found |= _residual("middle_block.0", channels, channels) | _attention("middle_block.1", channels)
    found |= _residual("middle_block.2", channels, channels)
    position = 0
    for level in reversed(range(len(MULT))):
        for index in range(2):
            at = f"output_blocks.{position}"
            found |= _residual(f"{at}.0", channels + skips.pop(), MULT[level] * WIDTH)
            channels = MULT[level] * WIDTH
            if ATTENDED[level]:
                found |= _attention(f"{at}.1", channels)
            if level and index:
                found |= _residual(f"{at}.{2 if ATTENDED[level] else 1}", channels, channels)
            position += 1
    return found | _layer("out.0", channels) | _layer("out.2", 6, channels, 3, 3)


def text_shapes() -> Shapes:
    """Names and shapes of what ``Text2ImUNet`` adds to it."""
    width = TEXT_WIDTH
    found: Shapes = {
        "token_embedding.weight": (VOCABULARY, width),
        "positional_embedding": (TEXT_LENGTH, width),
        "padding_embedding": (TEXT_LENGTH, width),
    }
    for layer in range(TEXT_LAYERS):
        at = f"transformer.resblocks.{layer}"
        found |= _layer(f"{at}.attn.c_qkv", 3 * width, width) | _layer(f"{at}.attn.c_proj", width, width)
        found |= _layer(f"{at}.ln_1", width) | _layer(f"{at}.ln_2", width)
        found |= _layer(f"{at}.mlp.c_fc", 4 * width, width) | _layer(f"{at}.mlp.c_proj", width, 4 * width)
    return found | _layer("final_ln", width) | _layer("transformer_proj", 4 * WIDTH, width)


def glide_state(kind: str = "base", seed: int = 0) -> dict[str, Tensor]:
    """Random weights of one of the four files, drawn in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted((unet_shapes(KINDS[kind]) | text_shapes()).items()):
        value = torch.randn(shape, generator=generator)
        if name.endswith("embedding.weight") or name.endswith("_embedding"):
            state[name] = 0.5 * value
        elif len(shape) > 1:
            state[name] = value / math.sqrt(math.prod(shape[1:]))
        else:
            state[name] = 0.2 * value + (1 if name.endswith("weight") else 0)
    return state


def write_glide(folder: Path, kind: str = "base") -> Path:
    """A file as published, except that it is safetensors, and a merge table beside it."""
    write_merges(folder)
    path = folder / f"{kind}.safetensors"
    save_file(glide_state(kind), path)
    return path


def write_merges(folder: Path) -> None:
    """A table of 50,000 merges that begins as GPT-2's does; the others never apply to English."""
    real = ["Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he", "e r"]
    filler = [f"{chr(0x4E00 + n // 250)} {chr(0x6000 + n % 250)}" for n in range(50_000 - len(real))]
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *real, *filler]) + "\n", encoding="utf-8")


def token_ids() -> Tensor:
    """Three captions [3, L]: of some tokens, of all positions, of none."""
    ids = torch.full((3, TEXT_LENGTH), PADDING)
    ids[0, :4] = torch.tensor([64, 3797, 1969, 25])
    ids[1] = torch.arange(1000, 1000 + TEXT_LENGTH)
    return ids


def _layer(name: str, outputs: int, *inputs: int) -> Shapes:
    """A linear layer or convolution; without inputs a norm."""
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def _residual(at: str, inputs: int, outputs: int) -> Shapes:
    found = _layer(f"{at}.in_layers.0", inputs) | _layer(f"{at}.in_layers.2", outputs, inputs, 3, 3)
    found |= _layer(f"{at}.emb_layers.1", 2 * outputs, 4 * WIDTH) | _layer(f"{at}.out_layers.0", outputs)
    found |= _layer(f"{at}.out_layers.3", outputs, outputs, 3, 3)
    return found | (_layer(f"{at}.skip_connection", outputs, inputs, 1, 1) if inputs != outputs else {})


def _attention(at: str, channels: int) -> Shapes:
    found = _layer(f"{at}.norm", channels) | _layer(f"{at}.qkv", 3 * channels, channels, 1)
    found |= _layer(f"{at}.encoder_kv", 2 * channels, TEXT_WIDTH, 1)
    return found | _layer(f"{at}.proj_out", channels, channels, 1)
