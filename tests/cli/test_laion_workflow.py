"""``laion_text_to_image``: its files are listed, downloaded and painted with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from unclip.cli import downloading
from unclip.cli.app import build_app
from unclip.cli.workflow.builtin_nodes import Folders
from unclip.cli.workflow.local import local_catalog, run_here
from unclip.cli.workflow.reading import load_workflow
from unclip.core.formats import published
from unclip.nodes import catalogue

from ..helpers import laion
from ..helpers.dalle2_decoder import SIZES, package
from ..helpers.hub_server import COMMIT, hub_server
from ..helpers.sources import ROOT

WORKFLOW = ROOT / "workflows" / "laion_text_to_image.json"
LOADERS = {"CLIP": laion.CLIP, "Prior": laion.PRIOR, "Decoder": laion.DECODER, "Upsampler": laion.UPSAMPLER}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package()
    return laion.write_laion(tmp_path_factory.mktemp("models") / "laion")


def loaded_files() -> dict[str, str]:
    """Of each of our loaders in the workflow, the file that it names."""
    nodes = load_workflow(WORKFLOW, local_catalog()).nodes.values()
    named = {node.class_type: node.inputs["file"] for node in nodes if "file" in node.inputs}
    return {kind.removeprefix("UnCLIPLoad"): file for kind, file in named.items()}


def test_its_loaders_name_the_files_that_are_downloaded(whole: Path, monkeypatch) -> None:
    assert loaded_files() == {kind: f"laion/{file}" for kind, file in LOADERS.items()}
    monkeypatch.setenv("UNCLIP_MODELS", str(whole.parent))
    for kind, file in loaded_files().items():
        assert file in catalogue.list_stage_files(kind.lower())


def painted(folder: Path, **inputs: float) -> np.ndarray:
    catalog = local_catalog()
    graph = load_workflow(WORKFLOW, catalog)
    for node_id, node in graph.nodes.items():
        given = {"steps": 3, "precision": "fp32", **inputs}
        graph = graph.with_inputs(node_id, **{key: given[key] for key in given if key in node.inputs})
    folders = Folders(folder, folder / "output")
    run_here(graph, catalog, folders, quiet=True)
    (file,) = folders.written
    return np.asarray(Image.open(file).convert("RGB")).astype(float)


def test_a_caption_is_painted(whole: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UNCLIP_MODELS", str(whole.parent))
    first = painted(tmp_path / "first", seed=0)
    assert first.shape == (SIZES[1], SIZES[1], 3) and first.std() > 5
    assert np.array_equal(painted(tmp_path / "again", seed=0), first)
    assert np.abs(painted(tmp_path / "other", seed=1) - first).mean() > 2


def test_the_files_come_from_two_repositories_and_openai(whole: Path, tmp_path: Path, monkeypatch) -> None:
    """Those of the repositories go where the workflow names them, and no others are fetched."""
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    hub_laion, hub_upsamplers = tmp_path / "hub" / "laion", tmp_path / "hub" / "upsamplers"
    for file in (laion.PRIOR, "prior/prior_config.json", laion.DECODER):
        copy_of(whole / file, hub_laion / file)
    (hub_laion / "prior" / "latest.pth").write_bytes(b"another")
    for file in ("working/latest.pth", "working/decoder_config.json"):
        copy_of(whole / "upsampler" / file, hub_upsamplers / file)
    copy_of(whole / laion.CLIP, hub_upsamplers / laion.CLIP)
    repositories = {"laion/DALLE2-PyTorch": hub_laion, "Veldrovive/upsamplers": hub_upsamplers}
    with hub_server(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path / "models"))
        here = f"{hub.url}/Veldrovive/upsamplers/resolve/{COMMIT}/{laion.CLIP}"
        models = [
            replace(each, files=(here,)) if each.name == "laion" else each for each in published.PUBLISHED
        ]
        monkeypatch.setattr(published, "PUBLISHED", tuple(models))
        result = CliRunner().invoke(build_app(), ["download", "laion", "--quiet"])
    assert result.exit_code == 0, result.stderr
    assert "that of the upsampler is not stated" in result.stderr
    found = tmp_path / "models" / "laion"
    fetched = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert fetched == {
        *LOADERS.values(),
        "prior/prior_config.json",
        "upsampler/working/decoder_config.json",
    }
    for file in fetched:
        assert (found / file).read_bytes() == (whole / file).read_bytes()


def copy_of(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(file.read_bytes())


def test_folders_with_the_names_of_their_repositories_are_found_too() -> None:
    by_hand = {"laion/prior/best.pth": "DALLE2-PyTorch/prior/best.pth"}
    by_hand["laion/upsampler/working/latest.pth"] = "upsamplers/working/latest.pth"
    for name, other in by_hand.items():
        assert other in published.other_spellings(name)


def test_its_prior_takes_no_guidance_and_its_decoder_computes_as_it_was_trained(whole: Path) -> None:
    from unclip.core.formats.load import load_any_stage

    prior = load_any_stage(whole / laion.PRIOR, expect="prior", dtype=torch.float32)
    assert not prior.network.config.unconditional
    decoder = load_any_stage(whole / laion.DECODER, expect="decoder", dtype=torch.float32)
    assert (decoder.network.config.normalised_values, decoder.network.config.self_scale) == (False, 0.5)
