"""``unclip convert``: what others published, in our own format; and what ``inspect`` says of it before."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.formats.bundling import bundle_of
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.formats.native import checkpoints as native
from unclip.core.formats.native.checkpoints import load_bundle, load_stage

from ..helpers import dalle2_decoder, glide
from ..helpers import karlo as karlo
from ..helpers import karlo_original as originals
from ..helpers import published_models as published
from ..helpers.bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def pipeline():
    return karlo.tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> Path:
    return karlo.save_as_published(pipeline, tmp_path_factory.mktemp("models") / "karlo")


@pytest.fixture(scope="module")
def original(pipeline, tmp_path_factory) -> dict[str, Path]:
    return originals.write_original(tmp_path_factory.mktemp("original"), pipeline)


def run(*words):
    return CliRunner().invoke(build_app(), list(map(str, words)))


def convert(*words) -> Path:
    result = run("convert", *words)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip())


def inspect(path) -> dict:
    result = run("inspect", path, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def same_weights(found, expected) -> bool:
    state, reference = found.network.state_dict(), expected.network.state_dict()
    return state.keys() == reference.keys() and all(torch.equal(state[k], reference[k]) for k in state)


def test_a_diffusers_folder_becomes_a_bundle(folder, tmp_path) -> None:
    assert convert(folder, "-o", tmp_path / "out") == tmp_path / "out"
    found, expected = load_bundle(tmp_path / "out"), load_any_bundle(folder)
    for stage in ("clip", "prior", "decoder"):
        assert same_weights(getattr(found, stage), getattr(expected, stage))
        assert getattr(found, stage).space == expected.prior.space
    assert same_weights(found.upsamplers[0], expected.upsamplers[0])
    assert found.prior.diffusion == expected.prior.diffusion
    assert found.name == "karlo"


def test_a_file_becomes_a_file(original, tmp_path) -> None:
    path = convert(original["prior"], "-o", tmp_path / "out", "--precision", "fp16")
    assert path == tmp_path / "out" / "prior.safetensors"
    found = load_stage(path, expect="prior")
    assert same_weights(found, load_any_stage(original["prior"], dtype=torch.float16))
    assert convert(original["upsampler"], "-o", tmp_path / "u").name == "upsampler-256.safetensors"
    assert convert(original["decoder"], "-o", tmp_path / "d.safetensors") == tmp_path / "d.safetensors"


def test_several_files_become_a_bundle(original, tmp_path) -> None:
    convert(*original.values(), "-o", tmp_path / "karlo")
    found = load_bundle(tmp_path / "karlo")
    assert found.name == "karlo"
    assert found.clip is None
    assert found.decoder.space == found.prior.space
    assert found.decoder.space.mean is not None
    assert len(found.upsamplers) == 1


def test_a_prior_keeps_the_scale_it_was_trained_in(original, tmp_path) -> None:
    """LAION's gives unit vectors, ECLIPSE's raw ones: neither takes over what another stage knows."""
    decoder = load_any_stage(original["decoder"])
    bare, dim = decoder.space, decoder.space.dim
    known = replace(bare, mean=(0.1,) * dim, std=(0.5,) * dim)
    unit = replace(bare, norm="unit")
    for own in (unit, bare):
        prior = replace(load_any_stage(original["prior"]), space=own)
        bundle = bundle_of("mixed", [replace(decoder, space=known), prior])
        assert (bundle.prior.space, bundle.decoder.space) == (own, known)
        bundle = bundle_of("mixed", [decoder, prior])
        assert (bundle.prior.space, bundle.decoder.space) == (own, bare)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{prior}", "{prior}", "-o", "{out}"], "is a second prior beside"),
        (["{prior}", "{decoder}", "-o", "{out}.safetensors"], "several stages need a folder"),
        (["{prior}", "-o", "{here}"], "exists already; choose another --output"),
        (["{prior}", "-o", "{out}", "--precision", "int8"], "--precision: found 'int8', expected keep, fp32"),
        (["{here}", "-o", "{out}"], "is a folder; expected"),
        (["{here}/gone.ckpt", "-o", "{out}"], "gone.ckpt: there is no such file"),
        (["{prior}", "-o", "{out}.ckpt"], "found a name that ends in .ckpt, expected a folder, or for one"),
    ],
)
def test_what_cannot_be_converted_is_said(original, tmp_path, words: list[str], message: str) -> None:
    names = {**original, "out": tmp_path / "out", "here": tmp_path}
    result = run("convert", *(word.format(**names) for word in words))
    assert result.exit_code == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_in_shards_is_not_replaced(original, tmp_path) -> None:
    """It has no file of the name that --output says, only an index and shards."""
    output = tmp_path / "d.safetensors"
    native.save_stage(load_any_stage(original["decoder"]), output, max_shard_bytes=50_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert output.name not in before and "d.safetensors.index.json" in before and len(before) > 2
    for _ in range(2):  # also where only shards are left
        result = run("convert", original["decoder"], "-o", output)
        assert result.exit_code == 1
        assert "exists already; choose another --output" in " ".join(result.stderr.split())
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        before.pop("d.safetensors.index.json", None)
        output.with_name("d.safetensors.index.json").unlink(missing_ok=True)
    # Another name that begins in the same way is free.
    assert convert(original["decoder"], "-o", tmp_path / "d-1.safetensors").is_file()


@pytest.mark.parametrize("names", [("prior",), ("prior", "decoder")])
def test_a_conversion_that_is_stopped_leaves_nothing(original, tmp_path, monkeypatch, names) -> None:
    """Half a bundle would look like one, and stand in the way of the next attempt."""
    written = []

    def stop(stage, path, **_):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "save_stage", stop)
    result = run("convert", *(original[name] for name in names), "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert written
    assert list(tmp_path.iterdir()) == []


# --- several stages in one file, several models as one, files in a folder ---


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory) -> Path:
    return published.write_kandinsky(tmp_path_factory.mktemp("kandinsky") / "kandinsky22")


@pytest.fixture(scope="module")
def glide_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glide")
    for kind in ("base", "upsample"):
        glide.write_glide(folder, kind)
    return folder


@pytest.mark.parametrize(("kind", "stage"), [("base", "decoder"), ("upsample", "upsampler")])
def test_of_glide_the_text_encoder_comes_along(glide_files, tmp_path, kind: str, stage: str) -> None:
    source = glide_files / f"{kind}.safetensors"
    found = load_any_bundle(convert(source, "-o", tmp_path / "made"))
    for read, expect in ((found.clip, "clip"), (found.decoder or found.upsamplers[0], stage)):
        expected = load_any_stage(source, expect=expect)
        assert same_weights(read, expected)
        assert read.space == expected.space
    text = ["the tee in there", ""]
    assert torch.equal(found.clip.tokenizer(text), load_any_stage(source, expect="clip").tokenizer(text))
    # What paints captions alone needs no prior.
    paint = (
        "generate",
        "the tee",
        "--bundle",
        tmp_path / "made",
        "--steps",
        1,
        "-o",
        tmp_path / "made" / "x.png",
    )
    if kind == "base":
        painted = run(*paint)
        assert painted.exit_code == 0, painted.stderr
        picture = run(*paint, "--image", tmp_path / "made" / "x.png")
        assert "paints captions alone and cannot see pictures" in " ".join(picture.stderr.split())
    # Both need a folder, and two files do not mix: each reads captions in its own way.
    alone = run("convert", source, "-o", tmp_path / "alone.safetensors")
    assert "several stages need a folder" in alone.stderr
    both = run("convert", *sorted(glide_files.glob("*.safetensors")), "-o", tmp_path / "both")
    assert "or make a bundle of each (of GLIDE every file is one)" in " ".join(both.stderr.split())
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


def test_a_file_of_dalle2_pytorch_gives_both_of_its_networks(tmp_path) -> None:
    file, settings = tmp_path / "latest.pth", dalle2_decoder.LAION
    weights = dalle2_decoder.upstream(settings).state_dict()
    described = dalle2_decoder.described(settings)
    torch.save({"model": weights, "config": described, "version": "1.0.2"}, file)
    found = load_any_bundle(convert(file, "-o", tmp_path / "made"))
    assert same_weights(found.decoder, load_any_stage(file, expect="decoder"))
    assert same_weights(found.upsamplers[0], load_any_stage(file, expect="upsampler"))
    assert inspect(file)["also"] == ["upsampler"]


def test_a_prior_and_its_decoder_become_one_bundle(kandinsky, tmp_path) -> None:
    prior, decoder = kandinsky / published.PRIOR_22, kandinsky / "kandinsky-2-2-decoder"
    found, expected = (
        load_bundle(convert(prior, decoder, "-o", tmp_path / "k22")),
        load_any_bundle(prior, decoder),
    )
    assert found.name == "k22"
    for stage in ("clip", "prior", "decoder"):
        assert same_weights(getattr(found, stage), getattr(expected, stage))


def test_what_cannot_be_joined_is_said(kandinsky, folder, tmp_path) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny", upsamplers=0)
    for words, message in (
        (
            (folder, kandinsky / published.PRIOR_22 / "prior"),
            f"stages. Name the stages in it one by one, such as {folder}",
        ),
        ((tiny, folder), "is a whole bundle of unclip, to which nothing can be joined"),
        ((folder, tiny), f"{tiny}: is no model in diffusers' layout, which alone can be joined"),
    ):
        result = run("convert", *words, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_files_in_a_folder_say_how_they_become_bundles(glide_files, original, tmp_path, monkeypatch) -> None:
    """The command that is told does what it says."""
    karlo_files = original["prior"].parent
    for place, bundles in ((karlo_files, 1), (glide_files, 2)):
        for words in (("convert", place), ("generate", "a cat", "--bundle", place)):
            result = run(*words, "-o", tmp_path / "x.png")
            assert result.exit_code == 1
            told = " ".join(result.stderr.split())
            assert "it holds files of single stages: " in told
            commands = [shlex.split(each) for each in told.partition(" by: ")[2].split("; ")]
            assert len(commands) == bundles
        monkeypatch.chdir(tmp_path)
        for _, *command in commands:
            assert run(*command).exit_code == 0
            assert load_any_bundle(command[-1]).stages
        described = inspect(place)
        assert described["format"] == "files of single stages"
        assert len(described["stages"]) == len([each for c in commands for each in c[2:-2]])


# --- unclip inspect ---


def test_original_files_say_what_they_are(original) -> None:
    found = inspect(original["prior"])
    assert found["format"] == "Karlo or Kandinsky 2.1 prior (original)"
    assert (found["stage"], found["space"]["id"]) == ("prior", "clip-32")
    assert found["config"]["layers"] == 2
    assert "OpenRAIL" in found["licence"]
    assert found["bytes"] == 4 * found["parameters"]
    assert inspect(original["decoder"])["config"]["conditioning"]["clip_tokens"] == 4
    assert inspect(original["upsampler"])["stage"] == "upsampler"
    shown = " ".join(run("inspect", original["decoder"]).stdout.split())
    assert "licence CreativeML OpenRAIL-M" in shown


def test_a_diffusers_folder_says_what_it_is(folder) -> None:
    found = inspect(folder)
    assert (found["format"], found["name"]) == ("diffusers folder", "karlo")
    assert [stage["stage"] for stage in found["stages"]] == ["clip", "prior", "decoder", "upsampler"]
    assert inspect(folder / "prior")["format"] == "Karlo or Kandinsky prior (diffusers)"


def weights_in(folder: Path) -> int:
    """Bytes of all tensors below a folder."""
    files = folder.rglob("*.safetensors")
    return sum(t.nbytes for file in files for t in load_file(file).values())


def test_all_parts_of_a_model_are_counted(folder, kandinsky) -> None:
    assert inspect(folder)["bytes"] == weights_in(folder)
    stages = {stage["stage"]: stage for stage in inspect(folder)["stages"]}
    assert [Path(each).parent.name for each in stages["decoder"]["beside"]] == ["text_proj"]
    assert [Path(each).parent.name for each in stages["upsampler"]["beside"]] == ["super_res_last"]
    whole = load_any_bundle(folder)
    for name, stage in (("decoder", whole.decoder), ("upsampler", whole.upsamplers[0])):
        assert stages[name]["parameters"] == sum(
            value.numel() for value in stage.network.state_dict().values()
        )
    found = inspect(kandinsky)
    assert (found["format"], found["name"]) == ("diffusers folders", "kandinsky22")
    assert [stage["stage"] for stage in found["stages"]] == ["decoder", "clip", "clip", "prior"]
    assert found["bytes"] == weights_in(kandinsky)


def test_a_file_of_another_system_says_where_it_belongs(tmp_path) -> None:
    torch.save({"unet.to_k.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    assert "put it into models/loras" in inspect(tmp_path / "x.pt")["note"]
    result = run("inspect", tmp_path / "x.pt")
    assert "is a LoRA" in result.stderr
    assert "format PyTorch" in " ".join(result.stdout.split())
