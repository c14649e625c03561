"""Embedding nodes: interpolate, change by captions, blend, save and load."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any, get_args

from ..core.embeddings.arithmetic import Blend, blend, embedding_diff, interpolate, text_diff
from ..core.embeddings.batches import join
from ..core.embeddings.space import Embedding, TextFeatures
from ..core.folders import fingerprint
from ..core.formats.files.safetensors_io import SUFFIX
from ..core.formats.native.embedding_file import load_embedding, save_embedding
from ..core.pictures.numbered_names import place_files, write_next
from . import embedding_files, host, inputs, messages, sockets

CATEGORY = "unCLIP/embedding"


class UnCLIPInterpolate:
    """From one embedding to another."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Goes from one image embedding to another in steps: decoded, the frames turn one picture's content "
        "into the other's. Give the decoder one noise for all frames, or one from unCLIP Noise Interpolate."
    )
    SEARCH_ALIASES = ["slerp", "morph", "mix embeddings", "latent interpolation", "transition", "remix"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("One embedding for each frame, the first and the last being those given.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "first": inputs.socket(sockets.EMBEDDING, "Where it starts."),
                "second": inputs.socket(
                    sockets.EMBEDDING,
                    "Where it ends. Batches are taken pair by pair: all frames of the first pair, then all "
                    "of the next.",
                ),
                "frames": inputs.integer(9, 2, 256, "Embeddings to make, both ends among them."),
                "ease": inputs.ease(),
            }
        }

    def execute(self, first: Embedding, second: Embedding, frames: int, ease: str) -> tuple[Embedding]:
        return (interpolate(first, second, frames, ease),)


class UnCLIPTextDiff:
    """An embedding changed by the difference of two captions."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Changes what a picture shows by words: turns its image embedding by the difference between the "
        "caption of what it is to become and the caption of what it is. With the noise that unCLIP Invert "
        "finds for the picture, the rest of it stays."
    )
    SEARCH_ALIASES = ["text diff", "edit by text", "language guided edit", "style change", "prompt edit"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("One embedding for each frame, from the picture as it is to the full change.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "embedding": inputs.socket(sockets.EMBEDDING, "The encoded picture."),
                "target_text": inputs.socket(
                    sockets.TEXT, "The encoded caption of what the picture is to become."
                ),
                "theta_max": inputs.number(
                    0.4,
                    0.0,
                    1.0,
                    0.01,
                    "How far the last frame goes from the picture (0) to the change itself (1). 0.25 to 0.5 "
                    "keeps most of the picture.",
                ),
                "frames": inputs.integer(
                    5, 1, 256, "Embeddings to make, from no change to all of it. 1 is the full change alone."
                ),
                "ease": inputs.ease(),
            },
            "optional": {
                "baseline_text": inputs.socket(
                    sockets.TEXT,
                    "The encoded caption of what the picture is now, or a neutral one such as 'a photo'. "
                    "Without it the target caption alone gives the direction.",
                ),
                "target_embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "What a prior imagines of the target caption. With it the direction is that between "
                    "imagined pictures, which arrives where the difference of two captions does not; the "
                    "captions here are then not used.",
                ),
                "baseline_embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "What the prior imagines, from the same seed, of the caption of what the picture is "
                    "now. It goes with target_embedding.",
                ),
            },
        }

    def execute(
        self,
        embedding: Embedding,
        target_text: TextFeatures,
        theta_max: float,
        frames: int,
        ease: str,
        baseline_text: TextFeatures | None = None,
        target_embedding: Embedding | None = None,
        baseline_embedding: Embedding | None = None,
    ) -> tuple[Embedding]:
        turn = (theta_max, frames, ease)
        if target_embedding is not None:
            return (embedding_diff(embedding, target_embedding, baseline_embedding, *turn),)
        if baseline_embedding is not None:
            raise ValueError(
                "baseline_embedding: it is given without target_embedding; connect what the prior imagines "
                "of the target caption as well, or disconnect it"
            )
        return (text_diff(embedding, target_text, baseline_text, *turn),)


class UnCLIPBlend:
    """Several embeddings in one."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Mixes up to four image embeddings by weight into one: decoded, it shows something of each. A "
        "negative weight leads away from an embedding."
    )
    SEARCH_ALIASES = ["mix embeddings", "average", "combine images", "image mixing", "weighted sum", "remix"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("The mixture.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        def weight(number: int) -> inputs.Input:
            connected = ", if it is connected" if number > 1 else ""
            return inputs.number(
                1.0,
                -4.0,
                4.0,
                0.05,
                f"How much of embedding_{number}{connected}. In mode mean only ratios of weights count.",
            )

        more = "One more embedding, of the same CLIP model."
        return {
            "required": {
                "embedding_1": inputs.socket(sockets.EMBEDDING, "The first embedding, or a batch of them."),
                "weight_1": weight(1),
                "weight_2": weight(2),
                "weight_3": weight(3),
                "weight_4": weight(4),
            },
            "optional": {
                **{f"embedding_{number}": inputs.socket(sockets.EMBEDDING, more) for number in (2, 3, 4)},
                "mode": inputs.choice(
                    list(get_args(Blend)),
                    "mean mixes directions and keeps the usual length of an embedding. sum adds the weighted "
                    "embeddings up as they are, as Kandinsky mixes; let its weights add up to 1.",
                ),
            },
        }

    def execute(
        self,
        embedding_1: Embedding | None,
        weight_1: float,
        weight_2: float,
        weight_3: float,
        weight_4: float,
        embedding_2: Embedding | None = None,
        embedding_3: Embedding | None = None,
        embedding_4: Embedding | None = None,
        mode: Blend = "mean",
    ) -> tuple[Embedding]:
        embeddings = (embedding_1, embedding_2, embedding_3, embedding_4)
        return (blend(embeddings, (weight_1, weight_2, weight_3, weight_4), mode),)


class UnCLIPBatchEmbeddings:
    """Several batches of embeddings as one."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Puts up to four image embeddings, or batches of them, behind each other in one batch, for whatever "
        "takes a batch: to decode them together, save them in one file, or fit principal components to all."
    )
    SEARCH_ALIASES = ["join embeddings", "concatenate", "batch images", "collect", "append", "merge batches"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("All embeddings in one batch, those of the first input first.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        blended = UnCLIPBlend.INPUT_TYPES()
        return {
            "required": {"embedding_1": blended["required"]["embedding_1"]},
            "optional": {
                name: given for name, given in blended["optional"].items() if name.startswith("embedding_")
            },
        }

    def execute(
        self,
        embedding_1: Embedding | None,
        embedding_2: Embedding | None = None,
        embedding_3: Embedding | None = None,
        embedding_4: Embedding | None = None,
    ) -> tuple[Embedding]:
        return (join((embedding_1, embedding_2, embedding_3, embedding_4)),)


class UnCLIPSaveEmbedding:
    """Embeddings to a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Saves image embeddings as a small file in the output folder, under unclip_embeddings. The file says "
        "which CLIP model it belongs to. To keep it among the models, move it to models/unclip/embeddings."
    )
    SEARCH_ALIASES = ["export embedding", "store embedding", "write embedding"]
    RETURN_TYPES = ()
    RETURN_NAMES = ()
    OUTPUT_TOOLTIPS = ()
    FUNCTION = "execute"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "embedding": inputs.socket(sockets.EMBEDDING, "The embeddings; a batch makes one file."),
                "filename_prefix": (
                    sockets.STRING,
                    {
                        "default": "embedding",
                        "tooltip": "Start of the file name; a number follows. It may name a sub-folder.",
                    },
                ),
            }
        }

    def execute(self, embedding: Embedding, filename_prefix: str) -> dict[str, Any]:
        root = host.output_folder() / embedding_files.SAVED_FOLDER
        folder, stem, number = place_files(filename_prefix, root)
        write = partial(save_embedding, embedding, new=True)
        path, _ = write_next(folder, stem, number, SUFFIX, write)
        host.report_written(path)
        name = path.relative_to(host.output_folder().resolve()).as_posix()
        return {"ui": {"text": [f"{name} [output]"]}}


class UnCLIPLoadEmbedding:
    """Embeddings from a file."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Loads image embeddings that Save unCLIP Embedding wrote."
    SEARCH_ALIASES = ["import embedding", "read embedding", "open embedding"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("The embeddings as they were saved.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "file": inputs.choice(
                    embedding_files.list_embeddings(),
                    "File in models/unclip/embeddings, or one in the output or input folder. Refresh the "
                    "node definitions to see new ones.",
                )
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:  # noqa: N802
        # A file saved since the list was made is fine; naming the input here switches off the list's check.
        return messages.refusal(embedding_files.find_embedding, file)

    @classmethod
    def IS_CHANGED(cls, file: str | None = None, **_: Any) -> str:  # noqa: N802
        if file is None:  # it comes by a wire, and may be any of them
            return fingerprint(embedding_files.all_embeddings())
        return hashlib.sha256(embedding_files.find_embedding(file).read_bytes()).hexdigest()

    def execute(self, file: str) -> tuple[Embedding]:
        return (load_embedding(embedding_files.find_embedding(file)),)
