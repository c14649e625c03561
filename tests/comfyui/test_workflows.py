"""Every shipped workflow that the embedded bundle is enough for, run on a server at its own settings."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from unclip.cli.server.client import ComfyServer as Client
from unclip.cli.workflow.reading import load_workflow
from unclip.nodes.host import EXACT_PREVIEW_SIZE, PREVIEW_SIZE

from .server import Run, counts_up
from .shipped import HAS_MINI, WORKFLOWS, needs_only_mini

pytestmark = pytest.mark.skipif(not HAS_MINI, reason="the embedded bundle is not there")

RUNNABLE = [path for path in WORKFLOWS if needs_only_mini(path)]
PAINTERS = ("UnCLIPDecode", "UnCLIPUpsample", "UnCLIPInpaint", "UnCLIPInpaintWhole", "UnCLIPInvert")
PAINTERS += ("UnCLIPGuidanceSweep",)
PRIORS = ("UnCLIPDiffusionPrior", "UnCLIPAutoregressivePrior")
ENCODERS = ("UnCLIPTextEncode", "UnCLIPImageEncode", "UnCLIPEncodeFolder", "UnCLIPScore", "UnCLIPZeroShot")


class Sheet(NamedTuple):
    """A picture of pictures: as large as its cells together, or larger by paddings and labels."""

    rows: int
    columns: int
    height: int
    width: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        cells = (self.rows * self.height, self.columns * self.width)
        return all(inner < outer < 2 * inner for inner, outer in zip(cells, shape, strict=False))


class Film(NamedTuple):
    """A video: how many pictures of which height and width, and how many a second."""

    frames: int
    height: int
    width: int
    rate: int


# Of each output node: how many pictures of which [height, width], or the sheet, or the video.
Expected = tuple[int, int, int] | Sheet | Film
PICTURES: dict[str, dict[str, Expected]] = {
    "binding_probe": {"22": Sheet(5, 5, 192, 192)},
    "compare_priors": {"14": Sheet(4, 3, 192, 192)},
    "fidelity_diversity": {"7": Sheet(4, 6, 192, 192), "9": Sheet(1, 1, 400, 600)},
    "importance_of_prior": {"11": Sheet(3, 5, 192, 192)},
    "inpaint": {"12": (1, 256, 256), "13": (1, 256, 256)},
    "inpaint_photo": {"6": (1, 200, 300)},
    "interpolation": {"12": (8, 256, 256), "15": Film(8, 256, 256, 4)},
    "pca_probe": {"15": (1, 420, 640), "21": Sheet(2, 7, 128, 128)},
    "text_diff": {"7": (1, 64, 64), "12": (6, 256, 256)},
    "text_to_image": {"7": (1, 256, 256)},
    "typographic_attack": {"23": Sheet(3, 5, 192, 192), "24": Sheet(1, 3, 400, 640)},
    "variations": {"6": (1, 64, 64), "10": (4, 256, 256)},
}


@pytest.fixture(scope="module")
def prompts(server):
    """The API form of each workflow, as the command line sends it to a server."""
    client = Client(f"http://{server.address}")
    return {path.stem: load_workflow(path, client).to_api() for path in RUNNABLE}


def test_the_expected_pictures_of_all_workflows_are_known():
    assert {path.stem for path in RUNNABLE} == set(PICTURES)


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_a_workflow_runs(server, prompts, path):
    prompt = prompts[path.stem]
    run = server.run(prompt)  # raises where node_errors is not empty
    assert run.kinds[-1] == "execution_success", run.of("execution_error")
    assert run.kinds.index("execution_start") < run.kinds.index("execution_cached")
    assert_pictures(server, run, PICTURES[path.stem])
    assert_progress(run, prompt)

    again = server.run(prompt)
    (cached,) = again.of("execution_cached")
    assert set(cached["nodes"]) == set(prompt), "nothing is run again"
    assert again.outputs == run.outputs and not again.of("progress") and not again.previews


def assert_pictures(server, run: Run, expected: dict[str, Expected]) -> None:
    assert {node for node, output in run.outputs.items() if "images" in output} == set(expected)
    for node, wanted in expected.items():
        if isinstance(wanted, Film):
            pictures, rate = server.film(run, node)
            assert rate == wanted.rate
            assert [picture.shape for picture in pictures] == [
                (wanted.height, wanted.width, 3)
            ] * wanted.frames
        else:
            pictures = server.pictures(run, node)
            shapes = [picture.shape for picture in pictures]
            if isinstance(wanted, Sheet):
                (shape,) = shapes
                assert wanted.fits(shape), (node, shape)
            else:
                count, *size = wanted
                assert shapes == [(*size, 3)] * count, node
        assert min(picture.std() for picture in pictures) > 5, f"node {node}: an empty picture"


def assert_progress(run: Run, prompt: dict) -> None:
    """Every sampler counts its steps up to the last, those that paint show a preview at each; encoders count
    what they encode."""
    (cached,) = run.of("execution_cached")
    pictures = 0
    for node, entry in prompt.items():
        if node in cached["nodes"]:  # another workflow made the same before
            continue
        counted = run.progress(node)
        counts = entry["class_type"] in (*PAINTERS, *PRIORS, *ENCODERS)
        assert bool(counted) == counts, f"node {node}: {entry['class_type']}"
        for stage in stages(counted):
            total = stage[-1][1]
            assert counts_up(stage, total)
            if entry["class_type"] in PAINTERS:
                assert len(stage) == total + 1, "with a picture at each step"
                pictures += total
    assert len(run.previews) == pictures
    for preview in run.previews:  # small ones are exact
        assert max(preview.size) <= PREVIEW_SIZE
        assert preview.format == ("PNG" if max(preview.size) <= EXACT_PREVIEW_SIZE else "JPEG")


def stages(counted: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """What a node counted, stage by stage: *Inpaint (whole picture)* paints, then upsamples."""
    begins = [index for index, (step, _) in enumerate(counted) if step == 0]
    return [counted[start:end] for start, end in pairwise([*begins, len(counted)])]
