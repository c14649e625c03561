"""``unclip eval --pictures``: FID against pytorch-fid; the same numbers from shards and processes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import inception as published
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor
from torchvision.models.inception import Inception3
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.data.opening import open_source
from unclip.core.data.settings import DataConfig
from unclip.core.evaluation.quality import distribution
from unclip.core.evaluation.quality.distribution import cmmd, frechet_distance, squared_mmd
from unclip.core.evaluation.quality.inception import fit_inception, load_inception
from unclip.core.evaluation.quality.pictures import Judges, Looking, PictureSet, look, measure
from unclip.core.formats.load import load_any_stage
from unclip.core.pictures.sheet import from_pil
from unclip.core.pipelines.encode import encode_images, encode_text

from ...helpers.distributed import on_processes
from ...helpers.pictures import encoded, picture, write_pictures, write_shards_of, write_tar
from ...helpers.stages import write_tiny_clip


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- distances ---


def test_frechet_distance_of_normal_distributions_has_its_closed_form() -> None:
    """‖Δμ‖² + Σ(√λ₁ − √λ₂)² where the covariances commute, of samples that have them exactly."""
    first, second = (white(normal(500, 3, seed=seed)) for seed in (1, 2))
    turn, _ = torch.linalg.qr(normal(3, 3, seed=3))
    scales = torch.tensor([[3.0, 1.0, 0.5], [1.0, 2.0, 0.25]], dtype=torch.float64)
    moved = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    one, other = first * scales[0] @ turn, second * scales[1] @ turn + moved
    expected = (moved.square().sum() + (scales[0] - scales[1]).square().sum()).item()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def white(samples: Tensor) -> Tensor:
    """Brought to mean 0 and unit covariance, exactly."""
    samples = samples - samples.mean(dim=0)
    return samples @ torch.linalg.inv(torch.linalg.cholesky(samples.T.cov())).T


@pytest.mark.parametrize("count", [20, 200])
def test_frechet_distance_is_that_of_pytorch_fid(count: int) -> None:
    """With fewer pictures than features too, where the covariances are not of full rank."""
    one = normal(count, 64, seed=1) @ normal(64, 64, seed=2)
    other = normal(count + 7, 64, seed=3) @ normal(64, 64, seed=4) + 0.5
    moments = [(each.numpy().mean(axis=0), np.cov(each.numpy(), rowvar=False)) for each in (one, other)]
    expected = calculate_frechet_distance(*moments[0], *moments[1])
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="found sets of 1 and 20"):
        frechet_distance(one[:1], one[:20])


def test_the_kernel_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = normal(50, 8, seed=1), normal(37, 8, seed=2) + 0.3
    distances = [torch.cdist(a, b) for a, b in ((one, one), (other, other), (one, other))]
    kernels = [(-each.square() / (2 * 3.0**2)).exp().mean().item() for each in distances]
    expected = kernels[0] + kernels[1] - 2 * kernels[2]
    for rows in (7, 4096):
        monkeypatch.setattr(distribution, "ROWS_AT_ONCE", rows)
        assert squared_mmd(one, other, 3.0) == pytest.approx(expected, rel=1e-9)
    assert cmmd(one, one) == pytest.approx(0, abs=1e-9)


# --- Inception ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights in the layouts of pytorch-fid and of torchvision."""
    place = tmp_path_factory.mktemp("inception")
    for name, classes in (("fid", 1008), ("torchvision", 1000)):
        network = Inception3(classes, name == "torchvision", init_weights=False)
        generator = torch.Generator().manual_seed(classes)
        for parameter in network.state_dict().values():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
        torch.save(network.state_dict(), place / f"{name}.pth")
    return place


@pytest.mark.parametrize("variant", ["fid", "torchvision"])
def test_features_are_those_of_pytorch_fid(
    weights: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(weights / f"{variant}.pth", weights_only=True)
    if variant == "fid":
        monkeypatch.setattr(published, "load_state_dict_from_url", lambda *_, **__: state)
    else:
        network = Inception3(1000, True, init_weights=False)
        network.load_state_dict(state)
        monkeypatch.setattr(published, "_inception_v3", lambda *_, **__: network)
    theirs = published.InceptionV3(use_fid_inception=variant == "fid").eval()
    ours = load_inception(weights / f"{variant}.pth")
    assert ours.variant == variant
    pixels = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(pixels)[0][:, :, 0, 0]
        found = ours(fit_inception(pixels[0])[None])
    assert found.shape == (1, 2048)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-2


def test_other_files_are_no_inception(weights: Path, tmp_path: Path) -> None:
    place = write_tiny_clip(tmp_path)
    with pytest.raises(
        ValueError, match=r"is no Inception v3 network .* expected the weights of pytorch-fid"
    ):
        load_inception(place)
    state = torch.load(weights / "fid.pth", weights_only=True)
    without = {name: each for name, each in state.items() if name != "Mixed_6b.branch7x7_1.conv.weight"}
    torch.save(without, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"Mixed_6b\.branch7x7_1\.conv\.weight is not there, expected \["):
        load_inception(tmp_path / "a.pth")
    torch.save({**state, "more.weight": torch.zeros(2)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"more\.weight is \[2\], expected not there"):
        load_inception(tmp_path / "b.pth")


# --- pictures ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("judged")
    folder = write_pictures(place / "made", 14)
    write_shards_of(folder, place / "shards", per_shard=5)
    (folder / "0003.png").write_text("no picture")
    real = write_pictures(place / "real", 11, size=(40, 56))
    for text in real.glob("*.txt"):
        text.unlink()
    write_tiny_clip(place)
    return place


def words(place: Path, output: Path, *options: object, pictures: str = "made") -> list[str]:
    common = ["eval", "--pictures", place / pictures, "--reference", place / "real", "--batch-size", 4]
    judges = ["--clip", place / "clip.safetensors", "--device", "cpu", "--quiet"]
    return [str(word) for word in (*common, *judges, "-o", output, *options)]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), list(arguments))
    return result.exit_code, " ".join(result.output.split())


def results(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))["results"]


def test_a_device_that_is_none_is_named(place: Path, tmp_path: Path) -> None:
    code, said = run(*words(place, tmp_path, "--device", "foo"))
    assert (code, "found 'foo', which cannot be used here" in said) == (1, True), said


def test_measures_are_those_of_the_pictures(place: Path, tmp_path: Path) -> None:
    code, said = run(*words(place, tmp_path))
    assert code == 0, said
    found = results(tmp_path)
    assert (found["pictures"], found["captions"], found["skipped"]) == (13, 13, 1)
    assert found["reference"] == {"pictures": 11, "skipped": 0}
    assert "left out: 0003" in said
    clip = load_any_stage(place / "clip.safetensors", expect="clip", dtype=torch.float32)
    size = clip.network.config.vision.image_size

    def seen(number: int, wide: tuple[int, int]) -> Tensor:
        whole = picture(number, wide)
        side = min(wide)
        left, top = ((room - side) // 2 for room in wide)
        box = (left, top, left + side, top + side)
        square = whole.resize((size, size), Image.Resampling.BICUBIC, box=box)
        return encode_images(clip, from_pil(square)).vectors[0]

    numbers = [number for number in range(14) if number != 3]
    made = torch.stack([seen(number, (48, 40)) for number in numbers])
    real = torch.stack([seen(number, (40, 56)) for number in range(11)])
    colours = [(place / "made" / f"{number:04}.txt").read_text() for number in numbers]
    texts = encode_text(clip, colours).pooled
    cosines = torch.nn.functional.cosine_similarity(made.double(), texts.double())
    assert found["clip_score"] == pytest.approx(cosines.mean().item(), abs=1e-5)
    assert found["cmmd"] == pytest.approx(cmmd(real, made), rel=1e-3)
    assert found["cmmd"] > 1e-3
    assert "fid" not in found


def test_numbers_do_not_depend_on_who_judges(place: Path, tmp_path: Path) -> None:
    assert run(*words(place, tmp_path / "one"))[0] == 0
    command = ["-m", "unclip.cli.app", *words(place, tmp_path / "two")]
    said = on_processes(2, *command, launcher="accelerate")
    assert said.count("result.json") == 1
    assert results(tmp_path / "two") == results(tmp_path / "one")


def looked(data: DataConfig, judges: Judges, how: Looking) -> PictureSet | None:
    return look(open_source(data, "optional"), data, judges, how)


def test_a_folder_and_its_shards_are_judged_alike(place: Path) -> None:
    whole = write_pictures(place / "whole", 14)
    clip = load_any_stage(place / "clip.safetensors", expect="clip", dtype=torch.float32)
    judges, how = Judges(clip), Looking(torch.device("cpu"), batch_size=4)
    one = looked(DataConfig(source="folder", path=str(whole)), judges, how)
    other = looked(DataConfig(source="webdataset", path=str(place / "shards")), judges, how)
    assert one is not None and other is not None
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.captions, other.captions)


class Colours(torch.nn.Module):
    """Stands for Inception: the mean of each third of a picture, so that distances can be told."""

    variant = "fid"

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.unflatten(3, (13, 23)).mean(dim=(2, 4)).flatten(1)


def test_fid_compares_with_the_reference(place: Path) -> None:
    judges, how = Judges(inception=Colours()), Looking(torch.device("cpu"), batch_size=4)
    made = looked(DataConfig(source="folder", path=str(place / "made")), judges, how)
    real = looked(DataConfig(source="folder", path=str(place / "real")), judges, how)
    assert made is not None and real is not None
    pixels = from_pil(picture(0))[0]
    expected = Colours()(fit_inception(pixels)[None])[0]
    torch.testing.assert_close(made.features[0], expected)
    found = measure(made, real, judges)
    assert found["fid"] == pytest.approx(frechet_distance(real.features, made.features))
    assert found["fid"] > 0
    assert found["inception"] == "fid"
    assert not found.keys() & {"cmmd", "clip_score"}


def test_pictures_without_captions_have_no_clip_score(place: Path, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "a.webp").write_bytes(encoded(picture(1), "webp"))
    (tmp_path / "shown" / "b.png").write_bytes(encoded(picture(2)))
    (tmp_path / "shown" / "b.txt").write_text("a blue disc")
    common = ["eval", "--pictures", tmp_path / "shown", "-o", tmp_path, "--device", "cpu", "-q"]
    code, _ = run(*map(str, [*common, "--clip", place / "clip.safetensors"]))
    assert code == 0
    assert (results(tmp_path)["pictures"], results(tmp_path)["captions"]) == (2, 1)
    assert math.isfinite(results(tmp_path)["clip_score"])
    (tmp_path / "shown" / "b.txt").unlink()
    code, said = run(*map(str, [*common, "--clip", place / "clip.safetensors"]))
    assert code == 1
    assert "nothing can be measured" in said
    code, said = run(*map(str, common))
    assert code == 1
    assert "nobody judges: name a CLIP model" in said


def test_captions_of_the_reference_are_not_read(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither cut, nor in another encoding, nor of another column: its pictures count as they are."""
    real = tmp_path / "real"
    shutil.copytree(place / "real", real)
    (real / "0001.txt").write_bytes("ein Bär".encode("latin-1"))
    (real / "0002.txt").write_text("a very long caption " * 200)
    (real / "metadata.csv").write_text("file;words\n0003.png;x\n")
    shards = write_tar(
        tmp_path / "real.tar",
        {path.name: path.read_bytes() for path in sorted(real.iterdir()) if path.stem != "metadata"},
    )
    assert run(*words(place, tmp_path / "plain"))[0] == 0
    for reference in (real, shards):
        code, said = run(*words(place, tmp_path / "told", "--reference", reference))
        assert code == 0, said
        assert results(tmp_path / "told") == results(tmp_path / "plain")
        assert "cut off" not in said + caplog.text and "UTF-8" not in said


def test_what_does_not_go_together_is_refused(place: Path, tmp_path: Path) -> None:
    for options, message in (
        (["eval"], "what is measured? Name a config"),
        (["eval", "x.toml", "--pictures", "x"], "--pictures takes no config"),
        (["eval", "x.toml", "--reference", "x"], "--reference belongs to --pictures"),
        (["eval", "--pictures", str(tmp_path), "--clip", str(place / "clip.safetensors")], "no pictures"),
    ):
        code, said = run(*options)
        assert code == 1
        assert message in said
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_text("x")
    code, said = run("eval", "--pictures", str(broken), "--clip", str(place / "clip.safetensors"), "-q")
    assert code == 1
    assert "of 1 pictures none can be used; a:" in said
