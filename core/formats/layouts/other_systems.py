"""Checkpoints of other systems that are put into our folders by mistake: what they are, where they belong."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..files.weight_source import WeightSource


@dataclass(frozen=True)
class OtherSystem:
    """A kind of checkpoint that is not unCLIP.

    Attributes:
        keys: regular expressions, each found in the beginning of at least one name.
        what: what it is and where it belongs, as the end of a sentence "<file>: is …".
    """

    keys: tuple[str, ...]
    what: str


KANDINSKY_3 = (
    "Kandinsky 3, which is not unCLIP: it paints captions that T5 has read, and knows no CLIP embedding. "
    "Choose Kandinsky 2.1 or 2.2"
)

# The first that fits counts: what is part of something larger stands behind it.
_OTHER_SYSTEMS: tuple[OtherSystem, ...] = (
    OtherSystem(
        (r"unets\.\d+\.(downs|ups|to_time_hiddens)\.",),
        "a part of a decoder of DALLE2-pytorch, without a whole network that paints image embeddings or "
        "makes small pictures larger. Get the whole file, such as decoder/v1.0.2/latest.pth of LAION",
    ),
    OtherSystem(
        (r"vectors$",),
        "a file of embeddings, as Save unCLIP Embedding writes them, and no stage of unCLIP: put it into "
        "models/unclip/embeddings and load it with Load unCLIP Embedding",
    ),
    OtherSystem(
        (r"caption_ends$", r"key_ends$"),
        "a shard of embeddings that unclip embed has made, and no stage of unCLIP: a prior is trained from "
        "its folder",
    ),
    OtherSystem(
        (r".*(\.lora_(up|down|A|B|linear_layer)\b|\.lora\.(up|down)|_lora\.(up|down))",),
        "a LoRA, a small change to a model, and no stage of unCLIP: put it into models/loras. What was "
        "trained on a prior or decoder is loaded with Load unCLIP LoRA, others with ComfyUI's LoRA loader",
    ),
    OtherSystem((r"encoder_hid_proj\.projection_linear\.",), f"the U-Net of {KANDINSKY_3}"),
    OtherSystem(
        (r"noise_augmentor\.|embedder\.model\.visual", r"model\.diffusion_model\."),
        "a Stable Diffusion 2.1 unCLIP checkpoint, which paints in latent space. Put it into "
        "models/checkpoints and load it with ComfyUI's unCLIPCheckpointLoader",
    ),
    OtherSystem(
        (r"model\.diffusion_model\.", r"(first_stage_model|cond_stage_model|conditioner)\."),
        "a Stable Diffusion checkpoint, which paints in latent space. It is no part of unCLIP: put it into "
        "models/checkpoints and load it with ComfyUI's checkpoint loader",
    ),
    OtherSystem(
        (r"(model\.diffusion_model\.)?(double_blocks|joint_blocks|single_transformer_blocks|img_in)\b",),
        "a diffusion transformer such as Flux or Stable Diffusion 3. It is no part of unCLIP: put it into "
        "models/diffusion_models",
    ),
    OtherSystem(
        (r"(control_model\.|controlnet_cond_embedding\.|controlnet_down_blocks\.)",),
        "a ControlNet. It is no part of unCLIP: put it into models/controlnet",
    ),
    OtherSystem(
        (r"(image_proj\.|image_proj_model\.)", r"(ip_adapter\.|adapter_modules\.)"),
        "an IP-Adapter. It is no part of unCLIP: put it into models/ipadapter",
    ),
    OtherSystem(
        (
            r"(first_stage_model\.)?(encoder\.(down|down_blocks|conv_in)\b)",
            r"(.*\.)?decoder\.(up|up_blocks|conv_in)\b",
        ),
        "a VAE or another autoencoder. unCLIP's decoders paint pixels or the latents of MoVQ, and need no "
        "other: put it into models/vae",
    ),
    OtherSystem(
        (r"(model\.diffusion_model\.|down_blocks\.|input_blocks\.)", r".*attn2\.to_k"),
        "the U-Net of a latent diffusion model such as Stable Diffusion. It is no part of unCLIP: put it "
        "into models/diffusion_models",
    ),
    OtherSystem(
        (r"(model\.diffusion_model\.)",),
        "a diffusion model for latent space. It is no part of unCLIP: put it into models/diffusion_models",
    ),
    OtherSystem(
        (r"(text_model|vision_model)\.head\.",),
        "a SigLIP model, whose embeddings no prior or decoder of unCLIP knows. Choose the CLIP model of the "
        "prior, such as OpenAI's ViT-L/14",
    ),
    OtherSystem(
        (r"(text_model\.)?embeddings\.token_embedding\.weight$", r"(text_model\.)?encoder\.layers\."),
        "the text encoder of a CLIP model without its projection (clip_l.safetensors of Stable Diffusion). "
        "unCLIP needs the projection, which makes the text embedding: choose a file that has it "
        "(text_projection.weight), such as OpenAI's ViT-L-14.pt, model.safetensors of "
        "openai/clip-vit-large-patch14, or the folder text_encoder of Karlo",
    ),
    OtherSystem(
        (r"(vision_model\.)?embeddings\.class_embedding$", r"(vision_model\.)?encoder\.layers\."),
        "the image encoder of a CLIP model without its projection. unCLIP needs the projection, which makes "
        "the image embedding: choose a file that has it (visual_projection.weight), such as OpenAI's "
        "ViT-L-14.pt or model.safetensors of openai/clip-vit-large-patch14",
    ),
    OtherSystem(
        (r"(encoder\.block\.\d+\.layer\.|shared\.weight$)",),
        "a T5 text encoder. unCLIP reads captions with CLIP: put it into models/text_encoders",
    ),
    OtherSystem(
        (r"(emb_params|string_to_param|clip_[lg]$)",),
        "a textual inversion, a word learned for another model: put it into models/embeddings",
    ),
    OtherSystem(
        (r"(body\.0\.rdb1\.|model\.1\.sub\.0\.RDB1\.|conv_first\.weight|layers\.0\.residual_group\.)",),
        "an upscaling network such as ESRGAN, which is no diffusion upsampler: put it into "
        "models/upscale_models and load it with ComfyUI's upscale model loader",
    ),
)


def recognise_other_system(source: WeightSource) -> str | None:
    """What a source is and where it belongs, or None where it is of no kind that is known."""
    for kind in _OTHER_SYSTEMS:
        patterns = [re.compile(pattern) for pattern in kind.keys]
        if all(any(pattern.match(name) for name in source.shapes) for pattern in patterns):
            return kind.what
    return None
