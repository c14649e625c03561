"""The recipes of all stages, each in miniature: they learn, resume, and export what loads."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from unclip.core.data.batches import in_unit_range
from unclip.core.data.captions import STYLE_WORDS
from unclip.core.diffusion.losses import q_sample
from unclip.core.diffusion.schedule import make_schedule
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.codec import EmbeddingCodec
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.native.checkpoints import load_stage
from unclip.core.pipelines.encode import encode_images
from unclip.core.stages import ClipStage, DecoderStage, PriorStage, UpsamplerStage
from unclip.core.training.loop import LoopReport, train
from unclip.core.training.objective import denoising_loss, draw_timesteps
from unclip.core.training.recipes import clip as clip_module
from unclip.core.training.stages import RECIPES, build_recipe

from ...helpers.bundle import DIM, tiny_bundle
from ...helpers.pictures import write_pictures
from ...helpers.stages import LOOP, changed, stage_settings, write_tiny_clip
from ...helpers.training import write_tiny_shards


class Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    return stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))


def run(stage: str, settings: dict[str, Any], folder: Path, on_step=None) -> list[float]:
    """Train and return the losses."""
    losses: list[float] = []

    def report(state: LoopReport) -> None:
        losses.append(state.loss)
        if on_step is not None:
            on_step(state)

    config, recipe = build_recipe(stage, settings, "test.toml")
    train(recipe, config.loop, folder, report, cpu=True)
    return losses


def exported(stage: str, folder: Path) -> Path:
    return folder / f"{'upsampler-32' if stage == 'upsampler' else stage}.safetensors"


# --- learning and exporting ---


@pytest.mark.parametrize("stage", RECIPES)
def test_a_stage_learns_and_its_export_loads(stage: str, settings: dict, tmp_path: Path) -> None:
    losses = run(stage, settings[stage], tmp_path)
    assert len(losses) == LOOP["steps"]
    # What the captions leave open of the codes, here of an untrained CLIP model, is a floor of their loss.
    assert sum(losses[-15:]) < (0.95 if stage == "ar-prior" else 0.85) * sum(losses[:15])
    if stage == "classifier":
        return  # no stage of a system: test_training_classifier.py
    loaded = load_stage(exported(stage, tmp_path))
    kinds = {"clip": ClipStage, "decoder": DecoderStage, "upsampler": UpsamplerStage}
    assert type(loaded) is kinds.get(stage, PriorStage)
    assert {value.dtype for value in loaded.network.parameters()} == {torch.float16}
    assert all(value.isfinite().all() for value in loaded.network.parameters())


def test_a_clip_model_is_exported_with_the_statistics_of_its_space(settings: dict, tmp_path: Path) -> None:
    run("clip", changed(settings["clip"], "loop.steps", 4), tmp_path)
    clip = load_stage(exported("clip", tmp_path), dtype=torch.float32)
    assert (clip.space.id, clip.space.dim, clip.space.norm) == ("unclip/test", 16, "unit")
    images = torch.cat([_pictures(settings, step) for step in range(100, 120)])
    standardised = clip.space.standardise(encode_images(clip, images).vectors)
    assert standardised.mean(dim=0).abs().max() < 0.3
    assert (standardised.std(dim=0) - 1).abs().max() < 0.3


def test_the_statistics_of_a_space_take_no_more_at_once_than_training(
    settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for accumulate in (1, 4):
        config = changed(settings["clip"], "loop.accumulate", accumulate)
        recipe = build_recipe("clip", config, "test.toml")[1]
        encode, rows = recipe.network.encode_pixels, []
        monkeypatch.setattr(
            recipe.network, "encode_pixels", lambda x, e=encode, r=rows: (r.append(len(x)), e(x))[1]
        )
        batch = config["loop"]["batch_size"]
        found[accumulate] = torch.tensor(recipe._statistics())
        assert set(rows) == {batch // accumulate} and sum(rows) == 40 * batch
        rows.clear()
        monkeypatch.setattr(clip_module, "STATISTICS_PICTURES", 2 * batch + 1)
        recipe._statistics()
        assert sum(rows) == 3 * batch
        monkeypatch.undo()
    torch.testing.assert_close(found[4], found[1], atol=1e-6, rtol=1e-5)


def test_a_locked_image_tower_keeps_its_weights_and_the_text_learns(settings: dict, tmp_path: Path) -> None:
    run("clip", changed(settings["clip"], "loop.steps", 2), tmp_path / "first")
    first = exported("clip", tmp_path / "first")
    again = changed(changed(settings["clip"], "loop.start_from", str(first)), "loop.steps", 20)
    before = load_stage(first).network.state_dict()
    for locked in (True, False):
        folder = tmp_path / str(locked)
        run("clip", changed(again, "locked_image_tower", locked), folder)
        after = load_stage(exported("clip", folder)).network.state_dict()
        moved = {name for name in before if not torch.equal(after[name], before[name])}
        assert any(name.startswith("clip.visual.") for name in moved) != locked
        assert any(name.startswith("clip.transformer.") for name in moved)


def _pictures(settings: dict, step: int) -> torch.Tensor:
    _, recipe = build_recipe("clip", settings["clip"], "test.toml")
    return recipe.batch(step)[0]


def test_an_upsampler_is_exported_with_its_input_size(settings: dict, tmp_path: Path) -> None:
    short = changed(settings["upsampler"], "loop.steps", 1)
    run("upsampler", changed(short, "noise_level", 0.1), tmp_path)
    upsampler = load_stage(exported("upsampler", tmp_path))
    assert upsampler.recipe.noise_level == 0.1
    assert (upsampler.low_size, upsampler.network.config.image_size) == (16, 32)
    assert upsampler.diffusion.prediction == "v"


@pytest.mark.parametrize("stage", ["prior", "ar-prior", "decoder"])
def test_a_stage_is_exported_with_the_space_of_its_clip(stage: str, settings: dict, tmp_path: Path) -> None:
    run(stage, changed(settings[stage], "loop.steps", 1), tmp_path)
    space = load_stage(exported(stage, tmp_path)).space
    assert space == tiny_bundle(upsamplers=0).clip.space


@pytest.mark.parametrize("stage", ["ar-prior", "decoder", "upsampler"])
def test_a_killed_stage_resumes_to_the_same_file(stage: str, settings: dict, tmp_path: Path) -> None:
    short = changed(settings[stage], "loop.steps", 5)
    whole = run(stage, short, tmp_path / "whole")

    def kill(report: LoopReport) -> None:
        if report.step == 4:
            raise Killed

    with pytest.raises(Killed):
        run(stage, short, tmp_path / "killed", kill)
    assert not exported(stage, tmp_path / "killed").exists()
    assert run(stage, short, tmp_path / "killed") == whole[2:]
    files = [exported(stage, tmp_path / name).read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


@pytest.mark.parametrize("stage", RECIPES)
def test_a_run_can_start_from_the_weights_of_a_file(stage: str, settings: dict, tmp_path: Path) -> None:
    run(stage, changed(settings[stage], "loop.steps", 2), tmp_path / "first")
    first = exported(stage, tmp_path / "first")
    again = changed(settings[stage], "loop.steps", 1)
    again = changed(again, "loop.learning_rate", 1e-12)
    started = changed(again, "loop.start_from", str(first))
    run(stage, started, tmp_path / "started")
    run(stage, again, tmp_path / "fresh")
    _, recipe = build_recipe(stage, settings[stage], "test.toml")
    weights = recipe.read_weights(first)
    for name, same in (("started", True), ("fresh", False)):
        found = recipe.read_weights(exported(stage, tmp_path / name))
        assert all(torch.allclose(found[key], weights[key], atol=1e-3) for key in weights) == same


def test_a_resumed_run_no_longer_needs_the_file_it_started_from(settings: dict, tmp_path: Path) -> None:
    run("prior", changed(settings["prior"], "loop.steps", 2), tmp_path / "first")
    started = changed(settings["prior"], "loop.start_from", str(exported("prior", tmp_path / "first")))
    run("prior", changed(started, "loop.stop_at", 2), tmp_path / "second")
    exported("prior", tmp_path / "first").unlink()
    assert run("prior", changed(started, "loop.steps", 4), tmp_path / "second")
    with pytest.raises(ValueError, match=r"prior\.safetensors"):
        run("prior", started, tmp_path / "third")


def test_a_run_cannot_start_from_another_stage(settings: dict, tmp_path: Path) -> None:
    started = changed(settings["decoder"], "loop.start_from", settings["decoder"]["clip"])
    with pytest.raises(ValueError, match=r"loop.start_from: .*clip.* another network .* or leave"):
        run("decoder", started, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_objective_weighs_timesteps_by_the_config() -> None:
    schedule = make_schedule("cosine", 1000)
    t = torch.tensor([5, 400, 990])
    x0, noise = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    x_t = q_sample(schedule, x0, t, noise)
    snr = schedule.alphas_cumprod[t] / (1 - schedule.alphas_cumprod[t])

    def losses(prediction: str, gamma: float | None) -> torch.Tensor:
        spec = DiffusionSpec(prediction=prediction)
        output = torch.full_like(x0, 2.0)  # off by 2 from x0 = 0, by 1 from ε = 1
        return denoising_loss(schedule, spec, gamma, output, x0, x_t, noise, t).double()

    assert torch.allclose(losses("x0", 5.0), 4 * snr.clamp(max=5), rtol=1e-4)
    assert torch.allclose(losses("eps", 5.0), snr.clamp(max=5) / snr, rtol=1e-4)
    assert torch.equal(losses("x0", None), torch.full((3,), 4.0).double())


@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_timesteps_follow_the_shifted_distribution(shift: float) -> None:
    t = draw_timesteps(20_000, 1000, shift, torch.Generator().manual_seed(0))
    assert t.min() >= 0 and t.max() <= 999 and t.dtype == torch.int64
    for fraction in (0.1, 0.5, 0.9):  # P(u' < f) = f / (f + s·(1 − f)), the inverse of the shift
        expected = fraction / (fraction + shift * (1 - fraction))
        assert (t < 1000 * fraction).float().mean().item() == pytest.approx(expected, abs=0.015)


# --- what the autoregressive prior is trained on ---


class CodeRecorder(torch.nn.Module):
    """Stands for the network: keeps what it is given, and finds all codes equally likely."""

    def forward(self, codes: torch.Tensor, match: torch.Tensor, *text: torch.Tensor) -> torch.Tensor:
        self.codes, self.match, self.text = codes, match, text
        return torch.zeros(*codes.shape, 8)


def test_the_autoregressive_prior_learns_codes_of_pictures_and_their_match(settings: dict) -> None:
    wide = changed(settings["ar-prior"], "loop.batch_size", 120)
    _, recipe = build_recipe("ar-prior", changed(wide, "drop_text", 0.5), "test.toml")
    recorder, (images, ids) = CodeRecorder(), recipe.batch(3)
    loss = recipe.loss(recorder, (images, ids), torch.Generator().manual_seed(5))
    assert loss.item() == pytest.approx(math.log(8))

    clip = recipe.data.clip
    z_i, z_t = clip.encode_images(images), clip.encode_tokens(ids)[2]
    codec = EmbeddingCodec.from_state(recipe.network.codebook.state_dict(), clip.space)
    assert torch.equal(recorder.codes, codec.encode(Embedding(z_i, clip.space)))
    same = recorder.match == codec.encode_match((z_i * z_t).sum(dim=1))  # with dropped captions too
    assert same.float().mean() > 0.97  # up to rounding at the edges
    tokens, pooled, mask = recorder.text
    empty = clip.encode_tokens(clip.tokenizer([""]))[2]
    dropped = (pooled - empty).abs().amax(dim=1) < 1e-5
    assert abs(dropped.float().mean() - 0.5) < 0.15
    torch.testing.assert_close(pooled[~dropped], z_t[~dropped], atol=1e-5, rtol=0)
    assert (mask[dropped].sum(dim=1) == 2).all() and tokens.shape[:2] == mask.shape


def test_too_few_components_are_told(settings: dict, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        build_recipe("ar-prior", changed(settings["ar-prior"], "model.components", 1), "test.toml")
    assert re.search(r"1 components explain \d+\.\d+% of the variance", caplog.text)
    assert "model.components is 1; for 99% of the variance it needs more" in caplog.text


# --- what the decoder is trained on ---


class Recorder(torch.nn.Module):
    """Stands for the network, keeps what it is given, and puts out zeros."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor, t: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        self.x, self.t, self.conditions = x, t, conditions
        return torch.zeros(len(x), self.channels, *x.shape[2:])


def conditions_of(settings: dict[str, Any], channels: int = 3) -> tuple[Any, Recorder, float]:
    _, recipe = build_recipe("decoder", settings, "test.toml")
    recorder = Recorder(channels)
    loss = recipe.loss(recorder, recipe.batch(3), torch.Generator().manual_seed(5))
    return recipe, recorder, loss.item()


def test_the_decoder_is_given_standardised_embeddings_where_its_config_says_so(settings: dict) -> None:
    recipe, standardised, _ = conditions_of(settings["decoder"])
    _, raw, _ = conditions_of(changed(settings["decoder"], "model.conditioning.standardised", False))
    images = recipe.batch(3)[0]
    z_i = recipe.clip.encode_images(images)
    assert torch.equal(raw.conditions["clip_embedding"], z_i)
    assert torch.equal(standardised.conditions["clip_embedding"], recipe.clip.space.standardise(z_i))


@pytest.mark.parametrize("size", [8, 16, 32])
def test_the_decoder_is_given_what_clip_sees_at_its_own_size(
    settings: dict, tmp_path: Path, size: int
) -> None:
    """A decoder of 64 pixels beside a CLIP of 224 is given the z_i of the same pictures that priors learn."""
    folder = write_pictures(tmp_path / "pictures", 12)
    data = {"source": "folder", "path": str(folder), "workers": 0}
    small = changed({**settings["decoder"], "data": data}, "model.image_size", size)
    small = changed(small, "model.attention", [size // 4])
    recipe, recorder, _ = conditions_of(changed(small, "model.conditioning.standardised", False))
    assert recipe.clip.network.config.vision.image_size == 16
    assert recorder.x.shape[-2:] == (size, size)
    _, prior = build_recipe("prior", {**settings["prior"], "data": data}, "test.toml")
    learnt = prior.clip_stage.network.encode_pixels(in_unit_range(prior.batch(3)[0]))
    learnt = recipe.clip.space.in_convention(learnt)
    found = recorder.conditions["clip_embedding"]
    if size <= 16:
        torch.testing.assert_close(found, learnt)
    else:  # of larger pictures it sees what is shrunken from those
        torch.testing.assert_close(found, learnt, atol=0.05, rtol=0)


def test_a_priors_samples_are_clamped_far_out_where_the_config_says_nothing(settings: dict) -> None:
    plain = {name: value for name, value in settings["prior"].items() if name != "diffusion"}
    _, recipe = build_recipe("prior", {**plain, "diffusion": {}}, "test.toml")
    assert recipe.stage().diffusion == DiffusionSpec(prediction="x0", clip_x0=5.0)
    _, recipe = build_recipe("prior", {**plain, "diffusion": {"clip_x0": 10.0}}, "test.toml")
    assert recipe.stage().diffusion.clip_x0 == 10


def test_captions_and_embeddings_are_dropped_in_the_shares_of_the_config(settings: dict) -> None:
    decoder = changed(changed(settings["decoder"], "drop_clip", 0.25), "loop.batch_size", 120)
    _, recorder, _ = conditions_of(decoder)
    captioned = recorder.conditions["text_mask"].any(dim=1).float().mean()
    assert abs(recorder.conditions["keep_clip"].float().mean() - 0.75) < 0.12
    assert abs(captioned - 0.5) < 0.15


def test_dropped_captions_become_empty_ones_where_the_config_says_so(settings: dict) -> None:
    decoder = changed(settings["decoder"], "model.conditioning.text_pooled_dim", DIM)
    dropping = changed(changed(decoder, "model.conditioning.null_text", "empty_caption"), "drop_text", 1.0)
    recipe, recorder, _ = conditions_of(dropping)
    tokens, mask, pooled = recipe.clip.encode_tokens(recipe.clip.tokenizer([""]))
    rows = LOOP["batch_size"]
    assert torch.equal(recorder.conditions["text_mask"], mask.expand(rows, -1))
    assert torch.allclose(recorder.conditions["text_tokens"], tokens.expand(rows, -1, -1), atol=1e-6)
    assert torch.allclose(recorder.conditions["text_pooled"], pooled.expand(rows, -1), atol=1e-6)
    _, unmasked, _ = conditions_of(changed(decoder, "drop_text", 1.0))
    assert not unmasked.conditions["text_mask"].any()


def test_a_decoder_with_learned_variance_trains(settings: dict, tmp_path: Path) -> None:
    decoder = changed(settings["decoder"], "diffusion", {"prediction": "eps", "variance": "learned_range"})
    decoder = changed(changed(decoder, "model.out_channels", 6), "loop.steps", 3)
    assert all(loss > 0 for loss in run("decoder", decoder, tmp_path))
    assert load_stage(exported("decoder", tmp_path)).diffusion.variance == "learned_range"
    # The variance half of the output counts, by a little.
    _, _, learned = conditions_of(decoder, channels=6)
    fixed = changed(changed(decoder, "diffusion", {"prediction": "eps"}), "model.out_channels", 3)
    _, _, simple = conditions_of(fixed)
    assert learned != simple
    assert abs(learned - simple) < 0.2 * simple


@pytest.mark.parametrize("stage", ["clip", "prior", "ar-prior"])
@pytest.mark.parametrize(("share", "named"), [(0.0, False), (1.0, True)])
def test_the_share_of_captions_with_a_style_is_set(
    settings: dict[str, dict[str, Any]], stage: str, share: float, named: bool
) -> None:
    _, recipe = build_recipe(stage, {**settings[stage], "style_named": share}, "test.toml")
    batches = getattr(recipe, "data", recipe).batches
    words = [word for words in STYLE_WORDS.values() for word in words]
    captions = [caption for step in range(5) for caption in batches(step).captions]
    assert all(any(word in caption for word in words) == named for caption in captions)
