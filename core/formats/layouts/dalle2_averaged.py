"""The averaged weights in what DALLE2-pytorch saves while it trains: its trainers sample from these.

A trainer's file holds the weights of the last step as ``model``, and under ``ema`` the state of ``EMA`` of
ema-pytorch: of a prior ``ema_model.NAME``, of a decoder ``N.ema_model.NAME`` for each U-Net
(``DiffusionPriorTrainer.save`` and ``DecoderTrainer.save``, ``trainer.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..files.weight_source import WeightSource, join_sources, source_of_tensors

_AVERAGED = re.compile(r"(?:(?P<unet>\d+)\.)?ema_model\.(?P<name>.+)")


def averaged(source: WeightSource) -> WeightSource:
    """The same weights, those in the place of which the file has averaged ones replaced by them."""
    state = source.metadata.get("ema")
    tensors: dict[str, Tensor] = {}
    for key, value in state.items() if isinstance(state, Mapping) else ():
        found = _AVERAGED.fullmatch(str(key))
        if found is not None and isinstance(value, Tensor):
            name = found["name"] if found["unet"] is None else f"unets.{found['unet']}.{found['name']}"
            if name in source.shapes:
                tensors[name] = value
    if not tensors:
        return source
    others = {name: shape for name, shape in source.shapes.items() if name not in tensors}
    kept = replace(source, shapes=others, dtypes={name: source.dtypes[name] for name in others})
    parts = [("", kept), ("", source_of_tensors(source.path, tensors, source.metadata))]
    return join_sources(source.path, parts)
