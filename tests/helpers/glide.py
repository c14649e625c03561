"""GLIDE's files: their tensors by upstream's names; in miniature with random weights, the same everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = 50257
PADDING = VOCABULARY - 1
KINDS = {"base": 3, "upsample": 6, "base-inpaint": 7, "upsample-inpaint": 10}  # input channels
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class GlideSizes:
    """What upstream's `model_creation.py` gives to its networks; attention by level."""

    width: int = 192
    mult: tuple[int, ...] = (1, 2, 3, 4)
    res_blocks: int = 3
    attended: tuple[bool, ...] = (False, True, True, True)
    text_width: int = 512
    text_layers: int = 16
    text_length: int = 128


TINY = GlideSizes(64, (1, 2, 2), 1, (False, True, True), text_width=128, text_layers=2, text_length=12)
BASE = GlideSizes()
UPSAMPLER = GlideSizes(mult=(1, 1, 2, 2, 4, 4), res_blocks=2, attended=(False,) * 3 + (True,) * 3)


def unet_shapes(inputs: int, sizes: GlideSizes = TINY) -> Shapes:
    """Names and shapes of upstream's ``UNetModel``."""
    width, mult, attended = sizes.width, sizes.mult, sizes.attended
    embedding = 4 * width
    found = _layer("time_embed.0", embedding, width) | _layer("time_embed.2", embedding, embedding)
    found |= _layer("input_blocks.0.0", width, inputs, 3, 3)
    skips, channels, position = [width], width, 1
    for level, factor in enumerate(mult):
        for _ in range(sizes.res_blocks):
            found |= _residual(f"input_blocks.{position}.0", channels, factor * width, embedding)
            channels = factor * width
            if attended[level]:
                found |= _attention(f"input_blocks.{position}.1", channels, sizes.text_width)
            skips.append(channels)
            position += 1
        if level + 1 < len(mult):
            found |= _residual(f"input_blocks.{position}.0", channels, channels, embedding)
            skips.append(channels)
            position += 1
    found |= _residual("middle_block.0", channels, channels, embedding)
    found |= _attention("middle_block.1", channels, sizes.text_width)
    found |= _residual("middle_block.2", channels, channels, embedding)
    position = 0
    for level in reversed(range(len(mult))):
        for index in range(sizes.res_blocks + 1):
            at = f"output_blocks.{position}"
            found |= _residual(f"{at}.0", channels + skips.pop(), mult[level] * width, embedding)
            channels = mult[level] * width
            if attended[level]:
                found |= _attention(f"{at}.1", channels, sizes.text_width)
            if level and index == sizes.res_blocks:
                place = 2 if attended[level] else 1
                found |= _residual(f"{at}.{place}", channels, channels, embedding)
            position += 1
    return found | _layer("out.0", channels) | _layer("out.2", 6, channels, 3, 3)


def text_shapes(sizes: GlideSizes = TINY) -> Shapes:
    """Names and shapes of what ``Text2ImUNet`` adds to it."""
    width = sizes.text_width
    found: Shapes = {
        "token_embedding.weight": (VOCABULARY, width),
        "positional_embedding": (sizes.text_length, width),
        "padding_embedding": (sizes.text_length, width),
    }
    for layer in range(sizes.text_layers):
        at = f"transformer.resblocks.{layer}"
        found |= _layer(f"{at}.attn.c_qkv", 3 * width, width) | _layer(f"{at}.attn.c_proj", width, width)
        found |= _layer(f"{at}.ln_1", width) | _layer(f"{at}.ln_2", width)
        found |= _layer(f"{at}.mlp.c_fc", 4 * width, width) | _layer(f"{at}.mlp.c_proj", width, 4 * width)
    return found | _layer("final_ln", width) | _layer("transformer_proj", 4 * sizes.width, width)


def glide_state(kind: str = "base", seed: int = 0, levels: int = 3) -> dict[str, Tensor]:
    """Random weights of one of the four files, with so many levels, drawn in the order of their names."""
    sizes = replace(TINY, mult=TINY.mult[:levels], attended=TINY.attended[-levels:])
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in sorted((unet_shapes(KINDS[kind], sizes) | text_shapes(sizes)).items()):
        value = torch.randn(shape, generator=generator)
        if name.endswith(("embedding.weight", "_embedding")):
            state[name] = 0.5 * value
        elif len(shape) > 1:
            state[name] = value / math.sqrt(math.prod(shape[1:]))
        else:
            state[name] = 0.2 * value + (1 if name.endswith("weight") else 0)
    return state


def real_shapes(kind: str) -> Shapes:
    """Names and shapes of one of the four files as published."""
    sizes = UPSAMPLER if kind.startswith("upsample") else BASE
    return unet_shapes(KINDS[kind], sizes) | text_shapes(sizes)


def write_glide(folder: Path, kind: str = "base") -> Path:
    """A file as published, except that it is safetensors, and a merge table beside it."""
    write_merges(folder)
    path = folder / f"{kind}.safetensors"
    save_file(glide_state(kind), path)
    return path


def write_merges(folder: Path) -> None:
    """A table of 50,000 merges that begins as GPT-2's does; the others never apply to English."""
    real = ["Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he", "e r"]
    letters = [chr(n) for n in range(0xAE, 0x100)]  # of bytes that English has none of
    pairs = [f"{first} {second}" for first in letters for second in letters]
    triples = [f"{pair.replace(' ', '')} {letter}" for pair in pairs for letter in letters]
    table = ["#version: 0.2", *real, *[*pairs, *triples][: 50_000 - len(real)]]
    (folder / "vocab.bpe").write_text("\n".join(table) + "\n", encoding="utf-8")


def token_ids() -> Tensor:
    """Three captions [3, L]: of some tokens, of all positions, of none."""
    ids = torch.full((3, TINY.text_length), PADDING)
    ids[0, :4] = torch.tensor([64, 3797, 1969, 25])
    ids[1] = torch.arange(1000, 1000 + TINY.text_length)
    return ids


def _layer(name: str, outputs: int, *inputs: int) -> Shapes:
    """A linear layer or convolution; without inputs a norm."""
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def _residual(at: str, inputs: int, outputs: int, embedding: int) -> Shapes:
    found = _layer(f"{at}.in_layers.0", inputs) | _layer(f"{at}.in_layers.2", outputs, inputs, 3, 3)
    found |= _layer(f"{at}.emb_layers.1", 2 * outputs, embedding) | _layer(f"{at}.out_layers.0", outputs)
    found |= _layer(f"{at}.out_layers.3", outputs, outputs, 3, 3)
    return found | (_layer(f"{at}.skip_connection", outputs, inputs, 1, 1) if inputs != outputs else {})


def _attention(at: str, channels: int, context: int) -> Shapes:
    found = _layer(f"{at}.norm", channels) | _layer(f"{at}.qkv", 3 * channels, channels, 1)
    found |= _layer(f"{at}.encoder_kv", 2 * channels, context, 1)
    return found | _layer(f"{at}.proj_out", channels, channels, 1)
