"""Inputs as ComfyUI's (type, options) pairs: those made of the core's options, and those that nodes share."""

from __future__ import annotations

import re
from typing import Any

from ..core.diffusion.guidance import GUIDANCES
from ..core.embeddings.arithmetic import EASES
from ..core.pipelines.options import Setting, settings_of
from . import sockets

Input = tuple[Any, dict[str, Any]]


def socket(kind: str, tooltip: str) -> Input:
    return (kind, {"tooltip": tooltip})


def opaque(tooltip: str) -> Input:
    """An IMAGE of which alpha is dropped, as ComfyUI's own VAE Encode does; see ``sockets.image_to_core``."""
    return socket(sockets.IMAGE, f"{tooltip} Transparency is dropped; the colours under it count.")


def choice(values: list[str], tooltip: str, default: str | None = None, **options: Any) -> Input:
    return (values, {"default": values[0] if default is None else default, "tooltip": tooltip, **options})


def integer(default: int, low: int, high: int, tooltip: str, **options: Any) -> Input:
    return ("INT", {"default": default, "min": low, "max": high, "tooltip": tooltip, **options})


def number(default: float, low: float, high: float, step: float, tooltip: str, **options: Any) -> Input:
    return (
        "FLOAT",
        {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip, **options},
    )


def switch(default: bool, tooltip: str, **options: Any) -> Input:
    return ("BOOLEAN", {"default": default, "tooltip": tooltip, **options})


def of(options: type) -> dict[str, Input]:
    """An input for every option of a dataclass that is shown, in the order of its fields.

    A node names the dataclass in ``OPTIONS``, places its inputs by :func:`take`, and what is left last,
    behind all others: what is added to the dataclass becomes its last input. ``options.from_settings`` makes
    the dataclass of their values again.
    """
    return {name: _input(setting) for name, setting in settings_of(options).items()}


def take(inputs: dict[str, Input], *names: str) -> dict[str, Input]:
    """Move the inputs of these names out of ``inputs``."""
    return {name: inputs.pop(name) for name in names}


def _input(setting: Setting) -> Input:
    extra: dict[str, Any] = {"advanced": True} if setting.advanced else {}
    if setting.round is not None:
        extra["round"] = setting.round
    if setting.choices:
        return choice(list(setting.choices), setting.help, setting.default, **extra)
    if isinstance(setting.default, bool):
        return switch(setting.default, setting.help, **extra)
    if setting.step is None:
        return integer(setting.default, setting.low, setting.high, setting.help, **extra)
    return number(setting.default, setting.low, setting.high, setting.step, setting.help, **extra)


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


def negatives(options: type | None = None, *, more: str = "") -> dict[str, Input]:
    """``negative_embedding`` and ``negative_text``: what guidance leads away from.

    Args:
        options: the dataclass of the node's options, whose kinds of guidance say when both do nothing; None
            for a node that leaves guidance to ComfyUI's sampler, which is plain.
        more: is added to what each of them says.
    """
    kinds = () if options is None else settings_of(options)["guidance"].choices
    restless = [name for name in kinds if not GUIDANCES[name].idle_at_one]
    others = [name for name in kinds if GUIDANCES[name].against != "null"]
    alone = f"where only {' and '.join(restless)} guides" if restless else "without guidance"
    idle = f"It does nothing at scale 1, {alone}"
    if others:
        lead = "leads" if len(others) == 1 else "lead"
        idle += f", nor with guidance {' or '.join(others)}, which {lead} away from something else"
    caption = "The encoded caption that guidance leads away from, for decoders that read captions."
    return {
        "negative_embedding": socket(sockets.EMBEDDING, f"What guidance leads away from. {idle}.{more}"),
        "negative_text": socket(sockets.TEXT, f"{caption} {idle}.{more}"),
    }


def weak_decoder() -> Input:
    return socket(
        sockets.DECODER,
        "For guidance autoguidance: a weaker decoder of the same CLIP model and kind, such as an earlier "
        "save of the same training, or a smaller one.",
    )


def hint() -> Input:
    return socket(
        sockets.IMAGE,
        "For decoders that take one (Kandinsky 2.2's for depth): a picture that shows where what is, such as "
        "a depth map from ComfyUI's own or another pack's depth node. Brought to the size of the pictures.",
    )


def seed() -> Input:
    return integer(
        0,
        0,
        2**64 - 1,
        "Chooses the random noise. Picture number i of a batch uses seed + i, so it can be made again alone.",
        control_after_generate=True,
    )


def batch_size(tooltip: str) -> Input:
    return integer(1, 1, 256, tooltip)


def repeat(what: str) -> Input:
    return integer(
        1,
        1,
        256,
        f"{what} to make of each row of a batch, one after the other: copy k of row r uses seed + r × repeat "
        f"+ k, both counted from 0.",
    )


def ease() -> Input:
    return choice(
        list(EASES),
        "How the change is spread over the frames: linear evenly, smooth slowly at both ends, ease-in slowly "
        "at the start, ease-out slowly at the end.",
    )


def lines(text: str, meant: int = 0) -> list[str]:
    """A multiline STRING → its lines, without those at the end that are blank and more than are ``meant``."""
    if not text.strip():
        return []
    found = [line.strip() for line in f"{text} ".splitlines()]  # a last line that is blank is a line too
    while not found[-1] and len(found) > meant:
        found.pop()
    return found


def numbers(text: str, name: str, low: float, high: float, *, whole: bool = False) -> list[float]:
    """A STRING of numbers, separated by commas, Chinese ones too, or spaces.

    Args:
        name: of the input, for the message.
        low, high: the range of each.
        whole: whether they are counts.
    """
    words = re.sub("[,;，；、]", " ", text).split()
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = []
    if not found or not all(low <= value <= high and not (whole and value % 1) for value in found):
        kind, example = ("whole numbers", "1, 2, 4") if whole else ("numbers", "1, 1.5, 2, 4")
        raise ValueError(
            f"{name}: found {text!r}, expected {kind} from {low:g} to {high:g} separated by commas, such as "
            f"{example}"
        )
    return found
