"""Runs on several processes of this machine over gloo, and kills of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import unclip


def environment(**more: str) -> dict[str, str]:
    """For other processes: one thread each, and the package where this one has it."""
    paths = [str(Path(unclip.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**found, **more}


def on_processes(
    count: int, *arguments: object, launcher: str = "torchrun", limit_s: float = 900, code: int = 0
) -> str:
    """``torchrun --nproc_per_node count arguments`` or ``accelerate launch …``; what it says.

    Args:
        code: the exit code with which it has to end.
    """
    ran = subprocess.run(
        _command(count, launcher, arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert ran.returncode == code, ran.stdout[-2000:] + ran.stderr[-6000:]
    return ran.stdout + ran.stderr


def killed_on_processes(
    count: int,
    *arguments: object,
    when: Callable[[], bool],
    launcher: str = "torchrun",
    limit_s: float = 600,
) -> None:
    """Start as ``on_processes`` does and kill all of it, hard, as soon as ``when`` is true."""
    quiet = subprocess.DEVNULL
    run = subprocess.Popen(
        _command(count, launcher, arguments), env=environment(), stdout=quiet, stderr=quiet
    )
    end = time.monotonic() + limit_s
    try:
        while not when():
            assert run.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end, "nothing happened that it could be killed at"
            time.sleep(0.02)
    finally:
        for process in _descendants(run.pid):
            _kill(process)
        run.wait()


def _command(count: int, launcher: str, arguments: tuple[object, ...]) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = {
        "torchrun": ["torch.distributed.run", f"--nproc_per_node={count}", f"--master_port={port}"],
        "accelerate": [
            *("accelerate.commands.launch", "--multi_gpu", f"--num_processes={count}"),
            f"--main_process_port={port}",
        ],
    }[launcher]
    return [sys.executable, "-m", *start, *map(str, arguments)]


def _descendants(process: int) -> list[int]:
    """A process and all that it has started, which may lead sessions of their own."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = [process]
    for each in found:
        found += parents.get(each, ())
    return found


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
