"""What encodes many captions or pictures tells how far it is, and stops between its parts when told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from unclip.core.pipelines import encode
from unclip.core.pipelines.encode import encode_text
from unclip.core.stages import ClipStage
from unclip.nodes import host

from ..helpers.bundle import tiny_bundle
from ..helpers.nodes import run

Told = list[tuple[str, int, int]]
LINES = "a red day\ntwo good\na day\ngood\nred"
PARTS = [2, 4, 5]  # of five pictures or captions, two at a time


@pytest.fixture(scope="module")
def clip() -> ClipStage:
    return tiny_bundle(upsamplers=0).clip


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "IMAGES_AT_ONCE", 2)
    monkeypatch.setattr(encode, "CAPTIONS_AT_ONCE", 2)


def score(clip: ClipStage, image: Tensor) -> object:
    return run("UnCLIPScore", clip=clip, image=image, text=encode_text(clip, ["a red day"]))


CASES: dict[str, tuple[Callable[[ClipStage, Tensor], object], Told]] = {
    "pictures": (
        lambda clip, image: run("UnCLIPImageEncode", clip=clip, image=image),
        [("Encode", done, 5) for done in PARTS],
    ),
    "captions": (
        lambda clip, _: run("UnCLIPTextEncode", clip=clip, text=LINES, one_caption_a_line=True),
        [("Encode", done, 5) for done in PARTS],
    ),
    "score": (score, [("Score", done, 5) for done in PARTS]),
    "zero-shot": (
        lambda clip, image: run("UnCLIPZeroShot", clip=clip, captions=LINES, image=image),
        [("Encode", done, 5) for done in 2 * PARTS],
    ),
}


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("case", CASES)
def test_it_tells_how_far_it_is_and_can_be_stopped(
    clip: ClipStage, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    execute, expected = CASES[case]
    image = torch.rand(5, 9, 7, 3, generator=torch.Generator().manual_seed(0))
    told: Told = []

    @contextmanager
    def progress(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: told.append((title, done, total))

    monkeypatch.setattr(host, "_progress_factory", progress)
    execute(clip, image)
    assert told == expected

    @contextmanager
    def stopping(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
        def update(done: int, total: int) -> None:
            told.append((title, done, total))
            raise StoppedError

        yield update

    told.clear()
    monkeypatch.setattr(host, "_progress_factory", stopping)
    with pytest.raises(StoppedError):
        execute(clip, image)
    assert told == expected[:1]
