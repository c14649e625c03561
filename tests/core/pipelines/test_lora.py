"""LoRAs on stages: their strength, several at once, off again to the bit, and the fast ways to compute."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from unclip.core.acceleration.compiled import compiled_copy, is_compiled
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.acceleration.packed import _PackedConv2d, _PackedLinear
from unclip.core.acceleration.recorded import is_recorded, recorded_copy
from unclip.core.networks.lora import Factors, Lora, WeightChange
from unclip.core.networks.unet import UNet
from unclip.core.pipelines.lora import with_lora
from unclip.core.stages import PriorStage

from ...helpers.bundle import tiny_bundle
from ...helpers.lora import bits
from ...helpers.prior import captions, small_prior
from ...helpers.unet import difference, random_tensor, randomised
from ...helpers.unet_small import DECODER, TEXT, Z_I, T, X

MOVED = 1e-2


def lora_of(network, endings, seed: int = 0, rank: int = 2) -> Lora:
    changes = {}
    for name, weight in network.named_parameters():
        if name.endswith(endings):
            outputs, inputs, *kernel = weight.shape
            down = random_tensor(seed + 2 * len(changes), rank, inputs, *kernel) / inputs**0.5
            up = random_tensor(seed + 2 * len(changes) + 1, outputs, rank, *(1 for _ in kernel))
            changes[name] = WeightChange((Factors(down, up, 0.5),))
    assert changes
    return Lora(changes)


def small_decoder() -> UNet:
    return randomised(UNet(DECODER)).eval().requires_grad_(False)


def decoder_stage(network=None):
    stage = tiny_bundle().decoder
    from dataclasses import replace

    return replace(stage, network=small_decoder() if network is None else network)


@torch.no_grad()
def painted(network):
    return network(X, T, network.condition(clip_embedding=Z_I, **TEXT))


FIRST, SECOND = ("attention.qkv.weight", "conv_out.weight"), ("attention.qkv.weight", "context_kv.weight")


def test_strength_is_what_the_change_is_multiplied_by_and_the_given_stage_stays() -> None:
    stage = decoder_stage()
    before, lora = bits(stage.network), lora_of(stage.network, FIRST)
    for strength in (0.5, 1.0, -2.0):
        changed = with_lora(stage, lora, strength)
        for name, weight in changed.network.named_parameters():
            own, change = stage.network.get_parameter(name), lora.changes.get(name)
            if change is None:
                assert weight is own  # shared, not copied
            else:
                (factors,) = change.parts
                product = torch.einsum("or,ri...->oi...", factors.up.flatten(1), factors.down)
                assert difference(weight, own + strength * 0.5 * product) < 1e-5
        assert difference(painted(changed.network), painted(stage.network)) > MOVED
    assert bits(stage.network) == before


def test_at_strength_0_the_stage_is_the_same_one() -> None:
    stage = decoder_stage()
    assert with_lora(stage, lora_of(stage.network, FIRST), 0) is stage


def test_strengths_that_are_no_numbers_are_refused() -> None:
    stage = decoder_stage()
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="strength"):
            with_lora(stage, lora_of(stage.network, FIRST), strength)


def test_several_add_up_in_any_order_and_cancel_to_the_bit() -> None:
    stage = decoder_stage()
    first, second = lora_of(stage.network, FIRST), lora_of(stage.network, SECOND, seed=50)
    one = with_lora(with_lora(stage, first, 0.7), second, 0.3)
    other = with_lora(with_lora(stage, second, 0.3), first, 0.7)
    for name, weight in one.network.named_parameters():
        assert difference(weight, other.network.get_parameter(name)) < 1e-6
    alone = with_lora(stage, first, 0.7).network
    assert difference(painted(one.network), painted(alone)) > MOVED
    gone = with_lora(with_lora(stage, first, 0.7), first, -0.7)
    assert bits(gone.network) == bits(stage.network)


def test_in_half_precision_the_sum_is_rounded_once() -> None:
    network = small_decoder().to(torch.bfloat16)
    stage = decoder_stage(network)
    loras = [lora_of(network, ("attention.qkv.weight",), seed=40 * n) for n in range(8)]
    chained = stage
    for lora in loras:
        chained = with_lora(chained, lora, 0.01)
    for name in loras[0].changes:
        total = sum(0.01 * lora.changes[name].total("cpu") for lora in loras)
        exact = (network.get_parameter(name).float() + total).bfloat16()
        found = chained.network.get_parameter(name)
        assert found.dtype == torch.bfloat16
        # float32 sums in another order may round to the neighbour
        assert difference(found.float(), exact.float()) <= 0.01 * exact.float().abs().max()
        assert (found == exact).float().mean() > 0.99


def test_packed_weights_are_those_of_the_changed_network() -> None:
    stage = decoder_stage()
    plain = with_packed_weights(stage.network)
    changed = with_lora(stage, lora_of(stage.network, FIRST), 1.0).network
    packed = with_packed_weights(changed)
    assert packed is not changed and packed is not plain
    kinds = {type(layer) for layer in packed.modules()}
    assert kinds & {_PackedLinear, _PackedConv2d}
    with torch.inference_mode():
        assert difference(painted(packed), painted(changed)) < 1e-4
        assert difference(painted(with_packed_weights(stage.network)), painted(stage.network)) < 1e-4


def test_a_compiled_decoder_is_compiled_again_with_the_new_weights() -> None:
    torch._dynamo.reset()
    counter, plain = CompileCounter(), small_decoder()
    stage = decoder_stage(compiled_copy(plain, backend=counter))
    with torch.inference_mode():
        painted(stage.network)
    lora = lora_of(plain, FIRST)
    changed = with_lora(stage, lora, 1.0)
    assert is_compiled(changed.network)
    with torch.inference_mode():
        frames = counter.frame_count
        found = painted(changed.network)
        assert counter.frame_count > frames  # it ran compiled, by the same options
        assert difference(found, painted(with_lora(decoder_stage(plain), lora, 1.0).network)) < 1e-5
        assert difference(found, painted(stage.network)) > MOVED
    off = with_lora(changed, lora, -1.0)
    assert is_compiled(off.network) and bits(off.network) == bits(plain)
    torch._dynamo.reset()


def test_a_recorded_network_is_recorded_again_of_the_changed_one() -> None:
    plain = small_decoder()
    stage = decoder_stage(recorded_copy(compiled_copy(plain, backend="eager")))
    changed = with_lora(stage, lora_of(plain, FIRST), 1.0)
    assert is_recorded(changed.network)
    expected = with_lora(decoder_stage(plain), lora_of(plain, FIRST), 1.0)
    assert difference(painted(changed.network), painted(expected.network)) < 1e-5
    torch._dynamo.reset()


def test_a_prior_samples_with_its_changed_weights() -> None:
    stage = small_prior()
    lora = lora_of(stage.network, ("qkv.weight", "mlp_in.weight"))
    changed = with_lora(stage, lora, 1.0)
    recorded = with_lora(PriorStage(recorded_copy(stage.network), stage.space, stage.diffusion), lora, 1.0)
    text = captions(5, 3)
    given = (text.tokens, text.pooled, text.mask)
    x, t = random_tensor(9, 2, stage.network.config.dim), torch.tensor([500, 500])
    whole = changed.network(x, t, *given)
    for network in (changed.network, recorded.network):
        cache = network.prefill(*given, torch.tensor([500]))
        assert difference(network.step(x, 0, cache), whole) < 1e-4
    assert difference(whole, stage.network(x, t, *given)) > MOVED


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_recorded_decoder_replays_the_changed_weights() -> None:
    plain = small_decoder().cuda()
    stage = decoder_stage(recorded_copy(plain))
    lora = lora_of(plain, FIRST)
    changed = with_lora(stage, lora, 1.0)

    def on_gpu(network):
        with torch.inference_mode():
            text = {name: value.cuda() for name, value in TEXT.items()}
            condition = network.condition(clip_embedding=Z_I.cuda(), **text)
            return [network(X.cuda(), T.cuda(), condition) for _ in range(3)][-1].cpu()

    base, found = on_gpu(stage.network), on_gpu(changed.network)
    assert difference(found, on_gpu(with_lora(decoder_stage(plain), lora, 1.0).network)) < 1e-3
    assert difference(found, base) > MOVED
    assert difference(on_gpu(stage.network), base) == 0
