"""Captions whose right picture is known: a pictogram in a style, over a plain background."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.captions import WHITE, Background, caption, plain_backgrounds, with_article
from ...data.pictograms import Pictogram
from ...data.rendering import composite, render_all


@dataclass(frozen=True)
class Prompt:
    """A caption that names concept, style and background, with what it names."""

    caption: str
    pictogram: Pictogram
    background: Background

    @property
    def plain(self) -> bool:
        """Whether it names a concept and nothing else: the style is open, and the background white."""
        return not self.background.name


def draw_prompts(pictograms: Sequence[Pictogram], count: int, seed: int) -> list[Prompt]:
    """``count`` prompts that differ pairwise in concept, style or background, and in their captions.

    Every pictogram comes once, in random order, before any comes again with another background. Fewer prompts
    of the same seed are the first ones of more.

    Raises:
        ValueError: more prompts than there are pairs of a pictogram and a background.
    """
    backgrounds = plain_backgrounds()
    pool = list({(pictogram.concept, pictogram.style): pictogram for pictogram in pictograms}.values())
    prompts: list[Prompt] = []
    captions: set[str] = set()
    for turn in range(len(backgrounds)):
        for pictogram in random.Random(f"{seed}/{turn}").sample(pool, len(pool)):
            if len(prompts) == count:
                return prompts
            rng = random.Random(f"{seed}/{pictogram.style}/{pictogram.concept}")
            background = rng.sample(backgrounds, len(backgrounds))[turn]
            # Without keywords, which may stand in for the concept and fit many pictures.
            words = random.Random(f"{seed}/{pictogram.style}/{pictogram.concept}/{turn}")
            text = caption(pictogram.concept, (), pictogram.style, background, words)
            if text not in captions:
                captions.add(text)
                prompts.append(Prompt(text, pictogram, background))
    if len(prompts) < count:
        raise ValueError(
            f"found {len(prompts)} different prompts in {len(pool)} pictograms, expected {count}; ask for "
            f"fewer prompts or a smaller reference, or give more pictograms"
        )
    return prompts


def draw_concepts(pictograms: Sequence[Pictogram], count: int, seed: int) -> list[Prompt]:
    """``count`` prompts of different concepts: captions of nothing else, pictures in any style on white.

    Raises:
        ValueError: fewer concepts.
    """
    shuffled = random.Random(seed).sample(pictograms, len(pictograms))
    pool = {pictogram.concept: pictogram for pictogram in shuffled}
    if len(pool) < count:
        raise ValueError(
            f"found {len(pool)} different concepts in {len(pictograms)} pictograms, expected {count}; ask "
            f"for fewer concepts, or give more pictograms"
        )
    white = Background("", WHITE, WHITE)
    return [
        Prompt(with_article(concept), pictogram, white) for concept, pictogram in list(pool.items())[:count]
    ]


def draw_plain_prompts(pictograms: Sequence[Pictogram], count: int, seed: int) -> list[Prompt]:
    """``count`` prompts as :func:`draw_concepts` gives, every concept once before any comes again."""
    concepts = len({pictogram.concept for pictogram in pictograms})
    prompts: list[Prompt] = []
    while len(prompts) < count:
        turn = len(prompts) // concepts
        prompts += draw_concepts(pictograms, min(concepts, count - len(prompts)), seed + turn)
    return prompts


def mixed(first: Sequence[Prompt], second: Sequence[Prompt]) -> list[Prompt]:
    """Both lists as one, in which the members of each keep their order and are spread evenly."""
    places = [((index + 0.5) / len(first), prompt) for index, prompt in enumerate(first)]
    places += [((index + 0.5) / len(second), prompt) for index, prompt in enumerate(second)]
    return [prompt for _, prompt in sorted(places, key=lambda place: place[0])]


def true_pictures(
    prompts: Sequence[Prompt], pictograms: Sequence[Pictogram], size: int
) -> tuple[Tensor, Tensor]:
    """All pictures that are right for some prompt: its own, or for a plain one its concept's in any style.

    Returns:
        Pictures [M, 3, size, size] float32 0..1, and for each the index of its prompt, [M] int64.
    """
    styles: dict[str, list[Pictogram]] = {}
    for pictogram in pictograms:
        styles.setdefault(pictogram.concept, []).append(pictogram)
    shown: list[Prompt] = []
    owners = []
    for index, prompt in enumerate(prompts):
        right = styles[prompt.pictogram.concept] if prompt.plain else [prompt.pictogram]
        shown += [replace(prompt, pictogram=pictogram) for pictogram in right]
        owners += [index] * len(right)
    return render_prompts(shown, size), torch.tensor(owners)


def render_prompts(prompts: Sequence[Prompt], size: int) -> Tensor:
    """[N, 3, size, size] float32 0..1: the true pictures."""
    colours = torch.tensor([prompt.background.top for prompt in prompts])
    return composite(render_all((prompt.pictogram.svg for prompt in prompts), size), colours, colours)
