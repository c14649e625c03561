"""ComfyUI's primitive nodes, each of which gives one value to many, as in its nodes_primitive.py."""

from __future__ import annotations

import sys
from typing import Any

LIMITS = {"min": -sys.maxsize, "max": sys.maxsize}


class _Primitive:
    """A node with one value, which it gives as it is."""

    CATEGORY = "utils/primitive"
    FUNCTION = "give"
    OPTIONS: dict[str, Any] = {}
    RETURN_TYPES: tuple[str, ...] = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"value": (cls.RETURN_TYPES[0], cls.OPTIONS)}}

    def give(self, value: Any) -> tuple[Any]:
        """The value."""
        return (value,)


class PrimitiveString(_Primitive):
    """ComfyUI's PrimitiveString: a line of text."""

    DESCRIPTION = "Gives a line of text to other nodes."
    RETURN_TYPES = ("STRING",)


class PrimitiveStringMultiline(_Primitive):
    """ComfyUI's PrimitiveStringMultiline: a text."""

    DESCRIPTION = "Gives a text to other nodes."
    RETURN_TYPES = ("STRING",)
    OPTIONS = {"multiline": True}


class PrimitiveInt(_Primitive):
    """ComfyUI's PrimitiveInt: a whole number, whose widget is followed by one that changes it."""

    DESCRIPTION = "Gives a whole number to other nodes."
    RETURN_TYPES = ("INT",)
    OPTIONS = {**LIMITS, "control_after_generate": True}


class PrimitiveFloat(_Primitive):
    """ComfyUI's PrimitiveFloat: a number."""

    DESCRIPTION = "Gives a number to other nodes."
    RETURN_TYPES = ("FLOAT",)
    OPTIONS = {**LIMITS, "step": 0.1}


class PrimitiveBoolean(_Primitive):
    """ComfyUI's PrimitiveBoolean: true or false."""

    DESCRIPTION = "Gives true or false to other nodes."
    RETURN_TYPES = ("BOOLEAN",)
