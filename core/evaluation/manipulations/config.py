"""What is measured of a bundle's manipulations, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...data.settings import DataConfig
from ...diffusion.sampling import SAMPLERS
from ...pipelines.decode import DecodeOptions
from ...pipelines.generate import require_noise_alone
from ...pipelines.inpaint import InpaintOptions
from ...pipelines.options import require_at_least
from ...pipelines.prior import PriorOptions
from ...pipelines.upsample import UpsampleOptions
from ...precision import Precision
from ..quality.config import Split


@dataclass(frozen=True)
class InversionProbe:
    """Round trips picture → x_T → picture, without guidance.

    Attributes:
        pictures: real ones.
        steps: numbers of steps, of inversion and decoding alike.
        refinements: of the second curve, see ``invert_ddim``; 0 draws only the first, which has none.
        refined_steps: those at which the second curve is measured; they cost (2 + refinements) / 2 as much.
    """

    pictures: int = 20
    steps: tuple[int, ...] = (10, 20, 50, 100, 250)
    refinements: int = 3
    refined_steps: tuple[int, ...] = (10, 20, 50)

    def __post_init__(self) -> None:
        require_at_least(1, **{"inversion.pictures": self.pictures})
        if self.refinements < 0:
            raise ValueError(f"inversion.refinements is {self.refinements}; expected 0 or more")
        for name in ("steps", "refined_steps"):
            steps = getattr(self, name)
            if not steps or steps[0] < 1 or list(steps) != sorted(set(steps)):
                raise ValueError(f"inversion.{name} is {list(steps)}; expected numbers from 1 on, in order")

    def curves(self) -> list[tuple[int, tuple[int, ...]]]:
        """Numbers of refinements, and the steps at which each is measured."""
        return [(0, self.steps), *([(self.refinements, self.refined_steps)] if self.refinements else [])]


@dataclass(frozen=True)
class TextDiffProbe:
    """Pictures turned from one concept towards another.

    Attributes:
        pairs: of a picture and the caption that it is turned to.
        theta_max, frames: see ``arithmetic.text_diff``.
        by_prior: measure the direction between the diffusion prior's embeddings of both captions, too.
    """

    pairs: int = 20
    theta_max: float = 0.5
    frames: int = 5
    by_prior: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, **{"text_diff.pairs": self.pairs})
        require_at_least(2, "the two ends", **{"text_diff.frames": self.frames})
        if not 0 < self.theta_max <= 1:
            raise ValueError(f"text_diff.theta_max is {self.theta_max}; expected above 0, to 1")


@dataclass(frozen=True)
class ManipulationsConfig:
    """Settings of ``unclip probe``.

    Attributes:
        bundle: folder of the bundle that is measured; its own CLIP model judges.
        data: pictograms; the real pictures.
        split: which of them.
        seed: of the choice of pictures; picture i starts from the noise of seed + i.
        concepts: how many are told apart; each is varied once.
        interpolations: pairs of pictures.
        inpainted: pictures, each with a mask of its own, in a size that is not square.
        fitted, measured: pictures that the principal components are found from, and others that are
            reconstructed from them.
        upsamplers: how many of the bundle's an inpainted picture goes through.
        batch_size: pictures that go through the networks together.
        precision: of the bundle's weights. In half precision the size of a batch shows in the pictures.
        inversion, text_diff: what is measured there.
        prior, decoder, inpaint, upsampler: how the stages are sampled; the decoder without noise in its
            steps, so that its pictures depend on embedding and x_T alone.
    """

    bundle: str
    data: DataConfig
    split: Split = "trained"
    seed: int = 0
    concepts: int = 100
    interpolations: int = 10
    inpainted: int = 4
    fitted: int = 1000
    measured: int = 200
    upsamplers: int = 0
    batch_size: int = 20
    precision: Precision = "fp32"
    inversion: InversionProbe = field(default_factory=InversionProbe)
    text_diff: TextDiffProbe = field(default_factory=TextDiffProbe)
    prior: PriorOptions = field(default_factory=PriorOptions)
    decoder: DecodeOptions = field(default_factory=DecodeOptions)
    inpaint: InpaintOptions = field(default_factory=InpaintOptions)
    upsampler: UpsampleOptions = field(default_factory=UpsampleOptions)

    def __post_init__(self) -> None:
        require_noise_alone(self.prior, self.decoder)
        counts = ("interpolations", "inpainted", "measured", "batch_size")
        require_at_least(1, **{name: getattr(self, name) for name in counts})
        require_at_least(2, "which differ in something", fitted=self.fitted)
        require_at_least(0, upsamplers=self.upsamplers)
        if SAMPLERS[self.decoder.sampler].adds_noise(self.decoder.eta):
            quiet = [name for name, sampler in SAMPLERS.items() if not sampler.adds_noise(0)]
            raise ValueError(
                f"decoder: found the sampler {self.decoder.sampler} with eta {self.decoder.eta:g}; expected "
                f"one without noise in its steps: {' or '.join(quiet)}, with eta 0"
            )
        pairs = max(self.interpolations, self.text_diff.pairs)
        if self.concepts < 2 * pairs:
            raise ValueError(
                f"concepts is {self.concepts}; expected at least {2 * pairs}, two for each pair of "
                f"text_diff.pairs and of interpolations"
            )
