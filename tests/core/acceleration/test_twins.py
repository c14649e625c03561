"""Twins of networks: what they share."""

from __future__ import annotations

import torch
from torch import nn
from unclip.core.acceleration.twins import twin_with_own_modules


def test_a_weight_replaced_in_a_twin_with_own_modules_stays_in_the_first():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))
    twin = twin_with_own_modules(network)
    assert [id(each) for each in twin.parameters()] == [id(each) for each in network.parameters()]
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    for module in twin.modules():
        for name in [*module._parameters]:
            setattr(module, name, nn.Parameter(torch.full((2, 2), 7.0)))
        for name in [*module._buffers]:
            setattr(module, name, torch.full((2,), 7.0))
    found = network.state_dict()
    assert found.keys() == kept.keys() and all(torch.equal(found[name], kept[name]) for name in kept)
