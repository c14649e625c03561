"""The probe of manipulations, on made-up pictograms and a tiny bundle of random weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from unclip.core.data.batches import load_pictograms
from unclip.core.data.settings import DataConfig
from unclip.core.evaluation.manipulations import exactness, reconstruction
from unclip.core.evaluation.manipulations.concepts import measure_text_diff, measure_variations
from unclip.core.evaluation.manipulations.config import InversionProbe, ManipulationsConfig, TextDiffProbe
from unclip.core.evaluation.manipulations.exactness import measure_inpainting, measure_interpolation
from unclip.core.evaluation.manipulations.measured_bundle import MeasuredBundle
from unclip.core.evaluation.manipulations.measures import checks, measure_manipulations
from unclip.core.evaluation.manipulations.plot import plot_inversion, plot_pca, plot_text_diff
from unclip.core.evaluation.manipulations.reconstruction import measure_inversion, measure_pca, psnr
from unclip.core.evaluation.quality.prompts import draw_concepts, draw_prompts, render_prompts
from unclip.core.formats.load import load_any_bundle
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.decode import DecodeOptions
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.inpaint import InpaintOptions
from unclip.core.pipelines.prior import PriorOptions
from unclip.core.pipelines.upsample import UpsampleOptions

from ...helpers.bundle import DECODED_SIZE, DIM, UPSAMPLED_SIZES, captioned_bundle, tiny_bundle
from ...helpers.evaluation import squares, write_squares
from ...helpers.kandinsky_files import write_whole_22

CONCEPTS = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("data"))


def config_for(shards="shards", **changes) -> ManipulationsConfig:
    values = {
        "concepts": CONCEPTS,
        "interpolations": 2,
        "inpainted": 2,
        "fitted": 50,
        "measured": 20,
        "upsamplers": 2,
        "batch_size": 3,
        "inversion": InversionProbe(3, (2, 4, 12), 4, (12,)),
        "text_diff": TextDiffProbe(pairs=3, frames=3),
        "decoder": DecodeOptions(steps=2),
        "inpaint": InpaintOptions(steps=2, resamples=1),
        "upsampler": UpsampleOptions(steps=1),
    }
    return ManipulationsConfig("bundle", DataConfig(str(shards)), **{**values, **changes})


@pytest.fixture(scope="module")
def subject(bundle):
    return MeasuredBundle(bundle, config_for())


def test_more_steps_than_the_decoder_has_are_told_before_anything_runs(bundle) -> None:
    with pytest.raises(ValueError, match=r"^inversion: steps: found 1200, but the noise schedule has 1000"):
        MeasuredBundle(bundle, config_for(inversion=InversionProbe(2, (12, 1200), 0)))


def test_a_decoder_with_a_text_encoder_of_its_own_reads_the_empty_caption_by_it(bundle) -> None:
    """Kandinsky 2.1's: without a caption its null is the empty one."""
    network = bundle.decoder.network
    conditioning = replace(network.config.conditioning, null_text="empty_caption")
    unet = UNet(replace(network.config, conditioning=conditioning))
    other = tiny_bundle(seed=3, upsamplers=0).clip
    own = replace(bundle, decoder=replace(bundle.decoder, network=unet), decoder_text=other)
    found = MeasuredBundle(own, config_for()).text
    assert torch.equal(found.tokens, encode_text(other, [""]).tokens)
    assert not torch.equal(found.tokens, encode_text(bundle.clip, [""]).tokens)


@pytest.fixture(scope="module")
def concepts():
    return draw_concepts(squares(), CONCEPTS, seed=0)


@pytest.fixture(scope="module")
def pictures():
    return render_prompts(draw_prompts(squares(), 70, seed=0), DECODED_SIZE)


def sees(prompts, monkeypatch, subject, found):
    """Let the judge see concept ``found(pictures)[i]`` in picture i."""

    def probabilities(self, embedding, captions):
        rows = found(embedding.vectors)
        return torch.nn.functional.one_hot(rows, len(prompts)).float()

    monkeypatch.setattr(MeasuredBundle, "probabilities", probabilities)


# --- what is drawn ------------------------------------------------------------------------------------------


def test_concepts_are_different_and_their_captions_name_nothing_else():
    found = draw_concepts(squares(), 30, seed=1)
    assert len({prompt.pictogram.concept for prompt in found}) == 30
    assert {prompt.caption for prompt in found} == {f"a {prompt.pictogram.concept}" for prompt in found}
    assert {prompt.pictogram.style for prompt in found} == {"noto", "twemoji"}
    assert render_prompts(found, 16)[:, :, 0, 0].min() == 1  # on white
    assert draw_concepts(squares(), 10, seed=1) == found[:10] != draw_concepts(squares(), 10, seed=2)
    with pytest.raises(ValueError, match="found 80 different concepts in 160 pictograms, expected 81"):
        draw_concepts(squares(), 81, seed=0)


# --- reconstruction -----------------------------------------------------------------------------------------


def test_psnr_of_known_errors():
    black = torch.zeros(3, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), value) for value in (0.1, 1.0, 0.0)])
    torch.testing.assert_close(
        psnr(other, black), torch.tensor([20.0, 0.0, 120.0]).double(), atol=1e-4, rtol=0
    )


def test_round_trips_get_better_with_steps_and_refinements(subject, pictures):
    found = measure_inversion(subject, pictures[:3])
    plain, refined = found["curves"]
    assert (plain["refinements"], refined["refinements"]) == (0, 4)
    assert [point["steps"] for point in plain["points"]] == [2, 4, 12]
    assert [point["steps"] for point in refined["points"]] == [12]
    psnrs = [point["psnr"] for point in plain["points"]]
    assert psnrs == sorted(psnrs) and psnrs[-1] > psnrs[0] + 3
    assert refined["points"][0]["psnr"] > psnrs[-1] + 10
    assert all(point["worst"] <= point["psnr"] <= point["best"] for point in plain["points"])


def test_a_decode_from_other_noise_is_no_round_trip(bundle, pictures, monkeypatch):
    subject = MeasuredBundle(bundle, config_for(inversion=InversionProbe(2, (12,), 0)))
    good = measure_inversion(subject, pictures[:2])["curves"][0]["points"][0]["psnr"]
    real = reconstruction.invert
    monkeypatch.setattr(reconstruction, "invert", lambda *args, **kwargs: real(*args, **kwargs).flip(2))
    assert measure_inversion(subject, pictures[:2])["curves"][0]["points"][0]["psnr"] < good - 3


def test_the_error_falls_with_the_components(subject, pictures):
    found = measure_pca(subject, pictures)
    assert (found["fitted"], found["measured"]) == (50, 20)
    errors = found["error"]
    assert errors[0] == 1 and len(errors) == len(found["components"]) <= DIM + 1
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2
    enough = found["within_1_percent"]
    assert enough is None or errors[enough] <= 0.01 < errors[enough - 1]


# --- concepts -----------------------------------------------------------------------------------------------


def test_variations_are_counted_against_their_sources(subject, concepts, monkeypatch):
    answers = iter([torch.tensor([0, 1, 2, 3, 4, 5, 0, 0]), torch.tensor([0, 1, 2, 7, 7, 7, 6, 0])])
    sees(concepts, monkeypatch, subject, lambda _: next(answers))
    found, example = measure_variations(subject, concepts)
    assert found["concepts"] == CONCEPTS
    assert {
        name: (found[name]["hits"], found[name]["of"]) for name in ("real", "variations", "kept", "same")
    } == {
        "real": (6, 8),
        "variations": (4, 8),  # with one that the real picture was not taken for
        "kept": (3, 6),
        "same": (4, 8),
    }
    assert example.pictures.shape == (2, CONCEPTS, 3, DECODED_SIZE, DECODED_SIZE)
    assert example.labels[1][3] == concepts[7].caption and example.column_labels[3] == concepts[3].caption


def test_variations_are_decoded_from_the_pictures(subject, concepts, monkeypatch):
    given = []
    real = MeasuredBundle.decode

    def decode(self, embedding, *rest):
        given.append(embedding.vectors)
        return real(self, embedding, *rest)

    monkeypatch.setattr(MeasuredBundle, "decode", decode)
    measure_variations(subject, concepts)
    expected = subject.encode(render_prompts(concepts, DECODED_SIZE)).vectors
    torch.testing.assert_close(given[0], expected)


def test_text_diffs_start_at_the_picture_and_turn_to_the_target(subject, concepts):
    found, (example,) = measure_text_diff(subject, concepts)
    assert "by_prior" not in found and -1 < found["aligned"] < 1
    assert found["theta"] == [0, 0.25, 0.5] and (found["pairs"], found["concepts"]) == (3, CONCEPTS)
    mean = found["embedding"]["mean"]
    assert mean == sorted(mean) and mean[-1] > mean[0]
    captions = [prompt.caption for prompt in concepts]
    real = subject.encode(render_prompts([concepts[i] for i in (0, 2, 4)], DECODED_SIZE))
    start = subject.probabilities(real, captions)[torch.arange(3), torch.tensor([1, 3, 5])].mean().item()
    assert mean[0] == pytest.approx(start, abs=1e-5)
    assert found["rising_pairs"]["of"] == 3 and found["rising_steps"]["of"] == 6
    assert len(found["pictures"]["mean"]) == len(found["left"]["error"]) == 3
    assert example.pictures.shape == (3, 3, 3, DECODED_SIZE, DECODED_SIZE)
    assert example.row_labels[0] == f"{captions[0]} → {captions[1]}"


def test_by_the_prior_the_direction_is_that_of_what_it_imagines(bundle, concepts, monkeypatch):
    """A prior that imagines the very pictures turns each exactly to the other."""
    diff = TextDiffProbe(pairs=3, frames=3, theta_max=1.0, by_prior=True)
    subject = MeasuredBundle(bundle, config_for(text_diff=diff, prior=PriorOptions(steps=2)))
    whole, examples = measure_text_diff(subject, concepts)
    assert [example.name for example in examples] == ["text-diff", "text-diff-by-the-prior"]
    assert whole["by_prior"]["pictures"] != whole["pictures"]
    real = subject.encode(render_prompts(concepts[:6], DECODED_SIZE))
    picture_of = {prompt.caption: vector for prompt, vector in zip(concepts[:6], real.vectors, strict=True)}
    asked = []

    def imagine(self, text):
        asked.append(text)
        order = (1, 3, 5) if len(asked) == 1 else (0, 2, 4)
        return replace(real, vectors=torch.stack([picture_of[concepts[i].caption] for i in order]))

    monkeypatch.setattr(MeasuredBundle, "imagine", imagine)
    found = measure_text_diff(subject, concepts)[0]
    assert found["by_prior"]["aligned"] == pytest.approx(1, abs=1e-5)
    assert {key: value for key, value in found.items() if key != "by_prior"} == {
        key: value for key, value in whole.items() if key != "by_prior"
    }
    assert plot_text_diff(found).size == (704, 462)


# --- exactness ----------------------------------------------------------------------------------------------


def test_the_ends_of_interpolations_are_the_sources(subject, concepts, monkeypatch):
    found = measure_interpolation(subject, concepts)
    assert found["pairs"] == 2 and found["values"] == 4 * 3 * DECODED_SIZE**2
    assert found["largest_difference"] < 1e-4 and found["in_8_bits"] <= 4
    assert found["middle"] > 0.01
    real = exactness.interpolate_noise
    monkeypatch.setattr(exactness, "interpolate_noise", lambda first, second, n: real(second, first, n))
    swapped = measure_interpolation(subject, concepts)
    assert swapped["largest_difference"] > 0.05 and swapped["in_8_bits"] > 100


def test_inpainting_leaves_the_rest_alone(subject, concepts, monkeypatch):
    found = measure_inpainting(subject, concepts)
    side = UPSAMPLED_SIZES[-1]
    assert found["size"] == [side, 3 * side // 4]
    for name in ("decoded", "hard", "soft"):
        assert found[name]["differ"] == 0 < found[name]["unmasked"]
        assert found[name]["repainted"] > 0.95
    assert found["hard"]["unmasked"] == found["soft"]["unmasked"] > found["decoded"]["unmasked"]
    real = exactness.composite
    monkeypatch.setattr(exactness, "composite", lambda *given: real(*given) + 1e-7)
    assert measure_inpainting(subject, concepts)["hard"]["differ"] > 0


def test_upsamplers_that_read_captions_are_given_an_empty_one(concepts):
    found = measure_inpainting(MeasuredBundle(captioned_bundle(), config_for()), concepts)
    assert found["hard"]["repainted"] > 0.95


# --- the whole of it ----------------------------------------------------------------------------------------


def test_a_probe_repeats_and_tells_how_far_it_is(shards, bundle):
    config, told = config_for(shards, upsamplers=1, inversion=InversionProbe(2, (2,), 0)), []
    found = measure_manipulations(config, bundle, lambda *report: told.append(report))
    assert json.loads(json.dumps(found.results)) == found.results
    assert measure_manipulations(config, bundle).results == found.results
    other = measure_manipulations(replace(config, seed=1), bundle).results
    assert all(
        other[name] != found.results[name] for name in ("text_diff", "interpolation", "pca", "inversion")
    )
    last = {title: (done, total) for title, done, total in told}
    assert list(last) == ["variations", "text diff", "interpolation", "inpainting", "inversion"]
    assert all(done == pytest.approx(total) for done, total in last.values())
    assert [example.name for example in found.examples] == ["variations", "text-diff"]
    for plot, name in ((plot_inversion, "inversion"), (plot_text_diff, "text_diff"), (plot_pca, "pca")):
        assert plot(found.results[name]).size == (704, 462)


def results(psnr=30.0, kept=0.9, ends=0, mean=(0.1, 0.2, 0.3), errors=(1, 0.5, 0.1), differ=0):
    return {
        "inversion": {
            "curves": [{"refinements": 0, "points": [{"steps": 20, "psnr": 1}, {"steps": 50, "psnr": psnr}]}]
        },
        "variations": {"kept": None if kept is None else {"value": kept}},
        "interpolation": {"in_8_bits": ends},
        "text_diff": {"pictures": {"mean": list(mean)}},
        "pca": {"error": list(errors)},
        "inpainting": {"decoded": {"differ": 0}, "hard": {"differ": differ}, "soft": {"differ": 0}},
    }


def test_a_decoder_with_an_autoencoder_is_measured_in_its_pictures(shards, tmp_path):
    bundle = load_any_bundle(write_whole_22(tmp_path))
    decoder = bundle.decoder
    config = config_for(
        shards,
        concepts=2,
        interpolations=1,
        inpainted=1,
        fitted=3,
        measured=1,
        upsamplers=0,
        inversion=InversionProbe(1, (1,), 0),
        text_diff=TextDiffProbe(pairs=1, frames=2),
        decoder=DecodeOptions(steps=1),
        inpaint=InpaintOptions(steps=1, resamples=1),
    )
    found = measure_manipulations(config, bundle)
    side = decoder.picture_size
    assert side == 2 * decoder.network.config.image_size
    assert all(example.pictures.shape[-2:] == (side, side) for example in found.examples)
    inpainted = found.results["inpainting"]
    assert inpainted["size"] == [side, 3 * side // 4]
    # Near these proportions it paints, so that its own size is no square.
    assert inpainted["decoded"]["unmasked"] != inpainted["hard"]["unmasked"]
    assert all(inpainted[size]["differ"] == 0 for size in ("decoded", "hard", "soft"))


@pytest.mark.parametrize(
    ("changes", "unmet"),
    [
        ({}, []),
        ({"psnr": 24.9}, ["inversion"]),
        ({"kept": 0.79}, ["variations"]),
        ({"kept": None}, ["variations"]),  # no real picture is recognised
        ({"ends": 1}, ["interpolation"]),
        ({"mean": (0.1, 0.3, 0.3)}, ["text diff"]),
        ({"errors": (1, 0.5, 0.6)}, ["PCA"]),
        ({"differ": 1}, ["inpainting"]),
    ],
)
def test_each_aim_can_be_missed(changes, unmet):
    found = checks(results(**changes))
    assert len(found) == 6
    missed = [check["name"] for check in found if not check["met"]]
    assert [name.startswith(tuple(unmet)) for name in missed] == [True] * len(unmet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": 5}, "concepts is 5; expected at least 6, two for each pair"),
        ({"inpainted": 0}, "inpainted is 0; expected at least 1"),
        ({"fitted": 1}, "fitted is 1; expected at least 2"),
        (
            {"decoder": DecodeOptions(eta=0.5)},
            "found the sampler ddim with eta 0.5; expected one without noise",
        ),
        ({"decoder": DecodeOptions(sampler="ddpm")}, "found the sampler ddpm"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_for(**changes)


def test_settings_of_the_parts_that_cannot_be_are_refused():
    for steps in ((), (0, 5), (5, 5), (20, 10)):
        with pytest.raises(ValueError, match=r"inversion\.steps is .* expected numbers from 1 on, in order"):
            InversionProbe(steps=steps)
    with pytest.raises(ValueError, match=r"inversion\.refinements is -1; expected 0 or more"):
        InversionProbe(refinements=-1)
    with pytest.raises(ValueError, match=r"text_diff\.theta_max is 0; expected above 0, to 1"):
        TextDiffProbe(theta_max=0)
    with pytest.raises(ValueError, match=r"text_diff\.frames is 1; expected at least 2"):
        TextDiffProbe(frames=1)


def test_what_is_missing_is_asked_for_first(shards, bundle, monkeypatch):
    monkeypatch.setattr(MeasuredBundle, "decode", lambda *_: pytest.fail("ran"))
    with pytest.raises(ValueError, match="bundle 'tiny' has no decoder"):
        measure_manipulations(config_for(shards), replace(bundle, decoder=None))
    with pytest.raises(ValueError, match="upsamplers is 3; expected 0 to 2"):
        measure_manipulations(config_for(shards, upsamplers=3), bundle)
    with pytest.raises(ValueError, match="different prompts"):
        measure_manipulations(config_for(shards, fitted=5000), bundle)
    few = len({p.concept for p in load_pictograms(DataConfig(str(shards)), held_out=True)})
    with pytest.raises(ValueError, match=f"found {few} different concepts in .* expected {few + 1}"):
        config = config_for(shards, split="held_out", concepts=few + 1)
        measure_manipulations(replace(config, text_diff=TextDiffProbe(pairs=1), interpolations=1), bundle)
