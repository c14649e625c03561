"""Damaged and odd inputs of every kind: each works, or ends in an error for people that names the place.

A case is a pure function of its kind, the seed and its number. By hand, any number with any seed:

    FUZZ_SEED=mine FUZZ_COUNT=5000 pytest tests/fuzz -k workflows
    FUZZ_ONLY=123 pytest tests/fuzz -k workflows          one case, with its traceback
"""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import pytest

from . import case as case_module
from .case import Case, Maker, fault_of
from .files import write_whole_files
from .kinds_of_files import checkpoint_case, config_case, embedding_case, picture_case
from .kinds_of_graphs import argument_case, node_case, workflow_case

KINDS: dict[str, Maker] = {
    "checkpoints": checkpoint_case,
    "embeddings": embedding_case,
    "pictures": picture_case,
    "configs": config_case,
    "workflows": workflow_case,
    "arguments": argument_case,
    "nodes": node_case,
}
SEED = os.environ.get("FUZZ_SEED", "0")
COUNT = int(os.environ.get("FUZZ_COUNT", "200"))  # of each kind
ONLY = os.environ.get("FUZZ_ONLY")
PARTS = 2  # of each kind, for tests that run side by side
SHOWN = 20  # faults in a message


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write_whole_files(root)
    return root


@pytest.fixture(autouse=True)
def surroundings(whole, monkeypatch):
    monkeypatch.setenv("UNCLIP_MODELS", str(whole / "models"))
    monkeypatch.setenv("COLUMNS", "200")
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_end_well(kind, part, whole, tmp_path) -> None:
    numbers = range(part, COUNT, PARTS) if ONLY is None else [int(ONLY)] * (part == 0)
    faults = []
    for number in numbers:
        scratch = tmp_path / str(number)
        scratch.mkdir()
        case = KINDS[kind](random.Random(f"{kind}/{SEED}/{number}"), whole, scratch)
        if ONLY is not None:
            case.run()
        fault = fault_of(case, scratch)
        if fault is not None:
            faults.append(f"{number}: {case.what}\n    {fault}")
    assert not faults, f"{len(faults)} of {len(numbers)} cases of seed {SEED}:\n" + "\n".join(faults[:SHOWN])


def _raise(error: BaseException) -> None:
    raise error


def _never_end() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (lambda: None, None),
        (lambda: _raise(ValueError("a.png is cut short")), None),
        (lambda: _raise(FileNotFoundError(2, "not there", "b.png")), None),
        (lambda: _raise(ValueError("invalid literal")), "names neither file nor field"),
        (lambda: _raise(KeyError("a.png")), "KeyError in test_fuzz.py"),
        (lambda: _raise(UnicodeDecodeError("utf-8", b"", 0, 1, "a.png")), "UnicodeDecodeError"),
        (lambda: _raise(RecursionError("a.png")), "RecursionError"),
        (_never_end, "still computing"),
    ],
)
def test_a_bad_end_is_told_from_a_good_one(run, fault, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(case_module, "SECONDS", 0.2)
    found = fault_of(Case("a", run, ("a.png",)), tmp_path)
    assert (found is None) == (fault is None) and (fault or "") in (found or "")


def test_what_a_failed_case_leaves_is_a_fault(tmp_path) -> None:
    def run() -> None:
        (tmp_path / ".a.png.1.tmp").touch()
        raise ValueError("a.png is cut short")

    assert "left ['.a.png.1.tmp'] behind" in fault_of(Case("a", run, ("a.png",)), tmp_path)
