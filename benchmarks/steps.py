"""Quality against steps: every sampler, spacing and guidance of a decoder, measured and drawn.

    python benchmarks/steps.py models/mini --config models/mini/configs/eval.toml --data SHARDS --out DIR

One line of DIR/rows.jsonl for each row; rows that are there are not made again, so that a run may be ended at
any time and go on later, with other options too. Each row decodes the same image embeddings (those of the
bundle's diffusion prior by its defaults, kept in DIR/embeddings-*.pt) from the noise of its seed.
``--equal`` then measures plain guidance beside the others, at the scales that give their CLIP score.
DIR/table.md, DIR/steps.webp and DIR/grid.webp (samplers by spacings, for each guidance) show all rows that
there are; ``--report`` makes no new ones.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from common import Threads, console
from equal_scale import SCALES, equal_scale
from steps_grid import heat_map
from steps_points import PLAIN, Guided, points_of
from steps_report import plot, tables
from torch import Tensor
from unclip import load_bundle
from unclip.core.config import config_from_dict
from unclip.core.data.batches import load_pictograms
from unclip.core.embeddings.space import Embedding, TextFeatures
from unclip.core.evaluation.quality.config import EvaluationConfig
from unclip.core.evaluation.quality.distribution import cmmd, precision_recall, unit
from unclip.core.evaluation.quality.judges import ClipJudge
from unclip.core.evaluation.quality.prompts import draw_prompts, render_prompts
from unclip.core.evaluation.quality.retrieval import clip_hits, draw_candidates
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.options import OPTIMAL, require_scale
from unclip.core.pipelines.prior import sample_diffusion_prior
from unclip.core.stages import Bundle
from unclip.core.training.stages import read_toml


@dataclass(frozen=True)
class Way:
    """How a row is decoded; ``guidance`` is a name of ``GUIDANCES`` and ``scale`` its scale."""

    sampler: str
    spacing: str
    guidance: str
    scale: float
    steps: int
    seed: int
    start: float = 0.0
    end: float = 1.0

    def options(self) -> DecodeOptions:
        return DecodeOptions(
            steps=self.steps,
            guidance_scale=self.scale,
            sampler=self.sampler,
            spacing=self.spacing,
            guidance=self.guidance,
            guidance_interval=(1 - self.end, 1 - self.start),
        )


class Bench:
    """The captions of an evaluation, their embeddings, and the pictures that are right."""

    def __init__(self, bundle: Bundle, config: EvaluationConfig, out: Path, batch: int) -> None:
        self.bundle, self.batch, self.judge = bundle, batch, ClipJudge(bundle.clip)
        prompts = draw_prompts(
            load_pictograms(config.data, held_out=False), config.prompts + config.reference, config.seed
        )
        self.captions = [prompt.caption for prompt in prompts[: config.prompts]]
        size = bundle.decoder.picture_size
        self.reference = unit(self.judge.images(render_prompts(prompts[config.prompts :], size)))
        self.spoken = self.judge.captions(self.captions)
        self.candidates = draw_candidates(config.prompts, config.candidates, config.seed)
        self.real = self._measures(render_prompts(prompts[: config.prompts], size))
        self.text = encode_text(bundle.clip, self.captions)
        kept = out / f"embeddings-{config.prompts}.pt"
        if not kept.is_file():
            assert bundle.prior is not None
            torch.save(sample_diffusion_prior(bundle.prior, self.text, seed=0).vectors, kept)
        self.embedding = Embedding(torch.load(kept), bundle.decoder.space)

    def pictures(self, way: Way, count: int | None = None) -> Tensor:
        made = []
        for first in range(0, count or len(self.captions), self.batch):
            rows = slice(first, min(first + self.batch, count or len(self.captions)))
            embedding = replace(self.embedding, vectors=self.embedding.vectors[rows])
            text = _rows_of(self.text, rows)
            seed = 1_000_000 * way.seed + first
            made.append(decode(self.bundle.decoder, embedding, text, seed=seed, options=way.options()))
        return torch.cat(made)

    def row(self, way: Way, exact: Tensor | None) -> dict[str, Any]:
        clock, processor = time.perf_counter(), time.process_time()
        pictures = self.pictures(way)
        spent = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
        distance = None
        if exact is not None:
            distance = (pictures[: len(exact)] - exact).square().mean().sqrt().item()
        return {**asdict(way), **self._measures(pictures), "distance": distance, **spent}

    def _measures(self, pictures: Tensor) -> dict[str, float]:
        embeddings = self.judge.images(pictures)
        similar = precision_recall(self.reference, unit(embeddings))
        return {
            "cmmd": cmmd(self.reference, embeddings),
            "r_precision": clip_hits(embeddings, self.spoken, self.candidates).double().mean().item(),
            "precision": similar.precision,
            "recall": similar.recall,
            "clip_score": torch.cosine_similarity(embeddings, self.spoken).mean().item(),
        }


def _rows_of(text: TextFeatures, rows: slice) -> TextFeatures:
    return replace(text, tokens=text.tokens[rows], mask=text.mask[rows], pooled=text.pooled[rows])


def _guidance(text: str) -> tuple[str, float, float, float]:
    """NAME:SCALE or NAME:SCALE:START:END."""
    name, scale, *interval = text.split(":")
    start, end = (float(each) for each in interval) if interval else (0.0, 1.0)
    require_scale(float(scale), name, f"--guidances {text}")
    return name, float(scale), start, end


def ways(
    samplers: list[str], spacings: list[str], guidances: list[str], steps: list[int], seeds: list[int]
) -> Iterator[Way]:
    for seed, count, guided, spacing, sampler in product(seeds, steps, guidances, spacings, samplers):
        name, scale, start, end = _guidance(guided)
        yield Way(sampler, spacing, name, scale, count, seed, start, end)


def can_run(bundle: Bundle, way: Way) -> bool:
    """Whether the bundle has the timesteps that ``optimal`` takes; the other spacings need none."""
    assert bundle.decoder is not None
    if way.spacing != OPTIMAL or way.steps in bundle.decoder.diffusion.steps_found(way.sampler):
        return True
    console.print(f"{way.sampler} with {way.steps} steps: unclip steps has found no timesteps for it")
    return False


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in Way.__dataclass_fields__)


class TimeIsUpError(Exception):
    """Another row would begin too late."""


class Measuring:
    """Rows as they are asked for: those in the folder, and those that are measured now and put there.

    Args:
        exact: pictures of each row that are compared with the decoder's own solution.
        minutes: from now on, in which rows may begin.
    """

    def __init__(self, bench: Bench, out: Path, exact: int, minutes: float) -> None:
        self.bench, self.out, self.exact = bench, out, exact
        self.deadline = time.monotonic() + 60 * minutes
        self.rows = {key(row): row for row in rows_in(out)}
        self.solutions: dict[tuple[Any, ...], Tensor] = {}

    def row(self, way: Way) -> dict[str, Any]:
        """One of a way.

        Raises:
            TimeIsUpError: it is missing, and the minutes are over.
        """
        if (place := key(asdict(way))) not in self.rows:
            if time.monotonic() > self.deadline:
                raise TimeIsUpError
            row = self.bench.row(way, self._solution(way) if self.exact else None)
            with rows_file(self.out).open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            console.print(way, f"CMMD {row['cmmd']:.3f}, {row['cpu_seconds']:.1f} s")
            self.rows[place] = row
        return self.rows[place]

    def equal(self, way: Way, seeds: list[int]) -> None:
        """Measure plain guidance at the scale that gives the CLIP score of another, both over all seeds."""

        def score(way: Way) -> float:
            return fmean(self.row(replace(way, seed=seed))["clip_score"] for seed in seeds)

        plain = replace(way, guidance=PLAIN, start=0.0, end=1.0)
        scale = equal_scale(score(way), lambda scale: score(replace(plain, scale=scale)))
        guided = Guided(way.guidance, way.scale, way.start, way.end)
        of = f"{guided} in {way.steps} steps of {way.sampler}"
        if scale is None:
            console.print(f"{PLAIN} up to {SCALES[-1]:g} does not reach the CLIP score of {of}")
        else:
            console.print(f"{PLAIN} {scale:g} has the CLIP score of {of}")

    def _solution(self, way: Way) -> Tensor:
        """The decoder's own, by a thousand steps of ddim, kept in a file."""
        best = replace(way, sampler="ddim", spacing="default", steps=1000)
        if (place := key(asdict(best))) not in self.solutions:
            guided = f"{best.guidance}-{best.scale:g}-{best.start:g}-{best.end:g}"
            kept = self.out / f"exact-{guided}-{best.seed}-{self.exact}.pt"
            if not kept.is_file():
                torch.save(self.bench.pictures(best, self.exact), kept)
            self.solutions[place] = torch.load(kept)
        return self.solutions[place]


def rows_file(out: Path) -> Path:
    return out / "rows.jsonl"


def rows_in(out: Path) -> list[dict[str, Any]]:
    """The rows of a folder, none of one that has none."""
    file = rows_file(out)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def main(
    bundle: Annotated[Path, typer.Argument(help="A folder.")],
    config: Annotated[Path, typer.Option(help="Of unclip eval: which pictograms, prompts and candidates.")],
    data: Annotated[Path, typer.Option(help="The shards that unclip data pictograms wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the rows, the table and the plot.")],
    samplers: Annotated[list[str], typer.Option()] = ["ddim", "dpmpp_2m", "unipc"],  # noqa: B006
    spacings: Annotated[
        list[str], typer.Option(help="optimal: where unclip steps has found some; other rows are left out.")
    ] = ["default", "trailing"],  # noqa: B006
    guidances: Annotated[list[str], typer.Option(help="NAME:SCALE or NAME:SCALE:START:END.")] = ["cfg:1.5"],  # noqa: B006
    steps: Annotated[list[int], typer.Option()] = [4, 8, 12, 25],  # noqa: B006
    seeds: Annotated[list[int], typer.Option()] = [0],  # noqa: B006
    prompts: Annotated[int, typer.Option(help="0: those of the config.")] = 0,
    reference: Annotated[int, typer.Option(help="Real pictures; 0: those of the config.")] = 0,
    exact: Annotated[
        int, typer.Option(help="Pictures whose 1000-step solution is compared; 0 for none.")
    ] = 0,
    equal: Annotated[
        bool,
        typer.Option(help="For each other guidance, find the scale of cfg with its CLIP score, and measure."),
    ] = False,
    batch: Annotated[int, typer.Option()] = 20,
    minutes: Annotated[float, typer.Option(help="No row begins later than that.")] = math.inf,
    report: Annotated[
        bool, typer.Option(help="Only write table and plot of the rows that there are.")
    ] = False,
    threads: Threads = 0,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "real.json"
    if not report:
        settings = config_from_dict(EvaluationConfig, read_toml(config), str(config))
        settings = replace(
            settings,
            prompts=prompts or settings.prompts,
            reference=reference or settings.reference,
            candidates=min(settings.candidates, prompts or settings.prompts),
            guidance_scales=type(settings.guidance_scales)(),
            data=replace(settings.data, shards=str(data)),
        )
        bench = Bench(load_bundle(str(bundle)), settings, out, batch)
        console.print("real pictures:", bench.real)
        kept.write_text(json.dumps(bench.real))
        asked = [
            way for way in ways(samplers, spacings, guidances, steps, seeds) if can_run(bench.bundle, way)
        ]
        measuring = Measuring(bench, out, exact, minutes)
        try:
            for way in asked:
                measuring.row(way)
            for way in asked if equal else ():
                if way.seed == seeds[0] and (way.guidance, way.start, way.end) != (PLAIN, 0.0, 1.0):
                    measuring.equal(way, seeds)
        except TimeIsUpError:
            console.print("time is up; run again to go on")
    rows = rows_in(out)
    if not rows:
        console.print(f"no rows in {out}, so there is nothing to report")
        return
    real = json.loads(kept.read_text()) if kept.is_file() else None
    (out / "table.md").write_text(tables(rows, real))
    plot(rows, real).save(out / "steps.webp", quality=90)
    if grid := heat_map(points_of(rows)):
        grid.save(out / "grid.webp", quality=90)


if __name__ == "__main__":
    typer.run(main)
