"""The pictogram data set: from npm packages to shards and back."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.data import pictograms as module
from unclip.core.data.batches import load_pictograms
from unclip.core.data.pictograms import (
    Pictogram,
    download_packages,
    is_held_out,
    read_pictograms,
    read_shards,
    write_shards,
)
from unclip.core.data.settings import DataConfig

from ...helpers.training import STYLES, body, pictograms, write_packages

HELD_OUT = ("noto/bee", "noto/hourglass", "twemoji/key", "twemoji/unicorn")
TRAINED = ("noto/red-apple", "twemoji/red-apple", "noto/key", "twemoji/bee")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return write_packages(tmp_path / "packages")


def test_the_held_out_pairs_never_change() -> None:
    """They are part of what published numbers mean."""
    assert all(is_held_out(key) for key in HELD_OUT)
    assert not any(is_held_out(key) for key in TRAINED)


def test_five_percent_are_held_out() -> None:
    share = sum(is_held_out(f"noto/concept-{index}") for index in range(20_000)) / 20_000
    assert abs(share - 0.05) < 0.005


def test_icons_with_the_name_of_an_emoji_are_read(packages: Path) -> None:
    found = list(read_pictograms(packages, STYLES))
    assert [each.key for each in found] == [
        "noto/black-crow",
        "noto/red-apple",
        "twemoji/black-crow",
        "twemoji/blue-car",
        "twemoji/red-apple",
    ]
    apple = found[1]
    assert (apple.concept, apple.style, apple.group) == ("red apple", "noto", "food")
    assert apple.keywords == ("fruit", "apple")  # neither the concept again nor other alphabets
    assert apple.svg.endswith(f'viewBox="0 0 16 16">{body("red apple", "noto")}</svg>')
    assert 'viewBox="-8 0 32 16"' in found[0].svg


def test_styles_and_groups_are_chosen(packages: Path) -> None:
    keys = [each.key for each in read_pictograms(packages, ("twemoji",), ("animals", "travel"))]
    assert keys == ["twemoji/black-crow", "twemoji/blue-car"]


@pytest.mark.parametrize(
    ("styles", "groups", "message"),
    [
        (("noto", "wingdings"), ("food",), "unknown style wingdings: choose from fluent-emoji, "),
        (("noto",), ("flags", "food"), "unknown group flags: choose from smileys, people, "),
    ],
)
def test_unknown_names_are_told(packages: Path, styles: tuple, groups: tuple, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        list(read_pictograms(packages, styles, groups))


def test_shards_give_back_what_was_written(tmp_path: Path) -> None:
    written = pictograms()
    assert write_shards(iter(written), tmp_path / "one") == len(written)
    assert list(read_shards(tmp_path / "one")) == written
    # A shard takes in as many whole pictures as fit.
    assert write_shards(iter(written), tmp_path / "many", shard_bytes=800) == len(written)
    assert len(list((tmp_path / "many").glob("*.tar"))) > 2
    assert list(read_shards(tmp_path / "many")) == written
    with tarfile.open(tmp_path / "one" / "pictograms-000000.tar") as archive:
        assert "noto/red-apple.svg" in archive.getnames()


def test_new_shards_take_the_place_of_old_ones(tmp_path: Path) -> None:
    write_shards(iter(pictograms()), tmp_path, shard_bytes=800)
    write_shards(iter(pictograms()[:2]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pictograms-000000.tar"]
    assert list(read_shards(tmp_path)) == pictograms()[:2]


def test_other_shards_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("photo.png"))
    for content in ((tmp_path / "a.tar").read_bytes(), b"garbage" * 100):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: its shards are damaged, or not of pic")):
            list(read_shards(tmp_path))


def test_a_build_that_fails_leaves_the_old_shards(tmp_path: Path) -> None:
    write_shards(iter(pictograms()), tmp_path)

    def broken():
        yield pictograms()[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(broken(), tmp_path)
    assert list(read_shards(tmp_path)) == pictograms()
    assert [path.name for path in tmp_path.iterdir()] == ["pictograms-000000.tar"]


def test_held_out_pairs_are_loaded_apart(tmp_path: Path) -> None:
    style, concept = HELD_OUT[0].split("/")
    kept_out = Pictogram(HELD_OUT[0], concept, style, "animals", (), pictograms()[0].svg)
    write_shards([*pictograms(), kept_out], tmp_path)
    assert load_pictograms(DataConfig(str(tmp_path))) == pictograms()
    assert load_pictograms(DataConfig(str(tmp_path)), held_out=True) == [kept_out]
    assert load_pictograms(DataConfig(str(tmp_path), styles=("twemoji",))) == pictograms()[6:]


def test_no_data_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.tar shards in .*: build them with `unclip data pictograms"):
        load_pictograms(DataConfig(str(tmp_path)))
    write_shards(pictograms(), tmp_path)
    message = "no pictograms of the styles noto and the groups food; build them"
    with pytest.raises(ValueError, match=message):
        load_pictograms(DataConfig(str(tmp_path), ("noto",), ("food",)))
    with pytest.raises(ValueError, match=r"no held-out pictograms of the styles \(all\)"):
        load_pictograms(DataConfig(str(tmp_path)), held_out=True)


# --- npm ---


class FakeNpm:
    """Stands for ``npm pack``: packs the folder ``package`` of the hand-made packages."""

    def __init__(self, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packages = packages
        self.packed: list[str] = []
        monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
        monkeypatch.setattr(module.subprocess, "run", self.run)

    def run(self, command: list[str], cwd: str, **_options: object) -> subprocess.CompletedProcess:
        package = command[-1]
        self.packed.append(package)
        source = self.packages / package.removeprefix("@iconify-json/").split("@")[0]
        if not source.exists():
            return subprocess.CompletedProcess(command, 1, "", "npm error 404 Not Found\n")
        with tarfile.open(Path(cwd) / "package.tgz", "w:gz") as archive:
            archive.add(source, "package")
        return subprocess.CompletedProcess(command, 0, "package.tgz\n", "")


def test_missing_packages_are_downloaded_once(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = FakeNpm(packages, monkeypatch)
    target = tmp_path / "downloaded"
    download_packages(target, ["noto"])
    assert npm.packed == [module.NAMES_PACKAGE, module.ICON_PACKAGES["noto"]]
    assert sorted(path.name for path in target.iterdir()) == ["emojibase-data", "noto"]
    download_packages(target, STYLES)
    assert npm.packed[2:] == [module.ICON_PACKAGES["twemoji"]]
    assert list(read_pictograms(target, STYLES)) == list(read_pictograms(packages, STYLES))


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python has no filters at all")
@pytest.mark.parametrize("filters", [True, False])
def test_a_package_writes_nothing_outside_of_its_folder(
    filters: bool, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the filters of newer Pythons, and as on Debian 12, whose Python has none."""
    npm = FakeNpm(packages, monkeypatch)
    pack = npm.run

    def run(command: list[str], cwd: str, **options: object) -> subprocess.CompletedProcess:
        done = pack(command, cwd, **options)
        with tarfile.open(Path(cwd) / "package.tgz", "w:gz") as archive:
            archive.add(npm.packages / "emojibase-data", "package")
            archive.add(packages / "noto" / "icons.json", "../../stray.json")
            archive.add(packages / "noto" / "icons.json", str(tmp_path / "stray.json"))
        return done

    monkeypatch.setattr(module.subprocess, "run", run)
    if not filters:
        monkeypatch.delattr(tarfile, "data_filter")
    with contextlib.suppress(tarfile.TarError):  # newer ones refuse the whole archive
        download_packages(tmp_path / "downloaded", [])
    assert list(tmp_path.rglob("stray.json")) == []
    assert (tmp_path / "downloaded" / "emojibase-data").exists() != filters


def test_a_download_that_fails_says_why(packages: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.rmtree(packages / "noto")
    FakeNpm(packages, monkeypatch)
    message = r"npm could not download @iconify-json/noto@.*: npm error 404 Not Found"
    with pytest.raises(ValueError, match=message):
        download_packages(tmp_path / "downloaded", ["noto"])
    assert sorted(path.name for path in (tmp_path / "downloaded").iterdir()) == ["emojibase-data"]


def test_without_npm_the_error_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(
        ValueError, match=r"npm is needed to download .*emojibase-data.* Install Node\.js, or"
    ):
        download_packages(tmp_path, ["noto"])


# --- the command ---


def test_the_command_builds_shards(packages: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    options = ["--output", str(output), "--packages", str(packages)]
    options += [argument for style in STYLES for argument in ("--style", style)]
    result = CliRunner().invoke(build_app(), ["data", "pictograms", *options])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == f"5 pictograms in {output}"
    assert len(list(read_shards(output))) == 5


def test_an_unknown_group_is_told_before_anything_is_downloaded(tmp_path: Path) -> None:
    options = [
        "--group",
        "runes",
        "--packages",
        str(tmp_path / "packages"),
        "--output",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(build_app(), ["data", "pictograms", *options])
    assert result.exit_code == 1
    assert "unknown group runes: choose from smileys" in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_an_unknown_style(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        build_app(), ["data", "pictograms", "--style", "wingdings", "--packages", str(tmp_path)]
    )
    assert result.exit_code == 1
    assert "unknown style wingdings: choose from fluent-emoji" in result.output
