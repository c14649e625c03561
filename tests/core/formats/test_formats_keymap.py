"""The mapping of names: every tensor has one place, every place one tensor, and errors say which has not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from unclip.core.formats.files.weight_source import WeightSource, source_of_tensors
from unclip.core.formats.mapping.keymap import Rule, concatenated, count_layers, load_network, shape_of

RULES = [
    Rule("layers.{n}.first", "{n}.0"),
    Rule(("layers.{n}.q", "layers.{n}.k"), "{n}.1", concatenated),
    Rule("constant", None),
]


def build() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6)) for _ in range(2)))


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"first": (4, 3), "q": (4, 4), "k": (2, 4)}
    found = {}
    for n in range(2):
        for name, shape in shapes.items():
            found[f"layers.{n}.{name}.weight"] = torch.randn(shape, generator=generator)
            found[f"layers.{n}.{name}.bias"] = torch.randn(shape[:1], generator=generator)
    return found


def source(change=None) -> WeightSource:
    found = tensors()
    if change is not None:
        change(found)
    return source_of_tensors(Path("file.ckpt"), found)


def test_layers_are_renamed_and_joined() -> None:
    found, given = load_network(build, source(), RULES), tensors()
    assert torch.equal(found[1][0].weight, given["layers.1.first.weight"])
    assert torch.equal(found[0][1].bias, torch.cat([given["layers.0.q.bias"], given["layers.0.k.bias"]]))
    assert found[1][0].weight.data_ptr() != 0
    assert not any(parameter.requires_grad for parameter in found.parameters())
    half = load_network(build, source(), RULES, dtype=torch.float16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_the_order_in_the_file_does_not_matter() -> None:
    given = dict(reversed(tensors().items()))
    found = load_network(build, source_of_tensors(Path("x"), given), RULES)
    expected = load_network(build, source(), RULES)
    assert all(torch.equal(found.state_dict()[k], v) for k, v in expected.state_dict().items())


def test_what_has_no_use_is_passed_over() -> None:
    load_network(build, source(lambda found: found.update(constant=torch.zeros(9))), RULES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.1.first.bias"), "lacks layers.1.first.bias; found 11 tensors"),
        (lambda t: t.pop("layers.0.k.weight"), "lacks layers.0.k.weight; found 11 tensors"),
        (lambda t: t.pop("layers.0.q.weight"), "lacks layers.0.q.weight; found 11 tensors"),
        (
            lambda t: [t.pop(k) for k in list(t) if ".1." in k],
            "lacks layers.1.first.weight, layers.1.first.bias,",
        ),
        (lambda t: t.update(other=torch.zeros(1)), "holds other, for which its layout has no place"),
        (
            lambda t: t.update({"layers.2.first.weight": torch.zeros(4, 3)}),
            "holds layers.2.first.weight, for which its layout has no place",
        ),
        (
            lambda t: t.update({"layers.0.first.weight": torch.zeros(4, 5)}),
            "found the shape layers.0.first.weight [4, 5], expected [4, 3]",
        ),
        (
            lambda t: t.update({"layers.0.k.bias": torch.zeros(3)}),
            "found the shape layers.0.q.bias [4] and layers.0.k.bias [3], which makes [7], expected [6]",
        ),
        (
            lambda t: t.update({"layers.0.k.weight": torch.zeros(2, 5)}),
            "found the shape layers.0.q.weight [4, 4] and layers.0.k.weight [2, 5], expected [6, 4]",
        ),
    ],
)
def test_every_key_and_shape_is_checked(change, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"file.ckpt: {message}")):
        load_network(build, source(change), RULES)


def test_rules_that_contradict_each_other_are_an_error_of_the_program() -> None:
    with pytest.raises(RuntimeError, match="two rules move 'a'"):
        load_network(build, source(), [Rule("a", "x"), Rule("a", "y")])


def test_layers_are_counted_without_gaps() -> None:
    assert count_layers(source(), "layers.{n}.q") == 2
    assert count_layers(source(), "blocks.{n}.q") == 0
    gap = source_of_tensors(Path("f"), {"a.0.w": torch.zeros(1), "a.2.w": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"f: lacks a.1.w, though later ones are there"):
        count_layers(gap, "a.{n}.w")


def test_a_number_of_any_length_is_only_a_gap() -> None:
    """Counted up to, such a number would take all memory and time."""
    far = source_of_tensors(Path("f"), {"a.0.w": torch.zeros(1), f"a.{'9' * 5000}.w": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"f: lacks a.1.w, though later ones are there"):
        count_layers(far, "a.{n}.w")


def test_what_tells_the_shape_must_be_there() -> None:
    assert shape_of(source(), "layers.0.q.weight", 2) == (4, 4)
    with pytest.raises(ValueError, match="lacks x; found 12 tensors"):
        shape_of(source(), "x", 2)
    with pytest.raises(ValueError, match=r"layers.0.q.bias has shape \[4\], expected 2 dimensions"):
        shape_of(source(), "layers.0.q.bias", 2)
