"""Sizes of pictures on the command line: what makes them, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result
from unclip.cli.app import build_app
from unclip.cli.painting import Size, chosen_size, require_sides
from unclip.core.formats.abilities import Abilities
from unclip.core.formats.native.checkpoints import save_bundle

from ..helpers.bundle import DECODED_SIZE, UPSAMPLED_SIZES, of_one_size, write_tiny_bundle

FAST = ["--steps", "2", "--prior-steps", "2", "--upsampler-steps", "2", "--prior-candidates", "1"]
MINI = Abilities("mini", (64, 256, 1024), reads_captions=True, has_prior=True)
FREE = Abilities("k", (512,), any_size=True)
SMALL, MIDDLE, LARGE = DECODED_SIZE, *UPSAMPLED_SIZES


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def generate(bundle: Path, *words: object) -> Result:
    arguments = ["generate", "a red fox", "--bundle", str(bundle), *FAST, "-q", "-o", "fox.png"]
    return CliRunner().invoke(build_app(), [*arguments, *map(str, words)])


@pytest.mark.parametrize("size", [SMALL, MIDDLE, LARGE])
def test_each_size_takes_its_upsamplers(bundle: Path, size: int) -> None:
    assert generate(bundle, "--size", size).exit_code == 0
    with Image.open("fox.png") as picture:
        assert picture.size == (size, size)


def test_by_default_mini_makes_256_pixels_and_others_their_own() -> None:
    assert chosen_size(MINI, 0, 0) == Size(1)
    assert chosen_size(MINI, 1024, 1024) == Size(2)
    assert chosen_size(FREE, 0, 0) == Size()
    assert chosen_size(Abilities("k", (256,), any_size=True), 0, 0) == Size()
    assert chosen_size(FREE, 768, 512) == Size(0, 768, 512)


def test_a_bundle_without_the_second_upsampler(tmp_path: Path) -> None:
    small = write_tiny_bundle(tmp_path / "small", upsamplers=1)
    result = generate(small, "--size", LARGE)
    assert result.exit_code == 1
    message = f"--size {LARGE}x{LARGE}: bundle 'small' makes square pictures of {SMALL}, {MIDDLE} pixels only"
    assert message in result.stderr


def test_sides_that_the_decoder_does_not_paint_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unclip.cli.workflow.local.run_here", None)
    save_bundle(of_one_size(), tmp_path / "models" / "tiny")
    for words in (("--width", SMALL // 2), ("--width", SMALL, "--height", 2 * SMALL)):
        result = generate(tmp_path / "models" / "tiny", *words)
        assert result.exit_code == 1
        flag = " ".join(map(str, words[-2:]))
        assert result.stderr.startswith(
            f"{flag}: the decoder of bundle 'tiny' paints {SMALL}×{SMALL} pixels only; leave it out, or "
            f"choose one of {SMALL}, {MIDDLE}, {LARGE} by --size"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_the_decoders_own_sides_may_be_named(tmp_path: Path) -> None:
    save_bundle(of_one_size(), tmp_path / "tiny")
    result = generate(tmp_path / "tiny", "--width", SMALL, "--height", 0, "--size", SMALL)
    assert result.exit_code == 0, result.stderr
    require_sides(FREE, {"width": 768, "height": 0})


def test_sides_beyond_what_a_decoder_paints_sensibly(bundle: Path) -> None:
    far = 16 * SMALL + 1
    result = generate(bundle, "--width", far)
    assert result.stderr.startswith(f"--width {far}: bundle 'tiny' learned {SMALL} pixels"), result.stderr
    message = ": bundle 'k' learned 512 pixels .* beyond 16 times that; choose at most 8192"
    with pytest.raises(ValueError, match=f"^--size 512x9000{message}"):
        chosen_size(FREE, 512, 9000)
    with pytest.raises(ValueError, match=f"^--height 9000{message}"):
        require_sides(FREE, {"width": 512, "height": 9000})
