"""The nodes' host: stand-ins outside ComfyUI, and the right calls inside it (recorded)."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from unclip.core import precision
from unclip.core.diffusion.samplers import SamplerStep
from unclip.nodes import host

from ..helpers.comfyui import Interrupted, comfyui_starter


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    return comfyui_starter(tmp_path / "models", monkeypatch)


def a_step(index=0, total=4, x0=None):
    x0 = torch.zeros(1, 3, 8, 8) if x0 is None else x0
    return SamplerStep(index=index, total=total, x=x0, x0=x0)


# --- model folders


def test_models_are_found_in_the_folders_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("UNCLIP_MODELS", f"{tmp_path / 'a'}:{tmp_path / 'b'}".replace(":", host.os.pathsep))
    assert host.model_folders() == [host.PACK_FOLDER / "models", tmp_path / "a", tmp_path / "b"]
    monkeypatch.delenv("UNCLIP_MODELS")
    monkeypatch.setattr(host, "PACK_FOLDER", tmp_path / "ComfyUI" / "custom_nodes" / "unclip")
    assert host.model_folders()[-1] == tmp_path / "ComfyUI" / "models" / "unclip"


def test_comfyui_learns_the_model_folder_once(comfyui, tmp_path):
    fake = comfyui()
    assert fake.folders.folder_names_and_paths == {}, "nothing may happen before the folders are asked for"
    for _ in range(2):
        assert host.model_folders() == [host.PACK_FOLDER / "models", tmp_path / "models" / "unclip"]
    paths, extensions = fake.folders.folder_names_and_paths["unclip"]
    assert paths == [str(tmp_path / "models" / "unclip")]
    assert extensions == set(host.MODEL_EXTENSIONS)


def test_folders_of_extra_model_paths_are_kept(comfyui, tmp_path):
    fake = comfyui()
    fake.folders.folder_names_and_paths["unclip"] = (["/elsewhere"], {".gguf"})
    assert host.model_folders()[1:] == [tmp_path / "models" / "unclip", host.Path("/elsewhere")]
    assert fake.folders.folder_names_and_paths["unclip"][1] == {".gguf", *host.MODEL_EXTENSIONS}


# --- device, precision


def test_precision_by_name_and_by_machine(comfyui, monkeypatch):
    named = [host.choose_dtype(name) for name in ("fp32", "fp16", "bf16")]
    assert named == [torch.float32, torch.float16, torch.bfloat16]
    monkeypatch.setattr(host, "compute_device", lambda: torch.device("cpu"))
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda fast=fast: fast)
        outside = host.choose_dtype("auto")
        fake = comfyui()
        assert outside == host.choose_dtype("auto") == expected, "a CPU must not depend on who asks"
        for name in fake.modules:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(host, "compute_device", lambda: torch.device("cuda"))
    assert host.choose_dtype("auto") == torch.float16
    fake = comfyui()
    assert host.choose_dtype("auto") == torch.bfloat16
    fake.dtype = torch.float8_e4m3fn
    assert host.choose_dtype("auto") == torch.float16
    with pytest.raises(ValueError, match="precision: found 'int8', expected one of auto, fp32, fp16, bf16"):
        host.choose_dtype("int8")


def test_the_device_can_be_chosen_outside_comfyui():
    try:
        host.set_device("meta")
        assert host.compute_device() == torch.device("meta")
        with pytest.raises(ValueError, match="device: found 'gpu0', which cannot be used here"):
            host.set_device("gpu0")
        with pytest.raises(ValueError, match=r"device: found 'cuda:99', which cannot be used here .*; use"):
            host.set_device("cuda:99")
        assert host.compute_device() == torch.device("meta")
    finally:
        host.set_device(None)
    assert host.compute_device().type in ("cpu", "cuda", "mps")


# --- progress


def test_outside_comfyui_the_chosen_display_shows_every_step():
    seen = []

    class Display:
        def __init__(self, title, total):
            seen.append((title, total))

        def __enter__(self):
            return lambda done, total: seen.append((done, total))

        def __exit__(self, *_):
            seen.append("closed")

    host.set_progress_factory(Display)
    try:
        with pytest.raises(KeyboardInterrupt), host.stage_progress("Decode", 4, pictures=True) as on_step:
            on_step(a_step(0, 5))
            on_step(a_step(1, 5))
            raise KeyboardInterrupt
    finally:
        host.set_progress_factory(None)
    assert seen == [("Decode", 4), (1, 5), (2, 5), "closed"]


def test_the_default_display_is_a_bar(capsys):
    with host.stage_progress("Prior", 2) as on_step:
        on_step(a_step(0, 2))
        on_step(a_step(1, 2))
    assert "Prior" in capsys.readouterr().err


def test_comfyui_gets_progress_and_preview_at_every_step(comfyui):
    fake = comfyui()
    with host.stage_progress("Decode", 3, pictures=True) as on_step:
        on_step(a_step(0, 2))
        on_step(a_step(1, 2))
    kinds = [(call[0], *call[1:3]) for call in fake.calls]
    assert kinds == [("bar", 3), ("update", 0, 3), ("update", 1, 2), ("update", 2, 2)]
    kind, picture, size = fake.calls[-1][3]
    assert (kind, picture.size, size) == ("PNG", (8, 8), None), "exact, in its own size, not enlarged"
    with host.stage_progress("Upsample", 1, pictures=True) as on_step:
        on_step(SimpleNamespace(index=0, total=1, x0=torch.zeros(1, 3, 512, 512)))
    assert fake.calls[-1][3][0] == "JPEG", "large ones have to be quick"
    fake.calls.clear()
    with host.stage_progress("Prior", 1) as on_step:
        on_step(SimpleNamespace(index=0, total=1, x0=torch.zeros(2, 32)))
    assert fake.calls[-1][3] is None, "an embedding is no picture"


def test_stop_in_comfyui_ends_the_sampler_at_the_next_step(comfyui):
    fake = comfyui()
    with pytest.raises(Interrupted), host.stage_progress("Decode", 3, pictures=True) as on_step:
        on_step(a_step(0, 3))
        fake.interrupted = True
        on_step(a_step(1, 3))
    assert [call[1] for call in fake.calls if call[0] == "update"] == [0, 1]
    with pytest.raises(Interrupted), host.stage_progress("Decode", 3):
        raise AssertionError("must not begin")


def test_what_is_counted_shows_its_progress_and_stops(comfyui):
    fake = comfyui()
    with pytest.raises(Interrupted), host.count_progress("Encode", 9) as on_count:
        on_count(4)
        fake.interrupted = True
        on_count(8)
    assert fake.calls == [("bar", 9), ("update", 0, 9, None), ("update", 4, 9, None)]
    fake.interrupted, fake.calls = False, []
    with host.count_progress("Decode by tiles", 1) as on_count:
        on_count(3, 12)
    assert fake.calls[-1] == ("update", 3, 12, None)
    fake.interrupted = True
    with pytest.raises(Interrupted), host.count_progress("Encode", 9):
        raise AssertionError("must not begin")


def test_a_preview_shows_the_whole_batch_in_its_colours():
    colours = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [2, 2, 2]])
    x0 = colours[:, :, None, None].expand(3, 3, 8, 8)
    picture = host.preview_picture(x0)
    assert picture.size == (16, 16) and picture.mode == "RGB"
    assert picture.getpixel((2, 2)) == (0, 0, 0)
    assert picture.getpixel((12, 2)) == (255, 0, 0)
    assert picture.getpixel((2, 12)) == (255, 255, 255)
    assert picture.getpixel((12, 12)) == (0, 0, 0)


def test_a_large_preview_is_made_small():
    assert host.preview_picture(torch.zeros(4, 3, 64, 32), limit=50).size == (24, 50)
    assert host.preview_picture(torch.zeros(1, 3, 1024, 1024)).size == (1024, 1024)
    assert host.preview_picture(torch.zeros(4, 3, 1024, 1024)).size == (1024, 1024)
