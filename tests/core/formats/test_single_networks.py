"""Folders of single networks: in Hugging Face's cache, and of what is not unCLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from unclip.core.formats.detect import identify
from unclip.core.formats.diffusers_bundle import read_diffusers_folder
from unclip.core.formats.layouts.diffusers_files import is_component
from unclip.core.formats.load import open_any
from unclip.core.formats.loose_stages import loose_stages
from unclip.core.formats.published import PUBLISHED, how_to_get


def cached(folder: Path) -> Path:
    """A repository of one network as Hugging Face's cache has it, with an older snapshot."""
    root = folder / "models--openai--clip"
    (root / "blobs").mkdir(parents=True)
    for name, value in (("0aaa", 1.0), ("9bbb", 2.0)):
        snapshot, blob = root / "snapshots" / name, root / "blobs" / name
        snapshot.mkdir(parents=True)
        save_file({"weight": torch.full((2,), value)}, blob)
        (snapshot / "model.safetensors").symlink_to(blob)
        (snapshot / "config.json").write_text("{}")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0aaa\n")
    return root


def test_a_single_network_is_found_in_the_cache_of_hugging_face(tmp_path: Path) -> None:
    root = cached(tmp_path)
    assert is_component(root)
    for path, value in ((root, 1.0), (root / "snapshots" / "0aaa", 1.0), (root / "snapshots" / "9bbb", 2.0)):
        assert open_any(path).tensor("weight")[0] == value
    (root / "refs" / "main").unlink()
    assert open_any(root).tensor("weight")[0] == 2.0
    assert loose_stages(tmp_path) == []  # no stage of unCLIP, and no error either


@pytest.mark.parametrize("pipeline", ["Kandinsky3Pipeline", "Kandinsky3Img2ImgPipeline"])
def test_kandinsky_3_is_told_for_what_it_is(tmp_path: Path, pipeline: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    for name in ("unet", "movq", "text_encoder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    save_file({"encoder_hid_proj.projection_linear.weight": torch.ones(2, 2)}, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="is the U-Net of Kandinsky 3, which is not unCLIP"):
        identify(open_any(tmp_path / "unet.safetensors"))
    with pytest.raises(ValueError, match=r"is Kandinsky 3, which is not unCLIP: .* T5 .*Choose Kandinsky 2"):
        read_diffusers_folder(tmp_path)


def test_how_to_get_a_model_names_comfyuis_lists_only_there() -> None:
    assert "refresh the node definitions" in how_to_get(PUBLISHED[0], "models/unclip")
    assert "refresh" not in how_to_get(PUBLISHED[0], "models/unclip", refresh=False)
