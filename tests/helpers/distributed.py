"""Runs on several processes of this machine, by torchrun over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import unclip


def environment(**more: str) -> dict[str, str]:
    """For other processes: one thread each, and the package where this one has it."""
    paths = [str(Path(unclip.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**found, **more}


def on_processes(count: int, *arguments: object, limit_s: float = 240) -> str:
    """``torchrun --nproc_per_node count arguments``; what it says, once it has ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", f"--master_port={port}"]
    command = [sys.executable, *launcher, *map(str, arguments)]
    ran = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    return ran.stdout + ran.stderr
