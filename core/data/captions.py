"""Captions for pictograms: concept, keywords, style and background, in varied words and order."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "fluent-emoji": ("glossy 3d", "3d rendered", "shiny 3d"),
    "fluent-emoji-flat": ("flat", "flat vector", "flat design"),
    "noto": ("soft", "softly shaded", "noto style"),
    "noto-v1": ("blobby", "old android style", "rounded"),
    "twemoji": ("simple", "twemoji style", "plain vector"),
    "emojione": ("clean", "emojione style", "classic"),
    "fxemoji": ("quirky", "firefox style", "hand drawn style"),
}

# sRGB, chosen far enough apart that the mean colour of a border tells which one was meant.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 56, 49),
    "orange": (247, 148, 40),
    "yellow": (250, 220, 60),
    "green": (64, 168, 84),
    "teal": (32, 160, 160),
    "blue": (52, 110, 220),
    "purple": (138, 76, 190),
    "pink": (245, 120, 180),
    "brown": (136, 90, 56),
    "gray": (140, 144, 150),
    "black": (24, 24, 28),
}
PALE_COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "gray")
# Articles follow the sound, not the letter.
_VOWELS = tuple("aeiou")
_SOUNDS_CONSONANT = ("uni", "eu", "ufo", "use", "one")
_SOUNDS_VOWEL = ("hour", "honest", "x-ray", "sos")

WHITE = (255, 255, 255)
PALENESS = 0.72


@dataclass(frozen=True)
class Background:
    """What lies behind a pictogram: one colour, or a vertical gradient between two.

    Attributes:
        name: the words of the caption, for example ``"pale blue"``; empty for the unmentioned white.
        top, bottom: sRGB 0..255 at the upper and lower edge; equal for a plain background.
    """

    name: str
    top: tuple[int, int, int]
    bottom: tuple[int, int, int]


WHITE_BACKGROUND = Background("", WHITE, WHITE)


def named_colour(name: str) -> tuple[int, int, int]:
    """sRGB of ``"white"``, a colour of COLOURS, or its pale form ``"pale <colour>"``."""
    if name == "white":
        return WHITE
    if name.startswith("pale "):
        base = COLOURS[name.removeprefix("pale ")]
        return tuple(round(PALENESS * 255 + (1 - PALENESS) * value) for value in base)  # type: ignore[return-value]
    return COLOURS[name]


@cache
def plain_backgrounds() -> tuple[Background, ...]:
    """Every background of one colour: white, saturated and pale."""
    names = ["white", *COLOURS, *(f"pale {colour}" for colour in PALE_COLOURS)]
    return tuple(Background(name, named_colour(name), named_colour(name)) for name in names)


def random_background(rng: random.Random, white: float = 0.45) -> Background:
    """White in a share ``white`` (half of the time unmentioned), a gradient in 10%, one colour otherwise."""
    draw = rng.random()
    if draw < white:
        return Background("white" if rng.random() < 0.5 else "", WHITE, WHITE)
    if draw < 0.9:
        return rng.choice(plain_backgrounds()[1:])
    top, bottom = rng.sample(sorted(COLOURS), 2)
    return Background(f"{top} to {bottom} gradient", COLOURS[top], COLOURS[bottom])


def caption(
    concept: str,
    keywords: tuple[str, ...],
    style: str | None,
    background: Background,
    rng: random.Random,
    colour: str = "",
) -> str:
    """One caption of a picture: names its concept or keywords, and its background unless that is unnamed.

    The style is named when given, and the colour of what is shown. Without them the words leave them open.
    """
    subject = concept
    if keywords and rng.random() < 0.12:
        # Keywords alone rarely identify a picture, so the concept stays beside them half of the time.
        chosen = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
        subject = ", ".join([concept, *chosen] if rng.random() < 0.5 or len(chosen) < 2 else chosen)
    if colour:
        subject = f"{colour} {subject}"
    described = subject
    if style is not None:
        words = rng.choice(STYLE_WORDS[style])
        form = rng.random()
        if form < 0.4:
            described = f"{words} {subject}"
        elif form < 0.7:
            described = f"{words} {rng.choice(('emoji', 'icon', 'picture'))} of {with_article(subject)}"
        else:
            described = f"{subject}, {words}"
    if rng.random() < 0.6:
        described = with_article(described)
    if not background.name:
        return described
    form = rng.random()
    if form < 0.65:
        return f"{described} on {with_article(background.name)} background"
    if form < 0.85:
        return f"{described}, {background.name} background"
    return f"{background.name} background, {described}"


def with_article(words: str) -> str:
    """``"apple"`` → ``"an apple"``, ``"unicorn"`` → ``"a unicorn"``."""
    first = words.split(" ", 1)[0].lower()
    letter = first.startswith(_VOWELS) and not first.startswith(_SOUNDS_CONSONANT)
    vowel = letter or first.startswith(_SOUNDS_VOWEL)
    return f"{'an' if vowel else 'a'} {words}"
