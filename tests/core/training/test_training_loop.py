"""The training loop, its learning rate and its averaged weights, on a recipe of a few numbers."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm.optim.muon as timm_muon
import torch
from torch import nn
from unclip.core import precision as precision_module
from unclip.core.config import config_from_dict
from unclip.core.training import loop as loop_module
from unclip.core.training import muon as muon_module
from unclip.core.training.ema import ExponentialMovingAverage
from unclip.core.training.loop import LoopReport
from unclip.core.training.newton_schulz import orthogonalised_by_gram
from unclip.core.training.optimizer import _parameter_groups, make_optimizer
from unclip.core.training.settings import LoopConfig, learning_rate

from ...helpers.regression import Killed, Regression, assert_equal, kill_at, loop_settings, run, weights

# --- resuming ---


@pytest.mark.parametrize(
    ("kill", "optimizer"), [(1, "adamw"), (6, "adamw"), (6, "muon"), (8, "adamw"), (11, "muon")]
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, kill: int, optimizer: str) -> None:
    loop = loop_settings(optimizer=optimizer)
    whole = run(tmp_path / "whole", loop)
    with pytest.raises(Killed):
        run(tmp_path / "killed", loop, kill_at(kill))
    resumed = run(tmp_path / "killed", loop)
    assert resumed.steps[0] == (kill - 1) // 4 * 4  # the last checkpoint before the step that was killed
    assert_equal(weights(resumed), weights(whole))
    assert resumed.noise == whole.noise[resumed.steps[0] :]


def test_a_run_that_stops_early_goes_on_with_the_same_schedule(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", loop_settings())
    first = run(tmp_path / "parts", loop_settings(stop_at=5))
    assert first.steps == [0, 1, 2, 3, 4]
    assert len(first.exported) == 1
    assert_equal(weights(run(tmp_path / "parts", loop_settings())), weights(whole))


def test_a_finished_run_only_exports_again(tmp_path: Path) -> None:
    whole = run(tmp_path, loop_settings())
    again = run(tmp_path, loop_settings())
    assert again.noise == []
    assert_equal(weights(again), weights(whole))


def test_other_seeds_and_steps_bring_other_noise(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", loop_settings()), run(tmp_path / "other", loop_settings(seed=1))
    assert len({*one.noise, *other.noise}) == 24
    assert one.steps == list(range(12))


def test_the_checkpoint_of_another_network_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, loop_settings())
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt is the checkpoint of another network than this config"
    ):
        run(tmp_path, loop_settings(), recipe=Regression(width=5))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(("first", "then"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_state_of_another_optimizer_is_refused(tmp_path: Path, first: str, then: str) -> None:
    run(tmp_path, loop_settings(optimizer=first, stop_at=4))
    with pytest.raises(ValueError, match=rf"^loop\.optimizer is {then}, but .* was made with {first}, whose"):
        run(tmp_path, loop_settings(optimizer=then))
    run(tmp_path, loop_settings(optimizer=first))


def test_a_checkpoint_that_does_not_tell_its_optimizer_is_resumed(tmp_path: Path) -> None:
    run(tmp_path, loop_settings(stop_at=4))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["optimizer_name"]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert run(tmp_path, loop_settings()).steps[0] == 4


# --- what a run writes and reports ---


def test_the_log_has_a_row_for_every_report(tmp_path: Path) -> None:
    reports: list[LoopReport] = []
    run(tmp_path, loop_settings(log_every=5), reports.append)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [report.step for report in reports] == [row["step"] for row in rows] == [5, 10, 12]
    assert [report.steps for report in reports] == [12, 12, 12]
    assert all(abs(row["loss"] - report.loss) < 1e-4 for row, report in zip(rows, reports, strict=True))
    assert reports[-1].learning_rate == learning_rate(loop_settings(), 11)
    assert all(report.images_per_second > 0 for report in reports)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_the_reported_loss_is_the_mean_since_the_last_report(tmp_path: Path) -> None:
    every: list[LoopReport] = []
    third: list[LoopReport] = []
    run(tmp_path / "every", loop_settings(), every.append)
    run(tmp_path / "third", loop_settings(log_every=3), third.append)
    means = [sum(report.loss for report in every[i : i + 3]) / 3 for i in range(0, 12, 3)]
    assert [report.loss for report in third] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.05), ("muon", 0.01)])
def test_the_loss_goes_down(tmp_path: Path, optimizer: str, rate: float) -> None:
    losses: list[float] = []
    loop = loop_settings(steps=160, optimizer=optimizer, learning_rate=rate)
    run(tmp_path, loop, lambda report: losses.append(report.loss))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_run_that_is_over_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, loop_settings())
    assert "nothing is left" not in caplog.text
    caplog.set_level("INFO")
    run(tmp_path, loop_settings(stop_at=5))
    assert "nothing is left to train: the run has made 12 steps, and 5 were asked for" in caplog.text


def test_the_averaged_weights_are_exported_with_the_buffers(tmp_path: Path) -> None:
    recipe = run(tmp_path, loop_settings())
    (exported,) = recipe.exported
    assert exported.keys() == recipe.network.state_dict().keys()
    assert not torch.equal(exported["0.weight"], recipe.network[0].weight)


def test_weight_decay_shrinks_matrices_only(tmp_path: Path) -> None:
    before = Regression().network.state_dict()
    loop = loop_settings(steps=5, warmup=0, weight_decay=0.5)
    after = run(tmp_path, loop, recipe=Regression(data_matters=False)).network.state_dict()
    shrunk = math.prod(1 - learning_rate(loop, step) * 0.5 for step in range(5))
    for name, value in before.items():
        assert torch.allclose(after[name], value * (shrunk if value.ndim > 1 else 1), atol=1e-6), name


def test_muon_moves_a_matrix_alike_in_all_directions() -> None:
    """Where AdamW follows the signs of the gradient, Muon's steps have singular values near one another."""
    torch.manual_seed(0)
    spread = {}
    for name in ("adamw", "muon"):
        network = nn.Linear(8, 8)
        before = network.weight.detach().clone()
        bias = network.bias.detach().clone()
        network.weight.grad = torch.outer(torch.ones(8), torch.ones(8)) + 0.1 * torch.eye(8)
        network.bias.grad = torch.arange(1.0, 9.0)
        make_optimizer(network, name, 1e-2, 0.0, (0.9, 0.99)).step()
        step = before - network.weight.detach()
        singular = torch.linalg.svdvals(step)
        spread[name] = (singular[0] / singular[-1]).item()
        moved = bias - network.bias.detach()
        assert 0 < moved.max() < 1.001 * moved.min()  # vectors are AdamW's in both
    assert spread["muon"] < 3 < 100 < spread["adamw"]


class Several(nn.Module):
    """Matrices and kernels of which some have one shape, in both memory formats, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        linear = [nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 24), nn.LayerNorm(12)]
        kernels = [nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 1)]
        self.layers, self.kernels = nn.ModuleList(linear), nn.ModuleList(kernels)
        self.kernels.to(memory_format=torch.channels_last)


def test_muon_in_batches_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, since in bfloat16 both round; also where one goes on from the state of the other."""
    exact = functools.partial(timm_muon.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(timm_muon, "zeropower_via_newtonschulz", exact)
    monkeypatch.setattr(muon_module, "has_fast_bf16", lambda _device: False)
    torch.manual_seed(0)
    own, reference = Several(), Several()
    reference.load_state_dict(own.state_dict())
    before = {name: value.detach().clone() for name, value in own.named_parameters()}
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "nesterov": True}
    batched = make_optimizer(own, "muon", 1e-2, 0.1, (0.9, 0.99))
    assert isinstance(batched, muon_module.BatchedMuon)
    plain = timm_muon.Muon(_parameter_groups(reference, 0.1), **settings)
    for step in range(5):
        for number, (one, other) in enumerate(zip(own.parameters(), reference.parameters(), strict=True)):
            generator = torch.Generator().manual_seed(100 * step + number)
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        if step == 3:
            states = [optimizer.state_dict()["state"] for optimizer in (batched, plain)]
            assert states[0].keys() == states[1].keys()
            assert all(states[0][key].keys() == states[1][key].keys() for key in states[0])
            batched.load_state_dict({**batched.state_dict(), "state": copy.deepcopy(states[1])})
        batched.step()
        plain.step()
        assert all(value.grad is not None for value in own.parameters())
    for (name, one), other in zip(own.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert (other - before[name]).abs().mean() > 1e-3, name


# --- learning rate and averaging in closed form ---


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    loop = LoopConfig(steps=1000, batch_size=1, learning_rate=0.2, warmup=10)
    assert learning_rate(loop, 0) == pytest.approx(0.02, rel=1e-5)
    assert learning_rate(loop, 9) == pytest.approx(0.2, rel=1e-3)
    assert learning_rate(loop, 500) == pytest.approx(0.1)
    assert learning_rate(loop, 250) == pytest.approx(0.2 * math.cos(math.pi / 8) ** 2)
    assert learning_rate(loop, 1000) == 0
    rates = [learning_rate(loop, step) for step in range(10, 1001)]
    assert rates == sorted(rates, reverse=True)


def test_the_average_is_its_closed_form() -> None:
    """v_n = v_0·Πd_k + Σ_k (1 − d_k)·w_k·Π_{j>k} d_j, with d_k = min(decay, (1 + k)/(10 + k))."""
    network = nn.Linear(1, 1, bias=False)
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0]
    decays = [min(0.3, (1 + k) / (10 + k)) for k in range(len(values) - 1)]
    assert len(set(decays)) > 2
    assert decays[-1] == 0.3
    network.weight.data.fill_(values[0])
    ema = ExponentialMovingAverage(network, decay=0.3)
    for step, value in enumerate(values[1:]):
        network.weight.data.fill_(value)
        ema.update(network, step)
    expected = values[0] * math.prod(decays) + sum(
        (1 - decay) * value * math.prod(decays[k + 1 :])
        for k, (decay, value) in enumerate(zip(decays, values[1:], strict=True))
    )
    assert ema.averaged_state(network)["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert network.weight.item() == 6.0


def test_the_average_of_half_precision_is_kept_in_float32() -> None:
    network = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    network.weight.data.fill_(1.0)
    ema = ExponentialMovingAverage(network, decay=0.999)
    network.weight.data.fill_(1.01)
    ema.update(network, 10_000)
    expected = 1 + 0.001 * (network.weight.item() - 1)
    assert ema.averaged_state(network)["weight"].item() == pytest.approx(expected, abs=1e-7)
    assert expected != 1


# --- errors ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "loop.steps is 0, expected more than 0"),
        ({"batch_size": -1}, "loop.batch_size is -1, expected 1 to 1048576"),
        ({"log_every": 0}, "loop.log_every is 0, expected more than 0"),
        ({"stop_at": 4}, "loop.stop_at is 4, expected at most loop.steps, which is 3"),
        ({"precision": "fp8"}, "run.toml.precision: found 'fp8', expected one of 'auto', 'no', 'bf16'"),
        ({"warm_up": 3}, "run.toml: unknown field warm_up for LoopConfig; it has steps, batch_size"),
        ({"steps": "many"}, "run.toml.steps: found 'many', expected a value of type int"),
    ],
)
def test_wrong_settings_are_named(change: dict, message: str) -> None:
    settings = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3}
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        config_from_dict(LoopConfig, {**settings, **change}, "run.toml")
    with pytest.raises(ValueError, match=r"^run\.toml: LoopConfig needs fields batch_size, learning_rate$"):
        config_from_dict(LoopConfig, {"steps": 3}, "run.toml")


def test_processes_that_start_at_different_steps_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines with a folder each, of which only the first process's has the checkpoint."""
    run(tmp_path, loop_settings(stop_at=4))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(loop_module, "together", lambda _process, values: [*values, 0])
    recipe = Regression()
    with pytest.raises(ValueError, match=r"by rank 4, 0; 0 is none.*folder is not shared: put it where"):
        run(tmp_path, loop_settings(), recipe=recipe)
    assert recipe.steps == [] and (tmp_path / "checkpoint.pt").read_bytes() == before


# --- precision ---


class Typed(Regression):
    """Remembers in which types its network computed."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def loss(self, network: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.network[0].register_forward_hook(lambda _module, _inputs, output: self.types.add(output.dtype))
        return super().loss(network, batch, generator)


def test_half_precision_computes_in_halves_and_keeps_whole_weights(tmp_path: Path) -> None:
    halves = run(tmp_path / "halves", loop_settings(precision="bf16"), recipe=(typed := Typed()))
    assert typed.types == {torch.bfloat16}
    assert {value.dtype for value in halves.network.state_dict().values()} == {torch.float32}
    floats = run(tmp_path / "floats", loop_settings())
    for name, value in weights(floats).items():
        assert torch.allclose(weights(halves)[name], value, atol=0.05), name
    assert not torch.equal(weights(halves)["0.weight"], weights(floats)["0.weight"])


@pytest.mark.parametrize("fast", [True, False])
def test_by_default_the_type_is_the_one_that_the_machine_is_fast_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """The network's, and that of Muon's products."""
    monkeypatch.setattr(precision_module, "cpu_has_fast_bf16", lambda: fast)
    products: set[torch.dtype] = set()

    def orthogonal(*arguments: Any, dtype: torch.dtype, **options: Any) -> torch.Tensor:
        products.add(dtype)
        return timm_muon.zeropower_via_newtonschulz(*arguments, dtype=dtype, **options)

    def by_gram(matrices: torch.Tensor, *arguments: Any) -> torch.Tensor:
        products.add(matrices.dtype)
        return orthogonalised_by_gram(matrices, *arguments)

    def unseen(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a matrix was left to timm, which takes bfloat16 everywhere")

    monkeypatch.setattr(muon_module, "zeropower_via_newtonschulz", orthogonal)
    monkeypatch.setattr(muon_module, "orthogonalised_by_gram", by_gram)
    monkeypatch.setattr(timm_muon, "_single_tensor_muon", unseen)
    run(tmp_path, loop_settings(precision="auto"), recipe=(typed := Typed()))
    network = Several()
    for value in network.parameters():
        value.grad = torch.ones_like(value)
    make_optimizer(network, "muon", 1e-2, 0.0, (0.9, 0.99)).step()
    assert typed.types == products == {torch.bfloat16 if fast else torch.float32}


def test_the_scaler_of_fp16_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU accelerate takes no fp16; the scaler, which is torch's, runs there as on a GPU."""
    make = loop_module.make_accelerator

    def scaling(*arguments: Any) -> Any:
        accelerator = make("no", *arguments[1:])
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        return accelerator

    monkeypatch.setattr(loop_module, "make_accelerator", scaling)
    free = {"precision": "fp16", "grad_clip": 1e9}  # accelerate takes the scale out only where it scales
    whole = run(tmp_path / "whole", loop_settings(**free))
    with pytest.raises(Killed):
        run(tmp_path / "parts", loop_settings(**free), kill_at(6))
    kept = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["scaler"]
    assert (kept["scale"], kept["_growth_tracker"]) == (2.0**9, 1), "after four steps"
    parts = run(tmp_path / "parts", loop_settings(**free))
    assert_equal(weights(parts), weights(whole))
    scalers = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")
    ]
    assert scalers[0]["scaler"] == scalers[1]["scaler"]
    assert scalers[0]["scaler"]["scale"] == 2.0**12
