"""The configs of the autoregressive prior for real CLIP spaces: their size, and in miniature their run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.config import config_from_dict
from unclip.core.data.settings import DataConfig
from unclip.core.formats.bundling import bundle_of
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.native.checkpoints import save_bundle
from unclip.core.networks.ar_prior import AutoregressivePrior
from unclip.core.training.embedding import EmbeddingConfig, embed_pictures
from unclip.core.training.recipes.ar_prior import AutoregressivePriorTraining
from unclip.core.training.stages import overlay, read_toml, train_settings
from unclip.nodes import host

from ...helpers import karlo
from ...helpers.kandinsky_files import tiny_22
from ...helpers.karlo import DIM, LENGTH
from ...helpers.pictures import write_pictures
from ...helpers.sources import ROOT
from ...helpers.stages import LOOP

CONFIGS = ROOT / "models" / "ar-prior"
PARAMETERS = {"vit-l": 804_699_776, "bigg": 806_403_712, "bigg-24gb": 206_735_360}
TINY: dict[str, Any] = {
    "fit_pictures": 20,
    "model": {
        "dim": DIM,
        "text_dim": DIM,
        "components": 6,
        "buckets": 8,
        "match_buckets": 4,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "text_length": LENGTH,
    },
    "loop": {**LOOP, "steps": 3, "batch_size": 8, "accumulate": 2, "keep_checkpoints": 1},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_full_size_is_what_the_config_says(name) -> None:
    config = config_from_dict(AutoregressivePriorTraining, read_toml(CONFIGS / f"{name}.toml"), name)
    with torch.device("meta"):
        network = AutoregressivePrior(config.model)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == PARAMETERS[name]
    told = re.search(r"([\d.]+) B parameters", (CONFIGS / f"{name}.toml").read_text())
    assert abs(float(told[1]) - count / 1e9) < 0.01


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """CLIP, a diffusion prior, and Karlo's and Kandinsky's decoder of one small space; embedded pictures."""
    folder = tmp_path_factory.mktemp("models")
    karlo.save_as_published(karlo.tiny_kandinsky_prior(), folder / "kandinsky22-prior")
    tiny_22().save_pretrained(folder / "kandinsky22-decoder")
    karlo.save_as_published(karlo.tiny_pipeline(), folder / "karlo")
    data = DataConfig(source="folder", path=str(write_pictures(folder / "pictures", 24)), workers=0)
    settings = EmbeddingConfig(data, str(folder / "kandinsky22-prior"), 12, 12)
    embed_pictures(settings, folder / "embeddings", torch.device("cpu"))
    return folder


@pytest.mark.parametrize("decoder", ["karlo", "kandinsky22-decoder"])
def test_in_miniature_it_trains_and_compare_priors_runs_beside_the_decoder(
    models, decoder, tmp_path, monkeypatch
) -> None:
    here = {"data": {"path": str(models / "embeddings")}, "clip": str(models / "kandinsky22-prior")}
    settings = overlay(overlay(read_toml(CONFIGS / "bigg-24gb.toml"), TINY), here)
    assert train_settings("ar-prior", settings, "bigg-24gb.toml", tmp_path / "run", cpu=True)
    ar_prior = load_any_stage(tmp_path / "run" / "ar-prior.safetensors", dtype=torch.float32)
    clip = load_any_stage(models / "kandinsky22-prior", expect="clip")
    prior = load_any_stage(models / "kandinsky22-prior", expect="prior")
    painter = load_any_stage(models / decoder, expect="decoder")
    save_bundle(bundle_of("compared", [clip, prior, ar_prior, painter]), tmp_path / "models" / "compared")
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path / "models"))
    changes = ["1.bundle=compared"]
    changes += [f"{node}.batch_size=1" for node in (4, 5, 6)] + [f"{node}.steps=2" for node in (4, 7, 8, 9)]
    words = ["run", str(ROOT / "workflows" / "compare_priors.json"), "--output", str(tmp_path / "out"), "-q"]
    words += [word for change in changes for word in ("--set", change)]
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1
