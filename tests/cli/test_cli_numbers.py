"""Numbers on the command line: what is wrong with one, and with several together, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.cli.loras import chosen_loras
from unclip.cli.number_errors import expected_number
from unclip.core.diffusion.spec import FoundSteps
from unclip.core.formats.abilities import read_abilities
from unclip.core.formats.few_steps import write_few_steps

from ..helpers.bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(folder)
    write_few_steps(folder, [FoundSteps("ddim", (9, 500, 999))])
    return folder


def said(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), [str(word) for word in words], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


GENERATE = ("generate", "a fox", "-o", "fox.png")


@pytest.mark.parametrize(
    ("words", "flag", "expected"),
    [
        ((*GENERATE, "--guidance-scale", "nan"), "--guidance-scale", "a number from 0 to 30"),
        ((*GENERATE, "--guidance-scale", "inf"), "--guidance-scale", "a number from 0 to 30"),
        ((*GENERATE, "--eta", "no"), "--eta", "a number from 0 to 1"),
        ((*GENERATE, "--prior-guidance-end", "1.5"), "--prior-guidance-end", "a number from 0 to 1"),
        ((*GENERATE, "--steps", "2.5"), "--steps", "a whole number from 1 to 1000"),
        ((*GENERATE, "--seed", "-1"), "--seed", "a whole number from 0 to 18446744073709551615"),
        ((*GENERATE, "-n", "0"), "--batch-size", "a whole number from 1 to 256"),
        (("steps", "tiny", "rows.txt", "--steps", "0"), "--steps", "a whole number, 1 or more"),
        (("data", "convert", "a", "-o", "b", "--per-shard", "x"), "--per-shard", "a whole number, 1 or more"),
        (
            ("embed", "a", "-o", "b", "--clip", "c", "--max-aspect", "0.5"),
            "--max-aspect",
            "a number, 1 or more",
        ),
    ],
)
def test_a_number_that_an_option_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], flag: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = said(*words)
    assert code == 2
    assert flag in output
    assert re.search(rf"found '?{re.escape(words[-1])}'?, expected {expected}\.", output), output
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_training_and_the_strength_of_a_lora(tmp_path: Path) -> None:
    for share in ("nan", "0", "1.5"):
        code, output = said("train-all", tmp_path / "recipe.toml", "--share", share)
        assert code == 2
        assert f"--share: found {float(share)}, expected a number above 0 and up to 1." in output
    for strength in ("nan", "-11", "x"):
        message = f"found '{strength}' behind the colon, expected a number from -10 to 10, such as 0.8"
        with pytest.raises(typer.BadParameter, match=message):
            chosen_loras([f"ink.safetensors:{strength}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--guidance", "cfg_pp", "--guidance-scale", 3),
            "--guidance-scale is 3.0; guidance cfg_pp takes 0 to 1",
        ),
        (("--guidance", "cfg_pp"), "--guidance-scale is 1.5; guidance cfg_pp takes 0 to 1, such as 0.6"),
        (("--prior-guidance", "cfg_pp"), "--prior-guidance-scale is 1.5; guidance cfg_pp takes 0 to 1"),
        (
            ("--guidance-start", 0.8, "--guidance-end", 0.2),
            "--guidance-start: found 0.8, after --guidance-end 0.2; choose a start before the end",
        ),
        (
            ("--spacing", "optimal", "--steps", 4),
            "--spacing: optimal needs timesteps that were found for this",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_runs(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = said(*GENERATE, "--bundle", bundle, "--size", 16, *words)
    assert code == 1
    assert output.startswith(message), output
    assert list(tmp_path.iterdir()) == []


def test_timesteps_that_were_found_are_taken(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_abilities(bundle).few_steps == (FoundSteps("ddim", (9, 500, 999)),)
    monkeypatch.chdir(tmp_path)
    way = ("--spacing", "optimal", "--steps", 3, "--prior-steps", 2, "--prior-candidates", 1, "-q")
    code, output = said(*GENERATE, "--bundle", bundle, "--size", 16, *way)
    assert code == 0, output


def test_ranges_in_words() -> None:
    assert expected_number(True, None, None) == "a whole number"
    assert expected_number(False, None, 0.5) == "a number up to 0.5"
    assert expected_number(True, 0, 2**40) == f"a whole number from 0 to {2**40}"
