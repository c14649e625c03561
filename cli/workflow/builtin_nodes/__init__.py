"""Stand-ins for ComfyUI's own nodes that workflows need most, for running without ComfyUI.

Same node ids, inputs, types and outputs, so that one workflow file runs in both; what a node does follows
ComfyUI's own file, which each module names.
"""

from __future__ import annotations

from .folders import Folders, current_folders, find_picture, use_folders
from .load_image import LoadImage, LoadImageMask, LoadImageOutput
from .primitives import (
    PrimitiveBoolean,
    PrimitiveFloat,
    PrimitiveInt,
    PrimitiveString,
    PrimitiveStringMultiline,
)
from .save_image import PreviewImage, SaveAnimatedWEBP, SaveImage
from .scale_image import ImageScale, ImageScaleBy
from .video import CreateVideo, SaveVideo

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "Folders",
    "LoadImage",
    "LoadImageMask",
    "PreviewImage",
    "SaveImage",
    "current_folders",
    "find_picture",
    "use_folders",
]

NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadImage": "Load Image",
    "LoadImageMask": "Load Image (as Mask)",
    "LoadImageOutput": "Load Image (from Outputs)",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "SaveAnimatedWEBP": "Save Animated WEBP",
    "ImageScale": "Upscale Image",
    "ImageScaleBy": "Upscale Image By",
    "CreateVideo": "Create Video",
    "SaveVideo": "Save Video",
    "PrimitiveString": "String",
    "PrimitiveStringMultiline": "String (Multiline)",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveBoolean": "Boolean",
}

NODE_CLASS_MAPPINGS: dict[str, type] = {
    node.__name__: node
    for node in (
        LoadImage,
        LoadImageMask,
        LoadImageOutput,
        SaveImage,
        PreviewImage,
        SaveAnimatedWEBP,
        ImageScale,
        ImageScaleBy,
        CreateVideo,
        SaveVideo,
        PrimitiveString,
        PrimitiveStringMultiline,
        PrimitiveInt,
        PrimitiveFloat,
        PrimitiveBoolean,
    )
}
