"""Records that hold tensors are compared by identity: `==` of tensors is no truth value."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch
from unclip.core.embeddings.space import Embedding, EmbeddingSpace

from ..helpers.sources import ROOT

TENSORS = {"Tensor", "Tensor | None"}


def records(path: Path) -> Iterator[tuple[str, str]]:
    """Name and decorator of the dataclasses of a file that have a tensor among their fields.

    But for those with ``map``: it makes records of the tensors' shapes, and these are compared.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            if any(isinstance(each, ast.FunctionDef) and each.name == "map" for each in node.body):
                continue
            fields = {ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)}
            for decorator in map(ast.unparse, node.decorator_list):
                if decorator.startswith("dataclass") and fields & TENSORS:
                    yield node.name, decorator


def test_no_record_compares_its_tensors() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": decorator
        for path in sorted((ROOT / "core").rglob("*.py"))
        for name, decorator in records(path)
    }
    assert any("Embedding" in name for name in found)
    assert [name for name, decorator in found.items() if "eq=False" not in decorator] == []


def test_an_embedding_is_found_in_a_list() -> None:
    one, other = (Embedding(torch.zeros(2, 3), EmbeddingSpace("a", 3)) for _ in range(2))
    assert other in [one, other] and one != other and len({one, other}) == 2
