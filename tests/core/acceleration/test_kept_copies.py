"""What is kept of networks' weights: packed copies of every kind of network, until the weights change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from unclip.core.acceleration.kept_copies import derived, weights_fingerprint, with_packed_weights
from unclip.core.acceleration.packed import packed_copy
from unclip.core.acceleration.recorded import recorded_copy
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.layouts.dalle2_pytorch import load_dalle2_prior
from unclip.core.networks.one_pass_prior import OnePassPrior, OnePassPriorConfig
from unclip.core.pipelines.ar_prior import AutoregressiveOptions, sample_autoregressive_prior
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers import dalle2
from ...helpers.ar_prior import small_ar_prior
from ...helpers.prior import CONFIG, DIM, LENGTH, SPACE, captions, small_prior
from ...helpers.unet import difference, random_tensor, randomised

PACKING, PACKED = "mkldnn::_reorder_linear_weight", "mkldnn::_linear_pointwise"


class Operators(TorchDispatchMode):
    """Counts what is computed, by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.name()] += 1
        return function(*args, **kwargs or {})

    @property
    def products(self) -> int:
        """Of matrices, not packed."""
        return self.calls["aten::addmm"] + self.calls["aten::mm"]


def layers() -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(40, 50), nn.Conv2d(1, 2, 1))).requires_grad_(False)


@pytest.fixture(autouse=True)
def _needs_packing() -> None:
    if packed_copy(network := layers()) is network:
        pytest.skip("this processor packs nothing")


# --- until the weights change ---


def test_a_packed_copy_is_kept_until_the_weights_change() -> None:
    network, x = layers(), random_tensor(1, 2, 1, 3, 40)
    packed = with_packed_weights(network)
    assert packed is not network and with_packed_weights(network) is packed
    network[0].weight.mul_(2)
    changed = with_packed_weights(network)
    assert changed is not packed
    assert difference(changed(x), network(x)) < 1e-4 < 0.1 < difference(packed(x), network(x))


def test_what_is_derived_is_kept_until_the_weights_change() -> None:
    network = layers()
    derived(network)["sum"] = network[0].weight.sum()
    assert list(derived(network)) == ["sum"]
    with_packed_weights(network)
    assert "sum" in derived(network)  # beside the copy
    network[0].bias.add_(1)
    assert derived(network) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.blocks[1].mlp_in.weight.mul_(1.5),
        lambda network: network.blocks[1].mlp_in.weight.data.mul_(1.5),
        lambda network: network.load_state_dict(small_prior(seed=3).network.state_dict(), assign=True),
        lambda network: network.bfloat16(),
        lambda network: network.to("meta"),
    ],
    ids=["in-place", "through-data", "loaded", "converted", "moved"],
)
def test_fingerprint_tells_changed_weights(change: Callable[[nn.Module], object]) -> None:
    network = small_prior().network
    before = weights_fingerprint(network)
    assert weights_fingerprint(network) == before
    change(network)
    if network.query.is_meta:  # what has no values has no fingerprint, and is not packed
        assert with_packed_weights(network) is network
    else:
        assert weights_fingerprint(network) != before


def test_fingerprint_of_inference_tensors() -> None:
    with torch.inference_mode():
        network = small_prior().network
        before = weights_fingerprint(network)
        assert weights_fingerprint(network) == before
        network.blocks[0].qkv.weight.add_(0.1)
        assert weights_fingerprint(network) != before


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
def test_to_look_for_changed_weights_copies_none(layout: torch.memory_format) -> None:
    network = randomised(nn.Conv2d(192, 192, 3)).requires_grad_(False).to(memory_format=layout)
    with _Copies(network) as copies:
        before = weights_fingerprint(network)
    assert 0 < copies.largest < 100
    network.weight[0, 0, 0, 0] += 1
    assert weights_fingerprint(network) != before


# --- of all priors ---

TEXT = captions(3, LENGTH)
ONE_STEP = DiffusionSpec(num_timesteps=1, prediction="x0", clip_x0=None)


def one_pass_prior() -> PriorStage:
    config = OnePassPriorConfig(**asdict(CONFIG))
    return PriorStage(randomised(OnePassPrior(config)).eval().requires_grad_(False), SPACE, ONE_STEP)


def dalle2_prior() -> PriorStage:
    tensors = {f"net.{name}": value for name, value in dalle2.dalle2_state().items()}
    return load_dalle2_prior(source_of_tensors(Path("best.pth"), tensors))


def sampled(prior: PriorStage, seed: int = 0, pack_weights: bool = True) -> Tensor:
    text = replace(TEXT, space=prior.space) if prior.space.dim == DIM else dalle2.captions(3)
    if prior.diffusion is None:
        options = AutoregressiveOptions(candidates=2, pack_weights=pack_weights)
        return sample_autoregressive_prior(prior, text, seed=seed, options=options).vectors
    options = PriorOptions(steps=3, candidates=2, pack_weights=pack_weights)
    return sample_diffusion_prior(prior, text, seed=seed, options=options).vectors


PRIORS = pytest.mark.parametrize("make", [small_prior, small_ar_prior, dalle2_prior, one_pass_prior])


@PRIORS
def test_every_prior_samples_with_weights_that_were_packed_once(make: Callable[[], PriorStage]) -> None:
    prior = make()
    with Operators() as plain:
        expected = sampled(prior, pack_weights=False)
    assert plain.calls[PACKED] == plain.calls[PACKING] == 0
    with Operators() as first:
        found = sampled(prior)
    assert first.calls[PACKING] == sum(type(module) is nn.Linear for module in prior.network.modules())
    assert first.calls[PACKED] == plain.products - first.products > 0  # all that were a Linear's
    assert difference(found, expected) < 1e-5
    with Operators() as second:
        other = sampled(prior, seed=1)
    assert second.calls[PACKING] == 0 < second.calls[PACKED]
    assert difference(other, found) > 1e-3


@PRIORS
def test_packed_in_inference_mode_and_run_outside_of_it(make: Callable[[], PriorStage]) -> None:
    prior = make()
    with torch.inference_mode():
        first = sampled(prior)
    assert torch.equal(sampled(prior), first)
    with torch.inference_mode():
        assert torch.equal(sampled(prior), first)


@PRIORS
def test_a_prior_that_was_converted_is_packed_anew(make: Callable[[], PriorStage]) -> None:
    prior = make()
    expected = sampled(prior)
    prior.network.double()
    assert difference(sampled(prior).float(), expected) < 1e-5  # which nothing packs
    prior.network.float()
    assert difference(sampled(prior), expected) < 1e-5


def test_a_recorded_network_goes_without_packed_weights() -> None:
    prior = small_prior()
    twin = recorded_copy(prior.network)
    assert with_packed_weights(twin) is twin
    with Operators() as operators:
        found = sampled(replace(prior, network=twin))
    assert operators.calls[PACKING] == 0
    assert difference(found, sampled(prior)) < 1e-5
