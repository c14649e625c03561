"""The nodes of unCLIP and their names in ComfyUI: one explicit table, stable from the first release."""

from .decode import UnCLIPDecode
from .encode import UnCLIPImageEncode, UnCLIPTextEncode
from .loaders import (
    UnCLIPLoadBundle,
    UnCLIPLoadCLIP,
    UnCLIPLoadDecoder,
    UnCLIPLoadPrior,
    UnCLIPLoadUpsampler,
)
from .prior import UnCLIPDiffusionPrior
from .upsample import UnCLIPUpsample

NODE_CLASS_MAPPINGS = {
    "UnCLIPLoadBundle": UnCLIPLoadBundle,
    "UnCLIPLoadCLIP": UnCLIPLoadCLIP,
    "UnCLIPLoadPrior": UnCLIPLoadPrior,
    "UnCLIPLoadDecoder": UnCLIPLoadDecoder,
    "UnCLIPLoadUpsampler": UnCLIPLoadUpsampler,
    "UnCLIPTextEncode": UnCLIPTextEncode,
    "UnCLIPImageEncode": UnCLIPImageEncode,
    "UnCLIPDiffusionPrior": UnCLIPDiffusionPrior,
    "UnCLIPDecode": UnCLIPDecode,
    "UnCLIPUpsample": UnCLIPUpsample,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "UnCLIPLoadBundle": "Load unCLIP Bundle",
    "UnCLIPLoadCLIP": "Load unCLIP CLIP",
    "UnCLIPLoadPrior": "Load unCLIP Prior",
    "UnCLIPLoadDecoder": "Load unCLIP Decoder",
    "UnCLIPLoadUpsampler": "Load unCLIP Upsampler",
    "UnCLIPTextEncode": "unCLIP Text Encode",
    "UnCLIPImageEncode": "unCLIP Image Encode",
    "UnCLIPDiffusionPrior": "unCLIP Diffusion Prior",
    "UnCLIPDecode": "unCLIP Decode",
    "UnCLIPUpsample": "unCLIP Upsample",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
