"""Which sheets a run paints: the table ``[loop.sheet]`` of its config."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import NOT_NEGATIVE, POSITIVE, Range, require_ranges


@dataclass(frozen=True)
class SheetConfig:
    """Which captions are painted, how often, and with what besides the stage in training.

    Attributes:
        every: steps between two sheets; the last step has one too.
        captions: one picture each.
        clip, prior, decoder: files of finished stages. A decoder takes the CLIP model that it learns from,
            and z_t in the place of z_i where there is no prior; a prior needs a decoder; an upsampler needs
            a decoder and its CLIP model.
        seed, steps, guidance_scale, prior_guidance: of all pictures.
    """

    every: int
    captions: tuple[str, ...]
    clip: str | None = None
    prior: str | None = None
    decoder: str | None = None
    seed: int = 0
    steps: int = 25
    guidance_scale: float = 3.0
    prior_guidance: float = 1.5

    def __post_init__(self) -> None:
        require_ranges(
            self,
            "loop.sheet",
            every=POSITIVE,
            steps=POSITIVE,
            seed=NOT_NEGATIVE,
            guidance_scale=Range(0),
            prior_guidance=Range(0),
        )
        if not self.captions or not all(caption.strip() for caption in self.captions):
            raise ValueError("loop.sheet.captions: expected at least one caption, and none that is empty")

    def due(self, done: int) -> bool:
        """Whether it is time, after ``done`` steps."""
        return done % self.every == 0
