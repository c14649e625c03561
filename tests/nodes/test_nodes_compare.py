"""Grid, score and guidance sweep on a tiny bundle, and the core functions behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from unclip.cli.workflow.builtin_nodes import Folders
from unclip.cli.workflow.graph import Workflow
from unclip.cli.workflow.local import local_catalog, run_here
from unclip.cli.workflow.reading import load_workflow
from unclip.cli.workflow.specs import Catalog
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.native.checkpoints import save_bundle
from unclip.core.pictures.chart import panel_chart
from unclip.core.pictures.sheet import THEMES
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.noise import draw_starting_noise
from unclip.core.pipelines.score import clip_scores, cosines, diversity, score_pictures
from unclip.core.pipelines.sweep import sweep_guidance
from unclip.nodes import host, inputs

from ..helpers.bundle import DECODED_SIZE, tiny_bundle
from ..helpers.nodes import run

SCALES = [0.0, 1.0, 2.5]
FAST = DecodeOptions(steps=2)


@pytest.fixture(scope="module")
def tiny():
    return tiny_bundle(upsamplers=0)


@pytest.fixture(scope="module")
def embeddings(tiny):
    return encode_images(tiny.clip, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))


def plain(value, height=16, width=16, batch=1):
    return torch.full((batch, height, width, 3), value)


# ------------------------------------------------------------------------------------------------------ score


def test_scores_are_cosines_of_each_picture_and_its_caption(tiny):
    images = torch.rand(3, 3, 20, 30, generator=torch.Generator().manual_seed(1))
    text = encode_text(tiny.clip, ["a fox", "a car", "a tree"])
    vectors = encode_images(tiny.clip, images).vectors
    expected = F.normalize(vectors, dim=-1) @ F.normalize(text.pooled, dim=-1).T  # [3, 3]
    scores = clip_scores(tiny.clip, images, text)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected.diag(), atol=1e-5, rtol=0)
    assert not torch.allclose(scores, expected.roll(1, dims=0).diag(), atol=1e-3)
    one = encode_text(tiny.clip, ["a car"])
    torch.testing.assert_close(clip_scores(tiny.clip, images, one), expected[:, 1], atol=1e-5, rtol=0)
    assert not torch.allclose(clip_scores(tiny.clip, images, text, fit="squash"), scores, atol=1e-4)


def test_cosines_reach_one_and_do_not_depend_on_length():
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(cosines(vectors, 3 * vectors), torch.ones(5).double())
    assert torch.allclose(cosines(vectors, -vectors), -torch.ones(5).double())
    assert cosines(vectors, vectors.roll(1, 1)).abs().max() < 0.99


def test_a_score_of_another_clip_or_of_too_few_captions_is_refused(tiny):
    images, text = torch.zeros(3, 3, 16, 16), encode_text(tiny.clip, ["a", "b"])
    with pytest.raises(ValueError, match="text has 2 captions, expected 1 or 3"):
        clip_scores(tiny.clip, images, text)
    stranger = replace(text, space=EmbeddingSpace("somebody/else", text.space.dim))
    with pytest.raises(ValueError, match="text is in the CLIP space 'somebody/else'"):
        clip_scores(tiny.clip, images, stranger)


def test_the_score_node_gives_the_mean_and_a_line_for_each_picture(tiny):
    image = torch.rand(3, 16, 16, 4, generator=torch.Generator().manual_seed(2))
    text = encode_text(tiny.clip, ["a red fox"])
    score, labels, spread, groups, chart = run("UnCLIPScore", clip=tiny.clip, image=image, text=text)
    expected = clip_scores(tiny.clip, image[..., :3].movedim(-1, 1), text)
    assert isinstance(score, float) and score == pytest.approx(expected.mean().item(), abs=1e-6)
    assert labels.splitlines() == [f"CLIP {value:.3f}" for value in expected.tolist()]
    assert groups == f"all pictures: CLIP {score:.3f}, diversity {spread:.3f}" and spread > 1e-4
    assert chart.shape[0] == 1 and chart.shape[2:] == (640, 3)
    with pytest.raises(ValueError, match=r"^clip: nothing arrived"):
        run("UnCLIPScore", clip=None, image=image, text=text)


def test_diversity_is_the_mean_distance_of_all_pairs():
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    pairs = [(a, b) for a in range(5) for b in range(a)]
    expected = sum(1 - F.cosine_similarity(vectors[a], vectors[b], dim=0).item() for a, b in pairs) / 10
    assert diversity(vectors) == pytest.approx(expected, abs=1e-6)
    assert diversity(3 * vectors) == pytest.approx(expected, abs=1e-6)
    assert abs(diversity(vectors[:4]) - expected) > 1e-3
    assert diversity(vectors[:1].expand(6, -1)) == pytest.approx(0, abs=1e-12)
    assert diversity(torch.stack([vectors[0], -vectors[0]])) == pytest.approx(2)
    assert diversity(vectors[:1]) is None


def test_groups_are_scored_apart(tiny):
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    text = encode_text(tiny.clip, ["a fox"])
    scores, vectors = clip_scores(tiny.clip, images, text), encode_images(tiny.clip, images).vectors
    for names, members in (
        (["a", "b", "c"], {"a": [0, 3], "b": [1, 4], "c": [2, 5]}),  # by turns
        (["a", "a", "a", "b", "b", "b"], {"a": [0, 1, 2], "b": [3, 4, 5]}),
        (["b", "a", "b"], {"b": [0, 2, 3, 5], "a": [1, 4]}),
        ([], {"all pictures": [0, 1, 2, 3, 4, 5]}),
    ):
        found = score_pictures(tiny.clip, images, text, groups=names)
        assert torch.equal(found.scores, scores)
        assert [group.name for group in found.groups] == list(members)
        for group, rows in zip(found.groups, members.values(), strict=True):
            assert group.score == pytest.approx(scores[rows].mean().item())
            assert group.diversity == pytest.approx(diversity(vectors[rows]), abs=1e-9)
        spreads = [group.diversity for group in found.groups]
        assert found.diversity == pytest.approx(sum(spreads) / len(spreads))


def test_single_pictures_have_no_diversity(tiny):
    given = {"clip": tiny.clip, "text": encode_text(tiny.clip, ["a fox"])}
    image = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(4))
    _, _, spread, groups, alone = run("UnCLIPScore", **given, image=image, groups="x\n\ny\nz\n")
    assert spread == 0.0 and [line.split(":")[0] for line in groups.splitlines()] == ["x", "y", "z"]
    assert "diversity" not in groups
    _, _, spread, groups, both = run("UnCLIPScore", **given, image=image, groups="x\ny\nx")
    x, y = groups.splitlines()
    assert x.endswith(f"diversity {spread:.3f}") and "diversity" not in y and spread > 0
    assert both.shape[1] > alone.shape[1] + 100  # a second panel
    with pytest.raises(ValueError, match=r"^groups: found 2 names for 3 pictures; expected one for each, or"):
        run("UnCLIPScore", **given, image=image, groups="x\ny")


# ------------------------------------------------------------------------------------------------------ sweep


def test_a_sweep_is_the_same_decoding_at_each_scale(tiny, embeddings):
    text, told = encode_text(tiny.clip, ["a red fox"]), []
    pictures = sweep_guidance(
        tiny.decoder, embeddings, text, scales=SCALES, seed=3, options=FAST, callback=told.append
    )
    assert pictures.shape == (2, 3, 3, DECODED_SIZE, DECODED_SIZE)
    for index, scale in enumerate(SCALES):
        alone = decode(
            tiny.decoder,
            embeddings,
            text,
            seed=3,
            batch_size=2,
            options=replace(FAST, guidance_scale=scale),
        )
        torch.testing.assert_close(pictures[:, index], alone, atol=1e-5, rtol=0)
    assert (pictures[:, 1] - pictures[:, 2]).abs().max() > 1e-3
    assert [(step.index, step.total) for step in told] == [(number, 6) for number in range(6)]
    with pytest.raises(ValueError, match="scales: found none"):
        sweep_guidance(tiny.decoder, embeddings, scales=[], seed=0, options=FAST)


def test_the_sweep_node_gives_all_scales_of_each_embedding_and_their_names(tiny, embeddings):
    given = {"decoder": tiny.decoder, "embedding": embeddings, "seed": 3, "steps": 2}
    image, labels = run("UnCLIPGuidanceSweep", **given, guidance_scales="0, 1,2.50")
    assert labels == "guidance 0\nguidance 1\nguidance 2.5"
    expected = sweep_guidance(tiny.decoder, embeddings, scales=SCALES, seed=3, options=FAST)
    torch.testing.assert_close(image.movedim(-1, 1), expected.flatten(0, 1), atol=1e-5, rtol=0)
    for changed in (
        {"eta": 1.0},
        {"guidance_start": 0.6},
        {"guidance_end": 0.3},
        {"guidance_rescale": 1.0},
        {"dynamic_threshold": 0.9},
        {"text": encode_text(tiny.clip, ["a red fox"])},
        {"noise": draw_starting_noise(tiny.decoder, seed=9, batch_size=1)},
        {"negative_embedding": Embedding(embeddings.vectors.flip(0), embeddings.space)},
        {"negative_text": encode_text(tiny.clip, ["a red fox"])},
        {"sampler": "ddpm"},
    ):
        other, _ = run("UnCLIPGuidanceSweep", **given, guidance_scales="0, 1, 2.5", **changed)
        assert not torch.allclose(other, image, atol=1e-4), changed
    with pytest.raises(ValueError, match=r"^decoder: nothing arrived"):
        run("UnCLIPGuidanceSweep", **{**given, "decoder": None})
    cfg_pp = {**given, "guidance": "cfg_pp"}
    assert len(run("UnCLIPGuidanceSweep", **cfg_pp, guidance_scales="0.2, 1")[0]) == 4
    with pytest.raises(ValueError, match=r"^one of guidance_scales is 1\.5; guidance cfg_pp takes 0 to 1"):
        run("UnCLIPGuidanceSweep", **cfg_pp, guidance_scales="0.2, 1.5")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1, 1.5, 2", [1, 1.5, 2]),
        ("1 2;3\n4", [1, 2, 3, 4]),
        (" 30 ", [30]),
        ("0,", [0]),
        ("1，1.5、2；4", [1, 1.5, 2, 4]),
    ],
)
def test_numbers_are_read_as_people_write_them(text, found):
    assert inputs.numbers(text, "guidance_scales", 0, 30) == found


@pytest.mark.parametrize("text", ["", " , ", "one", "1, 2x", "-1", "1, 31", "nan"])
def test_what_is_no_list_of_scales_is_refused(text):
    with pytest.raises(ValueError, match=r"guidance_scales: found .*, expected numbers from 0 to 30 separat"):
        inputs.numbers(text, "guidance_scales", 0, 30)


# ------------------------------------------------------------------------------------------------------- grid


def has(image, value):
    return bool((image == torch.as_tensor(value)).all(dim=-1).any())


def columns_of(sheet):
    """The grey values across the first row of a sheet without padding."""
    return [round(value, 1) for value in sheet[0, 8, 8::16, 0].tolist()]


def test_inputs_stand_side_by_side_or_one_below_the_other():
    given = {"image_1": plain(0.2, batch=2), "image_2": plain(0.4), "image_4": plain(0.8), "padding": 0}
    (sheet,) = run("UnCLIPGrid", **given)
    assert sheet.shape == (1, 32, 48, 3) and columns_of(sheet) == [0.2, 0.4, 0.8]
    assert sheet.dtype == torch.float32 and sheet.device.type == "cpu"
    assert sheet[0, 24, 24].tolist() == [1, 1, 1]  # image_2 has one picture only
    (sheet,) = run("UnCLIPGrid", **given, each_input="row")
    assert sheet.shape == (1, 48, 32, 3) and columns_of(sheet) == [0.2, 0.2]
    (sheet,) = run("UnCLIPGrid", **given, columns=4)
    assert sheet.shape == (1, 16, 64, 3) and columns_of(sheet) == [0.2, 0.2, 0.4, 0.8]


def test_one_batch_gets_the_columns_that_its_labels_name():
    image = torch.cat([plain(value / 10) for value in range(6)])
    (square,) = run("UnCLIPGrid", image_1=image, padding=0)
    assert square.shape == (1, 32, 48, 3)
    (named,) = run("UnCLIPGrid", image_1=image, padding=0, column_labels="1\n2\n", row_labels="a\nb\nc\n\n")
    assert named.shape[1] > 48 and named.shape[2] > 32 and named.shape[2] < 80
    (wide,) = run("UnCLIPGrid", image_1=image, padding=0, row_labels="a")
    assert wide.shape[1] <= 32  # one row


def test_pictures_of_other_sizes_and_channels_are_taken():
    opaque = torch.cat([torch.full((1, 32, 64, 3), 0.6), torch.ones(1, 32, 64, 1)], dim=-1)
    (sheet,) = run("UnCLIPGrid", image_1=plain(0.2), image_2=opaque, padding=0)
    assert sheet.shape == (1, 32, 128, 3)
    assert has(sheet[:, :, :64], 51 / 255) and has(sheet[:, :, 64:], 153 / 255)
    (sheet,) = run("UnCLIPGrid", image_1=plain(0.2), cell_size=48, padding=8)
    assert sheet.shape == (1, 64, 64, 3)


def test_labels_are_written_below_the_pictures_of_their_input():
    given = {"image_1": plain(0.2, 64, 64), "image_2": plain(0.4, 64, 64), "padding": 8}
    (without,) = run("UnCLIPGrid", **given)
    (sheet,) = run("UnCLIPGrid", **given, labels_2="CLIP 0.312", background="black")
    ink = torch.tensor(THEMES["black"].ink) / 255
    assert sheet.shape[1] > without.shape[1] and sheet.shape[2] == without.shape[2]
    assert sheet[0, 0, 0].tolist() == [0, 0, 0]
    assert not has(sheet[:, :, :76], ink) and has(sheet[:, 72:, 76:], ink)
    (larger,) = run("UnCLIPGrid", **given, labels_2="CLIP 0.312", font_size=24)
    assert larger.shape[1] > sheet.shape[1]


def test_a_label_at_the_end_may_be_blank():
    pictures = plain(0.2, 64, 64).repeat(3, 1, 1, 1)
    (whole,) = run("UnCLIPGrid", image_1=pictures, columns=3, labels_1="a\nb\nc")
    for text in ("a\n\n", "a\n\n\n\n", "\nb\n"):
        assert run("UnCLIPGrid", image_1=pictures, columns=3, labels_1=text)[0].shape == whole.shape
    assert run("UnCLIPGrid", image_1=pictures, columns=3, labels_1=" \n")[0].shape[1] < whole.shape[1]


def test_a_sweep_its_scores_and_a_grid_fit_together(tiny, embeddings):
    image, names = run("UnCLIPGuidanceSweep", decoder=tiny.decoder, embedding=embeddings, steps=1)
    text = encode_text(tiny.clip, ["a fox"])
    _, scores, _, groups, _ = run("UnCLIPScore", clip=tiny.clip, image=image, text=text, groups=names)
    assert [line.split(":")[0] for line in groups.splitlines()] == names.splitlines()
    (sheet,) = run("UnCLIPGrid", image_1=image, labels_1=scores, column_labels=groups, cell_size=64)
    assert 2 * 64 < sheet.shape[1] < 5 * 64 and sheet.shape[2] > 4 * 64


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels_1": "a\nb"}, "labels_1: found 2 for 3 pictures; expected one for each, or none"),
        ({"labels_2": "a"}, "labels_2: is connected, but image_2 is not"),
        ({"row_labels": "a\nb\nc\nd"}, "row_labels: found 4 names for 3 rows"),
        ({"columns": 2, "column_labels": "a\nb\nc"}, "column_labels: found 3 names for 2 columns"),
        ({"image_3": torch.zeros(1, 3, 8, 8)}, r"image_3: found a tensor of shape \[1, 3, 8, 8\]"),
    ],
)
def test_what_does_not_fit_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        run("UnCLIPGrid", **{"image_1": plain(0.5, batch=3), **given})


def test_embeddings_of_another_space_are_refused(tiny, embeddings):
    stranger = Embedding(embeddings.vectors, EmbeddingSpace("somebody/else", embeddings.space.dim))
    with pytest.raises(ValueError, match="'somebody/else'"):
        run("UnCLIPGuidanceSweep", decoder=tiny.decoder, embedding=stranger, steps=1)


# --------------------------------------------------------------------------------------------------- workflow


def shipped(name: str, faster: dict, monkeypatch, tmp_path: Path) -> tuple[Workflow, Catalog, Folders]:
    """A workflow of the pack over a bundle of random weights, with other inputs by node class."""
    save_bundle(tiny_bundle(upsamplers=0), tmp_path / "tiny")
    monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path))
    catalog = local_catalog()
    graph = load_workflow(host.PACK_FOLDER / "workflows" / f"{name}.json", catalog)
    faster = {"UnCLIPLoadBundle": {"bundle": "tiny", "precision": "fp32"}, **faster}
    for node_id, node in graph.nodes.items():
        graph = graph.with_inputs(node_id, **faster.get(node.class_type, {}))
    return graph, catalog, Folders(tmp_path, tmp_path / "output", tmp_path / "temp")


def test_the_shipped_comparison_makes_one_labelled_sheet(tmp_path, monkeypatch):
    """workflows/compare_priors.json from end to end."""
    faster = {
        "UnCLIPLoadPrior": {"file": "tiny/ar-prior.safetensors", "precision": "fp32"},
        "UnCLIPDiffusionPrior": {"steps": 2},
        "UnCLIPDecode": {"steps": 2},
        "UnCLIPGrid": {"cell_size": 128},
    }
    graph, catalog, folders = shipped("compare_priors", faster, monkeypatch, tmp_path)
    assert (
        len({node.inputs["seed"] for node in graph.nodes.values() if node.class_type == "UnCLIPDecode"}) == 1
    )
    run_here(graph, catalog, folders, quiet=True)
    (path,) = folders.written
    with Image.open(path) as sheet:
        assert 3 * 128 < sheet.width < 4 * 128 and 4 * 128 < sheet.height < 5 * 160


def test_the_shipped_sweep_scores_every_scale(tmp_path, monkeypatch):
    """workflows/fidelity_diversity.json: each scale is scored, on the sheet and in the chart."""
    faster = {
        "UnCLIPDiffusionPrior": {"steps": 1},
        "UnCLIPGuidanceSweep": {"steps": 1, "guidance_scales": "1, 2"},
        "UnCLIPGrid": {"cell_size": 64},
    }
    graph, catalog, folders = shipped("fidelity_diversity", faster, monkeypatch, tmp_path)
    found = []
    monkeypatch.setattr(
        "unclip.nodes.compare.panel_chart",
        lambda names, curves: found.append((names, curves)) or panel_chart(names, curves),
    )
    run_here(graph, catalog, folders, quiet=True)
    ((names, curves),) = found
    assert names == ["guidance 1", "guidance 2"] and list(curves) == ["CLIP score", "diversity"]
    sizes = {path.parent.name: Image.open(path).size for path in folders.written}
    assert sizes["temp"][0] == 640 and sizes["output"][1] > 4 * 64


@pytest.mark.parametrize(("background", "value"), [("white", 1.0), ("black", 0.0)])
def test_the_sheet_shows_through_what_is_transparent(background, value):
    clear = torch.cat([torch.full((1, 8, 8, 3), 0.5), torch.zeros(1, 8, 8, 1)], dim=-1)
    (sheet,) = run("UnCLIPGrid", image_1=clear, background=background, padding=4)
    assert sheet[0, 7:9, 7:9].eq(value).all()
