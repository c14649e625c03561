"""Every layout that is known: files that are not whole or were changed say so, with key and remedy.

And every way of storing: types of numbers, kinds of files, shards.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import PriorTransformer
from safetensors.torch import load, load_file, save_file
from torch import Tensor
from unclip.core.formats.detect import LAYOUTS
from unclip.core.formats.layouts.dalle2_decoder import DALLE2_DECODER_LAYOUTS
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.networks.clip import ClipConfig, ClipNetwork, ClipTextConfig, ClipVisionConfig
from unclip.core.stages import StageName

from ...helpers import kandinsky_files as kandinsky
from ...helpers import karlo as karlo
from ...helpers import karlo_original as originals
from ...helpers.clip import transformers_clip
from ...helpers.dalle2 import dalle2_state
from ...helpers.glide import glide_state, write_merges
from ...helpers.unet import randomised

REMEDY = re.compile(r"\b([Gg]et|[Dd]ownload|[Cc]hoose|[Pp]ut|[Ss]ave|[Ll]oad|[Ee]xport)\b")
DIFFUSERS = "diffusion_pytorch_model.safetensors"
OUT = "transformer_blocks.1.attn1.to_out.0.weight"


@dataclass(frozen=True)
class Case:
    """A file of a layout, and one of its tensors that tells nothing about the shape of the network."""

    stage: StageName
    file: str
    key: str


CASES = {
    "Karlo or Kandinsky 2.1 prior (original)": Case(
        "prior",
        "original/prior-ckpt-step=01000000-of-01000000.ckpt",
        "model.transformer.resblocks.1.attn.c_proj.weight",
    ),
    "Karlo decoder (original)": Case(
        "decoder",
        "original/decoder-ckpt-step=01000000-of-01000000.ckpt",
        "model.middle_block.1.proj_out.weight",
    ),
    "Karlo upsampler 64 to 256 (original)": Case(
        "upsampler",
        "original/improved-sr-ckpt-step=1.2M.ckpt",
        "model_last_step.middle_block.0.in_layers.2.weight",
    ),
    "Karlo or Kandinsky prior (diffusers)": Case("prior", f"karlo/prior/{DIFFUSERS}", OUT),
    "Karlo decoder (diffusers)": Case(
        "decoder", f"karlo/decoder/{DIFFUSERS}", "mid_block.attentions.0.to_out.0.weight"
    ),
    "Karlo upsampler 64 to 256 (diffusers)": Case(
        "upsampler", f"karlo/super_res_last/{DIFFUSERS}", "mid_block.resnets.0.conv1.weight"
    ),
    "ECLIPSE prior": Case("prior", f"eclipse/{DIFFUSERS}", OUT),
    "CLIP (OpenAI's, open_clip's)": Case(
        "clip", "clip.pt", "visual.transformer.resblocks.1.attn.out_proj.weight"
    ),
    "CLIP (transformers)": Case(
        "clip", "clip/model.safetensors", "vision_model.encoder.layers.1.self_attn.out_proj.weight"
    ),
    "DALLE2-pytorch prior (LAION)": Case(
        "prior", "best.pth", "net.causal_transformer.layers.1.0.to_q.weight"
    ),
    "Kandinsky decoder (diffusers)": Case(
        "decoder", f"kandinsky22/unet/{DIFFUSERS}", "mid_block.attentions.0.to_out.0.weight"
    ),
    "MoVQ of Kandinsky (diffusers)": Case(
        "autoencoder", f"kandinsky22/movq/{DIFFUSERS}", "decoder.mid_block.attentions.0.to_out.0.weight"
    ),
    "Kandinsky 2.1 decoder (original)": Case(
        "decoder", "kandinsky21_original/decoder_fp16.ckpt", "middle_block.1.proj_out.weight"
    ),
    "MoVQ of Kandinsky 2.1 (original)": Case(
        "autoencoder", "kandinsky21_original/movq_final.ckpt", "decoder.mid.attn_1.proj_out.weight"
    ),
    "Kandinsky 2.1 text encoder (multilingual CLIP)": Case(
        "clip",
        "kandinsky21/text_encoder/model.safetensors",
        "transformer.encoder.layer.1.attention.output.dense.weight",
    ),
    "GLIDE base": Case("decoder", "glide/base.pt", "middle_block.1.proj_out.weight"),
    "GLIDE upsampler": Case("upsampler", "glide/upsample.pt", "middle_block.1.proj_out.weight"),
    "GLIDE text encoder": Case("clip", "glide/base.pt", "transformer.resblocks.1.attn.c_proj.weight"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of all layouts."""
    root = tmp_path_factory.mktemp("models")
    pipeline = karlo.tiny_pipeline()
    karlo.save_as_published(pipeline, root / "karlo")
    originals.write_original(root / "original", pipeline)
    eclipse = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        embedding_dim=24,
        num_embeddings=9,
        additional_embeddings=3,
    )
    del eclipse.time_embedding
    randomised(eclipse).save_pretrained(root / "eclipse")
    transformers_clip().save_pretrained(root / "clip")
    vision = ClipVisionConfig(width=64, layers=2, image_size=32, patch_size=16)
    text = ClipTextConfig(width=64, heads=1, layers=2, context_length=12)
    torch.save(ClipNetwork(ClipConfig(24, vision, text)).clip.state_dict(), root / "clip.pt")
    torch.save({"model": {f"net.{name}": value for name, value in dalle2_state().items()}}, root / "best.pth")
    kandinsky.tiny_22().save_pretrained(root / "kandinsky22")
    kandinsky21 = kandinsky.tiny_21()
    kandinsky.save_21(kandinsky21, root / "kandinsky21")
    kandinsky.write_original_21(kandinsky21, root / "kandinsky21_original")
    (root / "glide").mkdir()
    write_merges(root / "glide")
    for kind in ("base", "upsample"):
        torch.save(glide_state(kind), root / "glide" / f"{kind}.pt")
    return root


Change = Callable[[dict[str, Tensor], str], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda tensors, key: tensors.pop(key), "lacks {key}"),
    "left over": (
        lambda tensors, key: tensors.update({f"{key}s.weight": torch.ones(1)}),
        "holds {key}s.weight",
    ),
    "wrong shape": (
        lambda tensors, key: tensors.update({key: torch.cat([tensors[key], tensors[key][:1]])}),
        "found the shape .*{key}",
    ),
}


@contextmanager
def changed(path: Path, change: Callable[[bytes], bytes] | None = None) -> Iterator[None]:
    """The file may be overwritten inside; afterwards it is as it was."""
    content = path.read_bytes()
    try:
        if change is not None:
            path.write_bytes(change(content))
        yield
    finally:
        path.write_bytes(content)


def rewrite(path: Path, change: Change, key: str) -> None:
    if path.suffix == ".safetensors":
        tensors = load(path.read_bytes())  # not mapped from the file that is written over
        change(tensors, key)
        save_file(tensors, path, {"format": "pt"})
        return
    content = torch.load(path, weights_only=True)
    wrapper = next((name for name in ("state_dict", "model") if name in content), None)
    tensors = content if wrapper is None else content[wrapper]
    change(tensors, key)
    torch.save(content, path)


def test_every_layout_has_a_case() -> None:
    """Small files of LAION's decoders need the package that writes them: test_dalle2_decoders."""
    elsewhere = {layout.name for layout in DALLE2_DECODER_LAYOUTS}
    assert {layout.name for layout in LAYOUTS} - {*CASES} == elsewhere


@pytest.mark.parametrize("layout", CASES)
def test_the_files_are_whole(folder: Path, layout: str) -> None:
    case = CASES[layout]
    assert load_any_stage(folder / case.file, expect=case.stage).network.training is False


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("layout", CASES)
def test_changed_files_name_the_tensor(folder: Path, layout: str, kind: str) -> None:
    case, (change, message) = CASES[layout], CHANGES[kind]
    path = folder / case.file
    with changed(path):
        rewrite(path, change, case.key)
        with pytest.raises(ValueError, match=message.format(key=re.escape(case.key))) as error:
            load_any_stage(path, expect=case.stage)
    told(error, path)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
@pytest.mark.parametrize("layout", CASES)
def test_files_cut_short_are_named(folder: Path, layout: str, share: float) -> None:
    case = CASES[layout]
    path, message = folder / case.file, "is cut short" if share else "not a (checkpoint|safetensors)"
    with (
        changed(path, lambda content: content[: int(share * len(content))]),
        pytest.raises(ValueError, match=message) as error,
    ):
        load_any_stage(path, expect=case.stage)
    told(error, path)


def told(error: pytest.ExceptionInfo, path: Path) -> None:
    """The message names the file and says what to do."""
    assert f"{path}: " in str(error.value)
    assert REMEDY.search(str(error.value))


# --- files that are no stage at all ---


class Code:
    """Runs when it is unpickled, if anything is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def write_code(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "hook": Code(path.with_name("it ran"))}, path)


def write_bare_code(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code(path.with_name("it ran"))))


OTHERS: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "holds Python objects": ("x.ckpt", write_code),
    "is not a checkpoint; expected": ("x.pt", write_bare_code),
    "is not a checkpoint (it looks like a text file)": (
        "x.ckpt",
        lambda path: path.write_text("weights " * 9),
    ),
    "is not a safetensors file": ("x.safetensors", lambda path: path.write_text("weights " * 9)),
    "is a LoRA": ("x.safetensors", lambda path: save_file({"te.lora_down.weight": torch.ones(1)}, path)),
    "is a Stable Diffusion checkpoint": (
        "x.ckpt",
        lambda path: torch.save(
            {
                "state_dict": {
                    f"{name}.weight": torch.ones(1)
                    for name in ("model.diffusion_model.out.2", "first_stage_model.x")
                }
            },
            path,
        ),
    ),
    " is a folder; expected": ("x", lambda path: path.mkdir()),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "upsampler", None])
def test_what_is_no_stage_is_named(tmp_path: Path, what: str, stage: StageName | None) -> None:
    name, write = OTHERS[what]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(what)) as error:
        load_any_stage(tmp_path / name, expect=stage)
    assert str(error.value).startswith(str(tmp_path / name))
    assert REMEDY.search(str(error.value))
    assert not (tmp_path / "it ran").exists()


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: has no bundle.json. Choose the folder")):
        load_any_bundle(tmp_path)


# --- every way of storing ---


def sharded(write: Callable[[dict, Path], object]) -> Callable[[dict[str, Tensor], Path], None]:
    """Two shards and their index, as Hugging Face names them."""

    def save(tensors: dict[str, Tensor], path: Path) -> None:
        names = sorted(tensors)
        parts = {1: names[::2], 2: names[1::2]}
        files = {n: f"{path.stem}-{n:05d}-of-00002{path.suffix}" for n in parts}
        for n, keys in parts.items():
            write({key: tensors[key] for key in keys}, path.with_name(files[n]))
        index = {"metadata": {}, "weight_map": {key: files[n] for n, keys in parts.items() for key in keys}}
        path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))

    return save


WAYS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], object]]] = {
    "safetensors": (DIFFUSERS, save_file),
    "sharded safetensors": (DIFFUSERS, sharded(save_file)),
    "bin": ("diffusion_pytorch_model.bin", torch.save),
    "sharded bin": ("diffusion_pytorch_model.bin", sharded(torch.save)),
    "bin of torch before 1.6": (
        "diffusion_pytorch_model.bin",
        lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    ),
}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_storing_is_read(folder: Path, tmp_path: Path, way: str, stored: torch.dtype) -> None:
    """A decoder, whose convolutions change their order in memory, in its folder beside the projections."""
    for name in ("text_proj", "decoder"):
        shutil.copytree(folder / "karlo" / name, tmp_path / name)
    whole = tmp_path / "decoder" / DIFFUSERS
    tensors = {name: value.to(stored) for name, value in load_file(whole).items()}
    whole.unlink()
    name, write = WAYS[way]
    write(tensors, tmp_path / "decoder" / name)
    expected = load_any_stage(folder / "karlo" / "decoder", dtype=stored).network.state_dict()
    for dtype in (torch.float32, torch.bfloat16):
        found = load_any_stage(tmp_path / "decoder", expect="decoder", dtype=dtype).network.state_dict()
        assert {value.dtype for value in found.values()} == {dtype}
        own = [
            name for name in found if not name.startswith("conditioner.")
        ]  # these are in a file of their own
        assert own
        assert all(torch.equal(found[name], expected[name].to(dtype)) for name in own)
