"""Prior and decoder of Kandinsky in one folder: diffusers' combined pipelines, and two downloads in one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import KandinskyCombinedPipeline, KandinskyV22CombinedPipeline
from unclip.cli.inspect import describe_folder
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.formats.abilities import read_abilities
from unclip.core.formats.layouts.kandinsky import DIFFUSION_22
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.networks.multilingual_clip import MultilingualClip
from unclip.core.stages import PriorStage

from ...helpers.kandinsky_files import save_21, tiny_21, tiny_22
from ...helpers.karlo import save_as_published, tiny_kandinsky_prior

PRIOR_DIFFUSION = DiffusionSpec(schedule="cosine", prediction="x0", variance="fixed_small", clip_x0=10.0)


def combined(kind: str, folder: Path) -> Path:
    """What ``AutoPipelineForText2Image`` saves."""
    decoder = tiny_22() if kind == "2.2" else tiny_21()
    whole = KandinskyV22CombinedPipeline if kind == "2.2" else KandinskyCombinedPipeline
    prior = {f"prior_{name}": part for name, part in tiny_kandinsky_prior().components.items()}
    pipeline = whole(**decoder.components, **prior)
    return pipeline.save_pretrained(folder) or folder if kind == "2.2" else save_21(pipeline, folder)


@pytest.mark.parametrize("kind", ["2.1", "2.2"])
def test_a_combined_pipeline_is_a_whole_bundle(tmp_path: Path, kind: str) -> None:
    folder = combined(kind, tmp_path / "combined")
    settings = folder / "prior_image_processor" / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "image_mean": [0.5, 0.25, 0.125]}))
    bundle = load_any_bundle(folder)
    apart = load_any_bundle(save_as_published(tiny_kandinsky_prior(), tmp_path / "prior"))
    assert bundle.prior is not None and apart.prior is not None
    assert bundle.prior.diffusion == PRIOR_DIFFUSION == apart.prior.diffusion
    assert torch.equal(bundle.prior.network.query, apart.prior.network.query)
    config = bundle.clip.network.config
    assert config.text is not None and config.vision is not None
    assert config.image_mean == (0.5, 0.25, 0.125)
    assert bundle.decoder.network.config.conditioning.null_known, "both towers are there"
    if kind == "2.1":
        assert isinstance(bundle.decoder_text.network, MultilingualClip)
    assert read_abilities(folder).has_prior
    assert isinstance(load_any_stage(folder, expect="prior"), PriorStage)
    found = [Path(stage["path"]).parent.name for stage in describe_folder(folder)["stages"]]
    encoders = ["prior_text_encoder", "prior_image_encoder", *(["text_encoder"] if kind == "2.1" else [])]
    assert found == [*encoders, "prior_prior", "unet"]


@pytest.mark.parametrize("last", ["prior", "decoder"])
def test_a_scheduler_that_the_other_download_overwrote_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, last: str
) -> None:
    def write_prior() -> None:
        save_as_published(tiny_kandinsky_prior(), tmp_path)

    if last == "decoder":
        write_prior()
    tiny_22().save_pretrained(tmp_path)
    if last == "prior":
        write_prior()
    with caplog.at_level(logging.WARNING):
        bundle = load_any_bundle(tmp_path)
    assert (bundle.prior.diffusion.schedule, bundle.prior.diffusion.prediction) == ("cosine", "x0")
    assert bundle.decoder.diffusion == DIFFUSION_22
    assert bundle.clip.network.config.vision is not None, "the text encoder is CLIP's"
    other = {"prior": "decoder", "decoder": "prior"}[last]
    assert f"is the {last}'s; that of the {other} was overwritten by it" in caplog.text
    assert str(tmp_path / "scheduler") in caplog.text


def test_a_folder_with_one_scheduler_for_one_stage_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_as_published(tiny_kandinsky_prior(), tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load_any_bundle(tmp_path).prior.diffusion == PRIOR_DIFFUSION
    assert "overwritten" not in caplog.text
