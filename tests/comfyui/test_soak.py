"""A long day: hundreds of queued prompts of mixed workflows, and stops at random moments.

Asked for by COMFYUI_SOAK, the most minutes that it may take: both tests end when their share is over, and say
how far they came. COMFYUI_SOAK_PROMPTS (500) and COMFYUI_SOAK_STOPS (50) bound the counts.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .graphs import graph_of
from .server import ComfyServer
from .test_recovery import resident_bytes

MINUTES = float(os.environ.get("COMFYUI_SOAK") or 0)
PROMPTS = int(os.environ.get("COMFYUI_SOAK_PROMPTS", "500"))
STOPS = int(os.environ.get("COMFYUI_SOAK_STOPS", "50"))
SETTLED = 60  # prompts after which caches, heaps and the page's history have their size
WINDOW = 40  # prompts over which the memory is averaged
FLAT = 1.05

pytestmark = [
    pytest.mark.skipif(not MINUTES, reason="COMFYUI_SOAK is not set: minutes for a long run"),
    pytest.mark.skipif(sys.platform != "linux", reason="the size of another process is read from /proc"),
]

MINI = {"UnCLIPLoadBundle": {"bundle": "mini", "precision": "auto"}}
CAPTIONS = ("a flat frog on a white background", "a simple tomato", "a soft fox", "a panda", "")


@pytest.fixture(scope="module")
def info(server):
    return server.get_json("/object_info")


# Each gives inputs by node class, the class whose pictures are saved, and their number. mini, at 64 pixels.
Graph = tuple[dict[str, dict[str, Any]], str, int]


def plain(seed: int) -> dict[str, Any]:
    """A picture of one colour."""
    return {"width": 80, "height": 64, "batch_size": 1, "color": seed % (1 << 24)}


def text_to_image(seed: int, steps: int) -> Graph:
    """Both stages, two pictures of one caption."""
    prior = {"seed": seed, "steps": steps, "batch_size": 2, "candidates": 2}
    decode = {"embedding": ["UnCLIPDiffusionPrior", 0], "text": ["UnCLIPTextEncode", 0]}
    decode |= {"seed": seed, "steps": steps}
    return {"UnCLIPDiffusionPrior": prior, "UnCLIPDecode": decode}, "UnCLIPDecode", 2


def autoregressive(seed: int, steps: int) -> Graph:
    """The other prior, from its own file."""
    nodes = {
        "UnCLIPLoadPrior": {"file": "mini/ar-prior.safetensors", "precision": "auto"},
        "UnCLIPAutoregressivePrior": {"prior": ["UnCLIPLoadPrior", 0], "seed": seed, "candidates": 1},
        "UnCLIPDecode": {"embedding": ["UnCLIPAutoregressivePrior", 0], "seed": seed, "steps": steps},
    }
    return nodes, "UnCLIPDecode", 1


def variation(seed: int, steps: int) -> Graph:
    """A picture encoded and painted again."""
    nodes = {
        "EmptyImage": plain(seed),
        "UnCLIPImageEncode": {"image": ["EmptyImage", 0]},
        "UnCLIPDecode": {"embedding": ["UnCLIPImageEncode", 0], "seed": seed, "steps": steps},
    }
    nodes["UnCLIPDecode"]["batch_size"] = 2
    return nodes, "UnCLIPDecode", 2


def inpainted(seed: int, steps: int) -> Graph:
    """A picture in part painted again."""
    nodes = {
        "EmptyImage": plain(seed),
        "SolidMask": {"value": 1.0, "width": 64, "height": 64},
        "UnCLIPInpaint": {"image": ["EmptyImage", 0], "seed": seed, "steps": steps, "resamples": 1},
    }
    nodes["UnCLIPInpaint"] |= {"embedding": ["UnCLIPTextAsImageEmbedding", 0], "mask": ["SolidMask", 0]}
    return nodes, "UnCLIPInpaint", 1


def inverted(seed: int, steps: int) -> Graph:
    """The noise of a picture, and the picture of that noise."""
    nodes = {
        "EmptyImage": plain(seed),
        "UnCLIPInvert": {"image": ["EmptyImage", 0], "steps": steps},
        "UnCLIPDecode": {"noise": ["UnCLIPInvert", 0], "seed": seed, "steps": steps},
    }
    for node in ("UnCLIPInvert", "UnCLIPDecode"):
        nodes[node]["embedding"] = ["UnCLIPTextAsImageEmbedding", 0]
    return nodes, "UnCLIPDecode", 1


MIXED: tuple[Callable, ...] = (text_to_image, autoregressive, variation, inpainted, inverted)


def prompt_of(info: dict[str, Any], number: int, steps: int) -> tuple[dict[str, Any], int]:
    """The prompt of a number, and how many pictures it saves."""
    nodes, last, pictures = MIXED[number % len(MIXED)](1000 + number, steps)
    given = {
        **MINI,
        "UnCLIPTextEncode": {"text": CAPTIONS[number % len(CAPTIONS)]},
        **nodes,
        "SaveImage": {"images": [last, 0], "filename_prefix": f"soak/{number:04d}"},
    }
    return graph_of(info, "SaveImage", given), pictures


def saved(server: ComfyServer, number: int) -> list[Path]:
    """The whole pictures of a prompt."""
    files = sorted((server.log.parent / "output" / "soak").glob(f"{number:04d}_*.png"))
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            assert picture.size == (64, 64), file
    return files


def test_hundreds_of_mixed_prompts_leave_the_memory_flat(server, info, capsys):
    deadline = time.monotonic() + 60 * MINUTES * 0.6
    expected: dict[int, int] = {}
    sizes: list[int] = []
    began = time.monotonic()

    def prompts() -> Iterator[dict[str, Any]]:
        for number in range(PROMPTS):
            if time.monotonic() > deadline:
                return
            prompt, expected[number] = prompt_of(info, number, steps=2)
            yield prompt

    server.run_many(prompts(), lambda: sizes.append(resident_bytes(server.process.pid)))
    missing = [number for number, count in expected.items() if len(saved(server, number)) != count]
    assert len(sizes) > SETTLED + WINDOW, f"only {len(sizes)} prompts in {MINUTES} minutes; give it more"
    early, late = (statistics.mean(part) for part in (sizes[SETTLED : SETTLED + WINDOW], sizes[-WINDOW:]))
    figures = (
        f"{early / 2**20:.1f} MiB after {SETTLED}, {late / 2**20:.1f} at the end ({late / early - 1:+.2%})"
    )
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{len(sizes)} prompts in {time.monotonic() - began:.0f} s: {figures}, at most "
            f"{max(sizes) / 2**20:.1f}; {sum(expected.values())} pictures, missing of prompts {missing}"
        )
    assert not missing
    assert late < FLAT * early and max(sizes[SETTLED:]) < FLAT * early, sizes[::20]


def test_stops_at_random_moments_leave_the_next_prompt_working(server, info, capsys):
    rng = random.Random(0)
    deadline = time.monotonic() + 60 * MINUTES * 0.4
    prompt, _ = prompt_of(info, 9000, steps=2)
    server.run(prompt)  # loads what is not loaded yet
    began = time.monotonic()
    prompt, _ = prompt_of(info, 9005, steps=30)
    assert server.run(prompt).kinds[-1] == "execution_success"
    usual = time.monotonic() - began
    ended = {"execution_success": 0, "execution_interrupted": 0}
    done = 0
    while done < STOPS and time.monotonic() < deadline:
        prompt, _ = prompt_of(info, 9010 + done, steps=30)
        stop_at = time.monotonic() + rng.uniform(0, usual)
        asked: list[float] = []

        def stop(run, server, stop_at=stop_at, asked=asked):
            if not asked and time.monotonic() >= stop_at:
                server.post("/interrupt", {})
                asked.append(time.monotonic())

        ended[server.run(prompt, stop).kinds[-1]] += 1
        number = 9500 + done
        following, pictures = prompt_of(info, number, steps=1)
        run = server.run(following)
        assert run.kinds[-1] == "execution_success", run.of("execution_error")
        assert len(saved(server, number)) == pictures
        done += 1
    with capsys.disabled():
        print(f"\n{done} stops: {ended}; every next prompt saved its pictures")  # noqa: T201
    assert done == STOPS or time.monotonic() >= deadline
    assert done < 10 or ended["execution_interrupted"] > done / 3, ended  # a few may all come too late
