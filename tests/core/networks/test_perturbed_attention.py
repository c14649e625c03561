"""Perturbed attention: the identity in place of the attention's map."""

from __future__ import annotations

import pytest
import torch
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.networks.perturbed_attention import PerturbedAttention, with_perturbed_attention
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_blocks import Attention

from ...helpers.bundle import randomised
from ...helpers.unet_small import DECODER, TEXT, Z_I, T, X, tiny_unet


def test_every_place_sees_itself_alone() -> None:
    """As attention whose mask leaves nothing else."""
    attention = randomised(Attention(32, 16, 24), torch.Generator().manual_seed(0))
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    found = PerturbedAttention(attention)(x, None, None)
    for place in ((0, 0), (2, 3)):
        # A place by itself, normalised with the others.
        alone = attention.norm(x)[:, :, place[0], place[1]]
        values = attention.qkv(alone).chunk(3, dim=-1)[2]
        expected = x[:, :, place[0], place[1]] + attention.out(values)
        assert torch.allclose(found[:, :, place[0], place[1]], expected, atol=1e-5)
    whole = attention(x, None, None)
    assert (found - whole).abs().max() > 1e-2


@pytest.mark.parametrize("packed", [False, True])
def test_a_twin_sees_less_and_the_network_stays(packed: bool) -> None:
    network = randomised(UNet(DECODER), torch.Generator().manual_seed(0)).eval()
    network = with_packed_weights(network) if packed else network
    with torch.no_grad():
        condition = network.condition(clip_embedding=Z_I, **TEXT)
        before = network(X, T, condition)
        twin = with_perturbed_attention(network)
        perturbed = twin(X, T, condition)
        assert torch.equal(network(X, T, condition), before)
    assert (perturbed - before).abs().max() > 1e-4
    assert {id(p) for p in twin.parameters()} == {id(p) for p in network.parameters()}


def test_a_network_without_attention_is_told() -> None:
    network = UNet(tiny_unet(attention=()))
    with pytest.raises(ValueError, match="'pag' changes the attention in the middle"):
        with_perturbed_attention(network)
