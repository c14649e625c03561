"""``unclip generate`` with every kind of bundle: sizes, negative captions, variations and mixtures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.cli.workflow.local import local_catalog
from unclip.cli.workflow.reading import parse_workflow
from unclip.core.embeddings.arithmetic import blend
from unclip.core.formats.abilities import Abilities, read_abilities
from unclip.core.formats.load import load_any_bundle
from unclip.core.formats.native.checkpoints import save_bundle
from unclip.core.pictures.sheet import to_pil
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.generate import GenerateOptions, generate, picture_size, sample_prior
from unclip.core.pipelines.prior import PriorOptions

from ..helpers import published_models as published
from ..helpers.bundle import DECODED_SIZE, UPSAMPLED_SIZES, captioned_bundle, tiny_bundle, write_tiny_bundle

SIDE = published.KANDINSKY_SIDE
EXACT = ["--precision", "fp32", "--steps", 2, "--prior-steps", 2, "--prior-candidates", 1, "-q"]
PRIOR = PriorOptions(steps=2, candidates=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unclip")
    write_tiny_bundle(folder / "tiny")
    whole = published.write_karlo(folder / "karlo")
    published.write_karlo_variations(folder / "karlo-variations", whole)
    published.write_kandinsky(folder / "kandinsky22")
    published.write_kandinsky(folder / "kandinsky21", "kandinsky-2-1")
    save_bundle(load_any_bundle(folder / "kandinsky21"), folder / "converted21")
    save_bundle(load_any_bundle(folder / "kandinsky22"), folder / "converted22")
    published.write_decoder(folder / "apart" / "kandinsky-2-2-controlnet-depth")
    return folder


@pytest.fixture(autouse=True)
def pictures(models, monkeypatch, tmp_path) -> list[Path]:
    """Two pictures beside the command, of different sizes; the models where they are looked for."""
    monkeypatch.setenv("UNCLIP_MODELS", str(models))
    monkeypatch.chdir(tmp_path)
    made = []
    for number, size in enumerate(((48, 40), (40, 56))):
        noise = torch.rand(size[1], size[0], 3, generator=torch.Generator().manual_seed(number))
        made.append(tmp_path / f"{'ab'[number]}.png")
        Image.fromarray((noise * 255).byte().numpy()).save(made[-1])
    return made


def run(bundle, *words):
    words = [*map(str, (*words, *EXACT, "-o", "out.png", "--bundle", bundle))]
    return CliRunner().invoke(build_app(), ["generate", *words])


def made(bundle, *words, name="out.png") -> tuple[torch.Tensor, dict]:
    """The picture [1, 3, H, W] and the graph that it carries, which must be the one that it opens with."""
    result = run(bundle, *words)
    assert result.exit_code == 0, result.stderr
    with Image.open(name) as opened:
        api, ui = (json.loads(opened.text[key]) for key in ("prompt", "workflow"))
        pixels = torch.from_numpy(np.asarray(opened).copy()).permute(2, 0, 1)[None] / 255
    queued = parse_workflow(ui, local_catalog()).to_api()
    assert {key: node["inputs"] for key, node in queued.items()} == {
        key: node["inputs"] for key, node in api.items()
    }
    return pixels, api


def classes(api: dict) -> list[str]:
    return sorted(node["class_type"].removeprefix("UnCLIP") for node in api.values())


def loaded(models: Path, name: str):
    return load_any_bundle(models / name, dtype=torch.float32)


def picture(path: Path) -> torch.Tensor:
    with Image.open(path) as opened:
        return torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1)[None] / 255


def painted(bundle, embedding, caption: str, seed=0, size=(0, 0), **negatives) -> torch.Tensor:
    """What the core makes of an embedding."""
    own = bundle.decoder_text or bundle.clip
    text = encode_text(own, [caption])
    options = DecodeOptions(steps=2, width=size[0], height=size[1])
    return decode(bundle.decoder, embedding, text, seed=seed, options=options, **negatives)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Up to the 8 bits of a file, and rounding."""
    assert found.shape == expected.shape
    exact = torch.from_numpy(np.asarray(to_pil(expected)[0]).copy()).permute(2, 0, 1)[None] / 255
    return bool((found - exact).abs().max() <= 1.01 / 255)


# ------------------------------------------------------------------------------------------ what a bundle can


def test_abilities_are_those_of_the_loaded_bundle(models) -> None:
    names = ("tiny", "karlo", "karlo-variations", "kandinsky22", "kandinsky21", "converted21", "converted22")
    for name in names:
        bundle, found = loaded(models, name), read_abilities(models / name)
        assert found.sizes == tuple(picture_size(bundle, n) for n in range(len(bundle.upsamplers) + 1)), name
        assert found.any_size == (bundle.decoder.autoencoder is not None)
        assert found.has_prior == (bundle.prior is not None)
        config = bundle.decoder.network.config.conditioning
        assert found.reads_captions == (config.text_dim is not None)
    assert read_abilities(models / "tiny").sizes == (DECODED_SIZE, *UPSAMPLED_SIZES)
    assert read_abilities(models / "kandinsky22").any_size


def test_folders_apart_are_joined_and_a_decoder_or_prior_alone_is_told(models) -> None:
    prior = models / "kandinsky22" / published.PRIOR_22
    depth = models / "apart" / "kandinsky-2-2-controlnet-depth"
    assert read_abilities(prior) == Abilities(published.PRIOR_22, has_prior=True)
    assert not read_abilities(depth).has_prior and read_abilities(depth).sizes == (SIDE,)
    assert read_abilities(prior, depth) == Abilities(published.PRIOR_22, (SIDE,), True, False, True)


def test_a_bundle_with_the_other_prior_alone_has_no_diffusion_prior(tmp_path) -> None:
    save_bundle(replace(tiny_bundle(), prior=None), tmp_path / "other")
    assert not read_abilities(tmp_path / "other").has_prior


# ------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("bundle", ["kandinsky22", "kandinsky21", "converted22", "converted21"])
def test_kandinsky_paints_width_and_height(bundle, models) -> None:
    found, api = made(bundle, "a red fox", "--size", "192x128", "--seed", 4)
    assert found.shape == (1, 3, 128, 192)
    assert (api["4"]["inputs"]["width"], api["4"]["inputs"]["height"]) == (192, 128)
    own = loaded(models, bundle)
    text = encode_text(own.clip, ["a red fox"])
    embedding = sample_prior(own, text, 4, GenerateOptions(prior_options=PRIOR))
    assert same(found, painted(own, embedding, "a red fox", 4, (192, 128)))
    assert not same(found, painted(own, embedding, "a red fox", 5, (192, 128)))


def test_one_side_and_the_decoders_own(models) -> None:
    assert made("kandinsky22", "x", "--size", "64")[0].shape[2:] == (64, 64)
    assert made("kandinsky22", "x")[0].shape[2:] == (SIDE, SIDE)
    assert made("karlo", "x", "--size", "32")[0].shape[2:] == (32, 32)
    assert made("karlo", "x")[0].shape[2:] == (16, 16)


def test_a_size_is_rounded_up_with_a_word_about_it(caplog) -> None:
    assert made("kandinsky22", "x", "--size", "100x60")[0].shape[2:] == (64, 112)
    assert "100×60 is rounded up to 112×64" in caplog.text


def test_prior_and_decoder_are_named_apart(models) -> None:
    prior = models / "kandinsky22" / published.PRIOR_22
    decoder = models / "kandinsky22" / "kandinsky-2-2-decoder"
    joined, _ = made("kandinsky22", "a red fox")
    apart, api = made(prior, "a red fox", "--bundle", decoder)
    # The last --bundle of the line is the first of the words above. Both are named from the model folder.
    names = {f"kandinsky22/{each.name}" for each in (prior, decoder)}
    assert {api["1"]["inputs"]["bundle"], api["1"]["inputs"]["with_bundle"]} == names
    assert torch.equal(joined, apart)


# -------------------------------------------------------------------------------------------------- negatives


@pytest.mark.parametrize("bundle", ["tiny", "karlo", "kandinsky22", "kandinsky21"])
def test_a_negative_caption_reaches_prior_and_decoder(bundle, models) -> None:
    scale = ("--guidance-scale", "4", "--prior-guidance-scale", "3")
    plain, _ = made(bundle, "a red fox", *scale)
    found, api = made(bundle, "a red fox", "--negative", "dark", *scale)
    assert (found - plain).abs().max() > 2 / 255
    decoded = api["4"]["inputs"]
    assert decoded["negative_embedding"] == ["3", 1]
    negative = api[api["3"]["inputs"]["negative_text"][0]]["inputs"]
    assert negative["text"] == "dark" and negative["clip"] == ["1", 0]
    reads = bundle != "kandinsky22"
    assert ("negative_text" in decoded) == reads
    if reads:
        read = api[decoded["negative_text"][0]]["inputs"]
        assert read["text"] == "dark" and read["clip"] == ["1", 6 if bundle == "kandinsky21" else 0]
        assert api[decoded["text"][0]]["inputs"]["clip"] == read["clip"]


def test_beside_a_picture_the_prior_makes_an_embedding_of_the_negative_caption(models) -> None:
    scale = ("--guidance-scale", "4")
    plain, _ = made("kandinsky22", "--image", "a.png", *scale)
    found, api = made("kandinsky22", "--image", "a.png", "--negative", "dark", *scale)
    assert (found - plain).abs().max() > 2 / 255
    prior = api[api["4"]["inputs"]["negative_embedding"][0]]["inputs"]
    assert api[prior["text"][0]]["inputs"]["text"] == "dark"


# ----------------------------------------------------------------------------- upsamplers that read captions


@pytest.fixture(scope="module")
def captioned(models) -> Path:
    return save_bundle(captioned_bundle(), models / "captioned")


def test_the_prompt_goes_to_the_upsamplers_that_read_it(captioned) -> None:
    assert read_abilities(captioned).captioned == UPSAMPLED_SIZES[:1]
    assert read_abilities(captioned.parent / "tiny").captioned == ()
    small, last = ["--size", DECODED_SIZE], ["--size", UPSAMPLED_SIZES[1]]
    found, api = made("captioned", "a red fox", *last, "--seed", 3)
    texts = {key: node["inputs"]["text"] for key, node in api.items() if "text" in node["inputs"]}
    assert texts == {"2": "a red fox", "3": ["2", 0], "4": ["2", 0], "5": ["2", 0]}
    assert texts.keys() - made("captioned", "a red fox", *small)[1].keys() == {"5"}
    # The same picture as from Python.
    bundle = load_any_bundle(captioned, dtype=torch.float32)
    options = GenerateOptions(prior_options=PRIOR, decode_options=DecodeOptions(steps=2), upsamplers=2)
    assert same(found, generate(bundle, ["a red fox"], seed=3, options=options))


def test_upsamplers_read_an_empty_caption_or_the_decoders_beside_a_picture(captioned) -> None:
    size = ["--size", UPSAMPLED_SIZES[0], "--image", "a.png"]
    alone, api = made("captioned", *size)
    assert api["2"]["inputs"]["text"] == "" and api["5"]["inputs"]["text"] == ["2", 0]
    beside, api = made("captioned", "a red fox", *size, "--weights", "1,0")
    assert api["2"]["inputs"]["text"] == "a red fox" and api["5"]["inputs"]["text"] == ["2", 0]
    assert (alone - beside).abs().max() > 2 / 255


# --------------------------------------------------------------------------------------- variations, mixtures


@pytest.mark.parametrize("bundle", ["tiny", "karlo", "karlo-variations", "kandinsky22", "kandinsky21"])
def test_a_picture_alone_is_varied(bundle, models, pictures) -> None:
    found, api = made(bundle, "--image", "a.png", "--seed", 7)
    assert "DiffusionPrior" not in classes(api) and "Blend" not in classes(api)
    assert api[api["4"]["inputs"]["embedding"][0]]["class_type"] == "UnCLIPImageEncode"
    own = loaded(models, bundle)
    assert same(found, painted(own, encode_images(own.clip, picture(pictures[0])), "", 7))
    assert not same(found, painted(own, encode_images(own.clip, picture(pictures[1])), "", 7))


def test_several_variations_have_the_seeds_of_single_ones(pictures) -> None:
    assert run("kandinsky22", "--image", "a.png", "-n", 2, "--seed", 7).exit_code == 0
    second = picture(Path("out-2.png"))
    assert (second - made("kandinsky22", "--image", "a.png", "--seed", 8)[0]).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("bundle", ["tiny", "karlo", "kandinsky22", "kandinsky21"])
def test_pictures_and_a_caption_are_mixed_by_weight(bundle, models, pictures) -> None:
    words = ("a red fox", "--image", "a.png", "--image", "b.png")
    found, api = made(bundle, *words, "--weights", "0.5,0.2,0.3", "--seed", 2)
    mix = next(node["inputs"] for node in api.values() if node["class_type"] == "UnCLIPBlend")
    assert [mix[f"weight_{n}"] for n in (1, 2, 3)] == [0.5, 0.2, 0.3]
    own = loaded(models, bundle)
    text = encode_text(own.clip, ["a red fox"])
    parts = [encode_images(own.clip, picture(path)) for path in pictures]
    parts.append(sample_prior(own, text, 2, GenerateOptions(prior_options=PRIOR)))
    assert same(found, painted(own, blend(parts, (0.5, 0.2, 0.3)), "a red fox", 2))
    assert not same(found, painted(own, blend(parts, (0.2, 0.5, 0.3)), "a red fox", 2))
    equal, _ = made(bundle, *words, "--seed", 2)
    assert same(equal, painted(own, blend(parts, (1, 1, 1)), "a red fox", 2))


@pytest.mark.parametrize("bundle", ["tiny", "karlo-variations", "kandinsky21"])
def test_with_weight_0_only_the_decoder_reads_the_caption(bundle, models, pictures) -> None:
    found, api = made(bundle, "a red fox", "--image", "a.png", "--weights", "1,0")
    assert "DiffusionPrior" not in classes(api)
    own = loaded(models, bundle)
    embedding = encode_images(own.clip, picture(pictures[0]))
    assert same(found, painted(own, embedding, "a red fox"))
    assert not same(found, painted(own, embedding, "dark cat"))


def test_pictures_of_one_name_are_told_apart(pictures, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    pictures[1].rename(tmp_path / "other" / "a.png")
    _, api = made("kandinsky22", "--image", "a.png", "--image", "other/a.png")
    names = [node["inputs"]["image"] for node in api.values() if node["class_type"] == "LoadImage"]
    assert names == ["a.png", "a-2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "other", "out.png"]


# ----------------------------------------------------------------------------------------------------- errors


def squares(name: str, *sizes: int) -> str:
    return f"bundle {name!r} makes square pictures of {', '.join(map(str, sizes))} pixels only"


@pytest.mark.parametrize(
    ("bundle", "words", "message"),
    [
        ("tiny", ["x", "--size", "768x512"], squares("tiny", DECODED_SIZE, *UPSAMPLED_SIZES)),
        ("karlo", ["x", "--size", 512], squares("karlo", 16, 32)),
        ("kandinsky22", [], "nothing to paint: write a PROMPT, name a picture with --image"),
        ("kandinsky22", ["x", "--image", "c.png"], "--image c.png: there is no such file"),
        ("kandinsky22", ["--image", "text.png"], "text.png is not a picture that can be read"),
        ("kandinsky22", ["--image", "two.gif"], "--image two.gif: holds 2 pictures; expected one"),
        (
            "kandinsky22",
            ["--image", "a.png", "--weights", "0"],
            "has nothing to be weighed against; leave it",
        ),
        ("kandinsky22", ["--image", "a.png", "--weights", "1,2"], "has nothing to be weighed against"),
        ("tiny", ["x", "--image", "a.png", "--weights", "0,0"], "found 0 for the one --image and 0 for"),
        ("tiny", ["x", "--image", "a.png", "--weights", "-1,0"], "give the picture a weight above 0"),
        (
            "kandinsky22",
            [*["--image", "a.png"] * 2, "--weights", "1,2,3"],
            "found 3 numbers, expected 2: one for each",
        ),
        ("kandinsky22", ["x", "--image", "a.png", "--weights", "1"], "and, last, one for the PROMPT"),
        (
            "kandinsky22",
            ["x", "--image", "a.png", "--weights", "1,b"],
            "--weights: found '1,b', expected num",
        ),
        ("kandinsky22", ["x", "--weights", "1"], "but there is no --image; leave it out"),
        ("kandinsky22", ["x", *["--image", "a.png"] * 4], "up to 4 of them can be mixed"),
        ("kandinsky22", ["x", "--image", "a.png", "--weights", "1,0"], "reads no captions, so it would have"),
        ("karlo-variations", ["x"], "has no diffusion prior, which makes of the PROMPT what is painted"),
        ("karlo-variations", ["x", "--image", "a.png"], "--weights 1,0, so that only the decoder reads it"),
        (
            "kandinsky22/kandinsky-2-2-prior",
            ["x"],
            "has no decoder, so it cannot paint. Kandinsky's prior and",
        ),
        ("apart/kandinsky-2-2-controlnet-depth", ["x"], "or add the prior's folder with another --bundle"),
        (
            "apart/kandinsky-2-2-controlnet-depth",
            ["--image", "a.png", "--negative", "x"],
            "--negative: bundle 'kandinsky-2-2-controlnet-depth' has no diffusion prior and its decoder",
        ),
    ],
)
def test_what_a_bundle_cannot_do_is_said_before_anything_runs(bundle, words, message, tmp_path) -> None:
    Path("text.png").write_text("no picture")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save("two.gif", save_all=True, append_images=frames[1:])
    result = run(bundle, *words)
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")
    assert not Path("out.png").exists()


def test_a_depth_decoder_says_what_it_lacks(models) -> None:
    prior = models / "kandinsky22" / published.PRIOR_22
    result = run(models / "apart" / "kandinsky-2-2-controlnet-depth", "x", "--bundle", prior)
    assert result.exit_code == 1 and "hint:" in result.stderr and "depth map" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--size", "big"], "expected a side in pixels, such as 256, or width and height"),
        (["x", "--size", "0"], "expected a side in pixels"),
        (["x", "--size", "5000x64"], "of 1 to 4096"),
        (["x", "--size", "192x128", "--width", "64"], "both name a size; leave one out"),
        (["x", "--bundle", "tiny", "--bundle", "karlo"], "expected one, or a prior and a decoder"),
    ],
)
def test_usage_errors(words, message) -> None:
    result = run("kandinsky22", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_public_bundle_that_is_not_there_says_how_to_get_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path))
    result = run("kandinsky22", "x")
    assert result.exit_code == 1
    assert "--bundle: 'kandinsky22' is not here." in result.stderr
    assert (
        "kandinsky-community/kandinsky-2-2-prior" in "".join(result.stderr.split())
        and "Apache-2.0" in result.stderr
    )
