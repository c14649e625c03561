"""Every setting that the configs of CLIP models know, and what is made of it here.

Sources: ``CLIPConfig``, ``CLIPTextConfig``, ``CLIPVisionConfig`` and ``CLIPImageProcessor`` of transformers;
``CLIPVisionCfg`` and ``CLIPTextCfg`` of open_clip.
"""

from __future__ import annotations

from .settings import Settings


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KIND = "a plain CLIP model of two transformers"
_PIXEL = 1 / 255

# What every config of transformers may hold: how results are returned, how text would be generated, training.
_ANY_CONFIG = _names(
    """
    add_cross_attention architectures attention_dropout attn_implementation bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_factor
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache
    """
)
# The shapes of the weights tell them, or they are honoured.
_ENCODER = _names(
    """
    hidden_act hidden_size intermediate_size num_attention_heads num_hidden_layers projection_dim
    """
)

# Upstream passes over what it does not know in these configs, and so do we, with a line in the log.
TEXT = Settings(
    _KIND,
    fixed={
        "layer_norm_eps": (1e-5,),
        # Where the caption is read: at the end token, the highest id. Old configs say 2 and mean that.
        "eos_token_id": (49407, 2),
    },
    free=_ANY_CONFIG | _ENCODER | {"max_position_embeddings", "vocab_size"},
    strict=False,
)
VISION = Settings(
    _KIND,
    fixed={"layer_norm_eps": (1e-5,), "num_channels": (3,)},
    free=_ANY_CONFIG | _ENCODER | {"image_size", "patch_size"},
    strict=False,
)
WHOLE = Settings(
    _KIND,
    free=_ANY_CONFIG
    | {
        "logit_scale_init_value",
        "projection_dim",
        "text_config",
        "text_config_dict",
        "vision_config",
        "vision_config_dict",
    },
    strict=False,
)
PREPROCESSOR = Settings(
    "pictures that are cut to a square, scaled bicubically and normalised",
    fixed={
        "do_resize": (True,),
        "do_center_crop": (True,),
        "do_normalize": (True,),
        "do_rescale": (True,),
        "resample": (3,),  # PIL's bicubic
        "rescale_factor": (_PIXEL,),
        "do_pad": (False, None),
    },
    free=_names(
        """
    crop_size data_format default_to_square device disable_grouping do_convert_rgb
    feature_extractor_type image_mean image_processor_type image_std input_data_format pad_size
    processor_class return_tensors size
    """
    ),
    strict=False,
)

OPEN_CLIP = Settings(
    _KIND,
    fixed={"custom_text": (False,), "init_logit_bias": (None,), "nonscalar_logit_scale": (False,)},
    free=frozenset(("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "model_cfg", "preprocess_cfg"))
    | {"init_logit_scale", "cast_dtype", "output_dict"},
)
OPEN_CLIP_PICTURES = Settings(
    "pictures that are cut to a square, scaled bicubically and normalised",
    fixed={
        "mode": ("RGB",),
        "interpolation": ("bicubic",),
        "resize_mode": ("shortest",),
    },
    free=_names("fill_color mean size std"),
    strict=False,
)
_BLOCKS = {
    "ls_init_value": (None,),
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "final_ln_after_pool": (False,),
}
OPEN_CLIP_VISION = Settings(
    _KIND,
    fixed={
        **_BLOCKS,
        "attentional_pool": (False,),
        "no_ln_pre": (False,),
        "pos_embed_type": ("learnable",),
        "pool_type": ("tok",),
        "global_average_pool": (False,),  # of older versions
        "input_patchnorm": (False,),
        "timm_model_name": (None,),
    },
    free=_names(
        """
    attn_pooler_heads attn_pooler_queries head_width image_size layers mlp_ratio output_tokens
    patch_dropout patch_size timm_drop timm_drop_path timm_model_pretrained timm_pool timm_proj
    timm_proj_bias width
    """
    ),
)
OPEN_CLIP_TEXT = Settings(
    _KIND,
    fixed={
        **_BLOCKS,
        "hf_model_name": (None,),
        "hf_tokenizer_name": (None,),
        "tokenizer_kwargs": (None, {}),
        "embed_cls": (False,),
        "no_causal_mask": (False,),
        "pool_type": ("argmax",),
        "proj_bias": (False,),
        "proj_type": ("linear",),
    },
    free=_names(
        """
    context_length eos_id heads hf_model_pretrained hf_pooler_type hf_proj_type layers mlp_ratio
    output_tokens pad_id tokenizer_mode vocab_size width
    """
    ),
)
