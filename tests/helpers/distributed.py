"""Runs on several processes of this machine over gloo, and kills of them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import unclip


def environment(**more: str) -> dict[str, str]:
    """For other processes: one thread each, and the package where this one has it."""
    paths = [str(Path(unclip.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**found, **more}


def on_processes(count: int, *arguments: object, launcher: str = "torchrun", code: int = 0) -> str:
    """``torchrun --nproc_per_node count arguments`` or ``accelerate launch …``; what it says.

    Args:
        code: the exit code with which it has to end.
    """
    return on_forks(1, *_command(count, launcher, arguments), code=code)


def on_forks(count: int, *arguments: object, code: int = 0) -> str:
    """``on_processes`` without a launcher: forks, which need not import torch and so begin at once.

    One process is told nothing of others: it may be a launcher, or any program.
    """
    run = _Forks(count, arguments)
    codes = run.codes()
    assert max(codes, key=abs) == code, run.said()[-8000:]
    return run.said()


def killed_on_forks(
    count: int, *arguments: object, when: Callable[[str], bool], limit_s: float = 600
) -> None:
    """Start as ``on_forks`` does and kill all of it, hard, once ``when`` is true of what it has said."""
    run = _Forks(count, arguments)
    end = time.monotonic() + limit_s
    try:
        while not when(run.said()):
            assert not run.ended(), "it ended before it could be killed: " + run.said()[-6000:]
            assert time.monotonic() < end, "nothing happened that it could be killed at"
            time.sleep(0.005)
    finally:
        run.kill()
        codes = run.codes()
    assert codes == [-signal.SIGKILL] * count, run.said()[-6000:]


class _Forks:
    """Processes of the program of ``forking.py``, which this process starts when it first needs it."""

    def __init__(self, count: int, arguments: tuple[object, ...]) -> None:
        descriptor, said = tempfile.mkstemp(prefix="unclip-forks-")
        os.close(descriptor)
        self._said = Path(said)
        environments = [environment()]
        if count > 1:
            sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            common = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), **sizes)
            environments = [{**common, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]
        run = {"arguments": list(map(str, arguments)), "said": said, "folder": str(Path.cwd())}
        self._server = _fork_server()
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({**run, "environments": environments}) + "\n")
        self._server.stdin.flush()
        self.processes = self._answer()

    def _answer(self) -> list[int]:
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())

    def said(self) -> str:
        return self._said.read_text(encoding="utf-8", errors="replace")

    def ended(self, within_s: float = 0) -> bool:
        return bool(select.select([self._server.stdout], [], [], within_s)[0])

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def codes(self) -> list[int]:
        """The exit codes, once all processes have ended; of a kill after a quarter of an hour."""
        if not self.ended(900):
            self.kill()
        return self._answer()


@functools.cache
def _fork_server() -> subprocess.Popen[str]:
    program = [sys.executable, str(Path(__file__).with_name("forking.py"))]
    server = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.close()  # no more lines
    server.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _command(count: int, launcher: str, arguments: tuple[object, ...]) -> list[str]:
    port = _free_port()
    start = {
        "torchrun": ["torch.distributed.run", f"--nproc_per_node={count}", f"--master_port={port}"],
        "accelerate": [
            *("accelerate.commands.launch", "--multi_gpu", f"--num_processes={count}"),
            f"--main_process_port={port}",
        ],
    }[launcher]
    return ["-m", *start, *map(str, arguments)]
