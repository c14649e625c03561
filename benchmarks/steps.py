"""Quality against steps: every sampler, spacing and guidance of a decoder, measured and drawn.

    python benchmarks/steps.py models/mini --config models/mini/configs/eval.toml --data SHARDS --out DIR

One line of DIR/rows.jsonl for each row; rows that are there are not made again, so that a run may be ended at
any time and go on later, with other options too. Each row decodes the same image embeddings (those of the
bundle's diffusion prior by its defaults, kept in DIR/embeddings-*.pt) from the noise of its seed.
``--report`` makes nothing new: it writes the table and the plot of the rows that there are.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import Threads, console
from matplotlib.figure import Figure
from torch import Tensor
from unclip import load_bundle
from unclip.core.config import config_from_dict
from unclip.core.data.batches import load_pictograms
from unclip.core.embeddings.space import Embedding, TextFeatures
from unclip.core.evaluation.quality.config import EvaluationConfig
from unclip.core.evaluation.quality.distribution import cmmd, precision_recall, unit
from unclip.core.evaluation.quality.judges import ClipJudge
from unclip.core.evaluation.quality.plot import to_picture
from unclip.core.evaluation.quality.prompts import draw_prompts, render_prompts
from unclip.core.evaluation.quality.retrieval import clip_hits, draw_candidates
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.options import OPTIMAL
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
    return name, float(scale), start, end


def ways(
    samplers: list[str], spacings: list[str], guidances: list[str], steps: list[int], seeds: list[int]
) -> Iterator[Way]:
    for seed, count, guided, spacing, sampler in product(seeds, steps, guidances, spacings, samplers):
        name, scale, start, end = _guidance(guided)
        yield Way(sampler, spacing, name, scale, count, seed, start, end)


def found_for(bundle: Bundle, sampler: str) -> dict[int, tuple[int, ...]]:
    """The timesteps that the bundle has for ``optimal``, by their number."""
    assert bundle.decoder is not None
    return bundle.decoder.diffusion.steps_found(sampler)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in Way.__dataclass_fields__)


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
    file = out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
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
        (out / "real.json").write_text(json.dumps(bench.real))
        done, begin = {key(row) for row in rows}, time.monotonic()
        solutions: dict[tuple[Any, ...], Tensor] = {}
        for way in ways(samplers, spacings, guidances, steps, seeds):
            if key(asdict(way)) in done:
                continue
            if way.spacing == OPTIMAL and way.steps not in found_for(bench.bundle, way.sampler):
                console.print(
                    f"{way.sampler} with {way.steps} steps: unclip steps has found no timesteps for it"
                )
                continue
            if time.monotonic() - begin > 60 * minutes:
                console.print("time is up; run again to go on")
                break
            solution = None
            if exact:
                best = replace(way, sampler="ddim", spacing="default", steps=1000)
                if (of := key(asdict(best))) not in solutions:
                    solutions[of] = _solution(bench, best, exact, out)
                solution = solutions[of]
            rows.append(bench.row(way, solution))
            with file.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            console.print(way, f"CMMD {rows[-1]['cmmd']:.2f}, {rows[-1]['cpu_seconds']:.1f} s")
    (out / "table.md").write_text(table(rows))
    plot(rows).save(out / "steps.webp", quality=90)


def _solution(bench: Bench, best: Way, count: int, out: Path) -> Tensor:
    """The decoder's own, by a thousand steps of ddim, kept in a file."""
    kept = out / f"exact-{best.guidance}-{best.scale:g}-{best.start:g}-{best.end:g}-{best.seed}-{count}.pt"
    if not kept.is_file():
        torch.save(bench.pictures(best, count), kept)
    return torch.load(kept)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, by guidance, sampler and spacing."""
    lines = [
        "| guidance | sampler | spacing | steps | CMMD | R-precision | precision | recall | distance | CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (guidance, sampler, spacing, steps), found in sorted(_grouped(rows).items()):

        def mean(name: str, found: list[dict[str, Any]] = found) -> float:
            values = [row[name] for row in found if row[name] is not None]
            return sum(values) / len(values) if values else math.nan

        spread = max(row["cmmd"] for row in found) - min(row["cmmd"] for row in found)
        noise = f" ± {spread / 2:.2f}" if len(found) > 1 else ""
        distance = f"{mean('distance'):.4f}" if not math.isnan(mean("distance")) else ""
        lines.append(
            f"| {guidance} | {sampler} | {spacing} | {steps} | {mean('cmmd'):.2f}{noise} | "
            f"{100 * mean('r_precision'):.0f}% | {mean('precision'):.2f} | {mean('recall'):.2f} | "
            f"{distance} | {mean('cpu_seconds'):.1f} s |"
        )
    return "\n".join(lines) + "\n"


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str, int], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        guidance = f"{row['guidance']} {row['scale']:g}"
        if (row["start"], row["end"]) != (0, 1):
            guidance += f", {row['start']:g} to {row['end']:g}"
        groups.setdefault((guidance, row["sampler"], row["spacing"], row["steps"]), []).append(row)
    return groups


def plot(rows: list[dict[str, Any]]) -> Any:
    """CMMD against steps, a line for each guidance, sampler and spacing."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for (guidance, sampler, spacing, steps), found in sorted(_grouped(rows).items()):
        value = sum(row["cmmd"] for row in found) / len(found)
        lines.setdefault(f"{sampler}, {spacing}, {guidance}", []).append((steps, value))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="CMMD (less is better)")
    ticks = sorted({row["steps"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    return to_picture(figure)


if __name__ == "__main__":
    typer.run(main)
