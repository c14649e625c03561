"""The convolution of an upsampled grid, and the transposed one that replaces it on the CPU."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.acceleration.packed import packed_copy
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.networks.unet import UNet
from unclip.core.networks.upsampled import UpsampledConv2d, transposed_weight
from unclip.core.pipelines.upsample import upsample
from unclip.core.stages import UpsamplerStage

from ...helpers.unet import difference, random_tensor, randomised
from ...helpers.unet_small import tiny_unet

INPUTS, OUTPUTS = 48, 64
CONFIG = tiny_unet(32, blocks=2, concat_channels=3)
FAST, UPSAMPLING = "mkldnn::_convolution_transpose_pointwise", "aten::upsample_nearest2d"


def layer() -> UpsampledConv2d:
    return randomised(UpsampledConv2d(INPUTS, OUTPUTS)).requires_grad_(False)


def packed_or_skip(network: nn.Module, *layers: type[nn.Module]) -> nn.Module:
    linear = nn.Linear(512, 512, dtype=next(network.parameters()).dtype)
    if packed_copy(linear) is linear:
        pytest.skip("this processor packs nothing of this type")
    packed = packed_copy(network, layers or None)
    assert packed is not network
    return packed


def written_out(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    large = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.conv2d(large, conv.weight, conv.bias, padding=1)


class Operators(TorchDispatchMode):
    """Counts what is computed, by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.name().removesuffix(".vec")] += 1
        return function(*args, **kwargs or {})


SIZES = [(1, 1, 1), (1, 8, 8), (2, 7, 5), (2, 16, 16)]


@pytest.mark.parametrize(("rows", "height", "width"), SIZES)
def test_a_transposed_convolution_is_the_same(rows, height, width) -> None:
    conv, x = layer(), random_tensor(1, rows, INPUTS, height, width)
    expected = written_out(conv, x)
    assert expected.shape == (rows, OUTPUTS, 2 * height, 2 * width)
    assert difference(conv(x), expected) < 1e-6
    weight = transposed_weight(conv.weight)
    assert weight.shape == (INPUTS, OUTPUTS, 4, 4)
    assert difference(F.conv_transpose2d(x, weight, conv.bias, stride=2, padding=1), expected) < 1e-5


@pytest.mark.parametrize(("rows", "height", "width"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_packed_it_computes_the_same_without_upsampling(rows, height, width, dtype, tolerance) -> None:
    conv, x = layer(), random_tensor(1, rows, INPUTS, height, width)
    expected = written_out(conv, x)
    packed = packed_or_skip(conv.to(dtype))
    x = x.to(dtype, memory_format=torch.channels_last)
    with Operators() as plain:
        assert difference(conv(x).float(), expected) < tolerance
    with Operators() as fast:
        found = packed(x)
    assert difference(found.float(), expected) < tolerance
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (plain.calls[UPSAMPLING], plain.calls[FAST]) == (1, 0)
    assert (fast.calls[UPSAMPLING], fast.calls[FAST]) == (0, 1)


def test_weights_are_added_in_float32() -> None:
    weight = layer().weight.to(torch.bfloat16)
    assert torch.equal(transposed_weight(weight), transposed_weight(weight.float()).to(torch.bfloat16))


def test_it_has_the_parameters_of_its_convolution_and_trains_as_both() -> None:
    conv, same = randomised(UpsampledConv2d(4, 6)), nn.Conv2d(4, 6, 3, padding=1)
    same.load_state_dict(conv.state_dict())
    x = random_tensor(1, 2, 4, 5, 5)
    with Operators() as operators:
        conv(x).square().sum().backward()
    written_out(same, x).square().sum().backward()
    assert operators.calls[UPSAMPLING] == 1 and not operators.calls[FAST]
    assert difference(conv.weight.grad, same.weight.grad) < 1e-3


@pytest.mark.parametrize("in_block", [True, False])
def test_a_unet_uses_it_for_every_upsampling(in_block) -> None:
    config = tiny_unet(32, channel_mult=(1, 1, 2), resample_in_block=in_block)
    network = randomised(UNet(config)).requires_grad_(False)
    packed = packed_or_skip(network)
    x, t = random_tensor(1, 2, 3, 32, 32), torch.tensor([3, 700])
    with Operators() as operators:
        found = packed(x, t)
    assert operators.calls[FAST] == 2
    assert operators.calls[UPSAMPLING] == (2 if in_block else 0)  # of the skip
    assert difference(found, network(x, t)) < 1e-5


def test_only_the_named_layers_are_packed() -> None:
    network = nn.Sequential(nn.Conv2d(192, 192, 3), layer(), nn.Linear(512, 512)).requires_grad_(False)
    upsampling = packed_or_skip(network, UpsampledConv2d)
    assert [ours is its for ours, its in zip(upsampling, network, strict=True)] == [True, False, True]
    assert packed_copy(network, [nn.Conv2d])[1] is network[1]
    assert packed_copy(network, []) is network
    kept = with_packed_weights(network, (UpsampledConv2d,))
    assert with_packed_weights(network, (UpsampledConv2d,)) is kept
    assert with_packed_weights(network)[0] is not kept[0]


def test_an_upsampler_goes_without_upsampling_and_follows_its_weights() -> None:
    network = randomised(UNet(CONFIG)).requires_grad_(False)
    stage = UpsamplerStage(network, 8, DiffusionSpec(prediction="x0"))
    packed_or_skip(network)

    def picture() -> tuple[torch.Tensor, int]:
        with Operators() as operators:
            found = upsample(stage, random_tensor(1, 2, 3, 8, 8).sigmoid(), seed=0)
        return found, operators.calls[FAST]

    before, fast = picture()
    assert fast == 4  # one level, four steps
    conv = next(module for module in network.modules() if isinstance(module, UpsampledConv2d))
    conv.weight.mul_(-1)
    after, _ = picture()
    assert difference(after, before) > 1e-2
    conv.weight.mul_(-1)
    assert difference(picture()[0], before) < 1e-6
    network.double()
    in_double, fast = picture()
    assert fast == 0  # nothing packs that type
    assert difference(in_double, before) < 1e-4
