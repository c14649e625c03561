"""Data that commands are given: paths are named as they were given, and what is left out is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.evaluation.quality import pictures as quality

from ..helpers.pictures import write_pictures
from ..helpers.stages import write_tiny_clip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("told")
    write_pictures(place / "pictures", 4)
    write_tiny_clip(place)
    return place


def run(place: Path, *words: object) -> tuple[int, str]:
    options = {"embed": ["-o", place / "out", "--clip", place / "clip.safetensors", "--cpu"]}
    options["eval"] = ["-o", place / "out", "--clip", place / "clip.safetensors", "--device", "cpu", "-q"]
    options["compare"] = options["data"] = ["-o", place / "out"]
    arguments = [str(word) for word in (*words, *options[str(words[0])])]
    result = CliRunner().invoke(build_app(), arguments)
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("embed", "nope"), "DATA"),
        (("data", "convert", "nope"), "SOURCE"),
        (("compare", "nope", "pictures"), "A"),
        (("compare", "pictures", "nope"), "B"),
        (("eval", "--pictures", "nope"), "--pictures"),
        (("eval", "--pictures", "pictures", "--reference", "nope"), "--reference"),
    ],
)
def test_a_path_that_is_not_there_is_named_as_it_was_given(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(quality, "look", None)  # before anything is judged
    code, said = run(place, *words)
    assert (code, said) == (1, f"{named}: there are no shards nope")
    assert not (place / "out").exists()


def test_embed_tells_which_pictures_have_no_caption(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_pictures(tmp_path / "pictures", 9)
    for text in sorted(folder.glob("*.txt"))[1:8]:
        text.unlink()
    clip = ("-o", tmp_path / "out", "--clip", place / "clip.safetensors", "--cpu")
    with caplog.at_level(logging.WARNING):
        result = CliRunner().invoke(build_app(), ["embed", str(folder), *map(str, clip)])
    assert result.exit_code == 0, result.output
    named = ", ".join(f"000{number}.png" for number in range(1, 6))
    assert caplog.messages == [f"7 pictures without a caption are left out: {named} …"]
