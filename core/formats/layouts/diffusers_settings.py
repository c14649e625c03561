"""Every setting that diffusers' classes know, and what is made of it here.

Sources: the arguments of ``UNet2DConditionModel``, ``UNet2DModel``, ``PriorTransformer`` and of diffusers'
schedulers, which are the keys of their ``config.json`` and ``scheduler_config.json``.
"""

from __future__ import annotations

from dataclasses import replace

from .settings import Settings

KIND = "a network like those of Karlo and Kandinsky"
_SILU = ("silu", "swish")  # two names of one function

# What `EMAModel.save_pretrained` of diffusers adds to the config of averaged weights: only training reads it.
_EMA = frozenset(
    ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
)

UNET_OPTIONS = Settings(
    KIND,
    fixed={
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        "act_fn": _SILU,
        "norm_num_groups": (32,),
        "norm_eps": (1e-5,),
        "flip_sin_to_cos": (True,),
        "freq_shift": (0,),
        "center_input_sample": (False,),
        "downsample_padding": (1,),
        "mid_block_scale_factor": (1,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default", "scale_shift"),  # the weights tell which
        "only_cross_attention": (False,),
        "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
        "attention_type": ("default",),
        "num_attention_heads": (None,),
        "dual_cross_attention": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "class_embeddings_concat": (False,),
        "num_class_embeds": (None,),
        "addition_time_embed_dim": (None,),
    },
    free=_EMA
    | {
        # honoured
        "sample_size",
        "attention_head_dim",
        # The names and shapes of the weights tell them, or a tensor is left over or missing.
        "in_channels",
        "out_channels",
        "block_out_channels",
        "layers_per_block",
        "mid_block_type",
        "cross_attention_dim",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "addition_embed_type",
        "class_embed_type",
        "time_embedding_dim",
        "conv_in_kernel",
        "conv_out_kernel",
        "add_attention",
        # Of blocks that are refused by their names above, or of settings that are.
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "use_linear_projection",
        "projection_class_embeddings_input_dim",
        "addition_embed_type_num_heads",
        "attn_norm_num_groups",
        "downsample_type",
        "upsample_type",
        "num_train_timesteps",
        # Of training, or of rounding.
        "dropout",
        "upcast_attention",
    },
)
"""U-Nets of both classes, Kandinsky's too."""

DECODER_SETTINGS = replace(
    UNET_OPTIONS,
    fixed={
        **UNET_OPTIONS.fixed,
        "class_embed_type": ("identity",),  # z_i and z_t enter that way
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "addition_embed_type": (None,),
    },
)
"""Karlo's decoder."""

UPSAMPLER_SETTINGS = replace(DECODER_SETTINGS, fixed={**DECODER_SETTINGS.fixed, "class_embed_type": (None,)})
"""Karlo's upsamplers."""

KANDINSKY_SETTINGS = replace(
    UNET_OPTIONS,
    fixed={
        **UNET_OPTIONS.fixed,
        "class_embed_type": (None,),
        "encoder_hid_dim_type": ("image_proj", "text_image_proj"),
        "addition_embed_type": ("image", "image_hint", "text_image"),
    },
)
"""Kandinsky's decoders."""

MOVQ_SETTINGS = Settings(
    KIND,
    fixed={
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
        "act_fn": _SILU,
        "norm_num_groups": (32,),
        "norm_type": ("spatial",),
        "mid_block_add_attention": (True,),
        "lookup_from_codebook": (False,),
    },
    free=_EMA
    | {
        # The names and shapes of the weights tell them.
        "in_channels",
        "out_channels",
        "block_out_channels",
        "layers_per_block",
        "latent_channels",
        "num_vq_embeddings",
        "vq_embed_dim",
        # Of training, of rounding, or never applied: Kandinsky's latents are not scaled.
        "sample_size",
        "scaling_factor",
        "force_upcast",
    },
)
"""``VQModel`` as Kandinsky has it."""

PRIOR_SETTINGS = Settings(
    KIND,
    fixed={
        "time_embed_act_fn": _SILU,
        "norm_in_type": (None,),
        "embedding_proj_norm_type": (None,),
        "encoder_hid_proj_type": ("linear",),
        "added_emb_type": ("prd",),
    },
    free=_EMA
    | {
        # honoured
        "num_attention_heads",
        # The shapes of the weights tell them.
        "attention_head_dim",
        "num_layers",
        "embedding_dim",
        "num_embeddings",
        "additional_embeddings",
        "time_embed_dim",
        "embedding_proj_dim",
        "clip_embed_dim",
        # Of training.
        "dropout",
    },
)
"""``PriorTransformer``."""

SCHEDULER_SETTINGS = Settings(
    "a diffusion process like those of Karlo and Kandinsky",
    fixed={
        "trained_betas": (None,),
        "thresholding": (False,),
        "rescale_betas_zero_snr": (False,),
        "use_flow_sigmas": (False,),
        "predict_x0": (True,),
    },
    free=frozenset(
        (
            # honoured
            *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "variance_type"),
            *("prediction_type", "clip_sample", "clip_sample_range", "timestep_spacing"),
            # Of thresholding and flows, which are refused.
            *("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "use_dynamic_shifting"),
            *("time_shift_type", "shift_terminal"),
            # Of the sampler, which an option chooses here: its order, its first and its last step (the offset
            # shifts all by a thousandth of the way), its sequence of noise.
            "steps_offset",
            *(
                "set_alpha_to_one",
                "skip_prk_steps",
                "solver_order",
                "solver_type",
                "solver_p",
                "algorithm_type",
            ),
            *("lower_order_final", "euler_at_final", "disable_corrector", "lambda_min_clipped"),
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
            *("final_sigmas_type", "interpolation_type", "sigma_min", "sigma_max", "timestep_type"),
        )
    ),
)
"""How a network was trained to denoise; other schedulers than DDPM's hold the sampler's settings besides."""
