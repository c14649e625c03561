"""OpenAI's CLIP files and open_clip's checkpoints, against open_clip on the same random weights."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from unclip.core.formats.detect import identify
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.files.torchscript import open_torchscript
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.layouts.openai_clip import load_openai_clip, openai_clip_config
from unclip.core.networks.clip import ClipNetwork, preset
from unclip.core.pipelines.encode import encode_images, encode_text

from ...helpers.clip import IDS, normalised, pixels, randomise
from ...helpers.clip_jit import save_torchscript

WITHIN, OUTSIDE = 1e-4, 1e-3
NUMBERS = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}


def small_open_clip(quick_gelu: bool) -> nn.Module:
    """A model of OpenAI's proportions: heads of 64."""
    model = open_clip.CLIP(
        embed_dim=24,
        vision_cfg=open_clip.CLIPVisionCfg(image_size=32, patch_size=8, width=128, layers=2, head_width=64),
        text_cfg=open_clip.CLIPTextCfg(width=128, heads=2, layers=2),
        quick_gelu=quick_gelu,
    )
    return randomise(model)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """OpenAI's: weights that half precision holds exactly."""
    model = small_open_clip(quick_gelu=True)
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model


@pytest.fixture(scope="module")
def archive(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As OpenAI's: matrices in half precision, LayerNorms in full, and numbers beside them."""
    state: dict[str, Tensor] = {
        name: value if ".ln_" in f".{name}" else value.half() for name, value in model.state_dict().items()
    }
    state |= {name: torch.tensor(value) for name, value in NUMBERS.items()}
    return save_torchscript(state, tmp_path_factory.mktemp("clip") / "ViT.pt")


def test_the_tensors_of_an_archive_are_those_of_its_program(archive: Path) -> None:
    source = open_torchscript(archive)
    expected = torch.jit.load(archive).state_dict()
    assert set(source.shapes) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in source.tensors())
    assert all(source.dtypes[name] == tensor.dtype for name, tensor in expected.items())
    assert torch.equal(source.tensor("visual.proj"), expected["visual.proj"])


def test_openais_archive_gives_what_open_clip_gives(model: nn.Module, archive: Path) -> None:
    source = open_weights(archive)
    layout = identify(source)
    assert layout.stage == "clip"
    stage = layout.load(source, "cpu", None)
    assert stage.network.config.quick_gelu
    assert next(stage.network.parameters()).dtype == torch.float32  # of a mixture, the larger
    assert layout.config(source) == stage.network.config
    expected = model.encode_text(IDS)
    assert (stage.network.encode_tokens(IDS)[2] - expected).abs().max() <= WITHIN
    images = pixels()
    pictures = model.encode_image(normalised(images))
    assert (encode_images(stage, images).vectors - pictures).abs().max() <= WITHIN
    exact = small_open_clip(quick_gelu=False)
    exact.load_state_dict(model.state_dict())
    assert (exact.encode_text(IDS) - expected).abs().max() > OUTSIDE
    assert (exact.encode_image(normalised(images)) - pictures).abs().max() > OUTSIDE
    assert encode_text(stage, ["a red fox"]).mask.sum() == 5


def test_weights_in_full_precision_are_not_openais(tmp_path: Path) -> None:
    model = small_open_clip(quick_gelu=False)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "open_clip_pytorch_model.bin")
    stage = load_openai_clip(open_weights(tmp_path / "open_clip_pytorch_model.bin"))
    assert not stage.network.config.quick_gelu
    assert (stage.network.encode_tokens(IDS)[2] - model.encode_text(IDS)).abs().max() <= WITHIN


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-L-14-quickgelu", "ViT-H-14", "ViT-bigG-14"])
def test_shapes_tell_the_published_sizes(name: str) -> None:
    expected = preset(name)
    with torch.device("meta"):
        state = ClipNetwork(expected).clip.state_dict()
    config = openai_clip_config(source_of_tensors(Path("clip.pt"), state), expected.quick_gelu)
    assert replace(config, vision=expected.vision) == expected
    vision = expected.vision
    assert replace(config.vision, mlp_ratio=vision.mlp_ratio) == vision
    assert int(vision.width * config.vision.mlp_ratio) == int(vision.width * vision.mlp_ratio)


BLOCK = "transformer.resblocks.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (BLOCK, None, f"lacks {BLOCK}; found"),
        ("visual.extra", torch.ones(1), "holds visual.extra, for which its layout has no place"),
        (BLOCK, torch.ones(512, 100), f"found the shape {BLOCK} [512, 100], expected [512, 128]"),
        ("visual.positional_embedding", torch.ones(16, 128), "has 16 positions, expected those of a square"),
    ],
)
def test_a_damaged_checkpoint_is_an_error(model: nn.Module, tmp_path: Path, name, value, message) -> None:
    state = dict(model.state_dict())
    state.pop(name, None)
    if value is not None:
        state[name] = value
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_openai_clip(open_weights(tmp_path / "clip.safetensors"))
    assert "clip.safetensors" in str(error.value)


# --- archives that are not what they should be ---


class Malicious:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('the pickle was run')",))


def with_pickle(archive: Path, target: Path, content: bytes) -> Path:
    """The archive with another ``data.pkl``."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            is_pickle = info.filename.endswith("/data.pkl")
            new.writestr(info.filename, content if is_pickle else old.read(info))
    return target


def test_nothing_of_an_archive_is_run(archive: Path, tmp_path: Path) -> None:
    content = pickle.dumps({"weight": Malicious()}, protocol=2)
    path = with_pickle(archive, tmp_path / "bad.pt", content)
    with pytest.raises(ValueError, match=re.escape("exec beside tensors, which only running its code")):
        open_torchscript(path)
    with pytest.raises(SystemExit):
        pickle.loads(content)


@pytest.mark.parametrize(
    "name", [b"torch.serialization\nload", b"torch\nload", b"os\nsystem", b"builtins\ngetattr"]
)
def test_no_other_name_is_resolved(archive: Path, tmp_path: Path, name: bytes) -> None:
    path = with_pickle(archive, tmp_path / "bad.pt", b"c" + name + b"\n(tR.")
    with pytest.raises(ValueError, match=re.escape(name.decode().replace("\n", "."))):
        open_torchscript(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"\x80\x02}q", b"garbage", b"\x80\x63.", b"I1x\n."])
def test_a_damaged_pickle_is_an_error(archive: Path, tmp_path: Path, content: bytes) -> None:
    path = with_pickle(archive, tmp_path / "bad.pt", content)
    with pytest.raises(ValueError, match="cut short or damaged"):
        open_torchscript(path)


def test_a_module_with_nothing_in_it_is_passed_over(archive: Path, tmp_path: Path) -> None:
    path = with_pickle(archive, tmp_path / "empty.pt", b"\x80\x02c__torch__\nEmpty\n)\x81.")
    assert open_torchscript(path).shapes == {}


def test_an_archive_that_swells_is_not_unpacked(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("m/data.pkl", bytes(1_000_000))
    with pytest.raises(ValueError, match="a part of it is larger than the whole file"):
        open_torchscript(tmp_path / "bomb.pt")


def test_a_tensor_beyond_its_bytes_is_an_error(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, content[:2] if info.filename.endswith("/data/3") else content)
    with pytest.raises(ValueError, match=r"needs [\d,]+ bytes and has 2"):
        open_torchscript(tmp_path / "bad.pt")


def test_a_file_that_is_no_archive_is_an_error(archive: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short or damaged"):
        open_torchscript(cut)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as other:
        other.writestr("a.txt", "text")
    cut.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=re.escape("zip archive without data.pkl")):
        open_torchscript(cut)
