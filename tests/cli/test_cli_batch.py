"""``unclip batch``: every row of a file a picture, the same whatever the number of processes and goes."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from unclip.cli import batch as batch_module
from unclip.cli.app import build_app
from unclip.core.api import load_bundle
from unclip.core.data.folders import FolderSource
from unclip.core.data.packing import files_in_shard, write_shard
from unclip.core.data.painted import PaintedShards
from unclip.core.data.prompts import PromptRow, groups, read_prompts
from unclip.core.data.shards import ShardSource
from unclip.core.formats.native.checkpoints import save_bundle
from unclip.core.pictures.sheet import from_pil
from unclip.core.pipelines.ar_prior import AutoregressiveOptions
from unclip.core.pipelines.decode import DecodeOptions
from unclip.core.pipelines.generate import GenerateOptions, default_options, generate, stage_settings
from unclip.core.pipelines.options import Setting, from_settings
from unclip.core.pipelines.prior import PriorOptions
from unclip.core.pipelines.upsample import UpsampleOptions
from unclip.core.stages import Bundle, Defaults

from ..helpers.bundle import tiny_bundle
from ..helpers.distributed import killed_on_forks, on_forks, on_processes

ROWS = [
    ("a red disc", "", ""),
    ("a green disc", "", ""),
    ("a blue disc", 7, ""),
    ("a blue disc", 8, ""),
    ("", "", ""),
    ("an odd disc", "", "x"),
    ("a last disc", "", 3),
]


QUICK = Defaults({"prior": {"steps": 4, "candidates": 2}, "decoder": {"steps": 4}})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and a file of rows of which two cannot be painted."""
    place = tmp_path_factory.mktemp("batch")
    save_bundle(replace(tiny_bundle(), defaults=QUICK), place / "bundle")
    lines = ["text,seed,steps", *(f"{text},{seed},{steps}" for text, seed, steps in ROWS)]
    (place / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    return place


def arguments(place: Path, output: Path, *options: object) -> list[str]:
    common = ["batch", place / "rows.csv", "-o", output, "--bundle", place / "bundle", "--cpu"]
    return [str(word) for word in (*common, "--group", 4, "--precision", "fp32", *options)]


def paint(place: Path, output: Path, *options: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), arguments(place, output, *options))
    return result.exit_code, " ".join(result.output.split())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def painted(place: Path) -> Path:
    code, output = paint(place, place / "painted")
    assert code == 1
    assert "row 5 (000004.error.txt) was not painted: its caption is empty" in output
    why = "its columns: steps is 'x', expected a whole number from 1 to 1000"
    assert f"row 6 (000005.error.txt) was not painted: {why}" in output
    assert "2 rows were not painted" in output
    return place / "painted"


def test_every_row_is_a_picture_with_its_caption(place: Path, painted: Path) -> None:
    numbers = [0, 1, 2, 3, 6]
    assert {path.stem for path in painted.glob("*.png")} == {f"{number:06}" for number in numbers}
    assert {path.name for path in painted.glob("*.error.txt")} == {"000004.error.txt", "000005.error.txt"}
    bundle = load_bundle(place / "bundle", dtype=torch.float32)
    options = default_options(bundle)
    for number, seed in ((0, 0), (2, 7), (3, 8)):
        expected = generate(bundle, [ROWS[number][0]], seed=seed, options=options)
        with Image.open(painted / f"{number:06}.png") as picture:
            found = from_pil(picture)
            about = json.loads(picture.text["unclip"])
        assert (found - expected).abs().max() < 1.01 / 255
        assert (about["caption"], about["seed"]) == (ROWS[number][0], seed)
    with Image.open(painted / "000006.png") as picture:
        assert json.loads(picture.text["unclip"])["steps"] == 3
    source = FolderSource(painted)  # what training and evaluation read
    assert [source.read(row).caption for row in range(len(source))] == [ROWS[n][0] for n in numbers]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_pictures_do_not_depend_on_who_paints_them(
    place: Path, painted: Path, tmp_path: Path, launcher: str
) -> None:
    said = on_processes(2, "-m", "unclip.cli.app", *arguments(place, tmp_path), launcher=launcher, code=1)
    assert "2 rows were not painted" in said
    assert files(tmp_path) == files(painted)


def test_two_processes_that_were_killed_end_as_one_that_was_not(place: Path, tmp_path: Path) -> None:
    lines = ["text,steps", *(f"disc {number},25" for number in range(12))]  # slow enough to be killed
    (place / "long.csv").write_text("\n".join(lines), encoding="utf-8")

    def words(output: Path) -> list[str]:
        common = ["batch", place / "long.csv", "-o", output, "--bundle", place / "bundle", "--cpu"]
        return [str(word) for word in (*common, "--group", 1, "--precision", "fp32", "--per-shard", 5)]

    on_forks(1, "-m", "unclip.cli.app", *words(tmp_path / "one"))
    two = tmp_path / "two"
    killed_on_forks(2, "-m", "unclip.cli.app", *words(two), when=lambda _: any(two.glob("*.png")))
    assert not list(two.glob("*.tar"))
    on_forks(2, "-m", "unclip.cli.app", *words(two))
    assert sorted(files(two)) == ["00000.tar", "00001.tar", "00002.tar", "batch.json"]
    assert files(two) == files(tmp_path / "one")


# --- shards ---


def test_shards_hold_what_the_folder_holds(
    place: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = paint(place, tmp_path, "--per-shard", 3)
    assert code == 1
    assert "2 rows were not painted" in output
    errors = ["000004.error.txt", "000005.error.txt"]
    assert set(files(tmp_path)) == {"00000.tar", "00001.tar", "00002.tar", *errors, "batch.json"}
    source = ShardSource(str(tmp_path))
    assert source.groups == (3, 1, 1)
    assert [source.key(row) for row in range(5)] == ["000000", "000001", "000002", "000003", "000006"]
    for row in range(5):
        found = source.read(row)
        assert found.picture == (painted / f"{source.key(row)}.png").read_bytes()
        assert found.caption == (painted / f"{source.key(row)}.txt").read_text()
    with tarfile.open(tmp_path / "00002.tar") as archive:
        facts = json.loads(archive.extractfile("000006.json").read())
    assert facts == {"key": "000006", "caption": "a last disc", "seed": 6, "steps": 3, "bundle": "tiny"}
    before = files(tmp_path)
    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(batch_module._Job, "_write", lambda self, rows: seen.append(rows[0].number))
        paint(place, tmp_path, "--per-shard", 3)
    assert set(seen) == {4, 5}, "what is packed is not painted again"
    assert files(tmp_path).keys() - before.keys() == set()
    code, output = paint(place, tmp_path, "--per-shard", 4)
    assert code == 1
    assert "per_shard was 3, is 4" in output


def test_a_row_that_comes_later_takes_its_place_in_its_shard(place: Path, tmp_path: Path) -> None:
    """As when its first go had failed, or when packing was killed before the files were removed."""
    (place / "few.txt").write_text("one\ntwo\nthree\nfour", encoding="utf-8")

    def words(output: Path) -> list[str]:
        common = ["batch", place / "few.txt", "-o", output, "--bundle", place / "bundle", "--cpu"]
        return [str(word) for word in (*common, "--group", 1, "--precision", "fp32", "--per-shard", 4)]

    for missing in (0, 1, 3):
        output = tmp_path / str(missing)
        assert CliRunner().invoke(build_app(), words(output)).exit_code == 0
        whole = files(output)
        ((name, content),) = ((name, content) for name, content in whole.items() if name.endswith(".tar"))
        kept = [each for each in files_in_shard(output / name) if f"{missing:06}" not in each[0]]
        write_shard(output / name, kept)
        assert CliRunner().invoke(build_app(), words(output)).exit_code == 0
        assert files(output) == whole
        for file, data in files_in_shard(output / name):
            if not file.endswith(".json"):
                (output / file).write_bytes(data)
        assert CliRunner().invoke(build_app(), words(output)).exit_code == 0
        assert files(output) == whole
        assert content


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("00000.tar").write_text("no shard")
    with pytest.raises(ValueError, match=r"00000\.tar is no shard, or damaged"):
        PaintedShards(tmp_path, 4)


def test_a_batch_that_was_stopped_goes_on(
    place: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = batch_module._Job._write
    monkeypatch.setattr(
        batch_module._Job, "_write", lambda self, rows: write(self, rows) if rows[0].number < 2 else 1 / 0
    )
    assert paint(place, tmp_path)[0] == 1
    assert {path.name for path in tmp_path.glob("*.png")} == {"000000.png", "000001.png"}
    (tmp_path / "000001.png").unlink()
    before = (tmp_path / "000000.png").stat().st_ino
    monkeypatch.setattr(batch_module._Job, "_write", write)
    assert paint(place, tmp_path)[0] == 1
    assert files(tmp_path) == files(painted)
    assert before
    seen: list[int] = []
    monkeypatch.setattr(batch_module._Job, "_write", lambda self, rows: seen.append(rows[0].number))
    paint(place, tmp_path)
    assert set(seen) <= {4, 5}, "what is there is not painted again"


def test_other_rows_are_not_mixed_in(place: Path, painted: Path) -> None:
    before = files(painted)
    code, output = paint(place, painted, "--seed", 5)
    assert code == 1
    said = "holds pictures that were made in another way: "
    assert f"{said}seeds was 0, 1, 7, 8, 4 … (" in output and "is 5 to 11." in output
    assert "captions was" not in output and "columns was" not in output
    assert files(painted) == before


def test_what_differs_has_its_name(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert paint_rows(place, output, "text,steps\na fox,2\na cat,2\n")[0] == 0
    for rows, options, changed in (
        ("text,steps\na fox,2\na cat,2\n", ("--seed", 3), r"seeds was 0 to 1, is 3 to 4"),
        ("text,steps\na fox,2\na cow,2\n", (), r"captions was \w+, is \w+"),
        ("text,steps\na fox,2\na cat,3\n", (), r"columns was \w+, is \w+"),
        ("text,steps\na fox,2\na cat,2\n", ("--group", 1), r"group was 16, is 1"),
    ):
        code, said = paint_rows(place, output, rows, *options)
        assert code == 1
        assert re.search(rf"made in another way: {changed}\. Choose another folder", said), said


def paint_rows(place: Path, output: Path, rows: str, *options: object) -> tuple[int, str]:
    (output.parent / "own.csv").write_text(rows, encoding="utf-8")
    words = ["batch", output.parent / "own.csv", "-o", output, "--bundle", place / "bundle", "--cpu"]
    result = CliRunner().invoke(
        build_app(), [str(word) for word in (*words, "--precision", "fp32", *options)]
    )
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            "text,id,steps\na fox,,2\na cat,7,2\n",
            (),
            "own.csv: its column id is no option of a row; those are text or caption, seed",
        ),
        ("text,\na fox,7\n", (), "its column without a name is no option"),
        ("text,steps\na fox,2\n", ("--upsamplers", 5), "upsamplers is 5; expected 0 to"),
    ],
)
def test_what_no_row_can_be_painted_with_is_one_error_and_nothing_is_written(
    place: Path, tmp_path: Path, rows: str, options: tuple[object, ...], message: str
) -> None:
    code, said = paint_rows(place, tmp_path / "out", rows, *options)
    assert code == 1
    assert message in said
    assert "was not painted" not in said
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_picture_is_begun_anew(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, said = paint_rows(place, output, "text,steps\na fox,0\na cat,x\n")
    assert code == 1 and "2 rows were not painted" in said
    assert set(files(output)) == {"batch.json", "000000.error.txt", "000001.error.txt"}
    assert paint_rows(place, output, "text,steps\na fox,2\n")[0] == 0
    assert set(files(output)) == {"batch.json", "000000.png", "000000.txt"}
    code, said = paint_rows(place, output, "text,steps\na cat,2\n")
    assert code == 1 and "holds pictures that were made in another way" in said


@pytest.mark.parametrize(
    ("name", "options"), [("000000.png", ()), ("000001.txt", ()), ("000000.png", ("--per-shard", 4))]
)
def test_pictures_of_a_person_are_neither_replaced_nor_taken_for_painted(
    place: Path, tmp_path: Path, name: str, options: tuple[object, ...]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_bytes(b"mine")
    code, said = paint_rows(place, output, "text,steps\na fox,2\na cat,2\n", *options)
    assert code == 1
    assert f"holds {name} and no batch.json" in said and "Choose another folder" in said
    assert files(output) == {name: b"mine"}


# --- columns ---

STAGE_OPTIONS = {
    "": ("decoder", "decode_options", DecodeOptions),
    "prior_": ("prior", "prior_options", PriorOptions),
    "upsampler_": ("upsampler", "upsample_options", UpsampleOptions),
}
COLUMNS = [
    (prefix, setting)
    for prefix, (stage, *_) in STAGE_OPTIONS.items()
    for setting in stage_settings(stage).values()
]


@pytest.mark.parametrize(("prefix", "setting"), COLUMNS, ids=lambda part: getattr(part, "name", part))
def test_every_option_of_generate_may_be_a_column(bundle: Bundle, prefix: str, setting: Setting) -> None:
    _, name, kind = STAGE_OPTIONS[prefix]
    value = setting.choices[-1] if setting.choices else not setting.default
    if type(setting.default) in (int, float):
        value = type(setting.default)(setting.low if setting.default != setting.low else setting.high)
    options = batch_module.with_columns(bundle, GenerateOptions(), {prefix + setting.name: value})
    assert options == GenerateOptions(**{name: from_settings(kind, {setting.name: value})})
    assert options != GenerateOptions()


def test_columns_stand_before_the_defaults_of_the_bundle(bundle: Bundle) -> None:
    asking = replace(bundle, defaults=Defaults({"decoder": {"steps": 8, "guidance_end": 0.5}}, "bundle.json"))
    options = batch_module.with_columns(asking, GenerateOptions(upsamplers=1), {"guidance_start": 0.25})
    assert options.decode_options == DecodeOptions(steps=8, guidance_interval=(0.5, 0.75))
    assert options.upsamplers == 1


def test_columns_set_the_prior_that_paints(bundle: Bundle) -> None:
    options = GenerateOptions(prior="autoregressive")
    columns = {"prior_temperature": 0.5, "prior_guidance_scale": 3}
    found = batch_module.with_columns(bundle, options, columns)
    assert found.ar_prior_options == AutoregressiveOptions(temperature=0.5, guidance_scale=3)
    assert found.prior_options == PriorOptions()
    with pytest.raises(ValueError, match="its column prior_temperature is no option"):
        batch_module.with_columns(bundle, GenerateOptions(), columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"steps": 0}, "its columns: steps is 0, expected a whole number from 1 to 1000"),
        ({"prior_spacing": "odd"}, "its columns: spacing is 'odd', expected one of default"),
        ({"guidance_scale": float("nan")}, "its columns: guidance_scale is nan"),
        ({"guidance_interval": 1}, "its column guidance_interval is no option"),
        ({"prior_strength": 0.5}, "its column prior_strength is no option of a row"),
        ({"guidance": "autoguidance"}, "guidance is 'autoguidance', expected one of cfg, cfg_pp, apg, pag"),
        ({"guidance_start": 0.5, "guidance_end": 0.25}, "guidance_start: found 0.5, after guidance_end"),
    ],
)
def test_a_column_that_cannot_be_is_named(bundle: Bundle, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        batch_module.with_columns(bundle, GenerateOptions(), columns)


def test_columns_for_what_does_not_run_are_told() -> None:
    rows = [
        PromptRow(0, "a fox", 0, {"steps": 2, "upsampler_steps": 3}),
        PromptRow(1, "", 1, {"prior_steps": 2}),
    ]
    assert batch_module.idle_columns(rows, "none", 0) == ["upsampler_steps", "prior_steps"]
    assert batch_module.idle_columns(rows, "diffusion", 1) == []


def test_a_missing_column_of_captions_names_the_option(place: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("words\na fox\n")
    words = ["batch", tmp_path / "a.csv", "-o", tmp_path / "out", "--bundle", place / "bundle", "--cpu"]
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    assert result.exit_code == 1
    assert "name the field of the captions in --caption-field" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_rows_go_together_by_number_options_and_seed(place: Path) -> None:
    found = groups(read_prompts(place / "rows.csv"), 4)
    assert [[row.number for row in group] for group in found] == [[0, 1], [2, 3], [4], [5], [6]]
    plain = [row for row in read_prompts(place / "rows.csv") if row.number < 2]
    assert [len(group) for group in groups(plain * 5, 4)] == [2] * 5
