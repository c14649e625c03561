"""GLIDE's files: those that are damaged are told by name, and PyTorch's checkpoints are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from unclip.core.formats.detect import identify
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.layouts.glide import load_glide_decoder, load_glide_text

from ...helpers.glide import glide_state

QKV, KV = "transformer.resblocks.1.attn.c_qkv.weight", "middle_block.1.encoder_kv.weight"


@pytest.mark.parametrize(
    ("load", "name", "value", "message"),
    [
        (load_glide_text, QKV, None, f"lacks {QKV}; found"),
        (load_glide_text, QKV, torch.ones(384, 127), f"found the shape {QKV} [384, 127]"),
        (load_glide_text, "transformer.extra", torch.ones(1), "holds transformer.extra, for which"),
        (
            load_glide_text,
            "token_embedding.weight",
            torch.ones(9, 128),
            "token_embedding.weight has 9 tokens, expected 50257",
        ),
        (load_glide_decoder, KV, None, f"lacks {KV}; found"),
        (load_glide_decoder, KV, torch.ones(256, 127, 1), f"found the shape {KV} [256, 127, 1]"),
        (load_glide_decoder, "extra.weight", torch.ones(1), "holds extra.weight, for which"),
        (
            load_glide_decoder,
            "input_blocks.0.0.weight",
            torch.ones(64, 5, 3, 3),
            "its U-Net has 5 input channels, expected one of 3, 6, 7, 10",
        ),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, load, name: str, value, message: str) -> None:
    state = glide_state()
    state.pop(name, None)
    if value is not None:
        state[name] = value
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load(source_of_tensors(tmp_path / "base.pt", state))
    assert "base.pt" in str(error.value)


def test_a_checkpoint_of_pytorch_is_read(tmp_path: Path) -> None:
    torch.save(glide_state(), tmp_path / "base.pt")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    assert identify(open_weights(tmp_path / "base.pt")).stage == "decoder"
