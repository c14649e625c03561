"""Encode nodes: captions and pictures into CLIP space."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.folders import fingerprint
from ..core.pictures.files import read_pictures
from ..core.pipelines.captions import choose_words, split_captions
from ..core.pipelines.encode import encode_pictures, encode_text
from ..core.pipelines.memory import encode_memory
from ..core.pipelines.towers import image_tower, text_tower
from ..core.stages import ClipStage
from . import host, inputs, messages, picture_folders, placement, sockets

CATEGORY = "unCLIP/encode"


class UnCLIPTextEncode:
    """A caption to text features."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Encodes a caption with CLIP, for the prior and, where it reads captions, for the decoder. Several "
        "captions, one a line, make a batch."
    )
    SEARCH_ALIASES = [
        "prompt",
        "caption",
        "clip text encode",
        "positive",
        "text2img",
        "txt2img",
        "negative",
        "negative prompt",
        "wildcards",
        "dynamic prompts",
    ]
    RETURN_TYPES = (sockets.TEXT,)
    RETURN_NAMES = ("text",)
    OUTPUT_TOOLTIPS = ("The encoded caption.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "clip": inputs.socket(
                    sockets.CLIP, "The CLIP model that belongs to the prior and the decoder."
                ),
                "text": (
                    sockets.STRING,
                    {
                        "default": "",
                        "multiline": True,
                        "placeholder": "a caption, such as: a flat panda",
                        "tooltip": "What the picture shows. It is taken word for word, unless an input below "
                        "says otherwise; what does not fit into the CLIP model's context, usually 77 tokens, "
                        "is cut off.",
                    },
                ),
            },
            "optional": {
                "one_caption_a_line": inputs.switch(
                    False,
                    "Every line that is not blank is a caption of its own: a batch, of which priors make an "
                    "embedding for each.",
                ),
                "wildcards": inputs.switch(
                    False,
                    "Words in curly braces with bars between them are a choice: one of them is taken, by "
                    "wildcard_seed.",
                ),
                "wildcard_seed": inputs.integer(
                    0,
                    0,
                    2**64 - 1,
                    "Makes the choices of wildcards. Line number i of several captions uses wildcard_seed + "
                    "i, counted from 0.",
                ),
            },
        }

    def execute(
        self,
        clip: ClipStage | None,
        text: str,
        one_caption_a_line: bool = False,
        wildcards: bool = False,
        wildcard_seed: int = 0,
    ) -> tuple[TextFeatures]:
        clip = sockets.require_stage(clip, "clip")
        captions = split_captions(text) if one_caption_a_line else [text]
        if wildcards:
            captions = [choose_words(each, wildcard_seed + row) for row, each in enumerate(captions)]
        clip = text_tower(clip)
        with (
            placement.on_device(clip, encode_memory(clip, captions=len(captions))),
            host.count_progress("Encode", len(captions)) as on_count,
        ):
            return (encode_text(clip, captions, callback=on_count).to(host.result_device()),)


class UnCLIPImageEncode:
    """Pictures to image embeddings."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Encodes pictures into CLIP image embeddings: what the pictures show, without their exact pixels. "
        "Decoding an embedding again makes variations of the picture."
    )
    SEARCH_ALIASES = [
        "image variation",
        "clip vision encode",
        "image embedding",
        "image to embedding",
        "img2img",
        "image prompt",
        "remix",
        "ip adapter",
    ]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("One image embedding for each picture.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "clip": inputs.socket(sockets.CLIP, "The CLIP model that belongs to the decoder."),
                "image": inputs.opaque("Pictures of any size."),
            },
            "optional": {
                "fit": inputs.choice(
                    ["crop", "squash"],
                    "CLIP sees a square: crop takes the middle of the picture, squash distorts all of it.",
                    advanced=True,
                ),
            },
        }

    def execute(self, clip: ClipStage | None, image: Tensor, fit: str = "crop") -> tuple[Embedding]:
        clip = sockets.require_stage(clip, "clip")
        pixels = sockets.image_to_core(image)
        clip = image_tower(clip)
        with (
            placement.on_device(clip, encode_memory(clip, pixels)),
            host.count_progress("Encode", len(pixels)) as on_count,
        ):
            return (encode_pictures(clip, pixels, fit=fit, callback=on_count).to(host.result_device()),)


class UnCLIPEncodeFolder:
    """All pictures of a folder to image embeddings."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Encodes all pictures of a folder into one batch of CLIP image embeddings, however many there are "
        "and whatever their sizes: for unCLIP PCA Fit, which wants many, or to vary a whole collection."
    )
    SEARCH_ALIASES = [
        "load images from folder",
        "image directory",
        "batch encode",
        "data set",
        "dataset",
        "pca of pictures",
    ]
    RETURN_TYPES = (sockets.EMBEDDING, sockets.INT, sockets.STRING)
    RETURN_NAMES = ("embedding", "count", "names")
    OUTPUT_TOOLTIPS = (
        "One image embedding for each picture, in the order of their names.",
        "How many pictures were encoded.",
        "The names of the pictures' files, one on each line.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        image_encode = UnCLIPImageEncode.INPUT_TYPES()
        return {
            "required": {
                "clip": image_encode["required"]["clip"],
                "folder": inputs.choice(
                    picture_folders.list_folders(),
                    "A folder in ComfyUI's input folder; the dot is the input folder itself. Refresh the "
                    "node definitions to see new ones. Files that are no pictures are passed over.",
                ),
                "subfolders": inputs.switch(False, "Also take the pictures in the folders below it."),
                "max_pictures": inputs.integer(
                    0, 0, 1_000_000, "Take so many pictures at most, the first by name. 0 takes all of them."
                ),
            },
            "optional": {"fit": image_encode["optional"]["fit"]},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str | None = None) -> bool | str:  # noqa: N802
        # A folder made since the list was is fine; naming the input here switches off the list's check.
        return messages.refusal(picture_folders.find_folder, folder)

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls,
        folder: str | None = None,
        subfolders: bool | None = None,
        max_pictures: int | None = None,
        **_: Any,
    ) -> str:
        """What comes by a wire is None here, and may be anything: then all that it could be counts."""
        if folder is None:
            folder, subfolders = ".", None
        if subfolders is None or max_pictures is None:
            max_pictures = 0
        path, names = picture_folders.find_pictures(
            folder, subfolders=subfolders is None or subfolders, max_pictures=max_pictures
        )
        return fingerprint(path / name for name in names)

    def execute(
        self, clip: ClipStage | None, folder: str, subfolders: bool, max_pictures: int, fit: str = "crop"
    ) -> tuple[Embedding, int, str]:
        clip = sockets.require_stage(clip, "clip")
        path, names = picture_folders.find_pictures(folder, subfolders=subfolders, max_pictures=max_pictures)
        clip = image_tower(clip)
        with (
            placement.on_device(clip, encode_memory(clip, len(names))),
            host.count_progress("Encode", len(names)) as on_count,
        ):
            pictures = read_pictures(path, names)
            embedding = encode_pictures(clip, pictures, fit=fit, callback=on_count).to(host.result_device())
        return embedding, len(embedding), "\n".join(names)
