"""The classifier that judges pictures: it names true pictograms, and its file says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from unclip.core.data.captions import WHITE_BACKGROUND
from unclip.core.data.draws import StepGenerator
from unclip.core.data.pictograms import Pictogram, write_shards
from unclip.core.data.rendering import composite, render_all
from unclip.core.formats.files.safetensors_io import read_tensor_file
from unclip.core.formats.native.checkpoints import load_stage
from unclip.core.formats.native.classifier import load_classifier, save_classifier
from unclip.core.networks.classifier import Classifier, ClassifierConfig
from unclip.core.training.loop import train
from unclip.core.training.recipes.classifier import moved
from unclip.core.training.stages import build_recipe

from ...helpers.stages import changed, stage_settings, write_tiny_clip
from ...helpers.training import SHAPES, pictograms, write_tiny_shards


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stages")
    return stage_settings(write_tiny_shards(folder / "shards"), folder / "none")["classifier"]


@pytest.fixture(scope="module")
def trained(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config, recipe = build_recipe("classifier", settings, "test.toml")
    train(recipe, config.loop, folder, cpu=True)
    return folder / "classifier.safetensors"


def on_white(size: int) -> torch.Tensor:
    """[12, 3, size, size]: the true pictures of all shapes in both styles."""
    white = torch.tensor([WHITE_BACKGROUND.top])
    return composite(render_all((each.svg for each in pictograms()), size), white, white)


def test_it_names_true_pictures_of_any_size(trained: Path) -> None:
    network = load_classifier(trained, dtype=torch.float32)
    assert network.config.classes == tuple(sorted(SHAPES))
    right = [network.config.classes.index(each.concept) for each in pictograms()]
    for size in (16, 32):
        found = network.score(on_white(size)).argmax(dim=1).tolist()
        assert sum(one == other for one, other in zip(found, right, strict=True)) >= 11
    assert {value.dtype for value in load_file(trained).values()} == {torch.float16}


def test_scores_do_not_depend_on_the_batch(trained: Path) -> None:
    network, pictures = load_classifier(trained, dtype=torch.float32), on_white(16)
    together = network.score(pictures)
    assert (network.score(pictures[4:5]) - together[4:5]).abs().max() < 1e-4
    assert (together[5:6] - together[4:5]).abs().max() > 1e-2


def test_held_out_pairs_are_learnt_from_only_where_the_config_says_so(tmp_path: Path) -> None:
    every = [
        Pictogram(f"noto/thing-{number}", f"thing {number}", "noto", "objects", (), pictograms()[0].svg)
        for number in range(80)
    ]
    outside = [each for each in every if each.held_out]
    assert outside
    write_shards(every, tmp_path / "shards")
    settings = stage_settings(tmp_path / "shards", tmp_path / "none")["classifier"]
    counts = {}
    for held_out in (False, True):
        _, recipe = build_recipe("classifier", {**settings, "held_out": held_out}, "test.toml")
        counts[held_out] = len(recipe.network.config.classes)
    assert counts == {False: 80 - len(outside), True: 80}
    judged = changed(settings, "loop.validate_every", 1)
    with pytest.raises(ValueError, match="the held-out pairs are learnt from; set held_out = false"):
        build_recipe("classifier", {**judged, "held_out": True}, "test.toml")[1].held_out()


def test_the_loss_on_held_out_pairs_is_of_their_own_concepts(tmp_path: Path) -> None:
    both = [
        Pictogram(f"{style}/thing-{number}", f"thing {number}", style, "objects", (), pictograms()[0].svg)
        for style in ("noto", "twemoji")
        for number in range(60)
    ]
    write_shards(both, tmp_path / "shards")
    settings = stage_settings(tmp_path / "shards", tmp_path / "none")["classifier"]
    _, recipe = build_recipe("classifier", settings, "test.toml")
    pictures, labels = recipe.prepare(recipe.held_out()(0))
    outside = {each.concept for each in both if each.held_out}
    assert pictures.shape == (12, 3, 16, 16)
    assert {recipe.network.config.classes[label] for label in labels.tolist()} <= outside


def test_pictures_are_moved_by_as_much_as_is_said() -> None:
    size = 64
    picture = torch.zeros(1, 1, size, size)
    picture[..., 24:40, 24:40] = 1
    many = moved(picture.expand(200, -1, -1, -1), 0.1, 0.25, torch.Generator().manual_seed(0))
    mass = many.sum(dim=(1, 2, 3))
    place = torch.arange(size) + 0.5
    across = (many.sum(dim=(1, 2)) * place).sum(dim=1) / mass - size / 2
    assert 0.05 * size < across.abs().max() <= 0.1 * size * 1.25 + 0.1
    side = mass.sqrt() / 16
    assert 0.74 < side.min() < 0.82 and 1.18 < side.max() < 1.26
    same = moved(picture, 0.0, 0.0, torch.Generator().manual_seed(0))
    assert torch.allclose(same, picture, atol=1e-5)
    # What a row gets depends on its place in the whole batch only.
    rows = StepGenerator("cpu", 200, slice(0)).start(0, slice(50, 60))
    assert torch.equal(moved(picture.expand(10, -1, -1, -1), 0.1, 0.25, rows), many[50:60])


# --- files ---


def tiny(**changes: Any) -> Classifier:
    return Classifier(
        ClassifierConfig(("a", "b", "c"), **{"image_size": 8, "blocks": (1, 1, 1, 1), **changes})
    )


def test_a_classifier_is_saved_whole_and_comes_back(tmp_path: Path) -> None:
    network = tiny()
    path = save_classifier(network, tmp_path / "judge.safetensors")
    again = load_classifier(path)
    assert again.config == network.config
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.score(pictures), network.score(pictures))
    assert not again.training and [each.name for each in tmp_path.iterdir()] == ["judge.safetensors"]


def test_a_classifier_that_cannot_be_is_refused(tmp_path: Path) -> None:
    network = tiny()
    with torch.no_grad():
        network.head.bias[1] = float("nan")
    with pytest.raises(ValueError, match=r"head\.bias holds NaN or infinite values; not saved"):
        save_classifier(network, tmp_path / "judge.safetensors")
    assert not list(tmp_path.iterdir())
    for classes, found in (((), "0 names"), (("a",), "1 names"), (("a", "a"), "2 names, 1 of them")):
        with pytest.raises(ValueError, match=f"classes has {found}"):
            ClassifierConfig(classes)
    with pytest.raises(ValueError, match=r"blocks is \[1, 1\], expected four numbers"):
        tiny(blocks=(1, 1))


def test_what_is_no_classifier_is_named(tmp_path: Path) -> None:
    clip = write_tiny_clip(tmp_path)
    with pytest.raises(ValueError, match=r"clip\.safetensors: holds the stage 'clip', not a classifier"):
        load_classifier(clip)
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(2)}, plain)
    with pytest.raises(ValueError, match=r"plain\.safetensors: is a safetensors file, but no classifier"):
        load_classifier(plain)
    with pytest.raises(ValueError, match=r"none\.safetensors"):
        load_classifier(tmp_path / "none.safetensors")
    judge = save_classifier(tiny(), tmp_path / "judge.safetensors")
    with pytest.raises(ValueError, match=r"judge\.safetensors: is a classifier, which judges pictures"):
        load_stage(judge)
    tensors = load_file(judge)
    tensors["head.weight"] = tensors["head.weight"][:2].clone()
    metadata = dict(read_tensor_file(judge).metadata)
    save_file(tensors, judge, metadata)
    with pytest.raises(ValueError, match=r"judge\.safetensors.*head\.weight"):
        load_classifier(judge)


def test_a_run_does_not_start_from_other_classes(settings: dict[str, Any], tmp_path: Path) -> None:
    other = save_classifier(tiny(image_size=16), tmp_path / "other.safetensors")
    started = changed(settings, "loop.start_from", str(other))
    config, recipe = build_recipe("classifier", started, "test.toml")
    with pytest.raises(ValueError, match=r"^loop\.start_from: .* has 3 other classes than the 6 of"):
        train(recipe, config.loop, tmp_path / "run", cpu=True)
