"""Inputs that several nodes share, as ComfyUI's (type, options) pairs: same range and words everywhere."""

from __future__ import annotations

from typing import Any

from ..core.diffusion.samplers import SAMPLERS
from ..core.embeddings.arithmetic import EASES
from . import sockets

Input = tuple[Any, dict[str, Any]]


def socket(kind: str, tooltip: str) -> Input:
    return (kind, {"tooltip": tooltip})


def choice(values: list[str], tooltip: str, default: str | None = None, **options: Any) -> Input:
    return (values, {"default": values[0] if default is None else default, "tooltip": tooltip, **options})


def integer(default: int, low: int, high: int, tooltip: str, **options: Any) -> Input:
    return ("INT", {"default": default, "min": low, "max": high, "tooltip": tooltip, **options})


def number(default: float, low: float, high: float, step: float, tooltip: str, **options: Any) -> Input:
    return (
        "FLOAT",
        {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip, **options},
    )


def switch(default: bool, tooltip: str) -> Input:
    return ("BOOLEAN", {"default": default, "tooltip": tooltip})


def decoder() -> Input:
    return socket(sockets.DECODER, "A decoder of the CLIP model of the embedding.")


def decoded_embedding() -> Input:
    return socket(
        sockets.EMBEDDING,
        "What the pictures show: from a prior, or from encoded pictures. Only decoders that paint captions "
        "alone (GLIDE) go without.",
    )


def decoded_text() -> Input:
    return socket(sockets.TEXT, "The encoded caption, for decoders that read captions besides the embedding.")


def negatives() -> dict[str, Input]:
    """``negative_embedding`` and ``negative_text``: what guidance leads away from."""
    return {
        "negative_embedding": socket(
            sockets.EMBEDDING, "What guidance leads away from. At scale 1, without guidance, it does nothing."
        ),
        "negative_text": socket(
            sockets.TEXT,
            "The encoded caption that guidance leads away from, for decoders that read captions. At scale 1, "
            "without guidance, it does nothing.",
        ),
    }


def seed() -> Input:
    return integer(
        0,
        0,
        2**64 - 1,
        "Chooses the random noise. Picture number i of a batch uses seed + i, so it can be made again alone.",
        control_after_generate=True,
    )


def steps(default: int, tooltip: str) -> Input:
    return integer(default, 1, 1000, tooltip)


def guidance_scale(default: float, tooltip: str) -> Input:
    return number(default, 0.0, 30.0, 0.1, tooltip, round=0.01)


def batch_size(tooltip: str) -> Input:
    return integer(1, 1, 256, tooltip)


def sampler(default: str) -> Input:
    return choice(
        list(SAMPLERS),
        "How the steps are taken. ddpm adds fresh noise at every step, as the paper samples; ddim follows a "
        "fixed path from the seed's noise; dpmpp_2m follows it in larger strides, with the fewest steps.",
        default,
    )


def eta() -> Input:
    return number(
        0.0,
        0.0,
        1.0,
        0.05,
        "ddim only: fresh noise per step. 0 is the fixed path from the seed's noise, 1 as random as ddpm.",
        advanced=True,
    )


def ease() -> Input:
    return choice(
        list(EASES),
        "How the change is spread over the frames: linear evenly, smooth slowly at both ends, ease-in slowly "
        "at the start, ease-out slowly at the end.",
    )


def guidance_interval() -> dict[str, Input]:
    """``guidance_start`` and ``guidance_end``: where, between noise and finished result, guidance is on."""
    return {
        "guidance_start": number(
            0.0,
            0.0,
            1.0,
            0.01,
            "Guidance begins here: 0 is pure noise, 1 the finished result. A late start keeps more variety.",
            advanced=True,
        ),
        "guidance_end": number(
            1.0,
            0.0,
            1.0,
            0.01,
            "Guidance stops here: 0 is pure noise, 1 the finished result. Steps without it are faster.",
            advanced=True,
        ),
    }


def guidance_rescale() -> Input:
    return number(
        0.0,
        0.0,
        1.0,
        0.05,
        "Takes back the excess contrast of strong guidance. 0 is off; 0.7 is usual where guidance is high.",
        advanced=True,
    )


def time_interval(start: float, end: float) -> tuple[float, float]:
    """Progress from noise (0) to result (1) → the core's diffusion time, which runs the other way."""
    for name, value in (("guidance_start", start), ("guidance_end", end)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: found {value}, expected 0 (pure noise) to 1 (the finished result)")
    if start > end:
        raise ValueError(
            f"guidance_start: found {start}, after guidance_end {end}; choose a start before the end"
        )
    return (1.0 - end, 1.0 - start)


def lines(text: str) -> list[str]:
    """A multiline STRING → its lines, those at the end that are blank left out."""
    found = [line.strip() for line in text.splitlines()]
    while found and not found[-1]:
        found.pop()
    return found


def numbers(text: str, name: str, low: float, high: float) -> list[float]:
    """A STRING of numbers, separated by commas or spaces.

    Args:
        name: of the input, for the message.
        low, high: the range of each.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = []
    if not found or not all(low <= value <= high for value in found):
        raise ValueError(
            f"{name}: found {text!r}, expected numbers from {low:g} to {high:g} separated by commas, such as "
            f"1, 1.5, 2, 4"
        )
    return found
