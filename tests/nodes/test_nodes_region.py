"""unCLIP Region: a part of the decoded picture has an embedding of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.regions import Regions
from unclip.nodes import sockets

from ..helpers.bundle import DECODED_SIZE, DIM
from ..helpers.nodes import run

HALF = DECODED_SIZE // 2


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


def row(embedding: Embedding, index: int) -> Embedding:
    return replace(embedding, vectors=embedding.vectors[index : index + 1])


def left_mask() -> torch.Tensor:
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    return mask


def test_regions_are_chained_in_their_order(bundle, embedding) -> None:
    text = encode_text(bundle.clip, ["a red day"])
    (first,) = run("UnCLIPRegion", mask=left_mask(), embedding=row(embedding, 0), strength=0.5)
    (both,) = run("UnCLIPRegion", mask=1 - left_mask(), text=text, regions=first)
    assert isinstance(both, Regions)
    assert both.items[0] is first.items[0]
    assert both.items[0].strength == 0.5
    assert both.items[1].text is text
    assert both.items[1].mask.shape == (1, 1, 8, 8)
    assert len(first.items) == 1
    assert first.get_ram_usage() >= 8 * 8 * 4


def test_a_mask_that_nobody_painted_is_told(embedding, caplog) -> None:
    (first,) = run("UnCLIPRegion", mask=left_mask(), embedding=embedding)
    empty = torch.zeros(1, 64, 64)  # of Load Image, for a picture without a mask
    run("UnCLIPRegion", mask=empty, embedding=embedding, strength=0.0, regions=first)
    assert not caplog.messages, "strength 0 is meant so"
    run("UnCLIPRegion", mask=empty, embedding=embedding, regions=first)
    (message,) = caplog.messages
    assert message.startswith("mask: is empty, so region number 2 is nowhere and has no effect")


def test_each_half_is_of_its_own_embedding(bundle, embedding) -> None:
    given = {"decoder": bundle.decoder, "seed": 3, "steps": 1}
    one, two = (run("UnCLIPDecode", **given, embedding=row(embedding, i))[0] for i in (0, 1))
    # The mask has another size than the picture: at its edge, at the middle, it is soft.
    (regions,) = run("UnCLIPRegion", mask=left_mask(), embedding=row(embedding, 1))
    (found,) = run("UnCLIPDecode", **given, embedding=row(embedding, 0), regions=regions)
    torch.testing.assert_close(found[:, :, : HALF - 4], two[:, :, : HALF - 4])
    torch.testing.assert_close(found[:, :, HALF + 4 :], one[:, :, HALF + 4 :])
    assert (one - two).abs().max() > 1e-2


def test_repeat_takes_the_rows_of_regions_along(bundle, embedding) -> None:
    given = {"decoder": bundle.decoder, "embedding": row(embedding, 0), "seed": 3, "steps": 2}
    masks = torch.cat([left_mask(), 1 - left_mask()])
    (regions,) = run("UnCLIPRegion", mask=masks, embedding=embedding)
    (found,) = run("UnCLIPDecode", **given, regions=regions, repeat=2)
    assert len(found) == 4
    for index, (seed, number) in enumerate(((3, 0), (4, 0), (5, 1), (6, 1))):
        (own,) = run("UnCLIPRegion", mask=masks[number : number + 1], embedding=row(embedding, number))
        (alone,) = run("UnCLIPDecode", **{**given, "seed": seed}, regions=own)
        torch.testing.assert_close(found[index : index + 1], alone, atol=2e-5, rtol=0)


def test_without_regions_decode_is_as_before(bundle, embedding) -> None:
    given = {"decoder": bundle.decoder, "embedding": embedding, "seed": 3, "steps": 2}
    (regions,) = run("UnCLIPRegion", mask=left_mask(), embedding=embedding, strength=0.0)
    assert torch.equal(run("UnCLIPDecode", **given)[0], run("UnCLIPDecode", **given, regions=regions)[0])


def test_what_is_no_mask_is_refused(embedding) -> None:
    assert sockets.REGIONS == "UNCLIP_REGIONS"
    with pytest.raises(ValueError, match="mask: found"):
        run("UnCLIPRegion", mask="mask", embedding=embedding)
    with pytest.raises(ValueError, match="nothing is given"):
        run("UnCLIPRegion", mask=left_mask())
