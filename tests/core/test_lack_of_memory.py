"""Errors that tell of memory that ran out, in words of torch, CUDA's libraries, Python and the system."""

from __future__ import annotations

import pytest
import torch
from unclip.core.memory import is_out_of_memory, lack_of_memory

KILLED = "DataLoader worker (pid 31859) is killed by signal: Killed. "
BUS = "DataLoader worker (pid(s) 1, 2) exited unexpectedly"


ENDED = "a process that reads data was ended from outside, mostly because memory ran out"
TOLD = [
    (MemoryError(), "out of memory (MemoryError)"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory. A.\nB"), "out of memory (CUDA out of memory. A)"),
    (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling x"), "out of memory (CUBLAS_STATUS_ALLOC_FAILED "),
    (RuntimeError(KILLED), f"{ENDED} ({KILLED[:-2]})"),
    (OSError(f"checkpoint.pt: cannot be written ({KILLED}); old is kept"), f"{ENDED} ({KILLED[:-2]})"),
    (RuntimeError(BUS), f"{ENDED} ({BUS})"),
]


@pytest.mark.parametrize(("error", "told"), TOLD)
def test_what_ran_out_is_told(error: Exception, told: str) -> None:
    assert (lack_of_memory(error) or "").startswith(told)
    assert is_out_of_memory(error) == ("worker" not in str(error))


def test_what_torch_says_on_a_cpu_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    found = lack_of_memory(caught.value)
    assert found is not None and len(found) < 240 and "\n" not in found


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("a worker was killed"), KeyError()]
)
def test_other_errors_say_nothing_of_memory(error: Exception) -> None:
    assert lack_of_memory(error) is None and not is_out_of_memory(error)
