"""The nodes of unCLIP and their names in ComfyUI: one explicit table, stable from the first release."""

from .augment import UnCLIPAugment
from .bridge import (
    UnCLIPAutoencoderAsVAE,
    UnCLIPDecoderAsModel,
    UnCLIPFromClipVision,
    UnCLIPToClipVision,
)
from .compare import UnCLIPGrid, UnCLIPGuidanceSweep, UnCLIPScore
from .compile import UnCLIPCompile
from .decode import UnCLIPDecode
from .embedding import (
    UnCLIPBatchEmbeddings,
    UnCLIPBlend,
    UnCLIPInterpolate,
    UnCLIPLoadEmbedding,
    UnCLIPSaveEmbedding,
    UnCLIPTextDiff,
)
from .encode import UnCLIPEncodeFolder, UnCLIPImageEncode, UnCLIPTextEncode
from .inpaint import UnCLIPComposite, UnCLIPInpaint, UnCLIPRegionMask
from .inpaint_whole import UnCLIPInpaintWhole
from .loaders import UnCLIPLoadBundle, UnCLIPLoadCLIP, UnCLIPLoadDecoder, UnCLIPLoadPrior, UnCLIPLoadUpsampler
from .lora import UnCLIPLoadLoRA
from .messages import with_plain_errors
from .noise import UnCLIPInvert, UnCLIPNoise, UnCLIPNoiseInterpolate
from .operator import UnCLIPOperator
from .prior import (
    UnCLIPAutoregressivePrior,
    UnCLIPDiffusionPrior,
    UnCLIPNullEmbedding,
    UnCLIPTextAsImageEmbedding,
)
from .probe import UnCLIPPCAFit, UnCLIPPCAFromPrior, UnCLIPPCAReconstruct, UnCLIPZeroShot
from .region import UnCLIPRegion
from .sticker import UnCLIPSticker
from .subjects import UnCLIPSubjects
from .to_ip_adapter import UnCLIPToIPAdapter
from .upsample import UnCLIPUpsample

NODE_CLASS_MAPPINGS = {
    "UnCLIPLoadBundle": UnCLIPLoadBundle,
    "UnCLIPLoadCLIP": UnCLIPLoadCLIP,
    "UnCLIPLoadPrior": UnCLIPLoadPrior,
    "UnCLIPLoadDecoder": UnCLIPLoadDecoder,
    "UnCLIPLoadUpsampler": UnCLIPLoadUpsampler,
    "UnCLIPCompile": UnCLIPCompile,
    "UnCLIPTextEncode": UnCLIPTextEncode,
    "UnCLIPImageEncode": UnCLIPImageEncode,
    "UnCLIPEncodeFolder": UnCLIPEncodeFolder,
    "UnCLIPDiffusionPrior": UnCLIPDiffusionPrior,
    "UnCLIPAutoregressivePrior": UnCLIPAutoregressivePrior,
    "UnCLIPTextAsImageEmbedding": UnCLIPTextAsImageEmbedding,
    "UnCLIPNullEmbedding": UnCLIPNullEmbedding,
    "UnCLIPDecode": UnCLIPDecode,
    "UnCLIPUpsample": UnCLIPUpsample,
    "UnCLIPNoise": UnCLIPNoise,
    "UnCLIPNoiseInterpolate": UnCLIPNoiseInterpolate,
    "UnCLIPInvert": UnCLIPInvert,
    "UnCLIPInpaint": UnCLIPInpaint,
    "UnCLIPComposite": UnCLIPComposite,
    "UnCLIPRegionMask": UnCLIPRegionMask,
    "UnCLIPInterpolate": UnCLIPInterpolate,
    "UnCLIPTextDiff": UnCLIPTextDiff,
    "UnCLIPBlend": UnCLIPBlend,
    "UnCLIPBatchEmbeddings": UnCLIPBatchEmbeddings,
    "UnCLIPSaveEmbedding": UnCLIPSaveEmbedding,
    "UnCLIPLoadEmbedding": UnCLIPLoadEmbedding,
    "UnCLIPZeroShot": UnCLIPZeroShot,
    "UnCLIPSticker": UnCLIPSticker,
    "UnCLIPPCAFit": UnCLIPPCAFit,
    "UnCLIPPCAFromPrior": UnCLIPPCAFromPrior,
    "UnCLIPPCAReconstruct": UnCLIPPCAReconstruct,
    "UnCLIPGrid": UnCLIPGrid,
    "UnCLIPScore": UnCLIPScore,
    "UnCLIPGuidanceSweep": UnCLIPGuidanceSweep,
    "UnCLIPToClipVision": UnCLIPToClipVision,
    "UnCLIPFromClipVision": UnCLIPFromClipVision,
    "UnCLIPDecoderAsModel": UnCLIPDecoderAsModel,
    "UnCLIPAugment": UnCLIPAugment,
    "UnCLIPRegion": UnCLIPRegion,
    "UnCLIPInpaintWhole": UnCLIPInpaintWhole,
    "UnCLIPLoadLoRA": UnCLIPLoadLoRA,
    "UnCLIPOperator": UnCLIPOperator,
    "UnCLIPSubjects": UnCLIPSubjects,
    "UnCLIPToIPAdapter": UnCLIPToIPAdapter,
    "UnCLIPAutoencoderAsVAE": UnCLIPAutoencoderAsVAE,
}

NODE_CLASS_MAPPINGS = {node_id: with_plain_errors(node) for node_id, node in NODE_CLASS_MAPPINGS.items()}

NODE_DISPLAY_NAME_MAPPINGS = {
    "UnCLIPLoadBundle": "Load unCLIP Bundle",
    "UnCLIPLoadCLIP": "Load unCLIP CLIP",
    "UnCLIPLoadPrior": "Load unCLIP Prior",
    "UnCLIPLoadDecoder": "Load unCLIP Decoder",
    "UnCLIPLoadUpsampler": "Load unCLIP Upsampler",
    "UnCLIPCompile": "unCLIP Compile",
    "UnCLIPTextEncode": "unCLIP Text Encode",
    "UnCLIPImageEncode": "unCLIP Image Encode",
    "UnCLIPEncodeFolder": "unCLIP Encode Folder",
    "UnCLIPDiffusionPrior": "unCLIP Diffusion Prior",
    "UnCLIPAutoregressivePrior": "unCLIP Autoregressive Prior",
    "UnCLIPTextAsImageEmbedding": "unCLIP Text as Image Embedding",
    "UnCLIPNullEmbedding": "unCLIP Null Embedding",
    "UnCLIPDecode": "unCLIP Decode",
    "UnCLIPUpsample": "unCLIP Upsample",
    "UnCLIPNoise": "unCLIP Noise",
    "UnCLIPNoiseInterpolate": "unCLIP Noise Interpolate",
    "UnCLIPInvert": "unCLIP Invert",
    "UnCLIPInpaint": "unCLIP Inpaint",
    "UnCLIPComposite": "unCLIP Composite",
    "UnCLIPRegionMask": "unCLIP Region Mask",
    "UnCLIPInterpolate": "unCLIP Interpolate",
    "UnCLIPTextDiff": "unCLIP Text Diff",
    "UnCLIPBlend": "unCLIP Blend",
    "UnCLIPBatchEmbeddings": "unCLIP Batch Embeddings",
    "UnCLIPSaveEmbedding": "Save unCLIP Embedding",
    "UnCLIPLoadEmbedding": "Load unCLIP Embedding",
    "UnCLIPZeroShot": "unCLIP Zero-Shot",
    "UnCLIPSticker": "unCLIP Sticker",
    "UnCLIPPCAFit": "unCLIP PCA Fit",
    "UnCLIPPCAFromPrior": "unCLIP PCA from Prior",
    "UnCLIPPCAReconstruct": "unCLIP PCA Reconstruct",
    "UnCLIPGrid": "unCLIP Grid",
    "UnCLIPScore": "unCLIP Score",
    "UnCLIPGuidanceSweep": "unCLIP Guidance Sweep",
    "UnCLIPToClipVision": "unCLIP to CLIP Vision",
    "UnCLIPFromClipVision": "unCLIP from CLIP Vision",
    "UnCLIPDecoderAsModel": "unCLIP Decoder as Model",
    "UnCLIPAugment": "unCLIP Augment",
    "UnCLIPRegion": "unCLIP Region",
    "UnCLIPInpaintWhole": "unCLIP Inpaint (whole picture)",
    "UnCLIPLoadLoRA": "Load unCLIP LoRA",
    "UnCLIPOperator": "unCLIP Operator",
    "UnCLIPSubjects": "unCLIP Subjects",
    "UnCLIPToIPAdapter": "unCLIP to IPAdapter",
    "UnCLIPAutoencoderAsVAE": "unCLIP Autoencoder as VAE",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
