"""The nodes whose help pages show how they are wired: loaders, files, and the ways to ComfyUI's own nodes."""

from __future__ import annotations

from help_diagrams import Diagram

EMBEDDED = "mini/{}.safetensors"

DIAGRAMS = {
    "UnCLIPLoadBundle": Diagram(
        (
            ("UnCLIPLoadBundle",),
            (
                "UnCLIPTextEncode",
                "UnCLIPDiffusionPrior",
                "UnCLIPAutoregressivePrior",
                "UnCLIPDecode",
                "UnCLIPUpsample",
            ),
        ),
        (
            "UnCLIPLoadBundle.clip UnCLIPTextEncode.clip",
            "UnCLIPLoadBundle.prior UnCLIPDiffusionPrior.prior",
            "UnCLIPLoadBundle.ar_prior UnCLIPAutoregressivePrior.prior",
            "UnCLIPLoadBundle.decoder UnCLIPDecode.decoder",
            "UnCLIPLoadBundle.upsampler_256 UnCLIPUpsample.upsampler",
        ),
        {"UnCLIPLoadBundle": {"bundle": "mini", "precision": "auto"}},
    ),
    "UnCLIPLoadCLIP": Diagram(
        (("UnCLIPLoadCLIP",), ("UnCLIPTextEncode", "UnCLIPImageEncode", "UnCLIPZeroShot")),
        (
            "UnCLIPLoadCLIP.clip UnCLIPTextEncode.clip",
            "UnCLIPLoadCLIP.clip UnCLIPImageEncode.clip",
            "UnCLIPLoadCLIP.clip UnCLIPZeroShot.clip",
        ),
        {"UnCLIPLoadCLIP": {"file": EMBEDDED.format("clip"), "precision": "auto"}},
    ),
    "UnCLIPLoadPrior": Diagram(
        (("UnCLIPLoadPrior",), ("UnCLIPAutoregressivePrior", "UnCLIPPCAFromPrior")),
        (
            "UnCLIPLoadPrior.prior UnCLIPAutoregressivePrior.prior",
            "UnCLIPLoadPrior.prior UnCLIPPCAFromPrior.prior",
        ),
        {"UnCLIPLoadPrior": {"file": EMBEDDED.format("ar-prior"), "precision": "auto"}},
        "A diffusion prior goes into unCLIP Diffusion Prior instead.",
    ),
    "UnCLIPLoadDecoder": Diagram(
        (("UnCLIPLoadDecoder",), ("UnCLIPDecode", "UnCLIPInvert", "UnCLIPInpaint")),
        (
            "UnCLIPLoadDecoder.decoder UnCLIPDecode.decoder",
            "UnCLIPLoadDecoder.decoder UnCLIPInvert.decoder",
            "UnCLIPLoadDecoder.decoder UnCLIPInpaint.decoder",
        ),
        {"UnCLIPLoadDecoder": {"file": EMBEDDED.format("decoder"), "precision": "auto"}},
    ),
    "UnCLIPLoadUpsampler": Diagram(
        (("UnCLIPLoadUpsampler", "UnCLIPDecode"), ("UnCLIPUpsample",)),
        (
            "UnCLIPLoadUpsampler.upsampler UnCLIPUpsample.upsampler",
            "UnCLIPDecode.image UnCLIPUpsample.image",
        ),
        {"UnCLIPLoadUpsampler": {"file": EMBEDDED.format("upsampler-256"), "precision": "auto"}},
    ),
    "UnCLIPCompile": Diagram(
        (("UnCLIPLoadBundle",), ("UnCLIPCompile",), ("UnCLIPDecode", "UnCLIPUpsample")),
        (
            "UnCLIPLoadBundle.decoder UnCLIPCompile.decoder",
            "UnCLIPLoadBundle.upsampler_256 UnCLIPCompile.upsampler",
            "UnCLIPCompile.decoder UnCLIPDecode.decoder",
            "UnCLIPCompile.upsampler UnCLIPUpsample.upsampler",
        ),
        {"UnCLIPLoadBundle": {"bundle": "mini", "precision": "auto"}},
    ),
    "UnCLIPLoadLoRA": Diagram(
        (("UnCLIPLoadBundle",), ("UnCLIPLoadLoRA",), ("UnCLIPDiffusionPrior", "UnCLIPDecode")),
        (
            "UnCLIPLoadBundle.prior UnCLIPLoadLoRA.prior",
            "UnCLIPLoadBundle.decoder UnCLIPLoadLoRA.decoder",
            "UnCLIPLoadLoRA.prior UnCLIPDiffusionPrior.prior",
            "UnCLIPLoadLoRA.decoder UnCLIPDecode.decoder",
        ),
        {"UnCLIPLoadLoRA": {"lora": "ink.safetensors", "strength": "0.8"}},
        "Several in a row add up.",
    ),
    "UnCLIPTextEncode": Diagram(
        (("UnCLIPLoadBundle",), ("UnCLIPTextEncode",), ("UnCLIPDiffusionPrior", "UnCLIPDecode")),
        (
            "UnCLIPLoadBundle.clip UnCLIPTextEncode.clip",
            "UnCLIPTextEncode.text UnCLIPDiffusionPrior.text",
            "UnCLIPTextEncode.text UnCLIPDecode.text",
        ),
        {"UnCLIPTextEncode": {"text": "a flat panda"}},
    ),
    "UnCLIPOperator": Diagram(
        (
            ("UnCLIPLoadBundle", "UnCLIPImageEncode", "UnCLIPLoadEmbedding"),
            ("UnCLIPOperator",),
            ("UnCLIPDecode",),
        ),
        (
            "UnCLIPLoadBundle.prior UnCLIPOperator.prior",
            "UnCLIPImageEncode.embedding UnCLIPOperator.embedding",
            "UnCLIPLoadEmbedding.embedding UnCLIPOperator.embedding_b",
            "UnCLIPOperator.embedding UnCLIPDecode.embedding",
        ),
        {"UnCLIPOperator": {"file": "pops/texturing/learned_prior.pth"}},
    ),
    "UnCLIPSubjects": Diagram(
        (("UnCLIPImageEncode", "UnCLIPLoadPrior"), ("UnCLIPSubjects",), ("UnCLIPDiffusionPrior",)),
        (
            "UnCLIPImageEncode.embedding UnCLIPSubjects.embedding",
            "UnCLIPLoadPrior.prior UnCLIPDiffusionPrior.prior",
            "UnCLIPSubjects.text UnCLIPDiffusionPrior.text",
        ),
        {"UnCLIPSubjects": {"text": "a cat at a park", "subject_names": "cat"}},
    ),
    "UnCLIPEncodeFolder": Diagram(
        (("UnCLIPLoadBundle",), ("UnCLIPEncodeFolder",), ("UnCLIPPCAFit", "UnCLIPSaveEmbedding")),
        (
            "UnCLIPLoadBundle.clip UnCLIPEncodeFolder.clip",
            "UnCLIPEncodeFolder.embedding UnCLIPPCAFit.embedding",
            "UnCLIPEncodeFolder.embedding UnCLIPSaveEmbedding.embedding",
        ),
        {"UnCLIPEncodeFolder": {"folder": "my pictures"}},
        "The folder “my pictures” lies in ComfyUI's input folder.",
    ),
    "UnCLIPPCAFit": Diagram(
        (("UnCLIPEncodeFolder",), ("UnCLIPPCAFit",), ("UnCLIPPCAReconstruct",)),
        (
            "UnCLIPEncodeFolder.embedding UnCLIPPCAFit.embedding",
            "UnCLIPPCAFit.pca UnCLIPPCAReconstruct.pca",
        ),
        {"UnCLIPEncodeFolder": {"folder": "my pictures"}, "UnCLIPPCAFit": {"components": "0"}},
    ),
    "UnCLIPSaveEmbedding": Diagram(
        (("UnCLIPImageEncode",), ("UnCLIPSaveEmbedding",)),
        ("UnCLIPImageEncode.embedding UnCLIPSaveEmbedding.embedding",),
        {"UnCLIPSaveEmbedding": {"filename_prefix": "panda"}},
        "Writes output/unclip_embeddings/panda_00001_.safetensors",
    ),
    "UnCLIPLoadEmbedding": Diagram(
        (("UnCLIPLoadBundle", "UnCLIPLoadEmbedding"), ("UnCLIPDecode",)),
        (
            "UnCLIPLoadBundle.decoder UnCLIPDecode.decoder",
            "UnCLIPLoadEmbedding.embedding UnCLIPDecode.embedding",
        ),
        {"UnCLIPLoadEmbedding": {"file": "panda.safetensors"}},
    ),
    "UnCLIPToClipVision": Diagram(
        (("UnCLIPDiffusionPrior",), ("UnCLIPToClipVision",), ("unCLIPConditioning",)),
        (
            "UnCLIPDiffusionPrior.embedding UnCLIPToClipVision.embedding",
            "UnCLIPToClipVision.clip_vision_output unCLIPConditioning.clip_vision_output",
        ),
        {"UnCLIPToClipVision": {"target": "any"}},
    ),
    "UnCLIPFromClipVision": Diagram(
        (("CLIPVisionEncode",), ("UnCLIPFromClipVision",)),
        ("CLIPVisionEncode.CLIP_VISION_OUTPUT UnCLIPFromClipVision.clip_vision_output",),
    ),
    "UnCLIPDecoderAsModel": Diagram(
        (
            ("UnCLIPLoadBundle", "UnCLIPDiffusionPrior"),
            ("UnCLIPDecoderAsModel", "EmptyChromaRadianceLatentImage"),
            ("KSampler",),
        ),
        (
            "UnCLIPLoadBundle.decoder UnCLIPDecoderAsModel.decoder",
            "UnCLIPDiffusionPrior.embedding UnCLIPDecoderAsModel.embedding",
            "UnCLIPDecoderAsModel.model KSampler.model",
            "UnCLIPDecoderAsModel.positive KSampler.positive",
            "UnCLIPDecoderAsModel.negative KSampler.negative",
            "EmptyChromaRadianceLatentImage.LATENT KSampler.latent_image",
        ),
        {"EmptyChromaRadianceLatentImage": {"width, height": "64"}},
        "Behind KSampler: VAE Decode with the VAE pixel_space.",
    ),
    "UnCLIPToIPAdapter": Diagram(
        (("UnCLIPDiffusionPrior",), ("UnCLIPToIPAdapter",), ("IPAdapterEmbeds",)),
        (
            "UnCLIPDiffusionPrior.embedding UnCLIPToIPAdapter.embedding",
            "UnCLIPToIPAdapter.pos_embed IPAdapterEmbeds.pos_embed",
            "UnCLIPToIPAdapter.neg_embed IPAdapterEmbeds.neg_embed",
        ),
        {"UnCLIPToIPAdapter": {"image_encoder": "vit-bigg"}},
        "IPAdapter Embeds belongs to the node pack ComfyUI_IPAdapter_plus.",
    ),
    "UnCLIPAutoencoderAsVAE": Diagram(
        (("UnCLIPLoadBundle",), ("UnCLIPAutoencoderAsVAE", "KSampler"), ("VAEDecode",)),
        (
            "UnCLIPLoadBundle.decoder UnCLIPAutoencoderAsVAE.decoder",
            "KSampler.LATENT VAEDecode.samples",
            "UnCLIPAutoencoderAsVAE.vae VAEDecode.vae",
        ),
        {"UnCLIPLoadBundle": {"bundle": "kandinsky22"}},
        "Before KSampler: unCLIP Decoder as Model, and Empty Latent Image or VAE Encode.",
    ),
}
