"""``unclip batch``: a picture for each row of a file of captions, on any number of processes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..core.data.painted import PaintedShards
    from ..core.data.process import Process
    from ..core.data.prompts import PromptRow
    from ..core.pipelines.generate import GenerateOptions
    from ..core.stages import Bundle

logger = logging.getLogger(__name__)

NAMED = 5


def batch(
    captions: Annotated[Path, typer.Argument(help="File of captions: txt, csv, jsonl or parquet.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")],
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Bundle, or its folder. Twice where prior and decoder are apart. Default: mini.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first row; the next ones count on.")] = 0,
    prior: Annotated[str, typer.Option(help="diffusion, autoregressive or none.")] = "diffusion",
    upsamplers: Annotated[int, typer.Option(min=0, help="How many of the bundle's upsamplers run.")] = 0,
    group: Annotated[int, typer.Option(min=1, help="Rows that are painted at once.")] = 16,
    per_shard: Annotated[
        int | None,
        typer.Option(min=1, help="Pack the pictures into webdataset shards of so many rows."),
    ] = None,
    caption_field: Annotated[str | None, typer.Option(help="Column of the captions.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "auto",
    cpu: Annotated[bool, typer.Option("--cpu", help="Paint on the CPU even where there is a GPU.")] = False,
) -> None:
    """Paint every row of a file: NNNNNN.png with its caption in NNNNNN.txt, or shards of them.

    Goes on where it was stopped. Columns: text or caption, seed, and how it is sampled, by the options of
    unclip generate (steps, guidance_scale, prior_steps …); where there is none, the bundle's defaults hold. A
    row that fails is reported and does not stop the others. On several GPUs: torchrun --nproc_per_node N
    -m unclip.cli.app batch …, or accelerate launch; every picture is the same, whatever the number of
    processes.
    """
    from ..core.data.painted import PaintedShards
    from ..core.data.process import current_process, device_of, together
    from ..core.data.prompts import groups, read_prompts
    from ..core.formats.load import load_any_bundle
    from ..core.pipelines.generate import default_options, require_stages
    from ..core.precision import choose_dtype
    from .bundles import bundle_folders
    from .console import print_path, warn
    from .extras import needs_train_extra
    from .progress import StageBars

    process = current_process()
    with needs_train_extra():
        rows = read_prompts(captions, seed, caption_field, "--caption-field")
    device = device_of(process, cpu)
    require_columns(captions, rows, prior)
    folders = bundle_folders(bundle or ["mini"])
    loaded = load_any_bundle(*folders, device=device, dtype=choose_dtype(precision, device))
    options = replace(default_options(loaded), prior=prior, upsamplers=upsamplers, batch_size=group)
    settings: dict[str, Any] = {
        "prior": prior,
        "upsamplers": upsamplers,
        "group": group,
        "precision": precision,
    }
    if loaded.defaults.tables:
        settings["defaults"] = loaded.defaults.tables
    require_stages(loaded, options)
    name = " + ".join([loaded.name, *(each.name for each in folders[1:])])
    _require_same(name, output, process, rows, {**settings, "per_shard": per_shard})
    shards = None if per_shard is None else PaintedShards(output, per_shard)
    job = _Job(loaded, options, output, process, shards)
    with StageBars(quiet=process.rank > 0) as bars:
        bar = bars.add("batch", len(rows))
        own = job.paint(groups(rows, group), lambda done: bar(done, len(rows)))
        failed = sorted(together(process, [(row.number, reason) for row, reason in own]))
        if shards is not None:
            shards.pack(process)
            together(process, ())
    if process.rank == 0:
        for column in idle_columns(rows, prior, upsamplers):
            warn(f"the column {column} has no effect: what it sets does not run here")
        for number, reason in failed[:NAMED]:
            warn(f"row {number + 1} ({number:06}.error.txt) was not painted: {reason}")
        if failed:
            warn(f"{len(failed)} rows were not painted; NNNNNN.error.txt say why")
        print_path(output)
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Job:
    """Rows to pictures of one bundle, and where they go."""

    bundle: Bundle
    options: GenerateOptions
    folder: Path
    process: Process
    shards: PaintedShards | None = None

    def paint(
        self, groups: Sequence[list[PromptRow]], on_rows: Callable[[int], None]
    ) -> list[tuple[PromptRow, str]]:
        """Paint this process's groups; returns the rows that failed, and why."""
        failed: list[tuple[PromptRow, str]] = []
        done = 0
        for number, rows in enumerate(groups):
            if number % self.process.world == self.process.rank:
                failed += self._group(rows)
            done += len(rows)
            on_rows(done)
        return failed

    def _group(self, rows: list[PromptRow]) -> list[tuple[PromptRow, str]]:
        if all(self._is_there(row) for row in rows):
            return []
        try:
            self._write(rows)
        except (ValueError, RuntimeError) as error:
            if len(rows) > 1:  # one of them may be at fault: each alone
                return [failure for row in rows for failure in self._group([row])]
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._file(rows[0], ".error.txt").write_text(f"{reason}\n", encoding="utf-8")
            return [(rows[0], reason)]
        return []

    def _is_there(self, row: PromptRow) -> bool:
        return self._file(row).exists() or (self.shards is not None and row.number in self.shards)

    def _write(self, rows: list[PromptRow]) -> None:
        from PIL.PngImagePlugin import PngInfo

        from ..core.data.painted import ABOUT
        from ..core.pictures.files import write_png
        from ..core.pictures.sheet import to_pil
        from ..core.pipelines.generate import generate

        if rows[0].problem:
            raise ValueError(rows[0].problem)
        options = with_columns(self.bundle, self.options, rows[0].options)
        pictures = generate(self.bundle, [row.caption for row in rows], seed=rows[0].seed, options=options)
        for row, picture in zip(rows, to_pil(pictures), strict=True):
            about = {"caption": row.caption, "seed": row.seed, **row.options, "bundle": self.bundle.name}
            text = PngInfo()
            text.add_itxt(ABOUT, json.dumps(about, ensure_ascii=False))
            self._file(row, ".txt").write_text(row.caption, encoding="utf-8")
            write_png(self._file(row), picture, text)
            self._file(row, ".error.txt").unlink(missing_ok=True)

    def _file(self, row: PromptRow, ending: str = ".png") -> Path:
        return self.folder / f"{row.number:06}{ending}"


def with_columns(bundle: Bundle, options: GenerateOptions, columns: Mapping[str, Any]) -> GenerateOptions:
    """The options of a row: what its columns say by the names of ``unclip generate``, and else as all rows'.

    ``prior_`` stands before the settings of the prior that the rows are painted by.

    Raises:
        ValueError: a column that is no setting, or a value that is none of it.
    """
    from ..core.pipelines.generate import default_options, stage_settings
    from ..core.pipelines.options import require_settings

    given: dict[str, dict[str, Any]] = {}
    for column, value in columns.items():
        stage, name = _option(column, options.prior)
        given.setdefault(stage, {})[name] = value
    for stage, own in given.items():
        require_settings(stage_settings(stage), own, "its columns")
    common = {name: getattr(options, name) for name in ("prior", "upsamplers", "batch_size")}
    return replace(default_options(bundle, given, "its columns"), **common)


def require_columns(captions: Path, rows: Sequence[PromptRow], prior: str) -> None:
    """Raise a ValueError if a file has a column that is no option where rows are painted by ``prior``."""
    for column in dict.fromkeys(column for row in rows for column in row.options):
        try:
            _option(column, prior)
        except ValueError as error:
            raise ValueError(f"{captions}: {error}") from None


def idle_columns(rows: Sequence[PromptRow], prior: str, upsamplers: int) -> list[str]:
    """Columns of options for what does not run."""
    idle = {"prior": prior == "none", "upsampler": upsamplers == 0}
    named = dict.fromkeys(column for row in rows for column in row.options)
    return [column for column in named if idle.get(_option(column, prior)[0])]


def _option(column: str, prior: str) -> tuple[str, str]:
    """The stage and the setting that a column names."""
    from ..core.pipelines.generate import stage_settings

    of_prior = "ar_prior" if prior == "autoregressive" else "prior"
    for prefix, stage in (("prior_", of_prior), ("upsampler_", "upsampler"), ("", "decoder")):
        name = column.removeprefix(prefix)
        if column.startswith(prefix) and name in stage_settings(stage):
            return stage, name
    known = column or "without a name"
    raise ValueError(
        f"its column {known} is no option of a row; those are text or caption, seed, and how it is sampled, "
        f"such as steps or prior_steps, of the prior that paints: take the column out"
    )


def _require_same(
    name: str, folder: Path, process: Process, rows: Sequence[PromptRow], settings: dict[str, Any]
) -> None:
    """Refuse a folder of pictures of other rows or settings; one in which none was painted is begun anew."""
    from ..core.data.manifest import require_same
    from ..core.data.process import together

    # Each apart, so that what differs has its name.
    facts = {
        "bundle": name,
        "rows": len(rows),
        "captions": _digest([(row.caption, row.problem) for row in rows]),
        "columns": _digest([row.options for row in rows]),
        "seeds": _seeds([row.seed for row in rows]),
        **settings,
    }
    filled, beside = ("[0-9]*.png", "*.tar"), ("[0-9]*.txt",)
    first = process.rank == 0
    if require_same(folder / "batch.json", facts, "pictures", filled, first, beside=beside):
        for path in folder.glob("[0-9]*.error.txt"):
            path.unlink(missing_ok=True)
    together(process, ())  # nobody paints before all have seen that nothing is painted


def _seeds(seeds: Sequence[int]) -> str:
    """All of them in words: 0 to 6, or the first few and a digest."""
    first, last = seeds[0], seeds[-1]
    if list(seeds) == list(range(first, first + len(seeds))):
        return f"{first} to {last}"
    return f"{', '.join(map(str, seeds[:NAMED]))} … ({_digest(seeds)})"


def _digest(values: Sequence[Any]) -> str:
    said = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
