"""Packed copies of networks for the CPU, huge pages, and what a U-Net computes in place."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import nn
from unclip.core.acceleration.huge_pages import _joined, use_huge_pages
from unclip.core.acceleration.packed import packed_copy
from unclip.core.networks.unet import UNet
from unclip.core.networks.upsampled import UpsampledConv2d

from ...helpers.unet import difference, random_tensor, randomised
from ...helpers.unet_small import tiny_unet


def layers(stride: int = 1) -> nn.Module:
    """A large convolution, a small one, and a large Linear over the channels."""
    network = nn.Sequential(
        nn.Conv2d(192, 192, 3, stride, padding=1),
        nn.Sequential(nn.Conv2d(192, 64, 1), nn.Flatten(2), nn.Linear(64 // stride**2, 4096)),
    )
    return randomised(network).requires_grad_(False)


def packed_or_skip(network: nn.Module) -> nn.Module:
    packed = packed_copy(network)
    if packed is network:
        pytest.skip("this processor packs nothing of this type")
    return packed


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return random_tensor(1, 2, 192, 8, 8).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_packed_copy_computes_the_same(x, stride, dtype, tolerance) -> None:
    network = layers(stride)
    expected = network(x)
    network = network.to(dtype)
    packed = packed_or_skip(network)
    assert packed[0] is not network[0] and packed[1][0] is network[1][0]  # small
    assert difference(packed(x.to(dtype)).float(), expected) < tolerance
    network[0].bias += 1  # shared
    assert difference(packed(x.to(dtype)).float(), expected) > 0.1


@pytest.mark.parametrize("of", ["input", "weights"])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Linear(64, 64), (3, 64)),
        (nn.Conv2d(192, 192, 3, 2, padding=1), (1, 192, 8, 8)),
        (nn.Conv2d(256, 256, 3, padding=1), (1, 256, 32, 32)),  # by Winograd's algorithm
        (UpsampledConv2d(32, 32), (1, 32, 8, 8)),
    ],
    ids=["linear", "conv", "winograd", "upsampled"],
)
def test_a_gradient_is_that_of_the_network_itself(
    network: nn.Module, shape: tuple[int, ...], of: str
) -> None:
    network = nn.Sequential(network).requires_grad_(of == "weights")
    packed = packed_or_skip(network)
    gradients = []
    for each in (network, packed):
        x = random_tensor(1, *shape).requires_grad_(of == "input")
        leaf = x if of == "input" else network[0].weight
        gradients.append(torch.autograd.grad(each(x).square().sum(), leaf)[0])
    assert difference(*gradients) < 1e-5


def test_a_packed_copy_follows_the_shape_of_its_input(x) -> None:
    network = layers()
    packed = packed_or_skip(network)
    packed(x)
    first = packed[0].weight(x.shape)
    assert packed[0].weight(x.shape) is first  # packed once
    for rows in (1, 5, 2):
        other = x[:1].repeat(rows, 1, 1, 1)
        assert difference(packed(other), network(other)) < 1e-5
    assert packed[0].weight(other.shape) is not first
    assert sum(value.numel() for value in packed.parameters()) < sum(v.numel() for v in network.parameters())


def test_nothing_to_pack_is_the_network_itself() -> None:
    network = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Sequential(nn.LayerNorm(8), nn.Embedding(4, 8)))
    assert packed_copy(network) is network


def test_what_cannot_be_packed_is_left_as_it_is() -> None:
    network = layers().half()
    assert packed_copy(network) is network
    meta = layers().to("meta")
    assert packed_copy(meta) is meta


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("rows", [(4,), (1,), (3, 40)])
def test_a_packed_linear_serves_any_number_of_rows(dtype, tolerance, rows) -> None:
    layer = randomised(nn.Linear(96, 80)).requires_grad_(False).to(dtype)
    x = random_tensor(1, *rows, 96).to(dtype)
    packed = packed_or_skip(nn.Sequential(layer))
    assert difference(packed(x), layer(x)) < tolerance
    assert difference(packed(x), x @ layer.weight.T) > tolerance / 2  # the bias is there
    without = nn.Sequential(nn.Linear(96, 80, bias=False).requires_grad_(False).to(dtype))
    assert difference(packed_copy(without)(x), without(x)) < tolerance


@pytest.mark.parametrize("film", [False, True])
def test_without_gradients_a_unet_works_in_place_and_gives_the_same(film) -> None:
    network = randomised(UNet(tiny_unet(blocks=2, film=film, attention=(8,))))
    x, t = random_tensor(2, 2, 3, 16, 16), torch.tensor([3, 700])
    before = x.clone()
    expected = network(x, t)
    assert expected.requires_grad
    with torch.no_grad():
        assert difference(network(x, t), expected) < 1e-6
        assert torch.equal(x, before)
        with torch.autocast("cpu", torch.bfloat16):
            assert difference(network(x, t), expected) < 0.2


def test_huge_pages_keep_what_memory_holds() -> None:
    values = torch.arange(3 * 2**20)
    expected = values.sum()
    assert use_huge_pages([(values.data_ptr(), values.nbytes)], seconds=0) == 0  # no time for it
    moved = use_huge_pages([(values.data_ptr(), values.nbytes)])
    assert 0 <= moved <= values.nbytes
    assert moved % 2**21 == 0
    assert values.sum() == expected
    small = ctypes.create_string_buffer(64)
    assert use_huge_pages([(ctypes.addressof(small), 64)]) == 0


def test_neighbouring_blocks_are_one_range() -> None:
    assert _joined([(8192, 100), (0, 4096), (40960, 8)]) == [(0, 8292), (40960, 40968)]
