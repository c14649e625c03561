"""Every setting that DALLE2-pytorch's priors know, and what is made of it here.

Sources: the arguments of ``DiffusionPrior``, ``DiffusionPriorNetwork`` and ``CausalTransformer`` of versions
1.1.0 to 1.15.6 (``dalle2_pytorch.py``), and ``DiffusionPriorConfig`` (``train_configs.py``).
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
        # What sampling would do to x̂_0 at every step, to the result, and to the noise it starts from.
        "sampling_clamp_l2norm": (False,),
        "sampling_final_clamp_l2norm": (False,),
        "init_image_embed_l2norm": (False,),
    },
    free=frozenset(
        (
            # honoured
            *("beta_schedule", "timesteps", _SCALE, "net", "clip"),
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


def require_scale(path: Path, options: Mapping[str, Any], dim: int) -> None:
    """Raise a ValueError unless unit vectors were multiplied by √D for the diffusion, as a unit space does.

    Args:
        dim: width D of the embeddings.
    """
    scale = options.get(_SCALE)
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if scale is not None and not (number and math.isclose(scale, math.sqrt(dim), rel_tol=1e-3)):
        raise ValueError(
            f"{path}: {_SCALE} is {scale!r}, expected {math.sqrt(dim):.4g}, the square root of its {dim} "
            f"dimensions, or none. Only {_KIND} can be loaded, and this is another"
        )
