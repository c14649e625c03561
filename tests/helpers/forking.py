"""A program that imports what is heavy once and forks: processes that train or paint start without delay.

It reads a line of JSON per run, with ``arguments``, ``environments``, ``folder`` and ``said``. It answers
with the ids of the processes, one per environment, and, when all have ended, their exit codes, ``-9`` for a
kill. As under torchrun, one that fails ends the others. What they say goes to the file ``said``.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

PRELOADED = (
    *("accelerate", "resvg_py", "torch._dynamo", "torch.distributed.fsdp", "torchvision", "webdataset"),
    *("unclip.core.training.embedding", "unclip.core.training.stages", "unclip.nodes"),
)


def serve() -> tuple[dict[str, Any], dict[str, str]] | None:
    """Answer until the lines end. A forked process returns: the run, and the environment of its own."""
    for line in sys.stdin:
        run = json.loads(line)
        processes = []
        for environment in run["environments"]:
            process = os.fork()
            if not process:
                return run, environment
            processes.append(process)
        _answer(processes)
        _answer(_codes(processes))
    return None


def _answer(value: list[int]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _codes(processes: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(processes):
        process, status = os.wait()
        codes[process] = os.waitstatus_to_exitcode(status)
        if codes[process]:
            for other in set(processes) - codes.keys():
                os.kill(other, signal.SIGTERM)
    return [codes[process] for process in processes]


def become(run: dict[str, Any], environment: dict[str, str]) -> None:
    """Run a script, or a module after ``-m``, as Python itself would with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    with Path(run["said"]).open("ab") as said, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.chdir(run["folder"])
    first, *rest = run["arguments"]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    if (taken := serve()) is not None:
        become(*taken)
