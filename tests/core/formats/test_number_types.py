"""Which numbers weights may be: real, finite, and of one type that computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.mapping.number_types import FiniteCheck, common_type, computable, is_finite
from unclip.core.formats.native.checkpoints import save_stage
from unclip.core.formats.native.embedding_file import load_embedding, save_embedding

from ...helpers.bundle import tiny_bundle
from ...helpers.dalle2 import dalle2_state
from ...helpers.native import rewrite

QUERY = "net.causal_transformer.layers.1.0.to_q.weight"
OURS = "blocks.1.q.weight"


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


def prior(tmp_path: Path, change=lambda tensor: tensor, key: str = QUERY) -> Path:
    state = {f"net.{name}": value for name, value in dalle2_state().items()}
    state[key] = change(state[key].clone())
    torch.save({"model": state}, tmp_path / "best.pth")
    return tmp_path / "best.pth"


def poisoned(tensor: Tensor, value: float = float("nan")) -> Tensor:
    tensor.flatten()[-1:] = value
    return tensor


REFUSED = {
    "int8": (lambda tensor: torch.ones_like(tensor, dtype=torch.int8), r"holds whole numbers \(int8\)"),
    "uint8": (lambda tensor: torch.ones_like(tensor, dtype=torch.uint8), r"holds whole numbers \(uint8\)"),
    "bool": (lambda tensor: tensor > 0, r"holds whole numbers \(bool\)"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "holds complex numbers"),
    "NaN": (poisoned, "holds NaN or infinite values"),
    "infinite": (lambda tensor: poisoned(tensor, float("-inf")), "holds NaN or infinite values"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, kind: str, dtype) -> None:
    change, message = REFUSED[kind]
    path = prior(tmp_path, change)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {QUERY} ") + message):
        load_any_stage(path, expect="prior", dtype=dtype)


def test_whole_numbers_in_our_own_format_are_named(bundle, tmp_path: Path) -> None:
    path = save_stage(bundle.prior, tmp_path / "prior.safetensors")
    tensors, name = load_file(path), "out.weight"
    header = {"unclip": _metadata(path)}
    save_file({**tensors, name: tensors[name].to(torch.int32)}, path, header)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {name} holds whole numbers (int32)")):
        load_any_stage(path)
    save_file({**tensors, name: poisoned(tensors[name])}, path, header)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {name} holds NaN or infinite values")):
        load_any_stage(path)


def test_a_damaged_part_of_a_joined_tensor_is_named(tmp_path: Path) -> None:
    """Queries, keys and values are one tensor of ours: the message names the file's own."""
    from ...helpers import karlo

    folder = karlo.save_as_published(karlo.tiny_pipeline(), tmp_path / "karlo") / "prior"
    path, key = folder / "diffusion_pytorch_model.safetensors", "transformer_blocks.0.attn1.to_k.weight"
    tensors = load_file(path)
    save_file({**tensors, key: poisoned(tensors[key])}, path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {key} holds NaN")):
        load_any_stage(folder, expect="prior")


def test_weights_beyond_a_type_are_named(tmp_path: Path) -> None:
    path = prior(tmp_path, lambda tensor: poisoned(tensor, 70_000.0))
    assert load_any_stage(path, dtype=torch.bfloat16).network.blocks[1].q.weight.max() == 70_144  # rounded
    with pytest.raises(ValueError, match=r"to_q.weight has values up to 7e\+04, beyond what float16 can hol"):
        load_any_stage(path, dtype=torch.float16)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_computed_with_in_a_type_that_can(tmp_path: Path, stored: torch.dtype) -> None:
    path = prior(tmp_path, lambda tensor: tensor.to(stored))
    kept, full = (load_any_stage(path, dtype=dtype).network for dtype in (None, torch.float32))
    assert {value.dtype for value in (*kept.parameters(), *full.parameters())} == {torch.float32}
    expected = dalle2_state()[QUERY.removeprefix("net.")].to(stored).float()
    assert torch.equal(kept.get_parameter(OURS), expected)
    assert torch.equal(full.get_parameter(OURS), expected)


def test_a_whole_bundle_in_float8_becomes_half(bundle, tmp_path: Path) -> None:
    path = save_stage(bundle.decoder, tmp_path / "d.safetensors")
    content = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}
    save_file(content, path, {"unclip": _metadata(path)})
    network = load_any_stage(path).network
    assert {value.dtype for value in network.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("stored", "becomes"),
    [
        ((torch.float32, torch.bfloat16), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.float16, torch.float8_e4m3fn), torch.float16),
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
    ],
)
def test_mixed_types_become_the_one_that_holds_all(tmp_path: Path, stored: tuple, becomes) -> None:
    state = {f"net.{name}": value.to(stored[0]) for name, value in dalle2_state().items()}
    state[QUERY] = state[QUERY].to(stored[1])
    torch.save(state, tmp_path / "x.pth")
    network = load_any_stage(tmp_path / "x.pth").network
    assert {value.dtype for value in network.parameters()} == {becomes}
    assert torch.equal(network.get_parameter(OURS), state[QUERY].to(becomes))


def test_the_helpers() -> None:
    assert common_type([torch.ones(1, dtype=torch.int64)]) is None
    assert computable(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert is_finite(torch.empty(0))
    assert is_finite(torch.tensor([1], dtype=torch.int64))
    assert not is_finite(torch.tensor([1.0, float("inf")], dtype=torch.float16))
    check = FiniteCheck()
    check.add("a", torch.ones(2), torch.ones(2))
    check.add("meta", torch.ones(2, device="meta"), torch.ones(2, device="meta"))
    check.finish(lambda name: ("x", name))


def test_float64_becomes_float32(tmp_path: Path) -> None:
    """One tensor of it, or all: computing in it takes several times as long and shows nothing."""
    path = prior(tmp_path, torch.Tensor.double)
    whole = load_any_stage(path, expect="prior").network
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}
    path = prior(tmp_path, lambda tensor: poisoned(tensor.double(), 1e300))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {QUERY} ")):
        load_any_stage(path, expect="prior")


# --- statistics and embeddings ---


def test_statistics_that_are_not_finite_are_named(bundle, tmp_path: Path) -> None:
    path = save_stage(bundle.prior, tmp_path / "prior.safetensors")
    dim = bundle.prior.space.dim
    space = {"id": "x", "dim": dim, "mean": [float("nan")] * dim, "std": [1.0] * dim}
    rewrite(path, space=space)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*mean has values that are not finite"):
        load_any_stage(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    path = tmp_path / "e.safetensors"
    save_embedding(Embedding(torch.ones(2, 3), EmbeddingSpace("x", 3)), path)
    vectors = load_embedding(path).vectors
    save_file(
        {"vectors": poisoned(vectors, value)}, path, {"unclip_embedding": _metadata(path, "_embedding")}
    )
    with pytest.raises(ValueError, match=re.escape(f"{path}: vectors holds NaN or infinite values")):
        load_embedding(path)


def _metadata(path: Path, suffix: str = "") -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return opened.metadata()[f"unclip{suffix}"]
