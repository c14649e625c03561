"""Networks whose calls are recorded as CUDA graphs: when that is done and, on a GPU, what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from unclip.core.acceleration import cuda_graphs
from unclip.core.acceleration.compiled import compiled_copy, is_compiled
from unclip.core.acceleration.cuda_graphs import Inputs
from unclip.core.acceleration.recorded import recorded_copy
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_pair import UNetPair, UNetPairConfig
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.stages import PriorStage

from ...helpers.prior import DIM, captions, small_prior
from ...helpers.unet import difference, random_tensor, randomised
from ...helpers.unet_small import DECODER, TEXT, UPSAMPLER, Z_I, T, X

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def small_decoder() -> UNet:
    return randomised(UNet(DECODER)).eval().requires_grad_(False)


def small_pair() -> UNetPair:
    config = UNetPairConfig(**{name: getattr(UPSAMPLER, name) for name in UPSAMPLER.__dataclass_fields__})
    return randomised(UNetPair(config)).eval().requires_grad_(False)


# --- when recordings are made; a stand-in computes without a GPU ---


class StandIn:
    """A recording that runs the function again; it counts how many were made."""

    made = 0
    alive: WeakSet[StandIn] = WeakSet()

    def __init__(self, function: Callable[[Inputs], Tensor], inputs: Inputs, pool: object) -> None:
        self.function = function
        StandIn.made += 1
        StandIn.alive.add(self)

    def __call__(self, inputs: Inputs) -> Tensor:
        return self.function(inputs)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(cuda_graphs, "_Recording", StandIn)
    monkeypatch.setattr(cuda_graphs, "can_record", lambda tensors: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    StandIn.made, StandIn.alive = 0, WeakSet()
    return StandIn


def test_inputs_of_one_shape_are_recorded_once(recordings: type[StandIn]) -> None:
    network = small_decoder()
    twin = recorded_copy(network)
    condition = network.condition(clip_embedding=Z_I, **TEXT)
    for t in (T, T.flip(0)):
        assert difference(twin(X, t, condition), network(X, t, condition)) < 1e-6
    assert recordings.made == 1


def test_other_shapes_and_other_inputs_are_recorded_anew(recordings: type[StandIn]) -> None:
    network = small_decoder()
    twin = recorded_copy(network)
    whole = network.condition(clip_embedding=Z_I, **TEXT)
    first = network.condition(clip_embedding=Z_I[:1], **{name: rows[:1] for name, rows in TEXT.items()})
    unmasked = replace(whole, mask=None)
    for _ in range(2):
        twin(X, T, whole)
        twin(X[:1], T[:1], first)
        twin(X, T, unmasked)
        twin(X.contiguous(memory_format=torch.channels_last), T, whole)
    assert recordings.made == 4


def test_only_the_last_recordings_are_kept(recordings: type[StandIn]) -> None:
    network = randomised(UNet(UPSAMPLER)).eval().requires_grad_(False)
    twin = recorded_copy(network)
    sizes = [16 * n for n in range(1, cuda_graphs._KEPT + 2)]

    def run(size: int) -> None:
        x = torch.zeros(1, UPSAMPLER.in_channels, size, size)
        twin(x, T[:1], concat=torch.zeros(1, UPSAMPLER.concat_channels, size, size))

    for size in sizes:
        run(size)
    assert recordings.made == len(sizes)
    run(sizes[1])
    assert recordings.made == len(sizes)
    run(sizes[0])
    assert recordings.made == len(sizes) + 1


def test_moved_weights_are_recorded_anew_and_changed_ones_are_not(recordings: type[StandIn]) -> None:
    network = small_decoder()
    twin = recorded_copy(network)
    condition = network.condition(clip_embedding=Z_I, **TEXT)
    twin(X, T, condition)
    network.conv_out.bias += 1
    twin(X, T, condition)
    assert recordings.made == 1
    network.conv_out.bias.data = network.conv_out.bias.data.clone()
    twin(X, T, condition)
    assert recordings.made == 2


def test_recordings_go_when_the_network_goes_elsewhere(recordings: type[StandIn]) -> None:
    network = small_pair()
    twin = recorded_copy(network)
    x, low = random_tensor(1, 2, 3, 64, 64), random_tensor(2, 2, 3, 64, 64)
    for t in (torch.tensor([500, 500]), torch.tensor([0, 0])):
        twin(x, t, concat=low)
    twin.to("cpu")  # where it is
    assert recordings.made == len(recordings.alive) == 2
    twin.double()  # as when it is unloaded
    assert not recordings.alive


def test_on_the_cpu_nothing_is_recorded() -> None:
    network = small_decoder()
    condition = network.condition(clip_embedding=Z_I, **TEXT)
    twin = recorded_copy(network)
    assert difference(twin(X, T, condition), network(X, T, condition)) == 0


def test_the_weights_are_shared_and_the_network_itself_is_not_recorded(recordings: type[StandIn]) -> None:
    network = small_decoder()
    twin = recorded_copy(network)
    network(X, T, network.condition(clip_embedding=Z_I, **TEXT))
    assert not recordings.made
    assert {id(value) for value in twin.parameters()} == {id(value) for value in network.parameters()}


# --- priors ---


def sampled(prior: PriorStage) -> Tensor:
    options = PriorOptions(steps=4, guidance_scale=3.0, candidates=2, pack_weights=False)
    return sample_diffusion_prior(prior, captions(3, 6), seed=0, options=options).vectors.cpu()


@pytest.mark.parametrize("step", range(3))
def test_a_step_may_be_named_in_a_tensor(step: int) -> None:
    network, text = small_prior().network, captions(3, 6)
    cache = network.prefill(text.tokens, text.pooled, text.mask, torch.tensor([0, 400, 900]))
    x = random_tensor(0, 2, DIM)
    expected = network.step(x, step, cache)
    assert difference(network.step(x, torch.tensor([step]), cache), expected) < 1e-6
    assert difference(network.step(x, torch.tensor([(step + 1) % 3]), cache), expected) > 1e-3


def test_one_recording_serves_all_steps_of_a_prior(recordings: type[StandIn]) -> None:
    prior = small_prior()
    twin = replace(prior, network=recorded_copy(prior.network))
    assert difference(sampled(twin), sampled(prior)) < 1e-6
    assert recordings.made == 1
    sampled(twin)
    assert recordings.made == 1


def test_a_recorded_prior_refuses_a_step_that_is_not_there(recordings: type[StandIn]) -> None:
    network, text = recorded_copy(small_prior().network), captions(3)
    cache = network.prefill(text.tokens, text.pooled, text.mask, torch.tensor([0, 400]))
    with pytest.raises(ValueError, match="there is no step 2 in a cache of 2 steps"):
        network.step(random_tensor(0, 1, DIM), 2, cache)


# --- on a GPU ---


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 that is not rounded to TF32 on its way into convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@on_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_recorded_decoder_computes_the_same(exact: None, compiled: bool) -> None:
    network = small_decoder().cuda()
    x, t, z_i = X.cuda(), T.cuda(), Z_I.cuda()
    text = {name: rows.cuda() for name, rows in TEXT.items()}
    twin = recorded_copy(compiled_copy(network) if compiled else network)
    with torch.inference_mode():
        for vectors, steps in ((z_i, t), (z_i.flip(0), t), (z_i, t.flip(0))):
            condition = network.condition(clip_embedding=vectors, **text)
            expected = network(x, steps, condition)
            assert difference(twin(x, steps, condition), expected) < 1e-4
            assert difference(twin(x.flip(0), steps, condition), expected) > 1e-2
        first = twin(x, t, condition)
        kept = first.clone()
        twin(x + 1, t, condition)
        assert difference(first, kept) == 0  # results are not overwritten
    with torch.no_grad():  # recorded inside of inference mode, replayed outside of it
        assert difference(twin(x, t, condition), network(x, t, condition)) < 1e-4
    assert not is_compiled(network)


@on_gpu
def test_a_recording_follows_weights_that_change_and_that_move(exact: None) -> None:
    network = small_decoder().cuda()
    x, t = X.cuda(), T.cuda()
    condition = network.condition(clip_embedding=Z_I.cuda())
    twin = recorded_copy(network)
    before = twin(x, t, condition)
    network.conv_out.bias += 1
    assert difference(twin(x, t, condition), before) > 0.1
    network.to("cpu")
    on_cpu = twin(X, T, condition.map(Tensor.cpu))
    network.to("cuda")
    assert difference(twin(x, t, condition).cpu(), on_cpu) < 1e-3


@on_gpu
def test_the_recordings_of_a_pair_do_not_disturb_each_other(exact: None) -> None:
    pair = small_pair().cuda()
    x, low = random_tensor(1, 2, 3, 64, 64).cuda(), random_tensor(2, 2, 3, 64, 64).cuda()
    twin = recorded_copy(pair)
    for _ in range(2):
        for t in (torch.tensor([500, 500]).cuda(), torch.tensor([0, 0]).cuda()):
            assert difference(twin(x, t, concat=low), pair(x, t, concat=low)) < 1e-4


@on_gpu
def test_a_recorded_prior_samples_the_same(exact: None) -> None:
    prior = small_prior()
    expected = sampled(prior)
    network = prior.network.cuda()
    twin = replace(prior, network=recorded_copy(network))
    for _ in range(2):
        assert difference(sampled(twin), expected) < 1e-4


@on_gpu
def test_recordings_give_their_memory_back() -> None:
    network = small_pair().cuda()
    x, low = torch.randn(64, 3, 256, 256, device="cuda"), torch.randn(64, 3, 256, 256, device="cuda")
    twin = recorded_copy(network)
    before = reserved()
    twin(x, torch.full((64,), 500, device="cuda"), concat=low)
    recorded = reserved()
    assert recorded > before + 64 * 2**20
    twin.to("cpu")
    assert reserved() < before + (recorded - before) / 2  # cuBLAS keeps a workspace


def reserved() -> int:
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()
