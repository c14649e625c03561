"""Weights in shards over two processes: the losses, checkpoints and files of a run without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp as fsdp
from safetensors.torch import load_file
from unclip.core.training.stages import train_stage

from ...helpers.distributed import on_forks
from ...helpers.regression import loop_settings, run
from ...helpers.stages import changed, read_log, stage_settings, write_config, write_tiny_clip
from ...helpers.training import write_tiny_shards

pytestmark = pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="shards need PyTorch 2.6")

STEPS = 4
STAGES = ("prior", "ar-prior", "decoder", "upsampler")
TOLERANCE = 5e-5  # as of copies in step

TRAIN = """
import os
import sys
from pathlib import Path
from unclip.core.training import loop
from unclip.core.training.stages import train_stage

make_optimizer = loop.make_optimizer

def watched(network, *rest):
    parts = [p.to_local().numel() for p in network.parameters()]
    whole = [p.numel() for p in network.parameters()]
    # To a file of its own: two processes that print may share a line.
    file = Path(sys.argv[2]) / f"held-{os.environ['RANK']}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as said:
        said.write(f"{sum(parts) / sum(whole)}\\n")
    return make_optimizer(network, *rest)

if __name__ == "__main__":
    loop.make_optimizer = watched
    configs, runs, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for name in sys.argv[4:]:
        train_stage(name, configs / f"{name}-fsdp.toml", runs / name, steps=steps)
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    settings = stage_settings(write_tiny_shards(folder / "shards"), write_tiny_clip(folder))
    for stage, each in settings.items():
        short = changed(each, "loop.steps", STEPS)
        if stage == "upsampler":  # two processes, with whole pictures of four crops each
            short = changed(short, "loop.batch_size", 8)
        if stage == "prior":  # and all that goes together with shards
            short = changed(changed(short, "model.layers", 3), "loop.accumulate", 2)
            short = changed(short, "loop.gradient_checkpointing", True)
        write_config(folder / f"{stage}.toml", short)
        write_config(folder / f"{stage}-fsdp.toml", changed(short, "loop.parallel", "fsdp"))
    (folder / "train.py").write_text(TRAIN)
    return folder


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_log(folder / "log.jsonl")]


def test_shards_have_the_losses_and_the_checkpoints_of_whole_weights(configs: Path, tmp_path: Path) -> None:
    for stage in STAGES:
        train_stage(stage, configs / f"{stage}.toml", tmp_path / "one" / stage, cpu=True)
    on_forks(2, configs / "train.py", configs, tmp_path / "two", STEPS, *STAGES)
    for rank in range(2):
        held = [float(line) for line in (tmp_path / "two" / f"held-{rank}.txt").read_text().splitlines()]
        assert len(held) == len(STAGES)
        assert all(0.4 < share < 0.6 for share in held), "a process holds half of the numbers"
    for stage in STAGES:
        one, two = (tmp_path / runs / stage for runs in ("one", "two"))
        assert losses(two) == pytest.approx(losses(one), abs=TOLERANCE), stage
        assert max(losses(one)) - min(losses(one)) > 20 * TOLERANCE
        states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (one, two)]
        assert _shapes(states[0]) == _shapes(states[1]), "whole, as without shards"
        for part in ("network", "ema"):
            assert _apart(states[1][part], states[0][part]) < 1e-4
        assert _apart(states[0]["ema"], states[0]["network"]) > 5e-4, "more than what is tolerated"
        (file,) = [path.name for path in one.glob("*.safetensors")]
        exported = [load_file(folder / file) for folder in (one, two)]
        assert exported[0].keys() == exported[1].keys()


def test_a_run_goes_on_with_shards_and_without(configs: Path, tmp_path: Path) -> None:
    train_stage("prior", configs / "prior.toml", tmp_path / "whole", cpu=True)
    folder = tmp_path / "runs" / "prior"
    train_stage("prior", configs / "prior.toml", folder, steps=1, cpu=True)
    on_forks(2, configs / "train.py", configs, tmp_path / "runs", 3, "prior")
    train_stage("prior", configs / "prior.toml", folder, cpu=True)
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "there is one process only: start several with torchrun"),
        ({"optimizer": "muon"}, 'muon takes whole matrices: set loop.optimizer = "adamw"'),
        ({"precision": "fp16"}, 'goes with loop.precision "bf16" or "no", found "fp16"'),
    ],
)
def test_what_does_not_go_with_shards_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if changes:
        monkeypatch.setattr("unclip.core.training.sharding.dist.is_initialized", lambda: True)
        monkeypatch.setattr("unclip.core.training.loop.make_accelerator", _Alone)
    with pytest.raises(ValueError, match=f'^loop.parallel is "fsdp", .*{message}'):
        run(tmp_path / "run", loop_settings(parallel="fsdp", **changes))
    assert not (tmp_path / "run").exists()


def test_a_stage_with_a_number_that_cannot_be_cut_is_named(configs: Path, tmp_path: Path) -> None:
    arguments = ["-m", "unclip.cli.app", "train", "clip", configs / "clip-fsdp.toml", "-o", tmp_path / "run"]
    with pytest.raises(AssertionError, match=r"clip\.logit_scale of this stage is a single number"):
        on_forks(2, *arguments)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


class _Alone:
    """Of the accelerator, what is looked at before anything runs."""

    def __init__(self, *_: object) -> None:
        self.device, self.is_main_process = torch.device("cpu"), True


def _apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Difference over size of all weights together: Adam makes steps of what is rounding in some of them."""
    both = [(found[name].double(), value.double()) for name, value in expected.items() if name in found]
    difference = sum((one - other).square().sum() for one, other in both)
    return float(difference / sum(other.square().sum() for _, other in both)) ** 0.5


def _shapes(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _shapes(value) for name, value in state.items()}
    return tuple(state.shape) if isinstance(state, torch.Tensor) else type(state)
