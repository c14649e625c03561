"""After a stop or a failure in any stage the server goes on; after many prompts it has not grown."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from .graphs import STAGES, all_stages
from .prompts import text_to_image

STEPS = 8
MIDDLE = 20  # layer calls into a stage: some network evaluations of the tiny bundle, not the last
MANY, SETTLED = 50, 10
GROWTH = 24 * 2**20  # bytes between prompt 10 and prompt 50; one bundle is 2 MB, one picture 3 kB


@pytest.fixture(scope="module")
def info(server):
    return server.get_json("/object_info")


@pytest.fixture(scope="module")
def reference(server, info):
    """The pictures of the chain of all stages."""
    run = server.run(all_stages(info, seed=1, steps=STEPS))
    assert run.kinds[-1] == "execution_success", run.of("execution_error")
    return server.pictures(run)


@pytest.fixture(autouse=True)
def nothing_cached(server, reference):
    """A prompt that shares no node with the others: the server keeps the results of the last one only."""
    assert server.run(text_to_image(bundle="small", text="else", steps=1)).kinds[-1] == "execution_success"


@pytest.mark.parametrize("node", STAGES)
def test_a_stop_in_a_stage_takes_effect_within_the_step(server, info, reference, node):
    prompt = all_stages(info, seed=1, steps=STEPS)
    server.post("/faults", {"node": node, "call": MIDDLE, "kind": "stop"})
    stopped = server.run(prompt)
    assert stopped.kinds[-1] == "execution_interrupted"
    assert stopped.of("execution_interrupted")[0]["node_id"] == node
    done, total = stopped.progress(node)[-1]
    assert done < total and "progress" not in stopped.kinds[stopped.kinds.index("fault") :]
    after = server.run(prompt)
    assert after.kinds[-1] == "execution_success", after.of("execution_error")
    assert_same(server.pictures(after), reference)


@pytest.mark.parametrize("node", ["UnCLIPTextEncode", *STAGES])
def test_a_stage_that_runs_out_of_memory_leaves_the_next_prompt_working(server, info, reference, node):
    prompt = all_stages(info, seed=1, steps=STEPS)
    call = 3 if node == "UnCLIPTextEncode" else MIDDLE
    server.post("/faults", {"node": node, "call": call, "kind": "memory"})
    failed = server.run(prompt)
    (error,) = failed.of("execution_error")
    assert (error["node_id"], error["exception_type"]) == (node, "torch.OutOfMemoryError")
    assert "a fault that the tests asked for" in error["exception_message"]
    again = server.run(prompt)
    assert again.kinds[-1] == "execution_success", again.of("execution_error")
    assert node not in again.of("execution_cached")[0]["nodes"]
    assert_same(server.pictures(again), reference)


@pytest.mark.skipif(sys.platform != "linux", reason="the size of another process is read from /proc")
def test_many_prompts_leave_the_memory_flat(server):
    sizes: list[int] = []
    prompts = (text_to_image(seed=1000 + seed, text=f"fox number {seed}") for seed in range(MANY))
    server.run_many(prompts, lambda: sizes.append(resident_bytes(server.process.pid)))
    growth = sizes[-1] - sizes[SETTLED - 1]
    assert growth < GROWTH, f"{growth / 2**20:.1f} MiB in {MANY - SETTLED} prompts: {sizes}"


def assert_same(pictures: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(pictures) == len(expected) == 2
    assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
