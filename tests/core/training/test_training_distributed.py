"""Two processes train as one does: the same batches and noise, the same losses within rounding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from unclip.core.data import process as process_module
from unclip.core.data.draws import StepGenerator, draw_integers, draw_normal, draw_uniform
from unclip.core.data.process import Process, current_process
from unclip.core.training import loop as loop_module
from unclip.core.training.parallel import gather_rows, make_accelerator, mean_over_processes
from unclip.core.training.stages import RECIPES, build_recipe, train_stage

from ...helpers.distributed import on_forks, on_processes
from ...helpers.regression import loop_settings, run
from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip
from ...helpers.training import write_tiny_shards

STEPS = 5
TOLERANCE = 5e-5  # of losses between 0.5 and 7, of which a log keeps five decimals

TRAIN = """
import sys
from pathlib import Path
from unclip.core.training.stages import train_stage

if __name__ == "__main__":
    configs, runs = map(Path, sys.argv[1:3])
    for name in sys.argv[3:]:
        train_stage(name.removesuffix("-parts"), configs / f"{name}.toml", runs / name)
"""

# The command line; each process tells that it left its group when all else is done.
APP = """
import atexit, os, runpy, sys
from pathlib import Path

def at_the_end():  # what was registered first comes last
    import torch.distributed as dist
    threads = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    assert not dist.is_initialized() and not [name for name in threads if "gloo" in name], threads
    Path(sys.argv[-1], "left-" + os.environ["RANK"]).touch()

atexit.register(at_the_end)
runpy.run_module("unclip.cli.app", run_name="__main__")
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stages")
    return stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))


@pytest.fixture(scope="module")
def configs(settings: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    for stage, each in settings.items():
        short = changed(each, "loop.steps", STEPS)
        if stage == "upsampler":  # two processes, with whole pictures of four crops each
            short = changed(short, "loop.batch_size", 8)
        if stage == "clip":  # as configs that name no tracker have it
            short = changed(short, "loop.log_with", ["tensorboard"])
        write_config(folder / f"{stage}.toml", short)
    for stage in ("clip", "decoder"):
        parts = changed(changed(settings[stage], "loop.steps", STEPS), "loop.accumulate", 3)
        write_config(folder / f"{stage}-parts.toml", parts)
    return folder


def losses(folder: Path) -> list[float]:
    rows = read_log(folder / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]


def test_two_processes_have_the_losses_of_one(configs: Path, tmp_path: Path) -> None:
    for stage in RECIPES:
        train_stage(stage, configs / f"{stage}.toml", tmp_path / "one" / stage, cpu=True)
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    others = [*(stage for stage in RECIPES if stage != "clip"), "decoder-parts", "clip-parts"]
    on_forks(2, script, configs, tmp_path / "two", *others)
    app = tmp_path / "app.py"
    app.write_text(APP)
    said = on_processes(2, app, "train", "clip", configs / "clip.toml", "-o", tmp_path / "two" / "clip")
    if sys.platform == "linux":  # where threads can be counted
        assert len(list((tmp_path / "two" / "clip").glob("left-*"))) == 2, said
    assert said.count(str(tmp_path / "two" / "clip")) == 1, "one of the processes speaks"
    for name in (*others, "clip"):
        one, two = losses(tmp_path / "one" / name.removesuffix("-parts")), losses(tmp_path / "two" / name)
        assert two == pytest.approx(one, abs=TOLERANCE), name
        assert max(one) - min(one) > 100 * TOLERANCE, "the losses move by more than what is tolerated"


def test_a_run_goes_on_with_another_number_of_processes(configs: Path, tmp_path: Path) -> None:
    train_stage("prior", configs / "prior.toml", tmp_path / "one", cpu=True)
    train_stage("prior", configs / "prior.toml", tmp_path / "parts", steps=3, cpu=True)
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    (tmp_path / "parts").rename(tmp_path / "prior")
    on_forks(2, script, configs, tmp_path, "prior")
    assert losses(tmp_path / "prior") == pytest.approx(losses(tmp_path / "one"), abs=TOLERANCE)


TOLD = """
import os, signal, sys
from pathlib import Path
from unclip.core.training import loop
from unclip.core.training.stages import train_stage

learning_rate = loop.learning_rate

def at(config, step):
    if step == 2 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    return learning_rate(config, step)

if __name__ == "__main__":
    loop.learning_rate = at
    finished = train_stage("prior", Path(sys.argv[1]), Path(sys.argv[2]))
    Path(sys.argv[2], f"finished-{os.environ['RANK']}").write_text(str(finished))
"""


def test_one_process_that_is_told_to_end_ends_all_at_the_same_step(configs: Path, tmp_path: Path) -> None:
    script = tmp_path / "told.py"
    script.write_text(TOLD)
    on_forks(2, script, configs / "prior.toml", tmp_path / "run")
    assert [(tmp_path / "run" / f"finished-{rank}").read_text() for rank in (0, 1)] == ["False", "False"]
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    train_stage("prior", configs / "prior.toml", tmp_path / "whole", cpu=True)
    train_stage("prior", configs / "prior.toml", tmp_path / "run", cpu=True)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=TOLERANCE)


LAST = """
import atexit, os, sys
from pathlib import Path
import torch.distributed as dist
from unclip.core.data.process import current_process, together

def at_the_end():  # what was registered first comes last
    Path(sys.argv[1], os.environ["RANK"]).write_text(str(dist.is_initialized()))

atexit.register(at_the_end)
together(current_process(), ())
assert dist.is_initialized()
"""


def test_processes_leave_their_group_before_they_end(tmp_path: Path) -> None:
    script = tmp_path / "last.py"
    script.write_text(LAST)
    on_forks(2, script, tmp_path)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["False", "False"]


# --- the numbers of a step ---


def test_the_rows_of_a_batch_have_their_numbers_whoever_draws_them() -> None:
    def draws(total: int, rows: slice) -> list[torch.Tensor]:
        generator = StepGenerator("cpu", total, slice(0)).start(5, rows)
        count = rows.stop - rows.start
        normal = draw_normal((count, 3, 2), generator)
        return [normal, draw_uniform((count,), generator), draw_integers(1000, count, generator)]

    plain = torch.Generator().manual_seed(5)
    whole = [draw_normal((8, 3, 2), plain), draw_uniform((8,), plain), draw_integers(1000, 8, plain)]
    for rows in (slice(0, 8), slice(0, 4), slice(4, 8), slice(5, 6)):
        for own, all_rows in zip(draws(8, rows), whole, strict=True):
            assert torch.equal(own, all_rows[rows])
    with pytest.raises(ValueError, match="3 rows were asked of a generator for 4"):
        draw_normal((3, 2), StepGenerator("cpu", 8, slice(0, 4)))


def test_the_parts_of_a_step_are_one_step(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", loop_settings())
    parts = run(tmp_path / "parts", loop_settings(accumulate=4))
    for name, value in whole.exported[0].items():
        assert torch.allclose(parts.exported[0][name], value, atol=1e-4), name
    assert len(parts.noise) == 4 * len(whole.noise)


def test_a_contrastive_loss_in_parts_is_that_of_all_rows(settings: dict[str, dict[str, Any]]) -> None:
    teacher = {"teacher": settings["prior"]["clip"], "weight": 0.5}
    wide = {**settings["clip"], "model": {**settings["clip"]["model"], "embed_dim": 32}}  # as the teacher
    twins = {"block": 12, "ridge": 0.1}
    further = ({"twins": twins}, {"reconstruction": {"weight": 8.0, "side": 4}})
    clips = (
        settings["clip"],
        {**wide, "consistency": teacher},
        *({**settings["clip"], **f} for f in further),
    )
    for clip in clips:
        recipe = build_recipe("clip", clip, "test.toml")[1]
        batch, parameters = recipe.batch(0), list(recipe.network.parameters())
        whole = recipe.loss(recipe.network, batch, torch.Generator())
        expected = torch.autograd.grad(whole, parameters)
        parts = [tuple(None if each is None else each[i : i + 4] for each in batch) for i in (0, 4, 8)]
        part_loss = recipe.part_losses(recipe.network, parts, torch.device("cpu"))
        losses = torch.stack([part_loss(number) for number in range(3)])
        assert losses.mean().item() == pytest.approx(whole.item(), rel=1e-5)
        found = torch.autograd.grad(losses.mean(), parameters)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        if "twins" in clip:
            continue  # a part has no whole block
        apart = torch.stack([recipe.loss(recipe.network, part, torch.Generator()) for part in parts]).mean()
        assert abs(apart.item() - whole.item()) > 0.1, "of fewer pairs the loss is another one"


def test_parts_that_do_not_come_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^loop\.accumulate is 3, which does not divide the 8 rows"):
        run(tmp_path, loop_settings(accumulate=3))
    assert not list(tmp_path.iterdir())


def test_one_process_gathers_and_averages_nothing() -> None:
    rows = torch.arange(6.0).view(3, 2)
    assert gather_rows(rows) is rows
    assert mean_over_processes(rows) is rows


# --- launching ---


def test_the_place_of_a_process_is_told_by_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert current_process() == Process(0, 1) == process_module.ALONE
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert current_process() == Process(3, 4)
    assert [Process(rank, 4).rows(8) for rank in range(4)] == [slice(2 * r, 2 * r + 2) for r in range(4)]


def test_a_launcher_that_starts_one_process_of_several_is_refused(configs: Path, tmp_path: Path) -> None:
    """``accelerate launch --cpu --num_processes 2`` starts one, and says nothing."""
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    train = ["-m", "unclip.cli.app", "train", "prior", configs / "prior.toml", "-o", tmp_path / "run"]
    said = on_forks(1, *launch, *train, code=1)
    assert "accelerate launch started one process only" in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_what_is_no_data_parallelism_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharded:
        distributed_type = "DistributedType.FSDP"
        num_processes = 1

    monkeypatch.setattr("accelerate.Accelerator", lambda **_: Sharded())
    with pytest.raises(ValueError, match="accelerate was started for FSDP, which is not how training"):
        make_accelerator("no", cpu=True)


def test_a_precision_that_does_not_run_here_is_refused(tmp_path: Path) -> None:
    if loop_module.torch.cuda.is_available():
        pytest.skip("fp16 runs on GPUs")
    with pytest.raises(ValueError, match=r"^loop\.precision is fp16, which does not run here"):
        run(tmp_path, loop_settings(precision="fp16"))
