"""Folders become shards and folders again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.data.opening import open_batches
from unclip.core.data.settings import DataConfig

from ...helpers.pictures import encoded, picture, write_pictures, write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "folder")


def of_folder(folder: Path, **more) -> DataConfig:
    return DataConfig(source="folder", path=str(folder), **more)


def convert(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["data", "convert", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_a_folder_becomes_shards_and_a_folder_again(folder: Path, tmp_path: Path) -> None:
    assert convert(folder, "-o", tmp_path / "shards", "--per-shard", 25)[0] == 0
    assert convert(folder, "-o", tmp_path / "again", "--per-shard", 25)[0] == 0
    tars = sorted((tmp_path / "shards").iterdir())
    assert [path.name for path in tars] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [path.read_bytes() for path in tars] == [
        path.read_bytes() for path in sorted((tmp_path / "again").iterdir())
    ]
    one = open_batches(of_folder(folder), 24, 8, seed=3)(0)
    other = open_batches(DataConfig(source="webdataset", path=str(tmp_path / "shards")), 24, 8, seed=3)(0)
    assert torch.equal(one.images, other.images)
    assert convert(tmp_path / "shards", "-o", tmp_path / "back")[0] == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_cannot_be_converted_is_told(tmp_path: Path) -> None:
    image = encoded(picture(0))
    write_tar(tmp_path / "out.tar", {"../0.png": image, "../0.txt": b"x"})
    code, output = convert(tmp_path / "out.tar", "-o", tmp_path / "sub" / "new")
    assert code == 1
    assert "leads out of the folder: nothing was written" in output
    assert not list((tmp_path / "sub").iterdir())
    folder = write_pictures(tmp_path / "folder", 2)
    (folder / "0000.webp").write_bytes(encoded(picture(5), "webp"))
    code, output = convert(folder, "-o", tmp_path / "new")
    assert code == 1
    assert "two pictures have the name '0000': rename one of them" in output
    (folder / "0000.webp").unlink()
    (folder / "0001.txt").unlink()
    assert not (tmp_path / "new").exists()
    code, output = convert(folder, "-o", tmp_path / "new")
    assert code == 0
    assert "left out: 0001.png: it has no caption or no picture" in output
    code, output = convert(folder, "-o", tmp_path / "new")
    assert code == 1
    assert "exists already: choose a new folder, or remove it" in output
