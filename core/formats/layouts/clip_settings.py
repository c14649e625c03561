"""What lies beside the weights of a CLIP model and says what they do not: kind of GELU, heads, pictures.

Read are ``config.json`` and ``preprocessor_config.json`` of transformers, and ``open_clip_config.json``.
Where none of them says it, the published model of the size stands in, and the log tells what was assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..files.json_files import read_json_object
from ..mapping.clip_towers import KNOWN_TEXT_WIDTHS, KNOWN_VISION_WIDTHS, text_heads, vision_head_width
from .clip_keys import (
    OPEN_CLIP,
    OPEN_CLIP_PICTURES,
    OPEN_CLIP_TEXT,
    OPEN_CLIP_VISION,
    PREPROCESSOR,
    TEXT,
    VISION,
    WHOLE,
)
from .diffusers_files import CONFIG, read_number

OPEN_CLIP_CONFIG = "open_clip_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"

_GELU = {"quick_gelu": True, "gelu": False}  # `hidden_act`
# Folders of diffusers beside that of an image encoder.
_PICTURES = {
    "image_encoder": ("feature_extractor", "image_processor"),
    "prior_image_encoder": ("prior_image_processor",),
}
PICTURE_CONFIGS = tuple(f"../{name}/{PREPROCESSOR_CONFIG}" for names in _PICTURES.values() for name in names)
"""Their files as patterns, see ``Layout.reads``."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipSettings:
    """What configs say of a CLIP model; None where they say nothing.

    Attributes:
        quick_gelu: see ``ClipConfig``.
        text_heads, vision_heads: number of attention heads of each encoder.
        vision_head_width: width of a head of the image encoder, as open_clip says it instead.
        image_mean, image_std: normalisation of pictures.
        picture_size: side to which pictures are cut.
    """

    quick_gelu: bool | None = None
    text_heads: int | None = None
    vision_heads: int | None = None
    vision_head_width: int | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    picture_size: int | None = None

    def require_picture_size(self, path: Path, image_size: int) -> None:
        """Raise a ValueError where pictures are cut to another size than the image encoder's."""
        if self.picture_size not in (None, image_size):
            raise ValueError(
                f"{path}: its image encoder has pictures of {image_size} pixels, but the preprocessor beside "
                f"it cuts them to {self.picture_size}. They belong to different models: get both again"
            )

    def heads_of_text(self, path: Path, width: int, tell: bool = True) -> int | None:
        """Number of heads of a text encoder of a width; None for that of the published model."""
        if self.text_heads is None and width not in KNOWN_TEXT_WIDTHS:
            _assume_heads(path, "text", width, width // text_heads(width), tell)
        return self.text_heads

    def heads_of_vision(self, path: Path, width: int, tell: bool = True) -> int | None:
        """Number of heads of an image encoder of a width; None for that of the published model."""
        if self.vision_heads is None and self.vision_head_width:
            return max(1, width // self.vision_head_width)
        if self.vision_heads is None and width not in KNOWN_VISION_WIDTHS:
            _assume_heads(path, "image", width, vision_head_width(width), tell)
        return self.vision_heads


def read_clip_settings(weights: Path, transformers: bool) -> ClipSettings:
    """What the files beside some weights say.

    Args:
        transformers: the weights are in transformers' layout: a ``config.json`` beside them is theirs, and
            has to be CLIP's. Otherwise it may be of anything else in the folder.

    Raises:
        ValueError: a config that is not CLIP's, or a setting that is not honoured here.
    """
    own, other = _transformers(weights, transformers), _open_clip(weights)
    first, second = (own, other) if transformers else (other, own)
    pictures = _preprocessor(weights)
    return ClipSettings(**{**second, **first, **pictures})


def joined_settings(path: Path, settings: Sequence[ClipSettings]) -> ClipSettings:
    """The settings of one model whose encoders lie in several places.

    Raises:
        ValueError: two kinds of GELU.
    """
    kinds = {each.quick_gelu for each in settings} - {None}
    if len(kinds) > 1:
        raise ValueError(
            f"{path}: its two encoders differ in hidden_act; they belong to different CLIP models. Choose "
            f"the two of one model"
        )
    names = [field.name for field in fields(ClipSettings)]
    found = {name: [getattr(each, name) for each in settings] for name in names}
    return ClipSettings(**{name: _first_known(values) for name, values in found.items()})


def _first_known(values: Sequence[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def assume_gelu(path: Path, quick: bool, why: str) -> bool:
    """The kind of GELU that nothing beside a file tells; the log says so."""
    kind, other = ("quick_gelu", "gelu") if quick else ("gelu", "quick_gelu")
    _log.warning(
        "%s: nothing beside it tells its kind of GELU; %s is assumed, %s. If pictures ignore the caption, "
        "put the model's config.json beside it, or a file of that name with "
        '{"model_type": "clip", "text_config": {"hidden_act": "%s"}, "vision_config": {"hidden_act": "%s"}}',
        path,
        kind,
        why,
        other,
        other,
    )
    return quick


def _assume_heads(path: Path, encoder: str, width: int, head_width: int, tell: bool) -> None:
    """Say that the heads of an encoder of an unusual width are guessed, in the log or by a ValueError."""
    if width % head_width:
        raise ValueError(
            f"{path}: its {encoder} encoder is {width} wide, and nothing beside it tells its number of "
            f"attention heads; put the model's {CONFIG} beside it, or its {OPEN_CLIP_CONFIG}"
        )
    if tell:
        _log.warning(
            "%s: its %s encoder has the unusual width %d, and nothing beside it tells its number of "
            "attention heads; heads of %d are assumed. The model's %s or %s beside it says otherwise",
            path,
            encoder,
            width,
            head_width,
            CONFIG,
            OPEN_CLIP_CONFIG,
        )


# --- transformers ---


def _transformers(weights: Path, needed: bool) -> dict[str, Any]:
    path = weights.with_name(CONFIG)
    if not path.is_file():
        return {}
    config = read_json_object(path)
    kind = config.get("model_type")
    if kind == "clip":
        WHOLE.require(path, config)
        parts = {name: _table(path, config, f"{name}_config") for name in ("text", "vision")}
    elif kind in ("clip_text_model", "clip_vision_model"):
        parts = {"text" if kind == "clip_text_model" else "vision": config}
    elif not needed:
        return {}
    else:
        raise ValueError(f"{path}: model_type is {kind!r}, expected a CLIP model; choose the folder of one")
    for name, part in parts.items():
        (TEXT if name == "text" else VISION).require(path, part)
    kinds = {_quick_gelu(path, part) for part in parts.values()}
    if len(kinds) > 1:
        raise ValueError(f"{path}: its two encoders differ in hidden_act; get the file again")
    heads = {
        f"{name}_heads": read_number(part, "num_attention_heads", 0, path.parent) or None
        for name, part in parts.items()
    }
    return {"quick_gelu": kinds.pop(), **heads}


def _quick_gelu(path: Path, described: Mapping[str, Any]) -> bool:
    name = described.get("hidden_act", "quick_gelu")  # transformers' default
    if not isinstance(name, str) or name not in _GELU:
        raise ValueError(f"{path}: hidden_act is {name!r}, expected one of {', '.join(_GELU)} as CLIP has it")
    return _GELU[name]


def _preprocessor(weights: Path) -> dict[str, Any]:
    """The normalisation of pictures, beside the weights or in diffusers' folder of its own."""
    folders = [weights.parent]
    folders += [weights.parent.parent / name for name in _PICTURES.get(weights.parent.name, ())]
    path = next((f / PREPROCESSOR_CONFIG for f in folders if (f / PREPROCESSOR_CONFIG).is_file()), None)
    if path is None:
        return {}
    read = read_json_object(path)
    PREPROCESSOR.require(path, read)
    found: dict[str, Any] = _statistics(path, read, {"image_mean": "image_mean", "image_std": "image_std"})
    sizes = {_side(path, name, read[name]) for name in ("size", "crop_size") if read.get(name) is not None}
    if len(sizes) > 1:
        raise ValueError(
            f"{path}: size is {read['size']!r} and crop_size {read['crop_size']!r}; expected one size, to "
            f"which pictures are scaled and cut as CLIP has it"
        )
    return found | ({"picture_size": sizes.pop()} if sizes else {})


def _side(path: Path, name: str, value: Any) -> int:
    sides = list(value.values()) if isinstance(value, dict) and value else value
    sides = sides if isinstance(sides, list) and sides else [value]
    if any(type(side) is not int or side != sides[0] for side in sides):
        raise ValueError(f"{path}: {name} is {value!r}, expected the side of a square in pixels")
    return sides[0]


def _statistics(path: Path, read: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for theirs, ours in names.items():
        values = read.get(theirs)
        if values is None:
            continue
        numbers = isinstance(values, list) and all(isinstance(value, float | int) for value in values)
        if not numbers or len(values) != 3:
            raise ValueError(
                f"{path}: {theirs} is {values!r}, expected numbers, one for each of red, green "
                f"and blue; get the file again"
            )
        found[ours] = tuple(float(value) for value in values)
    return found


# --- open_clip ---


def _open_clip(weights: Path) -> dict[str, Any]:
    path = weights.with_name(OPEN_CLIP_CONFIG)
    if not path.is_file():
        return {}
    config = read_json_object(path)
    model = _table(path, config, "model_cfg") or config
    vision, text = _table(path, model, "vision_cfg"), _table(path, model, "text_cfg")
    for rules, part in ((OPEN_CLIP, model), (OPEN_CLIP_VISION, vision), (OPEN_CLIP_TEXT, text)):
        rules.require(path, part)
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ValueError(f"{path}: quick_gelu is {quick!r}, expected true or false")
    found: dict[str, Any] = {"quick_gelu": quick}
    for name, part, key in (("text_heads", text, "heads"), ("vision_head_width", vision, "head_width")):
        if part.get(key) is not None:
            found[name] = read_number(part, key, 0, path)
    pictures = _table(path, config, "preprocess_cfg")
    OPEN_CLIP_PICTURES.require(path, pictures)
    if pictures.get("size") is not None:
        found["picture_size"] = _side(path, "size", pictures["size"])
    return found | _statistics(path, pictures, {"mean": "image_mean", "std": "image_std"})


def _table(path: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table in a config; empty where it is missing or null."""
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: {name} is {found!r}, expected a JSON object; get the file again")
    return found
