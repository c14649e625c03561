"""3×3 convolutions by Winograd's algorithm: what they compute, and where they are used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from unclip.core.acceleration import winograd
from unclip.core.acceleration.packed import packed_copy
from unclip.core.acceleration.winograd import WinogradConvolution, pays, suits, transformed_weight
from unclip.core.networks.upsampled import UpsampledConv2d

from ...helpers.unet import difference, random_tensor, randomised

INPUTS, OUTPUTS = 256, 288
LARGE, SMALL, ODD = (32, 16), (16, 16), (33, 16)  # grids: 128 tiles, too few, and none of 2×2
WITHIN = 5e-5  # float32, over sums of 2304 products


def layer(dtype: torch.dtype = torch.float32, **options: object) -> nn.Conv2d:
    options = {"padding": 1, **options}
    return randomised(nn.Conv2d(INPUTS, OUTPUTS, 3, **options)).requires_grad_(False).to(dtype)


def pictures(size: tuple[int, int], rows: int = 1) -> Tensor:
    return random_tensor(1, rows, INPUTS, *size).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def _supported() -> None:
    linear = nn.Linear(512, 512)
    if packed_copy(linear) is linear or not suits(layer()):
        pytest.skip("this processor has no such layers")


# --- what it computes ---


def test_transformed_weights_are_those_of_the_paper() -> None:
    weight = random_tensor(0, 2, 3, 3, 3)
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    found = transformed_weight(weight)
    assert found.shape == (4, 4, 2, 3)
    for output in range(2):
        for channel in range(3):
            expected = g @ weight[output, channel] @ g.T
            assert difference(found[:, :, output, channel], expected) < 1e-6


@pytest.mark.parametrize(("size", "rows"), [(LARGE, 1), (LARGE, 2), ((2, 2), 1), ((6, 10), 3)])
@pytest.mark.parametrize("strip", [2**14, 2**24])  # a row of tiles at a time, and all at once
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], rows: int, strip: int, bias: bool
) -> None:
    monkeypatch.setattr(winograd, "_STRIP_BYTES", strip)
    conv, x = layer(bias=bias), pictures(size, rows)
    found = WinogradConvolution(conv)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert difference(found, conv(x)) < WITHIN
    assert difference(WinogradConvolution(conv)(x.flip(3)), conv(x)) > 0.1


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    conv, x = layer(), pictures(LARGE)
    for other in (x.contiguous(), x.transpose(2, 3)):
        assert difference(WinogradConvolution(conv)(other), conv(other)) < WITHIN


def test_bfloat16_rounds_a_little_more_than_a_plain_convolution() -> None:
    conv = layer(torch.bfloat16)
    if packed_copy(conv) is conv:
        pytest.skip("this processor packs no bfloat16")
    x = pictures(LARGE)
    expected = conv.float()(x.bfloat16().float())
    conv, x = conv.bfloat16(), x.bfloat16()
    error = (WinogradConvolution(conv)(x).float() - expected).std() / expected.std()
    plain = (conv(x).float() - expected).std() / expected.std()
    assert plain < error < 5 * plain < 0.02


# --- where it is used ---


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """Shapes of what went this way."""
    shapes: list[torch.Size] = []
    call = WinogradConvolution.__call__

    def counted(self: WinogradConvolution, x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return call(self, x)

    monkeypatch.setattr(WinogradConvolution, "__call__", counted)
    return shapes


def test_large_grids_go_this_way_and_others_do_not(computed: list[torch.Size]) -> None:
    conv = layer()
    packed = packed_copy(conv)
    for size in (LARGE, SMALL, ODD):
        x = pictures(size)
        assert difference(packed(x), conv(x)) < WITHIN
    assert [tuple(shape[2:]) for shape in computed] == [LARGE]
    packed(pictures(SMALL, rows=2))  # as many tiles
    assert len(computed) == 2


def test_layers_that_are_not_packed_are_copied_for_larger_grids_only(computed: list[torch.Size]) -> None:
    conv = layer()
    packed = packed_copy(conv, (UpsampledConv2d,))
    for size in (LARGE, (64, 64)):
        x = pictures(size)
        assert difference(packed(x), conv(x)) < WITHIN
    assert [tuple(shape[2:]) for shape in computed] == [(64, 64)]


def test_only_plain_convolutions_of_many_channels_suit() -> None:
    assert suits(layer())
    others = [
        layer(stride=2),
        layer(padding=0),
        layer(dilation=2, padding=2),
        layer(groups=2),
        nn.Conv2d(INPUTS, OUTPUTS, 1),
        nn.Conv2d(INPUTS, 64, 3, padding=1),
        nn.Conv2d(64, OUTPUTS, 3, padding=1),
    ]
    assert not any(suits(other) for other in others)


def test_processors_with_amx_multiply_bfloat16_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    winograd._products_are_slow.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert suits(layer()) and not suits(layer(torch.bfloat16))
    winograd._products_are_slow.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert suits(layer()) and suits(layer(torch.bfloat16))
    winograd._products_are_slow.cache_clear()


def test_tiles_must_be_whole() -> None:
    assert pays(pictures(LARGE), copied=True) and not pays(pictures(LARGE), copied=False)
    assert not pays(pictures(ODD), copied=True) and not pays(pictures((256, 1)), copied=True)
