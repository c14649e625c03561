"""Stand-ins for ComfyUI's own nodes that workflows need most, for running without ComfyUI.

LoadImage, LoadImageMask, SaveImage, PreviewImage, and PrimitiveStringMultiline, which gives one text to many
nodes. Same node ids, inputs, types and outputs, so that one workflow file runs in both. Behaviour follows
ComfyUI's nodes.py, folder_paths.py and comfy_extras/nodes_primitive.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from ...core.pictures.files import IMAGE_SUFFIXES, PNG_COMPRESSION, upright, write_png
from ...core.pictures.numbered_names import place_files

NO_ALPHA_MASK = (64, 64)  # size of the empty mask that ComfyUI gives for a picture without transparency


@dataclass
class Folders:
    """Where pictures are read and written.

    Attributes:
        input: LoadImage's names are relative to it.
        output: SaveImage writes below it.
        temp: PreviewImage writes into it; made when it is first needed if None.
        written: every file written so far, in order.
    """

    input: Path
    output: Path
    temp: Path | None = None
    written: list[Path] = field(default_factory=list)

    def of(self, kind: str) -> Path:
        """The folder of an annotated name's kind: ``input``, ``output`` or ``temp``."""
        if kind == "temp":
            if self.temp is None:
                self.temp = Path(tempfile.mkdtemp(prefix="unclip-preview-"))
            return self.temp
        return self.input if kind == "input" else self.output


_folders: ContextVar[Folders | None] = ContextVar("folders", default=None)


@contextlib.contextmanager
def use_folders(folders: Folders) -> Iterator[Folders]:
    """Inside the block, the nodes of this file read and write in these folders."""
    token = _folders.set(folders)
    try:
        yield folders
    finally:
        _folders.reset(token)


def current_folders() -> Folders:
    """The folders of the surrounding `use_folders`; outside of one, ``input`` and ``output`` here."""
    return _folders.get() or Folders(Path("input"), Path("output"))


# -------------------------------------------------------------------------------------------- names of files


def find_picture(name: str) -> Path:
    """The path of an input picture by its name, which may end in `` [input]``, `` [output]`` or `` [temp]``.

    Raises:
        ValueError: a name that leads out of its folder, or no such file.
    """
    kind = "input"
    annotated = re.fullmatch(r"(.*?)\s*\[(input|output|temp)\]", name, re.DOTALL)
    if annotated:
        name, kind = annotated.groups()
    folder = current_folders().of(kind).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(
            f"{name!r} lies outside the {kind} folder {folder}. Choose another folder with --input, and name "
            "the picture relative to it."
        )
    if not path.is_file():
        raise ValueError(
            f"there is no picture {name!r} in the {kind} folder {folder}. Put it there, or choose another "
            "folder with --input."
        )
    return path


def _check_picture(name: Any) -> bool | str:
    """ComfyUI's form of an answer to VALIDATE_INPUTS: True, or what is wrong. None stands for a link."""
    if name is None:
        return True
    try:
        find_picture(str(name))
    except ValueError as error:
        return str(error)
    return True


def _list_pictures() -> list[str]:
    folder = current_folders().input
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


# --------------------------------------------------------------------------------------------------- reading


def _open_picture(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path.name} is not a picture that can be read: {error}.") from error


def _pixels(frame: Image.Image) -> Tensor:
    """[H, W, C] or [H, W] float32 in 0..1."""
    return torch.from_numpy(np.asarray(frame).astype(np.float32) / 255.0)


class _PictureNode:
    """A node whose ``image`` is a file: it must be there, and its time says whether it changed."""

    @classmethod
    def VALIDATE_INPUTS(cls, image: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        return _check_picture(image)

    @classmethod
    def IS_CHANGED(cls, image: str, **_: Any) -> int:  # noqa: N802
        return find_picture(image).stat().st_mtime_ns


class LoadImage(_PictureNode):
    """ComfyUI's LoadImage: a picture (or the frames of an animation) and its transparency as a mask."""

    CATEGORY = "image"
    DESCRIPTION = "Loads a picture from the input folder."
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"image": (_list_pictures(), {"image_upload": True})}}

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        """IMAGE [B, H, W, 3] and MASK [B, H, W] (1 − alpha; zeros of 64×64 where there is no alpha)."""
        pictures: list[Tensor] = []
        masks: list[Tensor] = []
        with _open_picture(find_picture(image)) as opened:
            for raw in ImageSequence.Iterator(opened):
                frame = upright(raw)
                rgb = _pixels(frame.convert("RGB"))  # [H, W, 3]
                if pictures and rgb.shape != pictures[0].shape:
                    continue
                if frame.has_transparency_data:
                    mask = 1.0 - _pixels(frame.convert("RGBA").getchannel("A"))  # [H, W]
                else:
                    mask = torch.zeros(NO_ALPHA_MASK)
                pictures.append(rgb)
                masks.append(mask)
                if opened.format == "MPO":  # further frames are depth maps and thumbnails
                    break
        # Frames of one animation may differ in whether they have alpha; a stack needs one size.
        if len({mask.shape for mask in masks}) > 1:
            size = pictures[0].shape[:2]
            masks = [mask if mask.shape == size else torch.zeros(size) for mask in masks]
        return torch.stack(pictures), torch.stack(masks)


class LoadImageMask(_PictureNode):
    """ComfyUI's LoadImageMask: one channel of a picture as a mask."""

    CATEGORY = "mask"
    DESCRIPTION = "Loads one channel of a picture as a mask."
    CHANNELS = ("alpha", "red", "green", "blue")
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "image": (_list_pictures(), {"image_upload": True}),
                "channel": (list(cls.CHANNELS),),
            }
        }

    def load_image(self, image: str, channel: str) -> tuple[Tensor]:
        """MASK [1, H, W]; alpha is inverted (1 where the picture is transparent)."""
        with _open_picture(find_picture(image)) as opened:
            frame = upright(opened).convert("RGBA")
        values = _pixels(frame.getchannel(channel[0].upper()))  # [H, W]
        return ((1.0 - values if channel == "alpha" else values)[None],)


# --------------------------------------------------------------------------------------------------- writing


class SaveImage:
    """ComfyUI's SaveImage: numbered PNGs that carry the workflow they come from."""

    CATEGORY = "image"
    DESCRIPTION = "Saves pictures as PNG files with their workflow."
    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    KIND = "output"
    COMPRESSION = PNG_COMPRESSION

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures to save."}),
                "filename_prefix": (
                    "STRING",
                    {"default": "ComfyUI", "tooltip": "Start of the file names; may name a sub-folder."},
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: dict | None = None,
        extra_pnginfo: dict | None = None,
    ) -> dict[str, Any]:
        """Write IMAGE [B, H, W, C] as ``prefix_00001_.png`` and on; reports their names."""
        folders = current_folders()
        root = folders.of(self.KIND)
        height, width = images[0].shape[:2]
        folder, stem, number = place_files(filename_prefix, root, {"width": width, "height": height})
        folder.mkdir(parents=True, exist_ok=True)
        metadata = PngImagePlugin.PngInfo()
        for key, document in {"prompt": prompt, **(extra_pnginfo or {})}.items():
            if document is not None:
                metadata.add_text(key, json.dumps(document))
        reported = []
        for index, image in enumerate(images):
            name = f"{stem.replace('%batch_num%', str(index))}_{number + index:05}_.png"
            # Truncated to 8 bits as ComfyUI does, so that both write the same pixels.
            pixels = np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
            write_png(folder / name, Image.fromarray(pixels), metadata, self.COMPRESSION)
            folders.written.append(folder / name)
            subfolder = folder.relative_to(root.resolve()).as_posix()
            reported.append(
                {"filename": name, "subfolder": "" if subfolder == "." else subfolder, "type": self.KIND}
            )
        return {"ui": {"images": reported}}


class PreviewImage(SaveImage):
    """ComfyUI's PreviewImage: pictures in a temporary folder."""

    DESCRIPTION = "Writes pictures into a temporary folder."
    KIND = "temp"
    COMPRESSION = 1

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }


# ------------------------------------------------------------------------------------------------------ text


class PrimitiveStringMultiline:
    """ComfyUI's PrimitiveStringMultiline: a text."""

    CATEGORY = "utils/primitive"
    DESCRIPTION = "Gives a text to other nodes."
    RETURN_TYPES = ("STRING",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": ("STRING", {"multiline": True})}}

    def give(self, value: str) -> tuple[str]:
        return (value,)


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "PrimitiveStringMultiline": PrimitiveStringMultiline,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadImage": "Load Image",
    "LoadImageMask": "Load Image (as Mask)",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "PrimitiveStringMultiline": "String (Multiline)",
}
