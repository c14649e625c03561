"""ComfyUI's SaveImage and PreviewImage, as in its nodes.py, and SaveAnimatedWEBP of nodes_images.py."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from ....core.pictures.files import PNG_COMPRESSION, write_png
from ....core.writing import written_whole
from .folders import place, report, write_next

EXIF_MODEL, EXIF_MAKE = 0x0110, 0x010F  # where ComfyUI keeps prompt and workflow in a WebP
WORKFLOW_INPUTS = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
PREFIX_TOOLTIP = "Start of the file names; may name a sub-folder."


def picture_of(image: Tensor) -> Image.Image:
    """A picture [H, W, C], truncated to 8 bits as ComfyUI does, so that both write the same pixels."""
    return Image.fromarray(np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8))


class SaveImage:
    """ComfyUI's SaveImage: numbered PNGs that carry the workflow they come from."""

    CATEGORY = "image"
    DESCRIPTION = "Saves pictures as PNG files with their workflow."
    RETURN_TYPES = ("IMAGE",)  # since ComfyUI 0.33; graphs of before have no link from it
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    KIND = "output"
    COMPRESSION = PNG_COMPRESSION

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures to save."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": PREFIX_TOOLTIP}),
            },
            "hidden": WORKFLOW_INPUTS,
        }

    def save_images(
        self,
        images: Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: dict | None = None,
        extra_pnginfo: dict | None = None,
    ) -> dict[str, Any]:
        """Write IMAGE [B, H, W, C] as ``prefix_00001_.png`` and on, and pass it on; reports the names."""
        height, width = images[0].shape[:2]
        where = place(filename_prefix, self.KIND, width, height)
        metadata = PngImagePlugin.PngInfo()
        for key, document in {"prompt": prompt, **(extra_pnginfo or {})}.items():
            if document is not None:
                metadata.add_text(key, json.dumps(document))
        reported = []
        for index, image in enumerate(images):
            write = partial(
                write_png,
                picture=picture_of(image),
                metadata=metadata,
                compression=self.COMPRESSION,
                new=True,
            )
            path, where = write_next(where, ".png", write, where.stem.replace("%batch_num%", str(index)))
            reported.append(report(path, where.subfolder, self.KIND))
        return {"ui": {"images": reported}, "result": (images,)}


class PreviewImage(SaveImage):
    """ComfyUI's PreviewImage: pictures in a temporary folder."""

    DESCRIPTION = "Writes pictures into a temporary folder."
    KIND = "temp"
    COMPRESSION = 1

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}, "hidden": WORKFLOW_INPUTS}


class SaveAnimatedWEBP:
    """ComfyUI's SaveAnimatedWEBP: the pictures of a batch as the frames of one file."""

    CATEGORY = "image/animation"
    DESCRIPTION = "Saves a batch of pictures as an animated WebP with its workflow."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    METHODS = {"default": 4, "fastest": 0, "slowest": 6}  # of libwebp

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": PREFIX_TOOLTIP}),
                "fps": ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
                "lossless": ("BOOLEAN", {"default": True}),
                "quality": ("INT", {"default": 80, "min": 0, "max": 100}),
                "method": (list(cls.METHODS),),
            },
            "hidden": WORKFLOW_INPUTS,
        }

    def save_images(
        self,
        images: Tensor,
        filename_prefix: str,
        fps: float,
        lossless: bool,
        quality: int,
        method: str,
        prompt: dict | None = None,
        extra_pnginfo: dict | None = None,
    ) -> dict[str, Any]:
        """Write IMAGE [B, H, W, C] as ``prefix_00001_.webp`` and pass it on; reports the name."""
        height, width = images[0].shape[:2]
        where = place(filename_prefix, "output", width, height)
        frames = [picture_of(image) for image in images]

        def write(path: Path) -> None:
            with written_whole(path, new=True) as unfinished:
                frames[0].save(
                    unfinished,
                    format="WEBP",
                    save_all=True,
                    append_images=frames[1:],
                    duration=int(1000.0 / fps),
                    exif=_exif(prompt, extra_pnginfo),
                    lossless=lossless,
                    quality=quality,
                    method=self.METHODS[method],
                )

        path, _ = write_next(where, ".webp", write)
        reported = report(path, where.subfolder, "output")
        return {"ui": {"images": [reported], "animated": [True]}, "result": (images,)}


def _exif(prompt: dict | None, extra_pnginfo: dict | None) -> Image.Exif:
    """The workflow in the tags in which ComfyUI's page looks for it: ``prompt:…``, ``workflow:…``."""
    exif = Image.Exif()
    if prompt is not None:
        exif[EXIF_MODEL] = f"prompt:{json.dumps(prompt)}"
    for index, (key, document) in enumerate((extra_pnginfo or {}).items()):
        exif[EXIF_MAKE - index] = f"{key}:{json.dumps(document)}"
    return exif
