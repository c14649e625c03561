"""Load nodes: a whole bundle, or one stage from a file."""

from __future__ import annotations

from typing import Any

from ..core.formats.load import files_beside, load_any_bundle, load_any_stage
from ..core.precision import PRECISIONS
from ..core.stages import StageName
from . import catalogue, host, inputs, messages, placement, sockets

CATEGORY = "unCLIP/load"
SOURCES = "unclip_sources"  # option of an input that web/unclip_missing.js reads
NOTHING = "none"
"""No second bundle."""


def _precision() -> inputs.Input:
    return inputs.choice(
        list(PRECISIONS),
        "Number format of the weights. auto takes what is fast on this machine; fp32 is the most exact and "
        "the largest; bf16 and fp16 halve the memory.",
    )


class UnCLIPLoadBundle:
    """All stages of one bundle."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a whole unCLIP system: CLIP, prior, decoder and upsamplers that belong together. 'mini' comes "
        "with this node pack; put other bundles as folders into models/unclip, also Karlo and "
        "Kandinsky as they are published for diffusers. What a bundle lacks stays empty."
    )
    SEARCH_ALIASES = [
        "unclip",
        "dall-e 2",
        "dalle2",
        "checkpoint loader",
        "load unclip model",
        "dalle",
        "karlo",
        "kandinsky",
        "text2img",
        "txt2img",
    ]
    RETURN_TYPES = (
        sockets.CLIP,
        sockets.PRIOR,
        sockets.DECODER,
        sockets.UPSAMPLER,
        sockets.UPSAMPLER,
        sockets.PRIOR,
        sockets.CLIP,
    )
    RETURN_NAMES = (
        "clip",
        "prior",
        "decoder",
        "upsampler_256",
        "upsampler_1024",
        "ar_prior",
        "decoder_clip",
    )
    OUTPUT_TOOLTIPS = (
        "Encodes captions and pictures.",
        "Turns an encoded caption into an image embedding, by diffusion: for unCLIP Diffusion Prior.",
        "Turns an image embedding into a picture.",
        "The first upsampler, usually from 64 to 256 pixels.",
        "The second upsampler, usually from 256 to 1024 pixels. Empty where the bundle has only one.",
        "Turns an encoded caption into an image embedding, code by code: for unCLIP Autoregressive Prior. "
        "mini has one; empty where the bundle has none.",
        "Encodes captions for the decoder, where it reads them by a text encoder of its own (Kandinsky 2.1). "
        "Else it is the same as clip.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "bundle": inputs.choice(
                    catalogue.list_bundles(),
                    "Folder in models/unclip with a bundle.json, or with the model_index.json of diffusers. "
                    "'mini' comes with this pack.",
                    **{SOURCES: catalogue.sources_of_missing()},
                ),
                "precision": _precision(),
            },
            "optional": {
                "with_bundle": inputs.choice(
                    [NOTHING, *catalogue.list_bundles_to_join()],
                    "A second folder that belongs to the first: Kandinsky's decoder, whose prior is another "
                    "download. Choose the prior as bundle, and the decoder here.",
                    **{SOURCES: catalogue.sources_of_missing()},
                )
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, bundle: Any = None, with_bundle: Any = NOTHING) -> bool | str:  # noqa: N802
        # The second first: the download of a decoder brings its prior along, and another one's would not.
        second = None if with_bundle == NOTHING else with_bundle
        find = {"with_bundle": catalogue.find_bundle_to_join, "bundle": catalogue.find_bundle}
        return messages.refusals(find, with_bundle=second, bundle=bundle)

    @classmethod
    def IS_CHANGED(cls, bundle: Any = None, with_bundle: Any = None, **_: Any) -> str:  # noqa: N802
        return catalogue.state_of(catalogue.first_bundle, bundle, with_bundle)

    def execute(self, bundle: str, precision: str, with_bundle: str = NOTHING) -> tuple:
        folders = [catalogue.find_bundle(bundle)]
        if with_bundle != NOTHING:
            folders.append(catalogue.find_bundle_to_join(with_bundle, "with_bundle"))
        found = load_any_bundle(*folders, dtype=host.choose_dtype(precision))
        first, second, *_ = (*sorted(found.upsamplers, key=lambda stage: stage.low_size), None, None)
        stages = (found.clip, found.prior, found.decoder, first, second, found.ar_prior)
        read_by = found.decoder_text or found.clip
        return tuple(placement.managed(stage) for stage in (*stages, read_by))


class _StageLoader:
    """What the loaders of single stages have in common."""

    CATEGORY = CATEGORY
    FUNCTION = "execute"
    STAGE: StageName
    STAGE_IN_WORDS: str

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "file": inputs.choice(
                    catalogue.list_stage_files(cls.STAGE),
                    f"File of {cls.STAGE_IN_WORDS} in models/unclip, or inside a bundle there. Files of "
                    "Karlo, Kandinsky and others are recognised by what is in them.",
                    **{SOURCES: catalogue.sources_of_missing()},
                ),
                "precision": _precision(),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file: Any = None) -> bool | str:  # noqa: N802
        return messages.refusal(catalogue.find_stage_file, file)

    @classmethod
    def IS_CHANGED(cls, file: Any = None, **_: Any) -> str:  # noqa: N802
        return catalogue.state_of(catalogue.find_stage_file, file, beside=files_beside)

    def execute(self, file: str, precision: str) -> tuple[Any]:
        path = catalogue.find_stage_file(file)
        stage = load_any_stage(path, expect=self.STAGE, dtype=host.choose_dtype(precision))
        return (placement.managed(stage),)


class UnCLIPLoadCLIP(_StageLoader):
    """The CLIP model from one file."""

    DESCRIPTION = "Loads a CLIP model, which encodes captions and pictures into the space where unCLIP works."
    SEARCH_ALIASES = ["unclip clip", "clip loader", "text encoder", "karlo", "kandinsky", "glide"]
    RETURN_TYPES = (sockets.CLIP,)
    RETURN_NAMES = ("clip",)
    OUTPUT_TOOLTIPS = ("Encodes captions and pictures.",)
    STAGE, STAGE_IN_WORDS = "clip", "a CLIP model"


class UnCLIPLoadPrior(_StageLoader):
    """A prior from one file."""

    DESCRIPTION = (
        "Loads a prior: the stage that turns an encoded caption into an image embedding. It must belong to "
        "the same CLIP model as the caption and the decoder. A diffusion prior runs in unCLIP Diffusion "
        "Prior, an autoregressive one in unCLIP Autoregressive Prior."
    )
    SEARCH_ALIASES = ["unclip prior", "prior loader", "karlo", "kandinsky", "laion"]
    RETURN_TYPES = (sockets.PRIOR,)
    RETURN_NAMES = ("prior",)
    OUTPUT_TOOLTIPS = ("Turns an encoded caption into an image embedding.",)
    STAGE, STAGE_IN_WORDS = "prior", "a prior"


class UnCLIPLoadDecoder(_StageLoader):
    """A decoder from one file."""

    DESCRIPTION = "Loads a decoder: the stage that turns an image embedding into a small picture."
    SEARCH_ALIASES = ["unclip decoder", "decoder loader", "unet loader", "karlo", "glide"]
    RETURN_TYPES = (sockets.DECODER,)
    RETURN_NAMES = ("decoder",)
    OUTPUT_TOOLTIPS = ("Turns an image embedding into a picture.",)
    STAGE, STAGE_IN_WORDS = "decoder", "a decoder"


class UnCLIPLoadUpsampler(_StageLoader):
    """An upsampler from one file."""

    DESCRIPTION = "Loads a diffusion upsampler: the stage that makes a picture larger and adds detail."
    SEARCH_ALIASES = [
        "unclip upscaler",
        "upsampler loader",
        "upscale model loader",
        "super resolution",
        "karlo",
        "glide",
    ]
    RETURN_TYPES = (sockets.UPSAMPLER,)
    RETURN_NAMES = ("upsampler",)
    OUTPUT_TOOLTIPS = ("Makes a picture larger.",)
    STAGE, STAGE_IN_WORDS = "upsampler", "an upsampler"
