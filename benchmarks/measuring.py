"""A layout loaded and run as the nodes do it, in a process of its own: seconds, and memory.

python benchmarks/measuring.py FOLDER TYPE STEPS PLAN     prints one line of JSON; real_size.py calls it
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from unclip.core.diffusion.samplers import SamplerStep, StepCallback
from unclip.core.embeddings.space import Embedding, TextFeatures
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.memory import memory_of
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.stages import DecoderStage, UpsamplerStage

PROMPT = "a red fox in the snow, looking back over its shoulder"
SEED = 0
GIB = 2**30
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Plan:
    """What is run, see `published.Layout`."""

    files: Mapping[str, str]
    steps: int
    guidance: float
    decoder_steps: int
    decoder_guidance: float
    inpaints: bool
    size: int
    upsampler_steps: int


@dataclass
class Run:
    """What a stage took: seconds on the clock and of the processor, of all that was run and of each step.

    ``of`` is the number of steps that its authors take; ``after`` the seconds behind the last step, an
    autoencoder's.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    steps: list[float] = field(default_factory=list)
    cpu_steps: list[float] = field(default_factory=list)
    of: int = 0
    after: float = 0.0

    @property
    def step(self) -> float:
        return _typical(self.steps)

    @property
    def cpu_step(self) -> float:
        return _typical(self.cpu_steps)

    @property
    def whole(self) -> float:
        """Seconds of that many steps, also where fewer were run."""
        return self.seconds + (self.of - len(self.steps)) * self.step


def _typical(steps: list[float]) -> float:
    return median(steps[1:] or steps) if steps else 0.0  # the first prepares kernels


@dataclass
class Report:
    """What was measured of a layout. Sizes in GiB.

    Attributes:
        parameters: of each stage.
        weights: of all stages in memory.
        before: memory of the process before anything was loaded.
        load, load_cpu: seconds on the clock and of the processor.
        load_peak, load_own: the largest memory while loading; ``own`` without the part of it that is mapped
            from files, which the system takes back when it needs memory.
        peak, own: the same of everything.
        runs: by stage.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    weights: float = 0.0
    before: float = 0.0
    load: float = 0.0
    load_cpu: float = 0.0
    load_peak: float = 0.0
    load_own: float = 0.0
    peak: float = 0.0
    own: float = 0.0
    runs: dict[str, Run] = field(default_factory=dict)


class Memory:
    """Watches the memory of this process, in GiB."""

    def __init__(self) -> None:
        self.own = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def peak(self) -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB

    @staticmethod
    def now(name: str = "VmRSS") -> float:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(
            int(line.split()[1]) * 1024 / GIB for line in status.splitlines() if line.startswith(name)
        )

    def _watch(self) -> None:
        while True:
            self.own = max(self.own, self.now("RssAnon"))
            time.sleep(0.02)


class Clock:
    """Times stages."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    @contextmanager
    def stage(self, name: str, of: int = 0) -> Iterator[StepCallback]:
        """Gives the callback for the stage's sampler; ``of`` steps are what its authors take."""
        run = self.runs[name] = Run(of=of)
        start, cpu_start = last, cpu_last = time.perf_counter(), time.process_time()

        def callback(step: SamplerStep) -> None:
            nonlocal last, cpu_last
            now, cpu_now = time.perf_counter(), time.process_time()
            run.steps.append(now - last)
            run.cpu_steps.append(cpu_now - cpu_last)
            last, cpu_last = now, cpu_now

        yield callback
        run.seconds, run.cpu = time.perf_counter() - start, time.process_time() - cpu_start
        run.after = time.perf_counter() - last if run.steps else 0.0
        each = f", {len(run.steps)} of {run.of} steps, each {run.step:.2f} / {run.cpu_step:.2f} s"
        say(f"{name}: {run.seconds:.1f} / {run.cpu:.1f} s{each if run.steps else ''}")


def measured(folder: Path, dtype: torch.dtype, steps: int, plan: Plan) -> Report:
    """Load everything, then go from a caption (or a picture) as far as there are stages.

    Args:
        steps: of each U-Net; 0 for those that its authors take.
    """
    memory, report, clock = Memory(), Report(), Clock()
    report.before = memory.now()
    start, cpu_start = time.perf_counter(), time.process_time()
    stages = load(folder, dtype, plan)
    report.load, report.load_cpu = time.perf_counter() - start, time.process_time() - cpu_start
    report.load_peak, report.load_own = memory.peak, memory.own
    memories = f"{report.load_own:.1f} + {report.load_peak - report.load_own:.1f} GiB"
    say(f"load: {report.load:.1f} / {report.load_cpu:.1f} s, {memories}")
    for name, stage in stages.items():
        report.parameters[name] = sum(value.numel() for value in stage.network.parameters())
        report.weights += memory_of(stage) / GIB
    run(stages, clock, steps, plan)
    report.runs = clock.runs
    report.peak, report.own = memory.peak, memory.own
    return report


def load(folder: Path, dtype: torch.dtype, plan: Plan) -> dict:
    if plan.files:
        return {
            name: load_any_stage(folder / file, expect=name.rpartition("_")[2], dtype=dtype)
            for name, file in plan.files.items()
        }
    bundle = load_any_bundle(folder, dtype=dtype)
    found = {"clip": bundle.clip, "prior": bundle.prior, "decoder": bundle.decoder}
    found["decoder_text"] = bundle.decoder_text
    found["upsampler"] = next(iter(bundle.upsamplers), None)
    return {name: stage for name, stage in found.items() if stage is not None}


def run(stages: dict, clock: Clock, steps: int, plan: Plan) -> None:
    """Raises ValueError for a result that is not finite, as the samplers do."""
    generator = torch.Generator().manual_seed(SEED)
    picture, mask = torch.rand(1, 3, 256, 256, generator=generator), torch.zeros(1, 1, 256, 256)
    mask[..., 64:192, 64:192] = 1
    embedding = text = None
    if "clip" in stages or "decoder_text" in stages:
        with clock.stage("caption"):
            text = encode_text(stages.get("clip") or stages["decoder_text"], [PROMPT])
    if "prior" in stages:
        options = PriorOptions(plan.steps, plan.guidance, candidates=1)
        for name in ("prior, first call", "prior"):  # the first one packs the weights
            with clock.stage(name):
                embedding = sample_diffusion_prior(stages["prior"], text, seed=SEED, options=options)
    if "decoder" not in stages:
        return
    decoder: DecoderStage = stages["decoder"]
    if embedding is None and decoder.network.config.conditioning.clip_dim is not None and "clip" in stages:
        with clock.stage("picture"):
            embedding = encode_images(stages["clip"], picture)
    with clock.stage("decoder", plan.decoder_steps) as callback:
        count = steps or plan.decoder_steps
        small = decoded(decoder, embedding, text, (picture, mask), count, plan, callback)
    if "upsampler" not in stages:
        return
    if "upsampler_clip" in stages:
        text = encode_text(stages["upsampler_clip"], [PROMPT])
    known = {"known_image": picture, "mask": mask} if plan.inpaints else {}
    upsampler: UpsamplerStage = stages["upsampler"]
    of = len(upsampler.timesteps) if upsampler.timesteps else plan.upsampler_steps
    if steps:
        upsampler = replace(upsampler, timesteps=None)
    sampler = "ddim" if embedding is None and not plan.inpaints else "ddpm"
    options = UpsampleOptions(steps or of, sampler)
    with clock.stage("upsampler", of) as callback:
        upsample(upsampler, small, text, seed=SEED, options=options, callback=callback, **known)


def decoded(
    decoder: DecoderStage,
    embedding: Embedding | None,
    text: TextFeatures | None,
    known: tuple[Tensor, Tensor],
    steps: int,
    plan: Plan,
    callback: StepCallback,
) -> Tensor:
    size, given = {"width": plan.size, "height": plan.size}, {}
    if decoder.autoencoder is not None:  # loaded without its prior and CLIP model
        vectors = torch.randn(2, decoder.space.dim, generator=torch.Generator().manual_seed(SEED)).split(1)
        embedding, given["negative_embedding"] = (Embedding(each, decoder.space) for each in vectors)
        given["hint"] = known[0] if decoder.network.config.conditioning.hint_channels else None
    given |= {"seed": SEED, "callback": callback}
    if plan.inpaints:
        options = InpaintOptions(steps, plan.decoder_guidance, **size)
        return inpaint(decoder, *known, embedding, text, options=options, **given)
    options = DecodeOptions(steps, plan.decoder_guidance, sampler="ddpm", **size)
    return decode(decoder, embedding, text, options=options, **given)


def say(text: str) -> None:
    """Progress, beside the report."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


def main(folder: str, dtype: str, steps: str, plan: str) -> None:
    report = measured(Path(folder), TYPES[dtype], int(steps), Plan(**json.loads(plan)))
    sys.stdout.write(json.dumps(asdict(report)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
