"""Probe nodes: what a CLIP model sees in a picture, and in what order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.embeddings.pca import EXPLAINED_VARIANCE, PCA, fit_pca
from ..core.embeddings.space import Embedding
from ..core.pictures.chart import bar_chart, curve_chart
from ..core.pictures.sheet import from_pil
from ..core.pipelines.ar_prior import components_of
from ..core.pipelines.encode import encode_images, encode_text
from ..core.pipelines.memory import encode_memory
from ..core.pipelines.towers import image_tower, text_tower
from ..core.pipelines.zero_shot import zero_shot
from ..core.stages import ClipStage, PriorStage
from . import host, inputs, placement, sockets

CATEGORY = "unCLIP/probe"


class UnCLIPZeroShot:
    """Which of some captions fits a picture."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Asks CLIP which of several captions fits a picture, or an embedding: how probable it finds each of "
        "them. Shows what an embedding is taken for, for example when there is writing in the picture."
    )
    SEARCH_ALIASES = ["classify", "clip interrogator", "probability", "typographic attack", "captions"]
    RETURN_TYPES = (sockets.IMAGE, sockets.STRING, sockets.STRING)
    RETURN_NAMES = ("chart", "probabilities", "best")
    OUTPUT_TOOLTIPS = (
        "A bar chart for each picture.",
        "The probabilities as text, a block for each picture.",
        "The most probable caption of each picture, one on each line.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "clip": inputs.socket(sockets.CLIP, "The CLIP model that judges."),
                "captions": (
                    sockets.STRING,
                    {
                        "default": "",
                        "multiline": True,
                        "placeholder": "a red fox\na red apple",
                        "tooltip": "The captions to choose from, one on each line.",
                    },
                ),
            },
            "optional": {
                "image": inputs.opaque("The pictures; or connect an embedding."),
                "embedding": inputs.socket(
                    sockets.EMBEDDING, "Image embeddings of this CLIP model, instead of pictures."
                ),
            },
        }

    def execute(
        self,
        clip: ClipStage | None,
        captions: str,
        image: Tensor | None = None,
        embedding: Embedding | None = None,
    ) -> tuple[Tensor, str, str]:
        clip = sockets.require_stage(clip, "clip")
        names = [line for line in inputs.lines(captions) if line]
        if not names:
            raise ValueError("captions: found none; write those to choose from, one on each line.")
        if (image is None) == (embedding is None):
            raise ValueError("image, embedding: connect one of them, the picture or its embedding.")
        if image is not None:
            pixels, tower = sockets.image_to_core(image), image_tower(clip)
            with (
                placement.on_device(tower, encode_memory(tower, pixels)),
                host.count_progress("Encode", len(pixels)) as on_count,
            ):
                embedding = encode_images(tower, pixels, callback=on_count)
        tower = text_tower(clip)
        with (
            placement.on_device(tower, encode_memory(tower, captions=len(names))),
            host.count_progress("Encode", len(names)) as on_count,
        ):
            shares = zero_shot(clip, embedding, encode_text(tower, names, callback=on_count))  # [B, N]
        charts = torch.cat([from_pil(bar_chart(names, row)) for row in shares.tolist()])
        blocks = [
            "\n".join(f"{share:6.1%}  {name}" for name, share in zip(names, row, strict=True))
            for row in shares.tolist()
        ]
        best = [names[index] for index in shares.argmax(dim=1).tolist()]
        return sockets.image_from_core(charts), "\n\n".join(blocks), "\n".join(best)


class UnCLIPPCAFit:
    """Principal components of embeddings."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Finds the directions in which image embeddings differ most, in order. Encode a folder of pictures "
        "(unCLIP Encode Folder), or let a prior imagine a large batch; the more, the better."
    )
    SEARCH_ALIASES = ["principal components", "pca", "embedding statistics"]
    RETURN_TYPES = (sockets.PCA, sockets.IMAGE)
    RETURN_NAMES = ("pca", "chart")
    OUTPUT_TOOLTIPS = (
        "The components, for unCLIP PCA Reconstruct.",
        "How much of all differences the first components explain together.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "embedding": inputs.socket(
                    sockets.EMBEDDING, "A batch of embeddings, one more than components at least."
                ),
                "components": inputs.integer(
                    0, 0, 4096, "Components to keep. 0 keeps as many as explained_variance asks for."
                ),
                "explained_variance": inputs.number(
                    EXPLAINED_VARIANCE,
                    0.01,
                    1.0,
                    0.01,
                    "Share of all differences that the components explain; used where components is 0.",
                ),
            }
        }

    def execute(self, embedding: Embedding, components: int, explained_variance: float) -> tuple[PCA, Tensor]:
        pca = fit_pca(embedding, components=components or None, explained_variance=explained_variance)
        return pca, _chart(pca)


class UnCLIPPCAFromPrior:
    """Principal components that come with an autoregressive prior."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Takes the principal components out of an autoregressive prior, which writes embeddings in them: "
        "fitted to all the pictures that it has learnt from, so that you need none."
    )
    SEARCH_ALIASES = ["principal components", "pca", "pca basis", "ar prior", "load pca"]
    RETURN_TYPES = (sockets.PCA, sockets.IMAGE)
    RETURN_NAMES = ("pca", "chart")
    OUTPUT_TOOLTIPS = UnCLIPPCAFit.OUTPUT_TOOLTIPS
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "prior": inputs.socket(
                    sockets.PRIOR,
                    "An autoregressive prior of the CLIP model of the embeddings: the output ar_prior of "
                    "Load unCLIP Bundle, or a file in Load unCLIP Prior.",
                )
            }
        }

    def execute(self, prior: PriorStage | None) -> tuple[PCA, Tensor]:
        pca = components_of(sockets.require_stage(prior, "prior")).to(host.result_device())
        return pca, _chart(pca)


class UnCLIPPCAReconstruct:
    """Embeddings from a part of their components."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Keeps only the first components of an embedding, ever more of them: decoded with one noise, the "
        "pictures show what CLIP sees first and what comes last."
    )
    SEARCH_ALIASES = ["principal components", "pca", "embedding reconstruction"]
    RETURN_TYPES = (sockets.EMBEDDING, sockets.STRING)
    RETURN_NAMES = ("embedding", "labels")
    OUTPUT_TOOLTIPS = (
        "One embedding for each number of components, for one given embedding after the other.",
        "The number of components of each, one on each line, for unCLIP Grid.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "pca": inputs.socket(sockets.PCA, "Components of the same CLIP model."),
                "embedding": inputs.socket(sockets.EMBEDDING, "The embeddings to take apart."),
                "components": (
                    sockets.STRING,
                    {
                        "default": "1, 2, 4, 8",
                        "placeholder": "20, 40, 80, 160, 320",
                        "tooltip": "How many of the first components to keep, separated by commas. 0 is the "
                        "mean of all embeddings.",
                    },
                ),
            }
        }

    def execute(self, pca: PCA, embedding: Embedding, components: str) -> tuple[Embedding, str]:
        counts = [int(each) for each in inputs.numbers(components, "components", 0, len(pca), whole=True)]
        coefficients = pca.project(embedding)  # [B, K]
        parts = torch.stack([pca.reconstruct(coefficients, count).vectors for count in counts], dim=1)
        labels = [str(count) for count in counts] * len(embedding)
        return Embedding(parts.flatten(0, 1), pca.space), "\n".join(labels)


def _chart(pca: PCA) -> Tensor:
    explained = pca.explained_variance.cumsum(0).clamp(max=1).tolist()
    chart = curve_chart(explained, title="Explained by the first components")
    return sockets.image_from_core(from_pil(chart))
