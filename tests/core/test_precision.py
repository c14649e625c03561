from __future__ import annotations

import pytest
import torch
from unclip.core import precision
from unclip.core.precision import resolve_dtype


@pytest.fixture
def cpu_flags(monkeypatch):
    """Pretends that the CPU has certain instructions."""

    def pretend(*flags: str) -> None:
        monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags))
        precision.cpu_has_fast_bf16.cache_clear()

    yield pretend
    precision.cpu_has_fast_bf16.cache_clear()


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_an_explicit_precision_is_taken_as_it_is(device: str) -> None:
    found = [resolve_dtype(name, device) for name in ("fp32", "fp16", "bf16")]
    assert found == [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_is_bf16_where_the_cpu_multiplies_it_in_hardware(cpu_flags, flag: str) -> None:
    cpu_flags("fma", flag)
    assert resolve_dtype("auto", "cpu") == torch.bfloat16


def test_auto_is_fp32_on_other_cpus(cpu_flags) -> None:
    cpu_flags("fma", "avx512f", "avx2")
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32


def test_auto_is_fp16_on_cuda_whatever_the_cpu_has(cpu_flags) -> None:
    cpu_flags("avx512_bf16")
    assert resolve_dtype("auto", "cuda:1") == torch.float16
    assert resolve_dtype("auto", "mps") == torch.float32


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
    with pytest.raises(
        ValueError, match="precision 'fp8' is not known; choose one of auto, fp32, fp16, bf16"
    ):
        resolve_dtype("fp8", "cpu")
