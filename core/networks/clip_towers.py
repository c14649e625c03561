"""The two encoders of a CLIP model apart: either runs without the other's weights beside it."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Literal

from .clip import TEXT_PARTS, ClipNetwork

Tower = Literal["text", "vision"]


def tower_of(network: ClipNetwork, tower: Tower) -> ClipNetwork:
    """A network over the parameters of one encoder alone; the logit scale goes with ``vision``.

    A network that has one encoder only, or not the one that is asked for, is returned as it is.
    """
    config = network.config
    if config.text is None or config.vision is None:
        return network
    clip = copy(network.clip)
    for kind in ("_modules", "_parameters", "_buffers"):
        parts = getattr(network.clip, kind)
        kept = {name: part for name, part in parts.items() if (name in TEXT_PARTS) == (tower == "text")}
        object.__setattr__(clip, kind, kept)
    twin = copy(network)
    twin.config = replace(config, vision=None) if tower == "text" else replace(config, text=None)
    twin._modules = network._modules | {"clip": clip}
    return twin
