"""The graph that ``unclip generate`` runs: that of workflows/text_to_image.json, and what pictures, a mixture
and a negative caption add to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.formats.abilities import Abilities
    from .workflow.graph import Node, Workflow
    from .workflow.specs import Catalog

MAX_PARTS = 4
"""Embeddings that unCLIP Blend mixes."""
USUAL_SIZE = 256
_LAYOUT = Path(__file__).resolve().parents[1] / "workflows" / "text_to_image.json"
_FIRST_FREE = 8  # ids from here on are in no layout

SAMPLED_STAGES = {"UnCLIPDiffusionPrior": "prior", "UnCLIPDecode": "decoder", "UnCLIPUpsample": "upsampler"}
"""Sampling nodes, and the stages whose settings they have."""

Link = list[Any]


@dataclass(frozen=True)
class Size:
    """How a size of pictures is reached: by how many upsamplers, or by the decoder itself (0 its own)."""

    upsamplers: int = 0
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Settings:
    """What the graph is built from.

    Attributes:
        prompt: may be empty where there are images.
        bundles: one, or several that belong together.
        images: names of pictures in the input folder.
        weights: of the images and, behind them, of the prompt, if there is one; empty for all the same. With
            weight 0 the prompt is only read by the decoder.
        precision: None takes the node's own default.
        sampling: inputs by node, see ``sampling_options.sampling``; those left out are as the bundle asks for
            them, or have the node's defaults.
        loras: names and strengths, see ``loras.chosen_loras``.
    """

    prompt: str
    bundles: tuple[str, ...] = ("mini",)
    size: Size = Size(upsamplers=1)
    seed: int = 0
    batch_size: int = 1
    negative: str = ""
    images: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    precision: str | None = None
    filename_prefix: str = "unclip"
    sampling: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loras: Sequence[tuple[str, float]] = ()


def chosen_size(abilities: Abilities, width: int, height: int) -> Size:
    """How a bundle makes pictures of a size; 0 and 0 are 256 pixels where it makes them, else its own.

    Raises:
        ValueError: a size that it does not make; names those that it does.
    """
    sizes = abilities.sizes
    if not sizes:
        raise ValueError(
            f"--bundle {abilities.name}: has no decoder, so it cannot paint. Kandinsky's prior and decoder "
            f"are separate downloads: name both, --bundle PRIOR --bundle DECODER"
        )
    if not width and not height:
        usual = USUAL_SIZE in sizes and not abilities.any_size
        return Size(sizes.index(USUAL_SIZE) if usual else 0)
    if width == height and width in sizes:
        return Size(sizes.index(width))
    if abilities.any_size:
        _require_not_beyond(abilities, f"--size {width}x{height}", max(width, height))
        return Size(0, width, height)
    listed = ", ".join(map(str, sizes))
    raise ValueError(
        f"--size {width}x{height}: bundle {abilities.name!r} makes square pictures of {listed} pixels only; "
        f"choose one of these. Bundles of Kandinsky make any size"
    )


def require_sides(abilities: Abilities, sides: Mapping[str, int]) -> None:
    """Raise a ValueError for a width or height that the decoder does not paint, before anything runs.

    Args:
        sides: by name; 0 is the decoder's own.
    """
    for name, side in sides.items():
        own, flag = abilities.sizes[0], f"--{name} {side}"
        if abilities.fixed_size and side not in (0, own):
            listed = ", ".join(map(str, abilities.sizes))
            raise ValueError(
                f"{flag}: the decoder of bundle {abilities.name!r} paints {own}×{own} pixels only; leave it "
                f"out, or choose one of {listed} by --size"
            )
        _require_not_beyond(abilities, flag, side)


def _require_not_beyond(abilities: Abilities, flag: str, side: int) -> None:
    from ..core.pipelines.canvas import LARGEST_STRETCH

    largest = LARGEST_STRETCH * abilities.sizes[0]
    if side > largest:
        raise ValueError(
            f"{flag}: bundle {abilities.name!r} learned {abilities.sizes[0]} pixels and paints nothing "
            f"sensible beyond {LARGEST_STRETCH} times that; choose at most {largest}"
        )


def require_able(settings: Settings, abilities: Abilities) -> None:
    """Raise a ValueError that says what was asked of a bundle that it cannot do, or of its pictures."""
    s, name = settings, abilities.name
    if not s.prompt and not s.images:
        raise ValueError("nothing to paint: write a PROMPT, name a picture with --image, or both")
    parts = len(s.images) + bool(s.prompt and s.images)
    if s.weights and not s.images:
        raise ValueError(
            "--weights: weighs pictures against each other and against the PROMPT, but there is no --image; "
            "leave it out, or name a picture"
        )
    if s.weights and parts == 1:
        raise ValueError(
            "--weights: one --image without a PROMPT has nothing to be weighed against; leave it out, or add "
            "a PROMPT or another --image"
        )
    if s.weights and len(s.weights) != parts:
        last = " and, last, one for the PROMPT" if s.prompt else ""
        raise ValueError(
            f"--weights: found {len(s.weights)} numbers, expected {parts}: one for each --image{last}"
        )
    if s.weights and len(s.images) == 1 and not _runs_prior(s) and s.weights[0] <= 0:
        raise ValueError(
            f"--weights: found {s.weights[0]:g} for the one --image and 0 for the PROMPT, so that nothing is "
            f"painted; give the picture a weight above 0"
        )
    if parts > MAX_PARTS:
        raise ValueError(
            f"--image: found {len(s.images)} pictures{' and a PROMPT' if s.prompt else ''}; up to "
            f"{MAX_PARTS} of them can be mixed"
        )
    if not abilities.takes_embeddings and s.images:
        raise ValueError(
            f"--image: the decoder of bundle {name!r} paints captions alone and cannot see pictures; leave "
            f"--image out, or choose another bundle"
        )
    if abilities.takes_embeddings and not abilities.has_prior and _runs_prior(s):
        advice = "Name a picture with --image"
        if s.images:
            advice = "Leave the PROMPT out"
            if abilities.reads_captions:
                numbers = ",".join("1" * len(s.images))
                advice += (
                    f", or give it the weight 0, --weights {numbers},0, so that only the decoder reads it"
                )
        raise ValueError(
            f"--bundle {name}: has no diffusion prior, which makes of the PROMPT what is painted. {advice}, "
            f"or add the prior's folder with another --bundle"
        )
    read = abilities.reads_captions or _captioned(s, abilities)
    if s.prompt and not _runs_prior(s) and not read:
        raise ValueError(
            f"--weights: the PROMPT has the weight 0, and the decoder of bundle {name!r} reads no captions, "
            f"so it would have no effect; give it another weight, or leave it out"
        )
    if s.negative and not abilities.has_prior and not abilities.reads_captions:
        raise ValueError(
            f"--negative: bundle {name!r} has no diffusion prior and its decoder reads no captions, so it "
            f"would have no effect; leave it out, or add the prior's folder with another --bundle"
        )


def _runs_prior(settings: Settings) -> bool:
    """Whether an embedding is made of the prompt."""
    return bool(settings.prompt) and not (settings.weights and settings.weights[-1] == 0)


def _captioned(settings: Settings, abilities: Abilities) -> set[int]:
    """Sizes of the upsamplers that run and read captions."""
    return {*abilities.sizes[1 : 1 + settings.size.upsamplers]} & {*abilities.captioned}


def painting(settings: Settings, abilities: Abilities, catalog: Catalog) -> Workflow:
    """The graph. Every widget of every node is written out, as ComfyUI does, so that the picture records all
    of them; it carries a layout too: that of workflows/text_to_image.json where it has the same nodes."""
    from .workflow.drawing import drawn
    from .workflow.graph import Workflow
    from .workflow.laid_out import laid_out

    nodes = _Painting(settings, abilities, catalog).nodes()
    graph = Workflow(nodes)
    # A bypassed prior would leave the link to the embedding that a decoder of captions alone does not take.
    # The file has no links of captions to upsamplers.
    linked_alike = abilities.takes_embeddings and not _captioned(settings, abilities)
    if linked_alike and all(int(node_id) < _FIRST_FREE for node_id in nodes):
        layout = json.loads(_LAYOUT.read_text(encoding="utf-8"))
        return replace(graph, ui=laid_out(layout, graph, catalog))
    return replace(graph, ui=drawn(graph, catalog))


class _Painting:
    """Nodes by id; those that text_to_image.json has too have its ids."""

    def __init__(self, settings: Settings, abilities: Abilities, catalog: Catalog):
        self.settings, self.abilities, self.catalog = settings, abilities, catalog
        self.made: dict[str, Node] = {}
        self.asked: dict[str, dict[str, Any]] = {}
        self.prior: Link = ["1", 1]
        self.decoder: Link = ["1", 2]

    def nodes(self) -> dict[str, Node]:
        from ..core.pipelines.generate import default_settings

        s = self.settings
        # All of them, so that what is wrong is told whatever is painted.
        self.asked = {
            node_id: default_settings(self.abilities.defaults, stage)
            for node_id, stage in SAMPLED_STAGES.items()
        }
        bundle, *others = s.bundles
        with_bundle = others[0] if others else None
        self._add(
            "UnCLIPLoadBundle",
            "Load the models",
            "1",
            bundle=bundle,
            precision=s.precision,
            with_bundle=with_bundle,
        )
        for name, strength in s.loras:
            given = {"prior": self.prior, "decoder": self.decoder, "lora": name, "strength": strength}
            self.prior = self._add("UnCLIPLoadLoRA", "LoRA", **given)
            self.decoder = [self.prior[0], 1]
        text, captioned = None, _captioned(s, self.abilities)
        if _runs_prior(s) or not s.images or captioned:
            text = self._text("Encode the prompt", s.prompt, ["1", 0], "2")
        negative = None
        if s.negative and self.abilities.has_prior:
            negative = self._text("Encode what not to show", s.negative, ["1", 0])
        shown = self.abilities.takes_embeddings
        embedding, negative_embedding = self._embedding(text, negative) if shown else (None, None)
        read, negative_read = self._read(text, negative)
        batched = shown and _runs_prior(s)  # the embeddings are as many as the pictures
        pixels = self._add(
            "UnCLIPDecode",
            "Decode",
            "4",
            decoder=self.decoder,
            embedding=embedding,
            text=read,
            negative_embedding=negative_embedding,
            negative_text=negative_read,
            seed=s.seed,
            batch_size=1 if batched else s.batch_size,
            **{"width": s.size.width, "height": s.size.height, **self._sampling("UnCLIPDecode")},
        )
        for index in range(s.size.upsamplers):
            size = self.abilities.sizes[index + 1]
            pixels = self._add(
                "UnCLIPUpsample",
                f"Upsample to {size}",
                str(5 + index),
                upsampler=["1", 3 + index],
                image=pixels,
                text=text if size in captioned else None,
                **{"seed": s.seed, **self._sampling("UnCLIPUpsample")},
            )
        self._add("SaveImage", "Save", "7", images=pixels, filename_prefix=s.filename_prefix)
        return self.made

    def _embedding(self, text: Link | None, negative: Link | None) -> tuple[Link, Link | None]:
        """What the pictures show, and what not: of the prompt by the prior, of pictures, or mixed."""
        s = self.settings
        negative_embedding = None
        parts = []
        for number, name in enumerate(s.images, 1):
            which = f" {number}" if len(s.images) > 1 else ""
            picture = self._add("LoadImage", f"Picture{which}", image=name)
            encode = self._add("UnCLIPImageEncode", f"Encode picture{which}", clip=["1", 0], image=picture)
            parts.append(encode)
        if _runs_prior(s):
            prior = self._prior("Prior", text, "3", negative_text=negative)
            negative_embedding = [prior[0], 1] if negative else None
            parts.append(prior)
        elif negative:
            negative_embedding = self._prior("What not to show", negative)
        if len(parts) == 1:
            return parts[0], negative_embedding
        weights = s.weights or (1.0,) * len(parts)
        numbered = range(1, len(parts) + 1)
        mixed = self._add(
            "UnCLIPBlend",
            "Mix",
            **{f"embedding_{number}": part for number, part in zip(numbered, parts, strict=True)},
            **{f"weight_{number}": weight for number, weight in zip(numbered, weights, strict=False)},
        )
        return mixed, negative_embedding

    def _read(self, text: Link | None, negative: Link | None) -> tuple[Link | None, Link | None]:
        """Prompt and negative caption as the decoder reads them: Kandinsky 2.1 by an encoder of its own."""
        s = self.settings
        if not self.abilities.reads_captions:
            # Wired nevertheless where it is there, as in the workflow file: another decoder may read it.
            return text, None
        if self.abilities.any_size:
            own: Link = ["1", 6]
            text = self._text("Encode the prompt for the decoder", s.prompt, own)
            if s.negative:
                negative = self._text("Encode what not to show for the decoder", s.negative, own)
            return text, negative
        text = text or self._text("Encode the prompt", s.prompt, ["1", 0], "2")
        if s.negative and negative is None:
            negative = self._text("Encode what not to show", s.negative, ["1", 0])
        return text, negative

    def _text(self, title: str, caption: str, clip: Link, node_id: str | None = None) -> Link:
        return self._add("UnCLIPTextEncode", title, node_id, clip=clip, text=caption)

    def _prior(self, title: str, text: Link | None, node_id: str | None = None, **inputs: Any) -> Link:
        s = self.settings
        return self._add(
            "UnCLIPDiffusionPrior",
            title,
            node_id,
            prior=self.prior,
            text=text,
            seed=s.seed,
            batch_size=s.batch_size,
            **{**inputs, **self._sampling("UnCLIPDiffusionPrior")},
        )

    def _sampling(self, node_id: str) -> dict[str, Any]:
        """What was asked for, and where nothing was what the bundle asks for."""
        return {**self.asked[node_id], **self.settings.sampling.get(node_id, {})}

    def _add(self, class_type: str, title: str, node_id: str | None = None, **inputs: Any) -> Link:
        """Add a node; gives the link to its first output."""
        from .workflow.graph import Node

        node_id = node_id or str(max(_FIRST_FREE - 1, *map(int, self.made)) + 1)
        self.made[node_id] = Node(class_type, _with_defaults(class_type, inputs, self.catalog), title)
        return [node_id, 0]


def _with_defaults(class_type: str, inputs: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The given inputs; widgets that are not given, or None, hold their default."""
    spec = catalog.spec(class_type)
    widgets: Sequence = spec.widgets if spec is not None else ()
    given = {name: value for name, value in inputs.items() if value is not None}
    return {**{widget.name: widget.default for widget in widgets}, **given}
