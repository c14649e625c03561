"""The file of a classifier: one safetensors file with its class names, in the manner of unclip's checkpoints.

A classifier is no stage of an unCLIP system: it only judges pictures, so no stage loader takes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ...config import config_from_dict, config_to_dict
from ...networks.classifier import Classifier, ClassifierConfig
from ..files.safetensors_io import iterate_tensors, read_tensor_file, write_tensor_file
from ..mapping.assembling import assemble
from ..mapping.number_types import is_finite
from .header import CLASSIFIER, FORMAT, METADATA_KEY, read_metadata

_CHOOSE = "choose a file that `unclip train classifier` wrote"


def save_classifier(network: Classifier, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Save a classifier, whole or not at all.

    Args:
        path: ends in ``.safetensors``.
        dtype: to which its weights are converted; None keeps theirs.

    Raises:
        ValueError: weights that are not finite.
    """
    header = {
        "format": FORMAT,
        "stage": CLASSIFIER,
        "network": CLASSIFIER,
        "config": config_to_dict(network.config),
    }
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        tensors[name] = value.detach().to("cpu", dtype).contiguous()
        if not is_finite(tensors[name]):
            raise ValueError(f"{path}: {name} holds NaN or infinite values; not saved")
    metadata = {METADATA_KEY: json.dumps(header, ensure_ascii=False)}
    return write_tensor_file(path, tensors, metadata, max_shard_bytes=None)


def load_classifier(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Classifier:
    """Load a classifier.

    Args:
        dtype: to which its weights are converted; None keeps the file's.

    Returns:
        The network in evaluation mode and without gradients; its class names are in its config.

    Raises:
        ValueError: no such file, not safetensors, no classifier, a config that does not parse, or tensors
            that do not fit it.
    """
    file = read_tensor_file(path)
    where = str(file.path)
    if METADATA_KEY not in file.metadata:
        raise ValueError(f"{where}: is a safetensors file, but no classifier of unclip's; {_CHOOSE}")
    header = read_metadata(file, METADATA_KEY)
    if header.get("stage") != CLASSIFIER:
        raise ValueError(f"{where}: holds the stage {header.get('stage')!r}, not a classifier; {_CHOOSE}")
    try:
        config = config_from_dict(ClassifierConfig, header.get("config"), "config")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return assemble(lambda: Classifier(config), shapes, iterate_tensors(file), where, device, dtype)
