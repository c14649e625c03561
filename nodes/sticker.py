"""The sticker node: a word, or another picture, stuck on a picture."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.pictures.card import word_card
from ..core.pictures.sheet import THEMES, from_pil
from ..core.pipelines.composite import box_of, paste
from ..core.pipelines.transparency import paste_seen
from . import inputs, sockets

CATEGORY = "unCLIP/probe"


class UnCLIPSticker:
    """A word or a picture stuck on a picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Sticks a card with a word on a picture, or another picture, to see what CLIP makes of it: a model "
        "that can read takes an apple with a note on it for what the note says (typographic attack)."
    )
    SEARCH_ALIASES = ["typographic attack", "text on image", "text overlay", "label", "paste"]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures with the sticker, in their own size.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        def share(default: float, low: float, tooltip: str) -> inputs.Input:
            return inputs.number(default, low, 1.0, 0.01, tooltip)

        return {
            "required": {
                "image": inputs.socket(
                    sockets.IMAGE, "The pictures to stick it on. Small ones have little room for letters."
                ),
                "words": (
                    sockets.STRING,
                    {
                        "default": "",
                        "placeholder": "iPod",
                        "tooltip": "The words on the card, set as large as they fit. Leave it empty to "
                        "stick a picture.",
                    },
                ),
                "x": share(0.5, 0.0, "Middle of the sticker: 0 is the picture's left edge, 1 its right one."),
                "y": share(0.6, 0.0, "Middle of the sticker: 0 is the top of the picture, 1 its bottom."),
                "width": share(0.5, 0.01, "Width of the sticker as a share of the picture's."),
                "height": share(0.25, 0.01, "Height of the sticker as a share of the picture's."),
                "background": inputs.choice(
                    list(THEMES), "Colour of the card, from which the letters stand out."
                ),
            },
            "optional": {
                "sticker": inputs.socket(
                    sockets.IMAGE,
                    "A picture to stick on instead of words. It keeps its proportions, as large as it fits "
                    "into width and height; what is transparent of it (Join Image with Alpha) shows what is "
                    "behind.",
                ),
            },
        }

    def execute(
        self,
        image: Tensor,
        words: str,
        x: float,
        y: float,
        width: float,
        height: float,
        background: str,
        sticker: Tensor | None = None,
    ) -> tuple[Tensor]:
        if bool(words.strip()) == (sticker is not None):
            raise ValueError("words, sticker: give one of them, words for a card or a picture to stick on.")
        pixels = sockets.image_to_core(image)
        box = box_of(tuple(pixels.shape[-2:]), (x, y), (width, height))
        if sticker is not None:
            part = sockets.image_to_core(sticker, "sticker")
        else:
            left, top, right, bottom = box
            part = from_pil(word_card(words, (right - left, bottom - top), background))
            sticker = sockets.image_from_core(part)
        if not (sockets.has_alpha(image) or sockets.has_alpha(sticker)):
            return (sockets.image_from_core(paste(pixels, part, box)),)
        pixels, part = sockets.image_with_alpha(image), sockets.image_with_alpha(sticker, "sticker")
        stuck = paste_seen(pixels, part, box)
        return (sockets.image_from_core(stuck if sockets.has_alpha(image) else stuck[:, :3]),)
