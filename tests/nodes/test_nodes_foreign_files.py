"""The load nodes with checkpoints of others: from the list of files to a stage in the wanted precision."""

from __future__ import annotations

import builtins
import io
import sys
from pathlib import Path

import pytest
import torch
from unclip.core.formats.load import files_beside, load_any_stage
from unclip.core.networks.unet_pair import UNetPair
from unclip.nodes import NODE_CLASS_MAPPINGS, catalogue

from ..helpers import glide
from ..helpers import karlo as karlo
from ..helpers import karlo_original as originals
from ..helpers import published_models as published


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pipeline = karlo.tiny_pipeline()
    karlo.save_as_published(pipeline, folder / "karlo-v1-alpha")
    originals.write_original(folder / "original", pipeline)
    published.write_kandinsky(folder / "kandinsky22")
    published.write_kandinsky(folder / "kandinsky21", "kandinsky-2-1")
    (folder / "glide").mkdir()
    glide.write_glide(folder / "glide", "base")
    torch.save({"x.lora_A.weight": torch.zeros(1)}, folder / "lora.pt")
    return folder


@pytest.fixture(autouse=True)
def _folders(models, monkeypatch) -> None:
    monkeypatch.setenv("UNCLIP_MODELS", str(models))


def load(node: str, **inputs):
    return NODE_CLASS_MAPPINGS[node]().execute(**inputs)


def dtypes(stage) -> set[torch.dtype]:
    return {value.dtype for value in stage.network.parameters()}


def test_a_whole_model_of_diffusers_is_a_bundle() -> None:
    assert "karlo-v1-alpha" in catalogue.list_bundles()
    loaded = load("UnCLIPLoadBundle", bundle="karlo-v1-alpha", precision="fp16")
    clip, prior, decoder, first, second, _, decoder_clip = loaded
    assert decoder_clip is clip
    for stage in (clip, prior, decoder, first):
        assert dtypes(stage) == {torch.float16}
    assert second is None
    assert isinstance(first.network, UNetPair)
    assert clip.space == prior.space == decoder.space


@pytest.mark.parametrize(
    ("node", "stage", "name"),
    [
        ("UnCLIPLoadCLIP", "clip", "karlo-v1-alpha"),
        ("UnCLIPLoadPrior", "prior", "karlo-v1-alpha/prior"),
        ("UnCLIPLoadDecoder", "decoder", "karlo-v1-alpha/decoder"),
        ("UnCLIPLoadUpsampler", "upsampler", "karlo-v1-alpha/super_res_first"),
        ("UnCLIPLoadPrior", "prior", "original/prior-ckpt-step=01000000-of-01000000.ckpt"),
        ("UnCLIPLoadDecoder", "decoder", "original/decoder-ckpt-step=01000000-of-01000000.ckpt"),
        ("UnCLIPLoadUpsampler", "upsampler", "original/improved-sr-ckpt-step=1.2M.ckpt"),
    ],
)
def test_each_stage_is_listed_and_loaded(node: str, stage: str, name: str) -> None:
    assert name in catalogue.list_stage_files(stage)
    (found,) = load(node, file=name, precision="bf16")
    assert dtypes(found) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("prior", "karlo-v1-alpha/prior"),
        ("decoder", "karlo-v1-alpha/decoder"),
        ("upsampler", "karlo-v1-alpha/super_res_last"),
        ("clip", "karlo-v1-alpha/text_encoder"),
        ("prior", "original/prior-ckpt-step=01000000-of-01000000.ckpt"),
        ("decoder", "kandinsky22/kandinsky-2-2-decoder/unet"),
        ("clip", "kandinsky22/kandinsky-2-2-prior/image_encoder"),
        ("decoder", "kandinsky21/kandinsky-2-1/unet"),
        ("clip", "kandinsky21/kandinsky-2-1/text_encoder"),
        ("clip", "glide/base.safetensors"),
    ],
)
def test_all_files_that_a_stage_is_read_from_are_known_beforehand(models, monkeypatch, stage, name) -> None:
    """ComfyUI keeps what was loaded until one of them changes."""
    path = models / name
    opened: set[Path] = set()

    def recorded(file, *given, real=io.open, **named):
        if isinstance(file, (str, Path)) and Path(file).is_relative_to(models):
            opened.add(Path(file).resolve())
        return real(file, *given, **named)

    monkeypatch.setattr(io, "open", recorded)
    monkeypatch.setattr(builtins, "open", recorded)
    if sys.version_info < (3, 11):  # pathlib has a reference of its own
        monkeypatch.setattr("pathlib._NormalAccessor.open", staticmethod(recorded))
    load_any_stage(path, expect=stage)
    assert opened
    own = path.rglob("*") if path.is_dir() else [path]
    assert opened <= {each.resolve() for each in (*own, *files_beside(path))}


def test_what_is_no_stage_says_where_it_belongs() -> None:
    with pytest.raises(ValueError, match=r"lora\.pt: is a LoRA.*put it into models/loras"):
        load("UnCLIPLoadPrior", file="lora.pt", precision="fp32")
    with pytest.raises(ValueError, match="holds a decoder, but a prior is expected here"):
        load("UnCLIPLoadPrior", file="karlo-v1-alpha/decoder", precision="fp32")
