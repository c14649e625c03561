"""The encoders of a CLIP stage apart, so that each goes to a device alone (ViT-bigG/14's two: 4.7 GiB)."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

from ..networks.clip import ClipNetwork
from ..networks.clip_towers import Tower, tower_of
from ..stages import ClipStage

_TOWERS: WeakKeyDictionary[ClipStage, dict[Tower, ClipStage]] = WeakKeyDictionary()


def text_tower(clip: ClipStage) -> ClipStage:
    """The stage with its text encoder alone, over the same weights; always the same one of a stage.

    A stage that has one encoder only is returned as it is.
    """
    return _tower(clip, "text")


def image_tower(clip: ClipStage) -> ClipStage:
    """The stage with its image encoder alone, see :func:`text_tower`."""
    return _tower(clip, "vision")


def _tower(clip: ClipStage, tower: Tower) -> ClipStage:
    if not isinstance(clip.network, ClipNetwork):
        return clip
    known = _TOWERS.setdefault(clip, {})
    if tower not in known:
        network = tower_of(clip.network, tower)
        if network is clip.network:  # a value that holds its key would never go
            return clip
        known[tower] = replace(clip, network=network)
    return known[tower]
