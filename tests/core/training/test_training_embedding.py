"""``unclip embed``: the same bytes from any number of processes and goes, and priors that train from them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core import writing as writing_module
from unclip.core.data.converting import to_shards
from unclip.core.data.embeddings import EmbeddingSource
from unclip.core.data.folders import FolderSource
from unclip.core.data.opening import open_batches, open_embeddings, open_pictures
from unclip.core.data.process import Process
from unclip.core.data.settings import DataConfig
from unclip.core.formats.native.checkpoints import save_stage
from unclip.core.training import embedding as embedding_module
from unclip.core.training.embedded_captions import CaptionedPictures
from unclip.core.training.frozen_clip import FrozenClip, load_frozen_clip
from unclip.core.training.settings import LoopConfig
from unclip.core.training.stages import build_recipe, train_settings, train_stage

from ...helpers.bundle import tiny_bundle
from ...helpers.distributed import killed_on_forks, on_forks, on_processes
from ...helpers.embeddings import write_clip_retrieval
from ...helpers.pictures import encoded, picture, write_pictures, write_shards_of
from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which one is damaged, the same as shards, and a CLIP model."""
    place = tmp_path_factory.mktemp("embed")
    folder = write_pictures(place / "folder", 30)
    (folder / "0012.png").write_text("no picture")
    write_shards_of(folder, place / "shards")
    write_tiny_clip(place)
    return place


def embed(place: Path, output: Path, *options: object, data: str = "folder") -> tuple[int, str]:
    common = [place / data, "-o", output, "--clip", place / "clip.safetensors", "--rows", 8, "--cpu"]
    arguments = ["embed", *map(str, [*common, "--batch-size", 3, "--workers", 0, *options])]
    result = CliRunner().invoke(build_app(), arguments)
    return result.exit_code, " ".join(result.output.split())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def embedded(place: Path) -> Path:
    code, output = embed(place, place / "embedded")
    assert code == 0, output
    return place / "embedded"


def test_embeddings_are_those_of_the_pictures(place: Path, embedded: Path) -> None:
    source = EmbeddingSource(embedded)
    assert source.groups == (8, 7, 8, 6)  # without the damaged one
    assert (source.dim, source.space_id) == (tiny_bundle().clip.space.dim, tiny_bundle().clip.space.id)
    clip = load_frozen_clip(place / "clip.safetensors")
    size = clip.network.config.vision.image_size
    batches = open_batches(DataConfig(source="folder", path=str(place / "folder")), size, 1, seed=0)
    for row, number in ((0, 0), (11, 11), (12, 13), (28, 29)):
        image, caption = batches._read(number, None)
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        found = source.read(row)
        assert found.caption == caption
        expected = clip.encode_images(pixels)[0]
        torch.testing.assert_close(torch.from_numpy(found.image), expected, atol=2e-3, rtol=0)
        text = clip.encode_tokens(clip.tokenizer([caption]))[2][0]
        torch.testing.assert_close(torch.from_numpy(found.text), text, atol=2e-3, rtol=0)
        assert (expected - text).abs().max() > 0.01


def test_shards_do_not_depend_on_who_makes_them(place: Path, embedded: Path, tmp_path: Path) -> None:
    whole = files(embedded)
    assert sorted(whole) == [*(f"embeddings-{n:06}.safetensors" for n in range(4)), "embeddings.json"]
    assert embed(place, tmp_path / "shards", "--workers", 1, data="shards")[0] == 0
    assert files(tmp_path / "shards") == whole
    arguments = ["embed", place / "folder", "-o", tmp_path / "two", "--clip", place / "clip.safetensors"]
    settings = ["--rows", 8, "--batch-size", 3, "--cpu", "--workers", 0]
    on_processes(2, "-m", "unclip.cli.app", *arguments, *settings, launcher="accelerate")
    assert files(tmp_path / "two") == whole


def test_two_processes_that_were_killed_end_as_one_that_was_not(place: Path, tmp_path: Path) -> None:
    def words(output: Path) -> list[object]:
        start = ["-m", "unclip.cli.app", "embed", place / "folder", "-o", output, "--rows", 2, "--cpu"]
        return [*start, "--clip", place / "clip.safetensors", "--batch-size", 1, "--workers", 0]

    on_forks(1, *words(tmp_path / "one"))
    two = tmp_path / "two"
    killed_on_forks(2, *words(two), when=lambda _: any(two.glob("embeddings-*.safetensors")))
    assert len(list(two.glob("embeddings-*.safetensors"))) < 15
    on_forks(2, *words(two))
    assert files(two) == files(tmp_path / "one")
    assert len(files(two)) == 16


def test_a_killed_run_goes_on(
    place: Path, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = embedding_module.save, []

    def killed(tensors: dict, facts: dict) -> bytes:
        calls.append(facts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return save(tensors, facts)

    monkeypatch.setattr(embedding_module, "save", killed)
    assert embed(place, tmp_path)[0] == 130
    assert len(files(tmp_path)) == 3
    monkeypatch.setattr(embedding_module, "save", save)
    writing_module._swept.clear()  # as in a new process
    left = f".embeddings-000002.safetensors.4194305-{writing_module._machine()}.tmp"  # of no process
    (tmp_path / left).write_text("of a run that was killed harder")
    first = tmp_path / "embeddings-000000.safetensors"
    before = first.stat().st_mtime_ns
    code, _ = embed(place, tmp_path)
    assert code == 0
    assert files(tmp_path) == files(embedded)
    assert first.stat().st_mtime_ns == before


def test_other_data_are_not_mixed_in(place: Path, embedded: Path) -> None:
    before = files(embedded)
    code, output = embed(place, embedded, "--rows", 16)
    assert code == 1
    assert (
        "holds embeddings that were made in another way: rows was 8, is 16. Choose another folder" in output
    )
    assert files(embedded) == before


def test_shards_of_unknown_origin_are_not_mixed_in(place: Path, tmp_path: Path) -> None:
    (tmp_path / "embeddings-mine.safetensors").write_bytes(b"mine")
    code, output = embed(place, tmp_path)
    assert code == 1 and "holds embeddings-mine.safetensors and no embeddings.json" in output
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings-mine.safetensors"]


def test_captions_of_another_field_are_not_mixed_in(place: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 4)
    rows = [{"file_name": f"000{n}.png", "text": f"text {n}", "dense": f"dense {n}"} for n in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert embed(place, tmp_path / "e", "--rows", 2, data=str(folder))[0] == 0
    (tmp_path / "e" / "embeddings-000001.safetensors").unlink()
    code, output = embed(place, tmp_path / "e", "--rows", 2, "--caption-field", "dense", data=str(folder))
    assert code == 1
    assert "made in another way: caption_field was None, is dense. Choose another folder" in output
    # A folder of before that was written down is one of the default field.
    facts = tmp_path / "e" / "embeddings.json"
    facts.write_text(
        json.dumps({k: v for k, v in json.loads(facts.read_text()).items() if k != "caption_field"})
    )
    assert embed(place, tmp_path / "e", "--rows", 2, data=str(folder))[0] == 0
    assert [EmbeddingSource(tmp_path / "e").read(row).caption for row in (0, 3)] == ["text 0", "text 3"]


def test_what_is_held_out_is_the_same_of_pictures_and_of_their_embeddings(
    place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    for number in range(40):
        file = folder / f"v{number % 2}.0" / f"p.{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture(number)))
        file.with_suffix(".txt").write_text(f"thing {number}")
    to_shards(FolderSource(folder), tmp_path / "shards", per_shard=15)
    for name in ("folder", "shards"):
        assert embed(place, tmp_path / f"of-{name}", data=str(tmp_path / name))[0] == 0
    assert files(tmp_path / "of-folder").keys() == files(tmp_path / "of-shards").keys()
    shards = files(tmp_path / "of-folder").items() - files(tmp_path / "of-shards").items()
    assert {name for name, _ in shards} <= {"embeddings.json"}
    kept = []
    for kind, name in (("folder", "folder"), ("webdataset", "shards"), ("embeddings", "of-folder")):
        data = DataConfig(source=kind, path=str(tmp_path / name), held_out=0.3)
        opened = open_embeddings(data, 4, 0, held_out=True).source if kind == "embeddings" else None
        part = opened or open_pictures(data, held_out=True)
        kept.append({part.read(row).caption for row in range(len(part))})
    assert kept[0] == kept[1] == kept[2]
    assert 4 < len(kept[0]) < 20
    source = EmbeddingSource(tmp_path / "of-folder")
    assert [source.key(row) for row in (0, 39)] == ["v0.0/p_00", "v1.0/p_39"]


# --- priors without pictures ---


@pytest.mark.parametrize("stage", ["prior", "ar-prior"])
def test_a_prior_learns_the_same_without_the_pictures(
    stage: str, place: Path, embedded: Path, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "whole", 30)
    assert embed(place.parent / place.name, tmp_path / "e", data=str(folder))[0] == 0
    settings = stage_settings(place, place / "clip.safetensors")[stage]
    settings = changed(settings, "loop.steps", 3)
    losses = {}
    for name, data in {
        "pictures": {"source": "folder", "path": str(folder), "workers": 0},
        "embeddings": {"source": "embeddings", "path": str(tmp_path / "e")},
    }.items():
        config = write_config(tmp_path / f"{name}.toml", {**settings, "data": data})
        train_stage(stage, config, tmp_path / name, cpu=True)
        losses[name] = [row["loss"] for row in read_log(tmp_path / name / "log.jsonl")]
    # Rows are halves in the shards; codes of the autoregressive prior may fall into the next bucket.
    assert losses["embeddings"] == pytest.approx(
        losses["pictures"], abs=0.05 if stage == "ar-prior" else 1e-2
    )


def test_embeddings_of_another_clip_are_refused(place: Path, embedded: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = stage_settings(place, place / "clip.safetensors")["prior"]
    path = tmp_path / "embeddings-000000.safetensors"
    content = (embedded / path.name).read_bytes()
    space = tiny_bundle().clip.space.id.encode()
    assert space in content
    path.write_bytes(content.replace(space, space[:-1] + b"?"))
    data = {"source": "embeddings", "path": str(tmp_path)}
    with pytest.raises(ValueError, match=r"^data\.path holds embeddings of the space .*\?, but .* is of"):
        build_recipe("prior", {**settings, "data": data}, "test.toml")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"000000\.safetensors is no shard of embeddings, or damaged"):
        build_recipe("prior", {**settings, "data": data}, "test.toml")
    assert json.loads((embedded / "embeddings.json").read_text())["pictures"] == 30


@pytest.fixture
def retrained(place: Path, tmp_path: Path) -> Path:
    """Another CLIP model of the same space, under the same name."""
    torch.manual_seed(7)
    clip = tiny_bundle(upsamplers=0).clip
    for parameter in clip.network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    path = tmp_path / "again" / "clip.safetensors"
    path.parent.mkdir()
    save_stage(clip, path)
    return path


def test_embeddings_of_a_model_that_was_trained_again_are_not_mixed_in(
    place: Path, retrained: Path, tmp_path: Path
) -> None:
    assert embed(place, tmp_path / "e")[0] == 0
    (tmp_path / "e" / "embeddings-000003.safetensors").unlink()
    before = files(tmp_path / "e")
    code, output = embed(place, tmp_path / "e", "--clip", retrained)
    assert code == 1
    assert re.search(r"made in another way: weights was \w{64}, is \w{64}\. Choose another folder", output)
    assert files(tmp_path / "e") == before
    # A folder of an older version does not tell, and goes on.
    manifest = tmp_path / "e" / "embeddings.json"
    facts = json.loads(manifest.read_text())
    del facts["weights"]
    manifest.write_text(json.dumps(facts))
    assert embed(place, tmp_path / "e")[0] == 0
    assert len(EmbeddingSource(tmp_path / "e").groups) == 4


@pytest.mark.parametrize("stage", ["prior", "ar-prior"])
def test_a_prior_learns_from_embeddings_of_its_own_model_alone(
    stage: str, embedded: Path, place: Path, retrained: Path
) -> None:
    data = {"source": "embeddings", "path": str(embedded)}
    build_recipe(stage, {**stage_settings(place, place / "clip.safetensors")[stage], "data": data}, "test")
    message = (
        r"^data\.path holds embeddings of another CLIP model than .*again/clip\.safetensors: those of its"
    )
    with pytest.raises(ValueError, match=message):
        build_recipe(stage, {**stage_settings(place, retrained)[stage], "data": data}, "test")


def test_shards_that_are_missing_are_told(
    place: Path, embedded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(embedded, tmp_path / "e")
    data = DataConfig(source="embeddings", path=str(tmp_path / "e"))
    open_embeddings(data, 4, seed=0)
    assert not caplog.text
    (tmp_path / "e" / "embeddings-000001.safetensors").unlink()
    open_embeddings(data, 4, seed=0)
    assert f"{tmp_path / 'e'} lacks 1 of its shards (embeddings-000001.safetensors)" in caplog.text
    (tmp_path / "e" / "embeddings.json").unlink()  # somebody's own choice of shards
    caplog.clear()
    open_embeddings(data, 4, seed=0)
    assert not caplog.text


# --- what is fitted before the first step ---


@pytest.fixture
def encoded_captions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many captions went through CLIP at a time."""
    counts: list[int] = []
    encode = FrozenClip.encode_tokens

    def counted(clip: FrozenClip, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counts.append(len(ids))
        return encode(clip, ids)

    monkeypatch.setattr(FrozenClip, "encode_tokens", counted)
    return counts


def test_a_codec_is_fitted_once_and_to_what_the_shards_hold(
    place: Path, embedded: Path, tmp_path: Path, encoded_captions: list[int]
) -> None:
    settings = changed(stage_settings(place, place / "clip.safetensors")["ar-prior"], "loop.steps", 2)
    pictures = {**settings, "data": {"source": "folder", "path": str(place / "folder"), "workers": 0}}
    step = 13  # the captions of a step and the empty one
    train_settings("ar-prior", changed(pictures, "loop.stop_at", 1), "test", tmp_path / "a", cpu=True)
    assert sum(encoded_captions) == settings["fit_pictures"] + step
    encoded_captions.clear()
    train_settings("ar-prior", pictures, "test", tmp_path / "a", cpu=True)
    assert sum(encoded_captions) == step
    encoded_captions.clear()
    started = changed(pictures, "loop.start_from", str(tmp_path / "a" / "ar-prior.safetensors"))
    train_settings("ar-prior", changed(started, "loop.steps", 1), "test", tmp_path / "b", cpu=True)
    assert sum(encoded_captions) == step
    encoded_captions.clear()
    stored = {**settings, "data": {"source": "embeddings", "path": str(embedded)}}
    _, recipe = build_recipe("ar-prior", stored, "test")
    assert sum(encoded_captions) == 12, "the first batch, to see that it is of this model"
    batches, clip = recipe.data.batches, recipe.data.clip
    expected = clip.encode_tokens(clip.tokens_of(batches.whole(2)))[2]
    torch.testing.assert_close(recipe.data.sample(36)[1][24:], expected, atol=2e-3, rtol=0)
    encoded_captions.clear()
    prior = {**stage_settings(place, place / "clip.safetensors")["prior"], "data": stored["data"]}
    build_recipe("prior", {**prior, "whitening": 0.01, "fit_pictures": 24}, "test")
    assert sum(encoded_captions) == 12


# --- embeddings of length 1 ---


def test_unit_embeddings_get_the_length_that_the_prior_learns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = tiny_bundle(upsamplers=0).clip
    vectors = write_clip_retrieval(tmp_path / "e", (40,), clip.space.dim)
    shutil.rmtree(tmp_path / "e" / "text_emb")  # which would be of another model
    data = {"source": "embeddings", "path": str(tmp_path / "e")}
    files, loaded = {}, {}
    spaces = {
        "raw": replace(clip.space, mean=(1.0,) * clip.space.dim, std=(2.0,) * clip.space.dim),
        "unknown": replace(clip.space, mean=None, std=None),
        "unit": replace(clip.space, norm="unit"),
    }
    for name, space in spaces.items():
        files[name] = tmp_path / f"{name}.safetensors"
        save_stage(replace(clip, space=space), files[name])

    def embeddings(name: str) -> torch.Tensor:
        settings = {**stage_settings(tmp_path, files[name])["prior"], "data": data}
        caplog.clear()
        _, recipe = build_recipe("prior", settings, "test.toml")
        loaded[name] = recipe.data
        return recipe.data.embed(recipe.batch(0), torch.Generator()).image

    # As the towers give them they are learnt as they are.
    lengths = embeddings("raw").norm(dim=1)
    assert lengths.std() > 0.1
    assert not caplog.text
    unit = vectors / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    np.save(tmp_path / "e" / "img_emb" / "img_emb_0.npy", unit.astype(np.float16))
    length = spaces["raw"].typical_norm
    assert length is not None
    found = embeddings("raw")
    torch.testing.assert_close(found.norm(dim=1), torch.full((12,), length), rtol=2e-3, atol=0)
    assert f"have length 1, and get the typical one of {files['raw']}, {length:.4g}" in caplog.text
    torch.testing.assert_close(loaded["raw"].sample_images(12), found)
    torch.testing.assert_close(embeddings("unit"), found / length, rtol=2e-3, atol=1e-4)
    assert not caplog.text
    with pytest.raises(
        ValueError, match=r"data\.path holds embeddings of length 1, .*unknown\.saf.* have another"
    ):
        embeddings("unknown")
    # A prior that takes unit vectors is given them.
    settings, process = stage_settings(tmp_path, files["unknown"])["prior"], Process()
    common = (str(files["unknown"]), DataConfig(**data), LoopConfig(**settings["loop"]), 0.1, 0.5, process)
    kept = CaptionedPictures(*common, spaces["unit"])
    torch.testing.assert_close(kept.sample_images(12), found / length, rtol=2e-3, atol=1e-4)
