"""The published checkpoints as files of random weights: names, shapes and configs are the public ones.

The networks of diffusers, transformers and open_clip, built without memory, tell names and shapes; the tests'
helpers translate them into the layouts of others. All is in full precision, but the archive of OpenAI's CLIP,
the encoders of Kandinsky 2.2, the file of Kandinsky 2.1's prior and Kandinsky's decoders, which were
published in half, the last also in full.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import open_clip
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from packaging.version import Version
from random_files import Shapes, Weights, write_safetensors, write_torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from unclip.tests.helpers import dalle2, dalle2_decoder, glide, kandinsky, kandinsky_files, karlo, published
from unclip.tests.helpers import karlo_original as originals
from unclip.tests.helpers.clip_jit import save_torchscript
from unclip.tests.helpers.unet import KARLO_DECODER, KARLO_UPSAMPLER

FP16, FP32 = torch.float16, torch.float32
WEIGHTS, MODEL = "diffusion_pytorch_model.safetensors", "model.safetensors"
OPENAI = "ViT-L-14.pt"

# --- networks ---


def _prior(dim: int = 768) -> nn.Module:
    return PriorTransformer(embedding_dim=dim)


def _decoder() -> nn.Module:
    return published.conditional_diffusers_unet(KARLO_DECODER)


def _upsampler() -> nn.Module:
    return published.plain_diffusers_unet(KARLO_UPSAMPLER)


def _without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _shapes(state: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


# --- folders of diffusers ---


def _component(build: Callable[[], nn.Module], folder: Path, zeros: bool, dtype: torch.dtype = FP32) -> None:
    network = _without_memory(build)
    network.save_config(folder)
    write_safetensors(folder / WEIGHTS, Weights(_shapes(network.state_dict()), dtype), zeros)


def _encoder(
    config: CLIPTextConfig | CLIPVisionConfig, folder: Path, zeros: bool, dtype: torch.dtype = FP32
) -> None:
    is_text = isinstance(config, CLIPTextConfig)
    kind = CLIPTextModelWithProjection if is_text else CLIPVisionModelWithProjection
    ids = f"{'text' if is_text else 'vision'}_model.embeddings.position_ids"  # files of 2023 hold it
    positions = 77 if is_text else (config.image_size // config.patch_size) ** 2 + 1
    shapes = {ids: (1, positions), **_shapes(_without_memory(lambda: kind(config)).state_dict())}
    config.save_pretrained(folder)
    write_safetensors(folder / MODEL, Weights(shapes, dtype, {ids: torch.int64}), zeros)


def _folder(folder: Path, pipeline: str, **schedulers: UnCLIPScheduler) -> None:
    """What lies beside the networks of a pipeline."""
    for name, scheduler in schedulers.items():
        scheduler.save_config(folder / name)
    (folder / "tokenizer").mkdir(parents=True)
    vocabulary = karlo.tiny_tokenizer().get_vocab()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))


def _write_karlo(folder: Path, zeros: bool) -> None:
    _write_karlo_decoders(folder, zeros, "UnCLIPPipeline")
    _component(_prior, folder / "prior", zeros)
    UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0).save_config(folder / "prior_scheduler")


def _write_karlo_variations(folder: Path, zeros: bool) -> None:
    _write_karlo_decoders(folder, zeros, "UnCLIPImageVariationPipeline")
    _encoder(published.VISION_L, folder / "image_encoder", zeros)


def _write_karlo_decoders(folder: Path, zeros: bool, pipeline: str) -> None:
    _component(_decoder, folder / "decoder", zeros)
    _component(published.karlo_text_projection, folder / "text_proj", zeros)
    for name in ("super_res_first", "super_res_last"):
        _component(_upsampler, folder / name, zeros)
    _encoder(published.TEXT_L, folder / "text_encoder", zeros)
    _folder(
        folder,
        pipeline,
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(),
    )


def _write_kandinsky(
    folder: Path, zeros: bool, text: CLIPTextConfig, vision: CLIPVisionConfig, encoders: torch.dtype
) -> None:
    _component(lambda: _prior(text.projection_dim), folder / "prior", zeros)
    _encoder(text, folder / "text_encoder", zeros, encoders)
    _encoder(vision, folder / "image_encoder", zeros, encoders)
    scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0)
    _folder(folder, "KandinskyV22PriorPipeline", scheduler=scheduler)


def _write_kandinsky_decoder(folder: Path, zeros: bool, kind: str) -> None:
    """``kind`` as of ``tests.helpers.kandinsky``; 2.1's with its text encoder."""
    _component(lambda: kandinsky.published_unet(kind), folder / "unet", zeros, FP16)
    _component(kandinsky.published_movq, folder / "movq", zeros, FP16)
    old = kind.startswith("2.1")
    (kandinsky_files.scheduler_21 if old else kandinsky_files.scheduler_22)().save_config(
        folder / "scheduler"
    )
    pipeline = kandinsky_files.PIPELINES[kind].__name__
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    if old:
        config = MCLIPConfig(**XLM_R_LARGE)
        config.save_pretrained(folder / "text_encoder")
        shapes = _shapes(_without_memory(lambda: MultilingualCLIP(config)).state_dict())
        write_safetensors(folder / "text_encoder" / MODEL, Weights(shapes, FP16), zeros)
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text(kandinsky_files.tokenizer_definition())


XLM_R_LARGE = {
    "transformerDimSize": 1024,
    "imageDimSize": 768,
    "vocab_size": 250002,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}

# --- single files ---


def _write_openai_clip(folder: Path, zeros: bool) -> None:
    """OpenAI's TorchScript archive: matrices in half precision, norms and tables in full."""
    preset = open_clip.get_model_config("ViT-L-14")
    network = _without_memory(lambda: open_clip.model.CLIP(**preset))
    full = [name for name in network.state_dict() if "ln_" in name or "embedding" in name]
    numbers = ("input_resolution", "context_length", "vocab_size")
    others = dict.fromkeys([*full, "logit_scale"], FP32) | dict.fromkeys(numbers, torch.int64)
    shapes = _shapes(network.state_dict()) | dict.fromkeys(numbers, ())
    folder.mkdir(parents=True, exist_ok=True)
    save_torchscript(dict(Weights(shapes, FP16, others).tensors(zeros)), folder / OPENAI)


def _write_statistics(folder: Path) -> None:
    torch.save((torch.zeros(768), torch.ones(768)), folder / "ViT-L-14_stats.th")


KARLO_FILES = {
    "clip": OPENAI,
    "prior": "prior-ckpt-step=01000000-of-01000000.ckpt",
    "decoder": "decoder-ckpt-step=01000000-of-01000000.ckpt",
    "upsampler": "improved-sr-ckpt-step=1.2M.ckpt",
}


def _write_karlo_original(folder: Path, zeros: bool) -> None:
    _write_openai_clip(folder, zeros)
    _write_statistics(folder)
    with torch.device("meta"):
        states = {
            "prior": originals.original_prior(_prior()),
            "decoder": originals.original_decoder(_decoder(), published.karlo_text_projection()),
            "upsampler": originals.original_upsampler(_upsampler(), _upsampler()),
        }
    for stage, state in states.items():
        content = Weights(_shapes(state), FP32)
        write_torch(folder / KARLO_FILES[stage], content, "state_dict", zeros, global_step=1_000_000)


def _write_kandinsky_file(folder: Path, zeros: bool) -> None:
    _write_openai_clip(folder, zeros)
    _write_statistics(folder)
    with torch.device("meta"):
        state = originals.original_prior(_prior())
    write_torch(folder / "prior_fp16.ckpt", Weights(_shapes(state), FP16), zeros=zeros)


def _write_eclipse(folder: Path, zeros: bool) -> None:
    _write_openai_clip(folder, zeros)
    _component(published.eclipse_prior, folder, zeros)


def _write_dalle2(folder: Path, zeros: bool) -> None:
    """LAION's, which holds its CLIP model as well. Its norms cannot divide by zeros, so it has numbers."""
    _write_openai_clip(folder, zeros)
    clip = _without_memory(lambda: open_clip.model.CLIP(**open_clip.get_model_config("ViT-L-14")))
    shapes = _under("net.", dalle2.shapes(dalle2.LAION)) | _under("clip.clip.", _shapes(clip.state_dict()))
    write_torch(folder / "best.pth", Weights(shapes, FP32), "model", version=Version("1.10.9"))
    config = {"prior": {"net": dalle2.LAION, "beta_schedule": "cosine", "sample_timesteps": 64}}
    (folder / "prior_config.json").write_text(json.dumps(config))


def _write_dalle2_decoders(folder: Path, zeros: bool) -> None:
    """LAION's decoder, of which v1.0.2 and 1.5B have one config, and an upsampler.

    The upsampler has about as many parameters: the size of Veldrovive's stands in its config alone.
    """
    _write_openai_clip(folder, zeros)
    options = dalle2_decoder.LAION_1_5B
    shapes = _before_unshuffling(dalle2_decoder.real_shapes([options], [64]))
    described = {"unets": [options], "image_sizes": [64], "timesteps": 1000, "learned_variance": True}
    config = {"decoder": {**described, "beta_schedule": ["cosine"]}}
    file = folder / "decoder" / "latest.pth"
    write_torch(file, Weights(shapes, FP32), "model", zeros, version="1.0.2", config=config)
    unets = [options, dalle2_decoder.UPSAMPLER]
    shapes = dalle2_decoder.real_shapes(unets, [64, 256])
    own = {name: shape for name, shape in shapes.items() if not name.startswith("unets.0.")}
    write_torch(folder / "upsampler" / "latest.pth", Weights(own, FP32), zeros=zeros)
    config = {"decoder": {"unets": unets, "image_sizes": [64, 256], "timesteps": 1000}}
    (folder / "upsampler" / "decoder_config.json").write_text(json.dumps(config))


def _before_unshuffling(shapes: Shapes) -> Shapes:
    """A level shrank by a convolution of 4 x 4 before release 1.8 unshuffled pixels."""
    found = {}
    for name, shape in shapes.items():
        place = re.fullmatch(r"(unets\.\d+\.downs\.\d+\.0)\.1\.(weight|bias)", name)
        if place and place[2] == "weight":
            shape = (shape[0], shape[1] // 4, 4, 4)
        found[f"{place[1]}.{place[2]}" if place else name] = shape
    return found


def _write_glide(folder: Path, zeros: bool, suffix: str) -> None:
    for kind in ("base", "upsample"):
        content = Weights(glide.real_shapes(kind + suffix.replace("_", "-")), FP32)
        write_torch(folder / f"{kind}{suffix}.pt", content, zeros=zeros)


# --- all ---


@dataclass(frozen=True)
class Layout:
    """A published checkpoint.

    Attributes:
        write: writes it into a folder; with True without its numbers.
        parameters: of each stage, in millions, as published: what the loaded networks must have. Two stages
            that are in one file have one number, of the second.
        files: by stage, for the loaders of single stages; none: the folder is loaded as a bundle.
        steps, guidance: of the prior and of the decoder, as its authors run them.
        upsampler_steps: of an upsampler that was not made for certain timesteps.
        inpaints: the networks are those for inpainting.
        size: side of the decoder's pictures where it paints any; 0 for its own.
    """

    write: Callable[[Path, bool], None]
    parameters: Mapping[str, int]
    files: Mapping[str, str] = field(default_factory=dict)
    steps: int = 25
    guidance: float = 4.0
    decoder_steps: int = 25
    decoder_guidance: float = 8.0
    inpaints: bool = False
    size: int = 0
    upsampler_steps: int = 0


def _glide(suffix: str, guidance: float) -> Layout:
    files = {
        "clip": f"base{suffix}.pt",
        "decoder": f"base{suffix}.pt",
        "upsampler_clip": f"upsample{suffix}.pt",
        "upsampler": f"upsample{suffix}.pt",
    }
    return Layout(
        lambda folder, zeros: _write_glide(folder, zeros, suffix),
        {"decoder": 385, "upsampler": 398},
        files,
        decoder_steps=100,
        decoder_guidance=guidance,
        inpaints=bool(suffix),
    )


def _kandinsky(kind: str, decoder: int, guidance: float = 4.0, **text: int) -> Layout:
    return Layout(
        partial(_write_kandinsky_decoder, kind=kind),
        {"decoder": decoder, **text},
        decoder_steps=50,
        decoder_guidance=guidance,
        inpaints=kind.endswith("inpaint"),
        size=512,
    )


_KARLO = {"decoder": 893, "upsampler": 2 * 692}
LAYOUTS: dict[str, Layout] = {
    "karlo-v1-alpha": Layout(_write_karlo, {"clip": 124, "prior": 1020, **_KARLO}),
    "karlo-v1-alpha-image-variations": Layout(_write_karlo_variations, {"clip": 428, **_KARLO}),
    "karlo-original": Layout(_write_karlo_original, {"clip": 428, "prior": 1020, **_KARLO}, KARLO_FILES),
    "kandinsky-2-1-prior": Layout(
        partial(_write_kandinsky, text=published.TEXT_L, vision=published.VISION_L, encoders=FP32),
        {"clip": 428, "prior": 1020},
    ),
    "kandinsky-2-2-prior": Layout(
        partial(_write_kandinsky, text=published.TEXT_BIGG, vision=published.VISION_BIGG, encoders=FP16),
        {"clip": 2540, "prior": 1024},
    ),
    "kandinsky-2-2-decoder": _kandinsky("2.2", 1253),
    "kandinsky-2-2-decoder-inpaint": _kandinsky("2.2 inpaint", 1253),
    "kandinsky-2-2-controlnet-depth": _kandinsky("2.2 depth", 1253),
    "kandinsky-2-1": _kandinsky("2.1", 1229, 7.0, decoder_text=560),
    "kandinsky-2.1-file": Layout(
        _write_kandinsky_file, {"clip": 428, "prior": 1020}, {"clip": OPENAI, "prior": "prior_fp16.ckpt"}
    ),
    "eclipse-karlo-prior": Layout(
        _write_eclipse, {"clip": 428, "prior": 33}, {"clip": OPENAI, "prior": WEIGHTS}, steps=1, guidance=1.0
    ),
    "laion-dalle2-prior": Layout(
        _write_dalle2,
        {"clip": 428, "prior": 102},
        {"clip": OPENAI, "prior": "best.pth"},
        steps=64,
        guidance=1.0,
    ),
    "laion-decoders": Layout(
        _write_dalle2_decoders,
        {"clip": 428, "decoder": 983},
        {"clip": OPENAI, "decoder": "decoder/latest.pth", "upsampler": "upsampler/latest.pth"},
        decoder_steps=50,
        decoder_guidance=1.7,
        upsampler_steps=50,
    ),
    "glide": _glide("", 3.0),
    "glide-inpaint": _glide("_inpaint", 5.0),
}
