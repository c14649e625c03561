from __future__ import annotations

import pytest
import torch
from torch import nn
from unclip.core import precision
from unclip.core.precision import PRECISIONS, choose_dtype, double, precision_of


@pytest.fixture
def cpu_flags(monkeypatch):
    """Pretends that the CPU has certain instructions, and PyTorch a oneDNN that multiplies bfloat16."""

    def pretend(*flags: str, checks: tuple[str, ...] = (), onednn: bool = True) -> None:
        monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(precision, "_onednn_has_bf16", lambda: onednn)
        for name in precision._BF16_CPU_CHECKS:
            monkeypatch.setattr(torch.cpu, name, lambda name=name: name in checks, raising=False)
        precision.cpu_has_fast_bf16.cache_clear()

    yield pretend
    precision.cpu_has_fast_bf16.cache_clear()


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_an_explicit_precision_is_taken_as_it_is(device: str) -> None:
    found = [choose_dtype(name, device) for name in ("fp32", "fp16", "bf16")]
    assert found == [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_is_bf16_where_the_cpu_multiplies_it_in_hardware(cpu_flags, flag: str) -> None:
    cpu_flags("fma", flag)
    assert choose_dtype("auto", "cpu") == torch.bfloat16


@pytest.mark.parametrize("check", precision._BF16_CPU_CHECKS)
def test_auto_is_bf16_where_pytorch_says_so_on_systems_that_list_no_flags(cpu_flags, check: str) -> None:
    cpu_flags(checks=(check,))
    assert choose_dtype("auto", "cpu") == torch.bfloat16


def test_auto_is_fp32_where_pytorch_cannot_use_the_hardware(cpu_flags) -> None:
    cpu_flags("bf16", onednn=False)
    assert choose_dtype("auto", "cpu") == torch.float32


def test_older_releases_of_pytorch_have_no_checks(cpu_flags, monkeypatch) -> None:
    cpu_flags("avx512_bf16")
    for name in precision._BF16_CPU_CHECKS:
        monkeypatch.delattr(torch.cpu, name)
    assert choose_dtype("auto", "cpu") == torch.bfloat16


def test_auto_is_fp32_on_other_cpus(cpu_flags) -> None:
    cpu_flags("fma", "avx512f", "avx2")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32


def test_auto_is_fp16_on_cuda_whatever_the_cpu_has(cpu_flags) -> None:
    cpu_flags("avx512_bf16")
    assert choose_dtype("auto", "cuda:1") == torch.float16
    assert choose_dtype("auto", "mps") == torch.float32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nflags\t: x\n", {"fpu", "avx512_bf16"}),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("processor\t: 0\n", set()),
    ],
)
def test_cpu_flags_are_read_from_what_linux_lists(monkeypatch, text: str, expected: set[str]) -> None:
    monkeypatch.setattr(precision.Path, "read_text", lambda *_, **__: text)
    assert precision._cpu_flags() == expected


def test_without_such_a_list_nothing_is_claimed(monkeypatch) -> None:
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(precision.Path, "read_text", missing)
    assert precision._cpu_flags() == frozenset()


def test_an_unknown_precision_is_an_error() -> None:
    with pytest.raises(ValueError, match="precision: found 'fp8', expected one of auto, fp32, fp16, bf16"):
        choose_dtype("fp8", "cpu")


def test_the_precision_of_networks_is_told() -> None:
    assert PRECISIONS == ("auto", "fp32", "fp16", "bf16")
    one, other = nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()
    assert precision_of([one]) == "fp32"
    assert precision_of([other]) == "bf16"
    assert precision_of([other, one]) == "bf16 and fp32"
    assert precision_of([one.double()]) == "float64"
    assert precision_of([]) == ""


def test_float64_is_left_to_the_cpu_where_a_device_has_none() -> None:
    class OnMps:
        """Stands for a tensor there, which can only be brought back."""

        device = torch.device("mps")

        def cpu(self) -> torch.Tensor:
            return torch.ones(2)

    assert double(OnMps()).dtype == torch.float64
    values = torch.ones(2)
    assert double(values).dtype == torch.float64 and double(values).device == values.device
