"""Pictures and masks between ComfyUI's layout and the core's."""

from __future__ import annotations

import pytest
import torch
from unclip.core.embeddings.pca import PCA
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures
from unclip.core.memory import InMemory
from unclip.core.pipelines.noise import StartingNoise
from unclip.core.stages import ClipStage, DecoderStage, PriorStage, UpsamplerStage
from unclip.nodes import sockets


def test_an_image_keeps_every_pixel_in_its_place():
    image = torch.rand(2, 5, 7, 3)
    pixels = sockets.image_to_core(image)
    assert pixels.shape == (2, 3, 5, 7)
    assert torch.equal(pixels[1, 2, 4, 6], image[1, 4, 6, 2])
    assert torch.equal(sockets.image_from_core(pixels), image)


def test_alpha_is_dropped_grey_becomes_rgb_and_the_range_is_kept():
    image = torch.rand(1, 4, 4, 4)
    assert torch.equal(sockets.image_to_core(image), sockets.image_to_core(image[..., :3]))
    grey = torch.rand(1, 4, 4, 1)
    assert torch.equal(sockets.image_to_core(grey), sockets.image_to_core(grey.expand(-1, -1, -1, 3)))
    wild = torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 1, 1, 3)
    assert sockets.image_to_core(wild).flatten().tolist() == [0.0, 0.5, 1.0]
    assert sockets.image_from_core(wild.reshape(1, 3, 1, 1)).flatten().tolist() == [0.0, 0.5, 1.0]
    assert sockets.image_to_core(image.half()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 2), (1, 3, 8, 8), (0, 4, 4, 3)])
def test_a_wrong_image_is_an_error_that_names_the_input_and_the_shape(shape):
    with pytest.raises(ValueError, match="picture: found a tensor of shape") as error:
        sockets.image_to_core(torch.zeros(shape), "picture")
    assert str(list(shape)) in str(error.value)


def test_something_else_than_an_image_is_named():
    with pytest.raises(ValueError, match=r"image: found a LATENT or the like, expected pictures \[batch"):
        sockets.image_to_core({"samples": 1})


def test_a_mask_is_resized_and_keeps_its_meaning():
    mask = torch.zeros(1, 64, 64)  # what Load Image gives for a picture without alpha
    assert torch.equal(sockets.mask_to_core(mask, 16, 24), torch.zeros(1, 1, 16, 24))
    half = torch.zeros(8, 8)
    half[:, 4:] = 1.0
    resized = sockets.mask_to_core(half, 16, 16)
    assert resized.shape == (1, 1, 16, 16)
    assert resized[0, 0, :, 12:].eq(1).all() and resized[0, 0, :, :4].eq(0).all()
    same = torch.rand(2, 8, 8)
    assert torch.equal(sockets.mask_to_core(same, 8, 8)[:, 0], same)


def test_whole_numbers_of_8_bits_are_fractions_of_255_and_others_are_refused():
    image = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    assert torch.allclose(sockets.image_to_core(image).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    assert sockets.mask_to_core(image[..., 0]).item() == 0
    assert sockets.mask_to_core(image[..., 1]).item() == pytest.approx(0.2)
    for kind in (torch.uint8, torch.bool, torch.int64):
        assert sockets.mask_to_core(torch.ones(1, 2, 2, dtype=kind)).eq(1).all(), "0 and 1 are what they say"
    with pytest.raises(ValueError, match=r"picture: found whole numbers \(torch.int64\), expected fractions"):
        sockets.image_to_core(image.long(), "picture")


def test_a_mask_may_have_one_channel():
    mask = torch.rand(2, 1, 4, 4)
    assert torch.equal(sockets.mask_to_core(mask), mask)


def test_pictures_keep_their_alpha_where_it_is_asked_for():
    image = torch.rand(1, 2, 3, 4)
    assert torch.equal(sockets.image_from_core(sockets.image_with_alpha(image)), image)
    assert sockets.image_with_alpha(image[..., :3])[:, 3].eq(1).all()
    assert sockets.image_with_alpha((image * 255).byte())[:, 3].le(1).all()


def test_a_wrong_mask_is_an_error():
    with pytest.raises(ValueError, match=r"mask: found a tensor of shape \[1, 8, 8, 3\], expected a mask"):
        sockets.mask_to_core(torch.zeros(1, 8, 8, 3), 8, 8)


@pytest.mark.parametrize("shape", [(1, 4, 4, 3), (1, 4, 4)])
def test_what_a_failed_node_left_is_told_where_it_arrives(shape):
    values = torch.zeros(shape)
    values[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"edited: holds values that are no numbers \(NaN\), so a node"):
        if len(shape) == 4:
            sockets.image_to_core(values, "edited")
        else:
            sockets.mask_to_core(values, 4, 4, "edited")
    infinite = torch.full((1, 1, 1, 3), float("inf"))
    assert sockets.image_to_core(infinite).flatten().tolist() == [1.0, 1.0, 1.0]


def test_a_stage_that_the_bundle_lacks_is_named():
    with pytest.raises(
        ValueError, match=r"upsampler: nothing arrived\. Either the loaded bundle has no such"
    ):
        sockets.require_stage(None, "upsampler")
    stage = object()
    assert sockets.require_stage(stage, "upsampler") is stage


def test_what_our_sockets_carry_tells_how_much_memory_it_holds():
    """ComfyUI's cache asks outputs that are no tensors for ``get_ram_usage`` (comfy_execution/caching)."""
    carried = (ClipStage, PriorStage, DecoderStage, UpsamplerStage, Embedding, TextFeatures, PCA)
    for kind in (*carried, StartingNoise):
        assert issubclass(kind, InMemory), kind
    embedding = Embedding(torch.zeros(3, 8, dtype=torch.float16), EmbeddingSpace("unclip/test", 8))
    assert embedding.get_ram_usage() == 3 * 8 * 2
