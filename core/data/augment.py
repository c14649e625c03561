"""Many pictures of one pictogram: another size, place, turn, mirror image and colour for each."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SHARE, Range, require_ranges
from .captions import COLOURS, WHITE
from .pictograms import Pictogram

OVERSAMPLING = 2  # pictograms are kept at twice the side, so that turned and shrunken ones stay sharp

# Pictures of which the mirror image shows something else, or nothing; those named with digits as well.
_ONE_WAY_GROUPS = frozenset({"symbols"})
_ONE_WAY_WORDS = frozenset(
    {"left", "right", "leftwards", "rightwards", "east", "west", "clockwise", "counterclockwise", "arrow"}
    | {"forward", "back", "rewind", "waxing", "waning", "hundred"}
    | {"letter", "letters", "abc", "button", "sign", "input", "numbers", "number", "keycap", "sos", "zzz"}
    | {"clock", "watch", "oclock", "thirty", "calendar", "date", "map", "globe", "flag", "chart", "question"}
    | {"yen", "dollar", "euro", "pound", "exclamation", "ticket", "receipt", "newspaper"}
)

# A colour names a picture when this much of what is drawn has it.
_COLOURFUL = 0.25  # saturation from which a pixel has a hue
_MOSTLY = 0.5
_ONE_HUE = 0.8  # length of the mean of the hues as unit vectors
# Bounds of the change of saturation and value: black things keep their shades, dull ones do not glow.
_LEAST, _MOST = 0.3, 1.5
_RECOLOURED = {**COLOURS, "white": WHITE}
_SHADES = ("white", "gray", "black")  # of what has no hue
_HUES = tuple(name for name in COLOURS if name not in (*_SHADES, "brown"))
_WARM = (0.14, 0.95)  # yellow and red, between which nothing dark is brown

# Where a word stands of something that the picture does not show, around the name: {{}} remains for that.
_AROUND = (
    "{word} {{}}",
    "{{}} in the {word}",
    "{{}} in a {word}",
    "{{}} with a {word}",
    "{{}} over a {word}",
)

_COMPARED = 24  # side at which mirror images are compared with other pictures
_LIKE_ANOTHER = 0.1
"""Of its distance to the picture itself: a mirror image nearer than that to another concept's shows that."""

_ROWS_AT_ONCE = 8  # on a CPU, whose caches hold no more: all rows of a batch at once take twice the time


@dataclass(frozen=True)
class Augment:
    """How pictograms vary in training: the table ``[data.augment]``. All is off by default.

    Attributes:
        smallest: the least part of the picture's side that a pictogram takes, 0.3…1: its size is drawn
            between that and all of it, its place anywhere inside.
        turn: the most degrees that it is turned by, either way, 0…45.
        mirror: share of mirror images, of those that show the same thing.
        recolour: share painted in another colour, which the caption names.
        name_colour: share of the others whose caption names the colour that they have.
        synonym: share whose caption names them by one keyword of theirs, mostly one that few others have.
        surplus: share whose caption has a word for something that the picture does not show, a keyword of
            other groups: before the name, or behind it in a place or beside it. What people write names more
            than one pictogram shows.
    """

    smallest: float = 1.0
    turn: float = 0.0
    mirror: float = 0.0
    recolour: float = 0.0
    name_colour: float = 0.0
    synonym: float = 0.0
    surplus: float = 0.0

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("mirror", "recolour", "name_colour", "synonym", "surplus"), SHARE)
        require_ranges(self, "data.augment", smallest=Range(0.3, 1), turn=Range(0, 45), **shares)


@dataclass(frozen=True)
class Colour:
    """The one colour of a picture: hue, saturation and value in 0..1, and the nearest name."""

    hue: float
    saturation: float
    value: float
    name: str


@dataclass(frozen=True)
class Variant:
    """What is drawn for one row.

    Attributes:
        scale: of the pictogram, at most 1.
        place: of its middle, x and y; −1 and 1 are the borders of the picture.
        turn: degrees, counterclockwise.
        mirrored: left and right.
        colour: that the caption names; empty for none.
        recoloured: whether the picture is painted in it.
        synonym: that names the picture; empty for its own name.
        surplus: the caption's words around the name, which stands at ``{}``; empty for none.
    """

    scale: float
    place: tuple[float, float]
    turn: float
    mirrored: bool
    colour: str
    recoloured: bool
    synonym: str
    surplus: str = ""


class Augmentation:
    """Draws and paints variants of pictograms."""

    def __init__(self, settings: Augment, pictograms: Sequence[Pictogram], pixels: Tensor) -> None:
        """Args:
        pixels: of the pictograms, [N, 4, S, S] uint8 RGBA with straight alpha.
        """
        self._settings = settings
        self._colours = [colour_of(row) for row in pixels]
        others = shows_another_mirrored(pictograms, pixels) if settings.mirror else [False] * len(pictograms)
        self._mirrors = [
            shows_the_same_mirrored(pictogram) and not other
            for pictogram, other in zip(pictograms, others, strict=True)
        ]
        concepts: dict[str, set[str]] = {}
        for pictogram in pictograms:
            for keyword in pictogram.keywords:
                concepts.setdefault(keyword, set()).add(pictogram.concept)
        self._synonyms = [
            {keyword: len(concepts[keyword]) ** -0.5 for keyword in pictogram.keywords}
            for pictogram in pictograms
        ]
        self._names = [pictogram.concept for pictogram in pictograms]
        self._groups = [pictogram.group for pictogram in pictograms]
        self._foreign = _words_of_other_groups(pictograms) if settings.surplus else {}

    def draw(self, index: int, rng: random.Random) -> Variant:
        """A variant of the pictogram ``index``."""
        settings = self._settings
        scale = rng.uniform(settings.smallest, 1)
        place = (rng.uniform(scale - 1, 1 - scale), rng.uniform(scale - 1, 1 - scale))
        turn = rng.uniform(-settings.turn, settings.turn)
        mirrored = rng.random() < settings.mirror and self._mirrors[index]
        synonym = self._synonym(index, rng)
        colour, recoloured = self._colour(index, f"{self._names[index]} {synonym}", rng)
        surplus = self._surplus(index, rng) if settings.surplus else ""  # without it, the draws of old runs
        return Variant(scale, place, turn, mirrored, colour, recoloured, synonym, surplus)

    def _surplus(self, index: int, rng: random.Random) -> str:
        words = self._foreign.get(self._groups[index])
        if rng.random() >= self._settings.surplus or not words:
            return ""
        return rng.choice(_AROUND).format(word=rng.choice(words))

    def _synonym(self, index: int, rng: random.Random) -> str:
        found, wanted = self._synonyms[index], rng.random() < self._settings.synonym
        return rng.choices(list(found), list(found.values()))[0] if wanted and found else ""

    def _colour(self, index: int, words: str, rng: random.Random) -> tuple[str, bool]:
        draw, own = rng.random(), self._colours[index]
        chosen = rng.choice(sorted(_RECOLOURED))
        if own is None or not set(words.split()).isdisjoint((*_RECOLOURED, "gold", "silver", "grey")):
            return "", False
        if draw < self._settings.recolour and chosen != own.name and own.saturation > 0:
            return chosen, True
        if draw < self._settings.recolour + self._settings.name_colour:
            return own.name, False
        return "", False

    def paint(self, rgba: Tensor, indices: Sequence[int], variants: Sequence[Variant], size: int) -> Tensor:
        """The variants of pictograms, to be laid over backgrounds, on the device where they are.

        Args:
            rgba: the pictograms ``indices``, [B, 4, S, S] uint8 with straight alpha.

        Returns:
            [B, 4, size, size] float32 in 0..1, the colours multiplied by alpha.
        """
        step = _ROWS_AT_ONCE if rgba.device.type == "cpu" else len(rgba)
        parts = [slice(start, start + step) for start in range(0, len(rgba), step)]
        return torch.cat([self._paint(rgba[part], indices[part], variants[part], size) for part in parts])

    def _paint(self, rgba: Tensor, indices: Sequence[int], variants: Sequence[Variant], size: int) -> Tensor:
        pictures = rgba.float() / 255
        painted: list[tuple[int, Colour, str]] = []
        for row, (index, variant) in enumerate(zip(indices, variants, strict=True)):
            own = self._colours[index]
            if variant.recoloured and own is not None:
                painted.append((row, own, variant.colour))
        if painted:
            rows, owns, names = zip(*painted, strict=True)
            where = torch.tensor(rows, device=rgba.device)
            pictures[where, :3] = recoloured(pictures[where, :3], owns, names)
        pictures[:, :3] *= pictures[:, 3:]
        places = F.affine_grid(
            torch.tensor([_placing(variant) for variant in variants]).to(rgba.device),
            list(pictures.shape),
            align_corners=False,
        )
        placed = F.grid_sample(pictures, places, padding_mode="zeros", align_corners=False)
        return F.interpolate(placed, (size, size), mode="area")


def _words_of_other_groups(pictograms: Sequence[Pictogram]) -> dict[str, list[str]]:
    """For each group the words, but colours, that name pictograms of others and none of it, sorted."""
    groups: dict[str, set[str]] = {}
    for pictogram in pictograms:
        named = {word for keyword in pictogram.keywords if (word := keyword.strip()).isalpha()}
        groups.setdefault(pictogram.group, set()).update(named, pictogram.concept.split())
    every = set().union(*groups.values()) - set(_RECOLOURED)
    return {group: sorted(every - own) for group, own in groups.items()}


def colour_of(rgba: Tensor) -> Colour | None:
    """The colour of a picture [4, S, S] uint8 if most of what is drawn has one; saturation 0 for no hue."""
    drawn = rgba[:3, rgba[3] > 127].float() / 255  # [3, P]
    if not drawn.shape[1]:
        return None
    value, least = drawn.amax(dim=0), drawn.amin(dim=0)
    saturation = (value - least) / value.clamp(min=1e-6)
    colourful = (saturation > _COLOURFUL) & (value > 0.2)
    share = colourful.float().mean().item()
    if share < 1 - _MOSTLY:
        return _named(drawn[:, ~colourful], 0.0)
    if share < _MOSTLY:
        return None
    pixels = drawn[:, colourful]
    hue, strength = _mean_hue(pixels, saturation[colourful])
    return _named(pixels, saturation[colourful].mean().item(), hue) if strength > _ONE_HUE else None


def _mean_hue(pixels: Tensor, weights: Tensor) -> tuple[float, float]:
    """Hue in 0..1 of pixels [3, P] as points of the chroma plane, and how much they agree, 0..1."""
    red, green, blue = pixels
    across, along = 3**0.5 / 2 * (green - blue), red - (green + blue) / 2
    angles = torch.atan2(across, along)
    x, y = ((f(angles) * weights).sum() / weights.sum() for f in (torch.cos, torch.sin))
    return math.atan2(y.item(), x.item()) / math.tau % 1, math.hypot(x.item(), y.item())


def _named(pixels: Tensor, saturation: float, hue: float = 0.0) -> Colour:
    """The colour of pixels [3, P] that most of them have: a dark mouth does not turn a yellow face orange."""
    rgb, value = (255 * pixels.median(dim=1).values).tolist(), pixels.mean(dim=1).max().item()
    names = _SHADES if saturation == 0 else _HUES if _WARM[0] < hue < _WARM[1] else (*_HUES, "brown")
    name = min(names, key=lambda each: math.dist(_RECOLOURED[each], rgb))
    return Colour(hue, saturation, value, name)


def recoloured(pictures: Tensor, owns: Sequence[Colour], names: Sequence[str]) -> Tensor:
    """[B, 3, H, W] in 0..1, each of one colour → the same in the colours of the names, their shades kept."""
    changes = torch.tensor([_change(own, name) for own, name in zip(owns, names, strict=True)])  # [B, 3]
    turns, saturations, values = changes.to(pictures.device)[..., None, None].unbind(dim=1)  # [B, 1, 1]
    value, least = pictures.amax(dim=1), pictures.amin(dim=1)  # [B, H, W]
    hue = _hue(pictures, value, value - least) + 6 * turns
    chroma = (value - least) * saturations
    # HSV to RGB, channel by channel: how far along the six edges of the colour hexagon it is from each.
    along = torch.stack([(n + hue) % 6 for n in (5, 3, 1)], dim=1)  # [B, 3, H, W]
    fall = torch.minimum(along, 4 - along).clamp(0, 1)
    return ((value[:, None] - chroma[:, None] * fall) * values[:, None]).clamp(0, 1)


def _change(own: Colour, name: str) -> tuple[float, float, float]:
    """From a colour to that of a name: turn of the hue, and factors of saturation and value.

    What is grey takes its shades from value alone, so that its hue stays.
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in _RECOLOURED[name]))
    turn = (hue - own.hue) % 1 if saturation > 0.15 else 0.0
    return turn, min(saturation / own.saturation, _MOST), min(max(value / own.value, _LEAST), _MOST)


def _hue(pictures: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """[B, 3, H, W] → hue in 0..6, [B, H, W]; any number where there is none."""
    red, green, blue = pictures.unbind(dim=1)
    chroma = chroma.clamp(min=1e-6)
    of_green_or_blue = torch.where(value == green, (blue - red) / chroma + 2, (red - green) / chroma + 4)
    return torch.where(value == red, (green - blue) / chroma, of_green_or_blue)


def shows_the_same_mirrored(pictogram: Pictogram) -> bool:
    """Whether its mirror image is a picture of the same: not of letters, signs, clocks and directions."""
    if pictogram.group in _ONE_WAY_GROUPS or any(map(str.isdigit, pictogram.concept)):
        return False
    words = {*pictogram.concept.replace("-", " ").split(), *pictogram.keywords}
    return words.isdisjoint(_ONE_WAY_WORDS)


def shows_another_mirrored(pictograms: Sequence[Pictogram], pixels: Tensor) -> list[bool]:
    """Whether the mirror image of each is the picture of another concept in its style, as of a moon's phases.

    Args:
        pixels: of the pictograms, [N, 4, S, S] uint8 RGBA with straight alpha.
    """
    pictures = torch.stack([_small(rgba) for rgba in pixels])  # [N, 4, s, s]
    mirrored, found = pictures.flip(-1).flatten(1), [False] * len(pictograms)
    pictures = pictures.flatten(1)
    styles: dict[str, list[int]] = {}
    for index, pictogram in enumerate(pictograms):
        styles.setdefault(pictogram.style, []).append(index)
    for indices in styles.values():
        distances = torch.cdist(mirrored[indices], pictures[indices])  # [n, n]
        nearest = distances.clone().fill_diagonal_(math.inf).argmin(dim=1).tolist()
        for row, (index, near) in enumerate(zip(indices, nearest, strict=True)):
            other = pictograms[indices[near]].concept != pictograms[index].concept
            found[index] = other and bool(distances[row, near] < _LIKE_ANOTHER * distances[row, row])
    return found


def _small(rgba: Tensor) -> Tensor:
    """[4, S, S] uint8 → [4, s, s] in 0..1, the colours multiplied by alpha."""
    picture = rgba.float() / 255
    return F.adaptive_avg_pool2d(torch.cat([picture[:3] * picture[3:], picture[3:]]), _COMPARED)


def _placing(variant: Variant) -> list[list[float]]:
    """Places in the variant → places in the pictogram, as ``affine_grid`` wants it."""
    angle, (x, y) = math.radians(variant.turn), variant.place
    cos, sin = math.cos(angle) / variant.scale, math.sin(angle) / variant.scale
    rows = [[cos, -sin], [sin, cos]]
    if variant.mirrored:
        rows[0] = [-value for value in rows[0]]
    return [[a, b, -(a * x + b * y)] for a, b in rows]
