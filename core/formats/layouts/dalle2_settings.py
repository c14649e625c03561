"""Every setting that DALLE2-pytorch's priors and decoders know, and what is made of it here.

Sources: the arguments of ``DiffusionPrior``, ``DiffusionPriorNetwork`` and ``CausalTransformer`` of versions
1.1.0 to 1.15.6 (``dalle2_pytorch.py``), and ``DiffusionPriorConfig`` (``train_configs.py``); of ``Decoder``
and ``Unet`` likewise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .settings import Settings

_KIND = "a prior like LAION's"
_SCALE = "image_embed_scale"

NETWORK = Settings(
    _KIND,
    fixed={
        "num_time_embeds": (1,),
        "num_image_embeds": (1,),
        "num_text_embeds": (1,),
        "norm_out": (True,),
        "final_proj": (True,),
        "self_cond": (False,),
    },
    free=frozenset(
        (
            # The shapes and names of the weights tell them.
            *("dim", "depth", "dim_head", "heads", "ff_mult", "num_timesteps", "max_text_len"),
            *("norm_in", "normformer", "rotary_emb"),
            # Of training.
            *("attn_dropout", "ff_dropout"),
        )
    ),
)
PRIOR = Settings(
    _KIND,
    fixed={
        "predict_x_start": (True,),
        "predict_v": (False,),
        "condition_on_text_encodings": (True,),
        # What sampling would do to the result, and to the noise it starts from.
        "sampling_final_clamp_l2norm": (False,),
        "init_image_embed_l2norm": (False,),
    },
    free=frozenset(
        (
            # honoured
            *("beta_schedule", "timesteps", _SCALE, "net", "clip", "sampling_clamp_l2norm"),
            # The weights tell it; pictures do not come here.
            *("image_embed_dim", "image_size", "image_channels", "clip_adapter_overrides"),
            # An option of sampling.
            "sample_timesteps",
            # Of training.
            *("cond_drop_prob", "text_cond_drop_prob", "image_cond_drop_prob", "loss_type"),
            "training_clamp_l2norm",
        )
    ),
)
ADAPTER = Settings(
    _KIND, fixed={"make": ("openai",), "model": ("ViT-L/14",)}, free=frozenset(("base_model_kwargs",))
)
"""The CLIP model that a prior was trained on."""

_DECODER_KIND = "a decoder like LAION's"
UNET = Settings(
    _DECODER_KIND,
    fixed={
        "channels": (3,),
        "channels_out": (None, 3, 6),
        "self_cond": (False,),
        "resnet_weight_standardization": (False,),
        "combine_upsample_fmaps": (False,),
    },
    free=frozenset(
        (
            # honoured
            *("cosine_sim_self_attn", "cosine_sim_cross_attn", "resnet_groups", "scale_skip_connection"),
            # The shapes and names of the weights tell them.
            *("dim", "dim_mults", "image_embed_dim", "text_embed_dim", "cond_on_text_encodings", "cond_dim"),
            *("cond_on_image_embeds", "add_image_embeds_to_time", "num_image_tokens", "num_time_tokens"),
            *("max_text_len", "self_attn", "attn_dim_head", "attn_heads", "sparse_attn", "attend_at_middle"),
            *("lowres_cond", "lowres_noise_cond", "init_dim", "init_conv_kernel_size", "init_cross_embed"),
            *("init_cross_embed_kernel_sizes", "cross_embed_downsample", "num_resnet_blocks", "out_dim"),
            *("cross_embed_downsample_kernel_sizes", "memory_efficient", "pixel_shuffle_upsample"),
            "final_conv_kernel_size",
            # Of training, and of what later versions no longer read.
            *("checkpoint_during_training", "dropout"),
        )
    ),
)
DECODER = Settings(
    _DECODER_KIND,
    fixed={
        "channels": (3,),
        "unconditional": (False,),
        "auto_normalize_img": (True,),
        "predict_x_start_for_latent_diffusion": (False,),
        "learned_variance_constrain_frac": (False,),
        "use_dynamic_thres": (False,),
        "clip_x_start": (True,),
        "clip_denoised": (True,),
    },
    free=frozenset(
        (
            # honoured
            *("unets", "image_size", "image_sizes", "timesteps", "beta_schedule", "predict_x_start"),
            *("predict_v", "lowres_noise_sample_level", "version"),
            # The weights tell it.
            *("learned_variance", "use_noise_for_lowres_cond"),
            # Options of sampling.
            *("sample_timesteps", "ddim_sampling_eta", "dynamic_thres_percentile"),
            # Of training, and the CLIP model, which is loaded by itself.
            *("image_cond_drop_prob", "text_cond_drop_prob", "loss_type", "random_crop_sizes"),
            *("use_blur_for_lowres_cond", "lowres_downsample_first", "blur_prob", "blur_sigma"),
            *("blur_kernel_size", "vb_loss_weight", "p2_loss_weight_gamma", "p2_loss_weight_k"),
            *("clip", "clip_adapter_overrides", "condition_on_text_encodings"),
            # Tables beside the decoder's, where the whole config is read as one.
            *("data", "train", "evaluate", "tracker", "load", "seed"),
        )
    ),
)


def read_scale(path: Path, options: Mapping[str, Any]) -> float | None:
    """By what unit vectors were multiplied for the diffusion; None for √D, which upstream takes by itself.

    Raises:
        ValueError: a scale that is not a number above 0.
    """
    scale = options.get(_SCALE)
    if scale is None:
        return None
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not (number and math.isfinite(scale) and scale > 0):
        raise ValueError(f"{path}: {_SCALE} is {scale!r}, expected a number above 0, or none")
    return float(scale)
