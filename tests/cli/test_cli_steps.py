"""``unclip steps``: timesteps for few steps, found and written; and the spacing that takes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.diffusion.spec import FoundSteps
from unclip.core.formats.defaults import write_defaults
from unclip.core.formats.few_steps import read_few_steps, write_few_steps
from unclip.core.formats.load import load_any_bundle
from unclip.core.pipelines import few_steps

from ..helpers import published_models as published
from ..helpers.bundle import write_tiny_bundle


def steps(*words):
    return CliRunner().invoke(build_app(), ["steps", *map(str, words), "--cpu", "--precision", "fp32"])


@pytest.fixture
def folder(tmp_path):
    return write_tiny_bundle(tmp_path / "tiny", upsamplers=0)


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a cat\na dog\na third one that is not painted\n")
    return path


QUICK = ("--points", 8, "--prior", "none", "--guidance-scale", 1)


def test_they_are_found_and_written(folder, captions) -> None:
    shown = steps(folder, captions, *QUICK, "--pictures", 2, "--steps", 3, "--sampler", "unipc", "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert read_few_steps(folder) == ()
    samplers = ("--sampler", "unipc", "--sampler", "ddim")
    result = steps(folder, captions, *QUICK, "--pictures", 2, "--steps", 3, *samplers)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip().endswith(str(folder / "bundle.json"))
    written = read_few_steps(folder)
    assert [(each.sampler, len(each.timesteps)) for each in written] == [("ddim", 3), ("unipc", 3)]
    # The same captions and seed give the same; another number of steps leaves what is there.
    assert ", ".join(map(str, written[1].timesteps)) in " ".join(shown.stdout.split())
    more = steps(folder, captions, *QUICK, "--pictures", 1, "--steps", 2, "--sampler", "ddim")
    assert more.exit_code == 0, more.stderr
    found = read_few_steps(folder)
    assert len(found) == 3 and set(written) < set(found)

    told = CliRunner().invoke(build_app(), ["inspect", str(folder)])
    assert "optimal steps ddim with 2, ddim with 3, unipc with 3" in " ".join(told.stdout.split())
    as_json = CliRunner().invoke(build_app(), ["inspect", str(folder), "--json"])
    first = {"sampler": "ddim", "timesteps": list(found[0].timesteps)}
    assert json.loads(as_json.stdout)["few_steps"][0] == first


def test_what_cannot_be_is_refused(folder, captions) -> None:
    noisy = steps(folder, captions, *QUICK, "--sampler", "ddpm")
    assert noisy.exit_code == 1 and "sampler: found 'ddpm', expected one whose pictures" in noisy.stderr
    many = steps(folder, captions, *QUICK, "--steps", 90)
    assert many.exit_code == 1 and "steps: found [90], expected numbers of 1 to" in many.stderr
    assert steps(folder, captions.with_name("none.txt")).exit_code == 1
    assert read_few_steps(folder) == ()


def test_generate_takes_them_and_says_where_there_are_none(folder, captions, tmp_path) -> None:
    def generate(*words):
        common = [
            "generate",
            "a cat",
            "--bundle",
            str(folder),
            "--output",
            str(tmp_path / "out.png"),
            "--size",
            "16",
        ]
        return CliRunner().invoke(build_app(), [*common, "--spacing", "optimal", *map(str, words)])

    none = generate("--steps", 3)
    assert none.exit_code == 1
    words = " ".join(none.stderr.split())
    assert "for ddim with 3 steps; it has none. Find them by `unclip steps BUNDLE CAPTIONS" in words
    write_few_steps(folder, [FoundSteps("ddim", (9, 500, 999))])
    assert generate("--steps", 3).exit_code == 0
    other = generate("--steps", 3, "--sampler", "unipc")
    assert "it has some for ddim with 3" in " ".join(other.stderr.split())


def test_of_kandinsky_beside_its_own_files(tmp_path, captions) -> None:
    """Two models in diffusers' layout in one folder: it stands beside the decoder, which paints latents."""
    published.write_kandinsky(tmp_path / "kandinsky22")
    result = steps(
        tmp_path / "kandinsky22", captions, *QUICK, "--pictures", 1, "--steps", 2, "--sampler", "ddim"
    )
    assert result.exit_code == 0, result.stderr
    written = Path(result.stdout.split()[-1])
    assert written.name == "unclip.json" and written.parent.parent == tmp_path / "kandinsky22"
    found = load_any_bundle(tmp_path / "kandinsky22").decoder.diffusion.steps_found("ddim")
    assert found.keys() == {2}


def test_those_in_the_decoders_own_file_stay(folder, captions, tmp_path) -> None:
    """A converted bundle has them there, and what its folder says stands above them."""
    first = (FoundSteps("ddim", (9, 500, 999)), FoundSteps("unipc", (100, 999)))
    write_few_steps(folder, first)
    made = tmp_path / "made"
    converted = CliRunner().invoke(build_app(), ["convert", str(folder), "-o", str(made)])
    assert converted.exit_code == 0, converted.stderr
    assert read_few_steps(made) == ()

    def told() -> str:
        return " ".join(CliRunner().invoke(build_app(), ["inspect", str(made)]).stdout.split())

    assert "optimal steps ddim with 3, unipc with 2" in told()
    result = steps(made, captions, *QUICK, "--pictures", 1, "--steps", 2, "--sampler", "ddim")
    assert result.exit_code == 0, result.stderr
    found = load_any_bundle(made).decoder.diffusion.few_steps
    assert set(first) < set(found) and len(found) == 3
    assert "optimal steps ddim with 2, ddim with 3, unipc with 2" in told()


def test_what_the_bundle_asks_for_is_served(folder, captions, monkeypatch) -> None:
    asked = {"decoder": {"guidance_scale": 4.0, "guidance": "apg"}, "prior": {"steps": 2, "candidates": 1}}
    write_defaults(folder, asked)
    served = []

    def find(decoder, embedding, text, *, options, **_):
        served.append(options)
        return []

    monkeypatch.setattr(few_steps, "find_few_steps", find)
    for words in ((), ("--guidance-scale", 2)):
        result = steps(folder, captions, "--pictures", 1, "--dry-run", *words)
        assert result.exit_code == 0, result.stderr
    assert [(each.guidance, each.guidance_scale) for each in served] == [("apg", 4.0), ("apg", 2.0)]


def test_what_another_run_has_found_meanwhile_stays(folder, captions, monkeypatch) -> None:
    own, others = FoundSteps("ddim", (9, 999)), FoundSteps("unipc", (100, 999))

    def find(*_, **__):
        write_few_steps(folder, [others])
        return [SimpleNamespace(steps=own, error=0.1, others={"even": 0.2})]

    monkeypatch.setattr(few_steps, "find_few_steps", find)
    result = steps(folder, captions, *QUICK, "--pictures", 1)
    assert result.exit_code == 0, result.stderr
    assert read_few_steps(folder) == (own, others)


def test_a_folder_that_cannot_be_written_into_is_told_before_the_search(
    folder, captions, monkeypatch
) -> None:
    def find(*_, **__):
        return []

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder or mode != os.W_OK)
    monkeypatch.setattr(few_steps, "find_few_steps", find)
    result = steps(folder, captions, *QUICK, "--pictures", 1)
    assert result.exit_code == 1
    assert "cannot be written into, where the timesteps" in " ".join(result.stderr.split())
    assert steps(folder, captions, *QUICK, "--pictures", 1, "--dry-run").exit_code == 0
