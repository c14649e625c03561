"""The shipped workflows of Kandinsky run without ComfyUI, with small models in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from unclip.cli.workflow.builtin_nodes import Folders
from unclip.cli.workflow.graph import is_link
from unclip.cli.workflow.local import local_catalog, run_here
from unclip.cli.workflow.reading import load_workflow

from ..helpers import kandinsky_workflows as kandinsky
from ..helpers.sources import ROOT

VIDEO = "kandinsky22_interpolation_video"
# An input of each that must change what it makes.
CHANGES: dict[str, dict[str, Any]] = {
    "kandinsky22_text_to_image": {"guidance_scale": 2.0},
    "kandinsky22_image_mix": {"weight_3": 0.9},
    "kandinsky22_inpaint": {"seed": 1},
    "kandinsky22_depth": {"seed": 1},
    "kandinsky22_img2img": {"strength": 1.0},
    "kandinsky22_text_diff": {"theta_max": 0.1},
    "kandinsky21_text_to_image": {"text": "a dog"},
    "pops_texturing": {"guidance_scale": 1.0},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unclip")
    kandinsky.write_models(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_place(models, monkeypatch) -> None:
    monkeypatch.setenv("UNCLIP_MODELS", str(models))


def written_by(name: str, folder: Path, **changes: Any) -> list[Path]:
    """The files that a workflow writes; ``changes`` are values by input, for all nodes that have it."""
    kandinsky.write_picture(folder)
    catalog = local_catalog()
    graph = load_workflow(ROOT / "workflows" / f"{name}.json", catalog)
    for node_id, node in graph.nodes.items():
        widgets = [key for key, value in node.inputs.items() if not is_link(value)]
        own = {key: value for key, value in changes.items() if key in widgets}
        graph = graph.with_inputs(node_id, **kandinsky.small(node.inputs) | own)
    folders = Folders(folder, folder / "output")
    run_here(graph, catalog, folders, quiet=True)
    return folders.written


def made_by(name: str, folder: Path, **changes: Any) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in written_by(name, folder, **changes)]


def test_every_workflow_of_kandinsky_is_run():
    folder = ROOT / "workflows"
    shipped = {path.stem for kind in ("kandinsky", "pops") for path in folder.glob(f"{kind}*.json")}
    assert set(kandinsky.MAKES) == shipped - {"kandinsky22_prior_to_sdxl"}
    assert {*CHANGES, VIDEO} == set(kandinsky.MAKES) - kandinsky.IN_COMFYUI_ONLY


@pytest.mark.parametrize("name", CHANGES)
def test_it_paints(name, tmp_path):
    pictures = made_by(name, tmp_path)
    assert [picture.shape for picture in pictures] == [(*size, 3) for size in kandinsky.MAKES[name]]
    assert min(picture.std() for picture in pictures) > 5
    others = made_by(name, tmp_path, **CHANGES[name])
    assert np.abs(pictures[-1].astype(float) - others[-1]).mean() > 0.5, CHANGES[name]


def test_what_the_mask_does_not_cover_stays(tmp_path):
    (picture,) = made_by("kandinsky22_inpaint", tmp_path, feather=0)
    before = np.asarray(Image.open(tmp_path / "example.png"))
    same = (picture == before).all(axis=-1)
    assert same[:9].all() and same[:, :11].all() and not same[12:28, 14:34].all()


def test_frames_become_a_video(tmp_path):
    av = pytest.importorskip("av")
    (path,) = written_by(VIDEO, tmp_path)
    with av.open(str(path)) as video:
        assert float(video.streams.video[0].average_rate) == kandinsky.FRAME_RATE
        frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in video.decode(video=0)]
    assert [frame.shape for frame in frames] == [(*size, 3) for size in kandinsky.MAKES[VIDEO]]
    assert np.abs(frames[0] - frames[-1]).mean() > 2
