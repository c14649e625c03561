"""unCLIP Inpaint (whole picture): the picture comes back in its own size."""

from __future__ import annotations

import pytest
import torch
from unclip.core.embeddings.space import Embedding
from unclip.core.pipelines.memory import decode_memory
from unclip.nodes import placement

from ..helpers.bundle import DIM
from ..helpers.nodes import run


@pytest.fixture(scope="module")
def embedding(bundle) -> Embedding:
    return Embedding(torch.randn(1, DIM, generator=torch.Generator().manual_seed(5)), bundle.clip.space)


def test_a_picture_of_300_by_200_stays_as_large(bundle, embedding) -> None:
    image = torch.rand(1, 200, 300, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 200, 300)
    mask[:, 50:120, 100:180] = 1
    given = {"decoder": bundle.decoder, "image": image, "mask": mask, "embedding": embedding}
    (small,) = run("UnCLIPInpaint", **given, steps=2, resamples=1)
    (found,) = run("UnCLIPInpaintWhole", **given, steps=2, resamples=1, upsampler=bundle.upsamplers[0])
    assert small.shape != image.shape
    assert found.shape == image.shape
    assert torch.equal(found[mask == 0], image[mask == 0])
    assert (found - image)[mask == 1].abs().mean() > 0.01


def test_transparency_stays_outside_of_the_mask(bundle, embedding) -> None:
    image = torch.rand(1, 20, 30, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 20, 30)
    mask[:, 5:12, 6:18] = 1
    given = {"decoder": bundle.decoder, "embedding": embedding, "steps": 1, "resamples": 1, "feather": 0}
    (found,) = run("UnCLIPInpaintWhole", **given, image=image, mask=mask, batch_size=2)
    assert found.shape == (2, 20, 30, 4)
    assert torch.equal(found[:, mask[0] == 0], image.expand(2, -1, -1, -1)[:, mask[0] == 0])
    assert (found[:, mask[0] == 1][..., 3] == 1).all(), "what was painted is opaque"
    (plain,) = run("UnCLIPInpaintWhole", **given, image=image[..., :3], mask=mask)
    assert torch.allclose(plain[0], found[0, ..., :3], atol=1e-4)
    edited, none = torch.rand(1, 9, 9, 3), torch.zeros(1, 20, 30)
    (composed,) = run("UnCLIPComposite", original=image, edited=edited, mask=mask, feather=0)
    assert torch.equal(composed[mask == 0], image[mask == 0]) and (composed[mask == 1][..., 3] == 1).all()
    (same,) = run("UnCLIPComposite", original=image, edited=edited, mask=none)
    assert torch.equal(same, image)


def test_what_an_edit_hides_is_not_seen_in_an_opaque_original() -> None:
    draw = torch.Generator().manual_seed(1)
    original, edited = torch.rand(1, 6, 8, 3, generator=draw), torch.rand(2, 6, 8, 4, generator=draw)
    edited[:, :, :2, 3], edited[:, :, 2:4, 3], edited[:, :, 4:, 3] = 0, 1, 0.5
    mask = torch.ones(1, 6, 8)
    mask[:, 0] = 0
    (found,) = run("UnCLIPComposite", original=original, edited=edited, mask=mask, feather=0)
    assert found.shape == (2, 6, 8, 3)
    assert torch.equal(found[:, 0], original[:, 0].expand(2, -1, -1)), "outside of the mask"
    assert torch.equal(found[:, 1:, :2], original[:, 1:, :2].expand(2, -1, -1, -1))
    torch.testing.assert_close(found[:, 1:, 2:4], edited[:, 1:, 2:4, :3])
    torch.testing.assert_close(found[:, 1:, 4:], (original[:, 1:, 4:] + edited[:, 1:, 4:, :3]) / 2)


@pytest.mark.parametrize("channels", [3, 4])
def test_strength_0_leaves_pictures_as_they_are(bundle, embedding, channels) -> None:
    image = torch.rand(2, 40, 60, channels, generator=torch.Generator().manual_seed(1))
    given = {"decoder": bundle.decoder, "embedding": embedding, "image": image, "mask": torch.ones(1, 8, 8)}
    (found,) = run("UnCLIPInpaintWhole", **given, steps=4, strength=0.0, upsampler=bundle.upsamplers[0])
    assert torch.equal(found, image)


def test_repeat_and_small_masks(bundle, embedding) -> None:
    image = torch.rand(2, 20, 30, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 10, 15)  # of another size, as the mask editor of another picture gives it
    mask[:, 3:7, 3:9] = 1
    given = {"decoder": bundle.decoder, "mask": mask, "embedding": embedding, "steps": 2, "resamples": 1}
    (found,) = run("UnCLIPInpaintWhole", **given, image=image, repeat=2, seed=4)
    assert found.shape == (4, 20, 30, 3)
    (alone,) = run("UnCLIPInpaintWhole", **given, image=image[1:], seed=7)
    torch.testing.assert_close(found[3:], alone, atol=2e-5, rtol=0)


def test_a_mask_that_nobody_painted_is_told_and_where_to_paint_it(bundle, embedding) -> None:
    given = {"decoder": bundle.decoder, "image": torch.rand(1, 20, 30, 3), "embedding": embedding}
    with pytest.raises(ValueError, match=r"^mask: is empty, .*open the mask editor"):
        run("UnCLIPInpaintWhole", **given, mask=torch.zeros(1, 64, 64))  # of a picture without transparency
    masks = torch.zeros(2, 20, 30)
    masks[0, 3:9, 3:9] = 1  # one of two is enough
    (found,) = run("UnCLIPInpaintWhole", **given, mask=masks, steps=2, resamples=1)
    assert torch.equal(found[1], given["image"][0])


@pytest.mark.parametrize("node", ["UnCLIPInpaint", "UnCLIPInpaintWhole", "UnCLIPDecode"])
@pytest.mark.parametrize(
    ("guidance", "scale", "room"), [("cfg_pp", 1.0, 2.0), ("cfg", 1.0, 1.0), ("cfg", 2.0, 2.0)]
)
def test_room_is_asked_for_both_predictions(bundle, embedding, monkeypatch, node, guidance, scale, room):
    asked, on_device = [], placement.on_device

    def noted(stage, activations=0, **others):
        asked.append(activations)
        return on_device(stage, activations, **others)

    monkeypatch.setattr(placement, "on_device", noted)
    given = {"decoder": bundle.decoder, "embedding": embedding, "steps": 1, "seed": 0}
    if node != "UnCLIPDecode":
        given |= {"image": torch.rand(1, 16, 16, 3), "mask": torch.ones(1, 16, 16), "resamples": 1}
    run(node, **given, guidance=guidance, guidance_scale=scale)
    assert asked == [decode_memory(bundle.decoder, room, 1)]


def test_a_bundle_without_decoder_is_told(embedding) -> None:
    with pytest.raises(ValueError, match=r"^decoder: nothing arrived"):
        run(
            "UnCLIPInpaintWhole",
            decoder=None,
            image=torch.rand(1, 8, 8, 3),
            mask=torch.ones(1, 8, 8),
            embedding=embedding,
        )
