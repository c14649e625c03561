"""Files in the native format, looked into and tampered with."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import nn

SHARD_BYTES = 400_000  # a few tensors in each


def rewrite(path: Path, **changes) -> None:
    """Save the file again with changed fields in its header; None removes one."""
    header = read_json_header(path)
    header.update(changes)
    header = {key: value for key, value in header.items() if value is not None}
    # Read whole: the tensors of load_file are mapped from the file that is written over.
    save_file(load(path.read_bytes()), path, {"unclip": json.dumps(header)})


def read_json_header(path: Path) -> dict:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["unclip"])


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    state, reference = found.state_dict(), expected.state_dict()
    assert list(state) == list(reference)
    assert all(torch.equal(state[name], reference[name]) for name in reference)
