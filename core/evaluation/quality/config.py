"""Settings of an evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ...config import NOT_NEGATIVE, POSITIVE, SHARE, Range, require_ranges
from ...data.pictograms import GROUPS, require_known
from ...data.settings import DataConfig
from ...pipelines.ar_prior import AutoregressiveOptions
from ...pipelines.decode import DecodeOptions
from ...pipelines.generate import GenerateOptions, require_noise_alone
from ...pipelines.options import require_at_least, require_scale
from ...pipelines.prior import PriorOptions
from ...pipelines.upsample import UpsampleOptions
from ...precision import Precision
from .distribution import NEIGHBOURS

Split = Literal["trained", "held_out"]


@dataclass(frozen=True)
class GuidanceScales:
    """Guidance scales at which every prior is measured, besides those in the settings of the stages.

    One of the two varies at a time: the number of runs is the sum of both, not their product.

    Attributes:
        decoder: with the prior as it is set.
        prior: with the decoder as it is set; for priors that have guidance.
        prompts: captions, the first of each split: fewer than for the main results, for curves.
    """

    decoder: tuple[float, ...] = ()
    prior: tuple[float, ...] = ()
    prompts: int = 60

    def __post_init__(self) -> None:
        require_at_least(1, **{"guidance_scales.prompts": self.prompts})
        for name in ("decoder", "prior"):
            scales = getattr(self, name)
            if not all(math.isfinite(scale) and scale >= 0 for scale in scales):
                raise ValueError(f"guidance_scales.{name} is {list(scales)}; expected numbers of 0 or more")
            if list(scales) != sorted(set(scales)):
                raise ValueError(f"guidance_scales.{name} is {list(scales)}; expected them once, in order")

    def __bool__(self) -> bool:
        return bool(self.decoder or self.prior)


@dataclass(frozen=True)
class GroupsConfig:
    """Measures group by group: the table ``[groups]``.

    Attributes:
        names: the groups; empty for all that the data hold.
        prompts: captions of each group, one picture for each.
        candidates: captions of the same group, and of other concepts, among which the right one is to be
            found, itself included. The classifier finds the right one among as many concepts of the group,
            or among all where it has fewer.
        plain: share of captions that name nothing but the concept: the style is open, the background white.
        held_out: one more row, of held-out pairs of all these groups. The classifier's concepts are of each
            pair's own group, the other judges' captions of all groups.
    """

    names: tuple[str, ...] = ()
    prompts: int = 200
    candidates: int = 100
    plain: float = 0.5
    held_out: bool = True

    def __post_init__(self) -> None:
        require_ranges(self, "groups", plain=SHARE)
        require_known("group", self.names, GROUPS)
        if not 2 <= self.candidates <= self.prompts:
            raise ValueError(
                f"groups.candidates is {self.candidates}; expected 2 to groups.prompts, {self.prompts}"
            )


@dataclass(frozen=True)
class VarietyConfig:
    """How far apart the embeddings of different seeds lie: the table ``[variety]``.

    Attributes:
        captions: concepts, each asked for with style and background, and by its name alone.
        seeds: of each caption.
    """

    captions: int = 16
    seeds: int = 32

    def __post_init__(self) -> None:
        require_ranges(self, "variety", captions=Range(2), seeds=Range(2))


@dataclass(frozen=True)
class SharpnessConfig:
    """Patterns of patches, and edges: the table ``[sharpness]``.

    Attributes:
        pictures: how many, by the first of the priors.
        upsamplers: of the bundle, that enlarge them.
        patch: side of the networks' patches in pixels.
    """

    pictures: int = 16
    upsamplers: int = 0
    patch: int = 4

    def __post_init__(self) -> None:
        require_ranges(self, "sharpness", pictures=POSITIVE, upsamplers=NOT_NEGATIVE, patch=Range(2))


@dataclass(frozen=True)
class BindingConfig:
    """Two things together: the table ``[binding]``, for which the classifier is needed.

    Attributes:
        pairs: of each kind: in two colours beside each other, and one above the other.
    """

    pairs: int = 50

    def __post_init__(self) -> None:
        require_ranges(self, "binding", pairs=POSITIVE)


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of ``unclip eval``.

    Attributes:
        bundle: folder of the bundle that is evaluated.
        data: the pictograms that it was trained on; their held-out pairs are the split ``"held_out"``.
        judge: file or folder of the CLIP model that judges; None for the bundle's own, which the generator
            was trained against and which is therefore lenient.
        classifier: file of the classifier that judges besides (``unclip train classifier``); None for none.
        splits, priors: what is evaluated, each with each.
        prompts: captions for each split, one picture for each.
        candidates: captions among which the right one is to be found, itself included.
        reference: real pictures, none of them a prompt's own, against which sets of pictures are compared.
        neighbours: k of precision and recall.
        seed: of prompts and candidates; picture i is generated from seed + i.
        samples: how many pictures of each split and prior are handed on to be looked at.
        batch_size, upsamplers: see ``GenerateOptions``.
        precision: of the bundle's weights, ``"auto"``, ``"fp32"``, ``"fp16"`` or ``"bf16"``; the judge is
            always in fp32.
        prior, ar_prior, decoder, upsampler: how the stages are sampled.
        guidance_scales: further ones, for curves of all measures; none by default.
        groups: measures group by group; None for none.
        variety: how much seeds differ; None for no such table.
        sharpness: grid and edges; None for no such table.
        binding: two things together; None for no such table.
    """

    bundle: str
    data: DataConfig
    judge: str | None = None
    splits: tuple[Split, ...] = ("trained", "held_out")
    priors: tuple[str, ...] = ("diffusion", "none")
    prompts: int = 200
    candidates: int = 100
    reference: int = 1000
    neighbours: int = NEIGHBOURS
    seed: int = 0
    samples: int = 64
    batch_size: int = 16
    upsamplers: int = 0
    precision: Precision = "auto"
    prior: PriorOptions = field(default_factory=PriorOptions)
    decoder: DecodeOptions = field(default_factory=DecodeOptions)
    upsampler: UpsampleOptions = field(default_factory=UpsampleOptions)
    guidance_scales: GuidanceScales = field(default_factory=GuidanceScales)
    ar_prior: AutoregressiveOptions = field(default_factory=AutoregressiveOptions)
    classifier: str | None = None
    groups: GroupsConfig | None = None
    variety: VarietyConfig | None = None
    sharpness: SharpnessConfig | None = None
    binding: BindingConfig | None = None

    def __post_init__(self) -> None:
        require_noise_alone(self.prior, self.decoder)
        if not 2 <= self.candidates <= self.prompts:
            raise ValueError(
                f"candidates is {self.candidates}; expected 2 to the number of prompts, {self.prompts}"
            )
        further = (self.groups, self.variety, self.sharpness, self.binding)
        if not self.splits and all(table is None for table in further):
            raise ValueError("splits is empty; expected trained, held_out or both, or a further table")
        if not self.priors:
            raise ValueError("priors is empty; expected one or more of diffusion, autoregressive, none")
        require_at_least(1, samples=self.samples)
        smallest = min(self.prompts, self.reference)
        if not 1 <= self.neighbours < smallest:
            raise ValueError(
                f"neighbours is {self.neighbours}; expected 1 to less than prompts and reference, {smallest}"
            )
        swept = self.guidance_scales.prompts
        if self.guidance_scales and not self.neighbours < swept <= self.prompts:
            raise ValueError(
                f"guidance_scales.prompts is {swept}; expected more than neighbours, {self.neighbours}, and "
                f"at most prompts, {self.prompts}"
            )
        for name, options in (("decoder", self.decoder), ("prior", self.prior)):
            for scale in getattr(self.guidance_scales, name):
                require_scale(scale, options.guidance, f"a scale of guidance_scales.{name}")
        for name in self.priors:
            self.generate_options(name)  # says so where a name or the batch size is wrong

    def generate_options(self, prior: str) -> GenerateOptions:
        return GenerateOptions(
            prior,
            self.prior,
            self.decoder,
            self.upsampler,
            self.upsamplers,
            self.batch_size,
            self.ar_prior,
        )
