"""Subjects node: a caption some of whose words are pictures, for λ-ECLIPSE's prior."""

from __future__ import annotations

from typing import Any

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pipelines.conditioning import zero_embedding
from ..core.pipelines.memory import encode_memory
from ..core.pipelines.subjects import encode_with_subjects
from ..core.pipelines.towers import image_tower, text_tower
from ..core.stages import ClipStage
from . import host, inputs, placement, sockets


class UnCLIPSubjects:
    """A caption with pictures of its subjects."""

    CATEGORY = "unCLIP/encode"
    DESCRIPTION = (
        "Encodes a caption in which pictures stand for some of the words: your cat for 'cat'. For the prior "
        "of λ-ECLIPSE, which turns it into an image embedding in one step; Kandinsky 2.2's decoder paints it."
    )
    SEARCH_ALIASES = ["subject", "personalization", "lambda eclipse", "concept", "dreambooth", "ip adapter"]
    RETURN_TYPES = (sockets.TEXT,)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The encoded caption with the subjects in it, for unCLIP Diffusion Prior.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "clip": inputs.socket(
                    sockets.CLIP, "The CLIP model of Kandinsky 2.2's prior, which is λ-ECLIPSE's too."
                ),
                "text": (
                    sockets.STRING,
                    {
                        "default": "",
                        "multiline": True,
                        "placeholder": "a cat wearing glasses at a park",
                        "tooltip": "What the picture shows, with the name of every subject in it.",
                    },
                ),
                "embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "The encoded pictures of the subjects, best cut out on white; several by unCLIP Batch "
                    "Embeddings.",
                ),
                "subject_names": (
                    sockets.STRING,
                    {
                        "default": "",
                        "multiline": True,
                        "placeholder": "cat\nglasses",
                        "tooltip": "What the caption calls the subjects, one a line, in the order of the "
                        "embeddings.",
                    },
                ),
            },
            "optional": {
                "control": inputs.socket(
                    sockets.EMBEDDING,
                    "An encoded picture of outlines (Canny) that the picture follows roughly. Left out, "
                    "nothing is followed.",
                ),
            },
        }

    def execute(
        self,
        clip: ClipStage | None,
        text: str,
        embedding: Embedding,
        subject_names: str,
        control: Embedding | None = None,
    ) -> tuple[TextFeatures]:
        clip = sockets.require_stage(clip, "clip")
        subjects = inputs.lines(subject_names)
        if control is None:
            tower = image_tower(clip)
            with placement.on_device(tower, encode_memory(tower, 1)):
                control = zero_embedding(tower)
        tower = text_tower(clip)
        with placement.on_device(tower, encode_memory(tower, captions=2 + len(subjects))):
            found = encode_with_subjects(tower, text, embedding, subjects, control)
            return (found.to(host.result_device()),)
