"""Packed copies of networks for the CPU, huge pages, and what a U-Net computes in place."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from unclip.core.acceleration.huge_pages import _joined, use_huge_pages
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.acceleration.packed import packed_copy, weights_fingerprint
from unclip.core.networks.unet import UNet

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
    network = UNet(tiny_unet(channel_mult=(1,)))
    assert packed_copy(network) is network
    assert with_packed_weights(network) is network


def test_a_packed_copy_is_kept_until_the_weights_change(x) -> None:
    network = layers()
    packed_or_skip(network)
    packed = with_packed_weights(network)
    assert packed is not network and with_packed_weights(network) is packed
    packed(x)
    network[0].weight.mul_(2)
    changed = with_packed_weights(network)
    assert changed is not packed
    assert difference(changed(x), network(x)) < 1e-4 < 0.1 < difference(packed(x), network(x))


class _Copies(TorchDispatchMode):
    """The number of values of the largest tensor that was made elsewhere than in the memory of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        if made.untyped_storage().data_ptr() not in self.own:
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_to_look_for_changed_weights_copies_none(layout) -> None:
    network = layers().to(memory_format=layout)
    with _Copies(network) as copies:
        before = weights_fingerprint(network)
    assert 0 < copies.largest < 100
    network[0].weight[0, 0, 0, 0] += 1
    assert weights_fingerprint(network) != before


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
