"""What DALLE2-pytorch's trainers save, whole: the prior is found in it, parts of decoders are refused.

Their `trainer.py` and `trackers.py`: beside the weights lie averaged ones, optimizers, and objects.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from unclip.core.formats.files import torch_pickle
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.load import load_any_stage

from ...helpers.dalle2 import dalle2_state

FLAT = "net.causal_transformer.layers.0.1.5.weight"


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"net.{name}": value for name, value in state.items()}


def warmup_of(optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch) -> object:
    """An object as `pytorch_warmup.LinearWarmup` is, of a class that is gone when the file is read."""
    module = ModuleType("pytorch_warmup.base")
    module.LinearWarmup = type("LinearWarmup", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, "pytorch_warmup", ModuleType("pytorch_warmup"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = module.LinearWarmup()
    found.optimizer, found.lrs, found.last_step = optimizer, [1e-4], 7
    found.warmup_params = [{"warmup_period": 50}]
    return found


@pytest.fixture(params=[torch.optim.AdamW, torch.optim.Adam])
def checkpoint(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `DiffusionPriorTrainer.save` writes, in the middle of training."""
    layer = nn.Linear(2, 2)
    optimizer = request.param(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    ema = prefixed(dalle2_state(seed=1))
    content = {
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0).state_dict(),
        "warmup_scheduler": warmup_of(optimizer, monkeypatch),
        "model": prefixed(dalle2_state(seed=0)),
        "version": Version("1.10.9"),
        "step": torch.tensor([7]),
        "ema": {"initted": torch.tensor(True), **{f"ema_model.{name}": value for name, value in ema.items()}},
        "ema_model": ema,
    }
    torch.save(content, tmp_path / "latest.pth")
    monkeypatch.undo()
    return tmp_path / "latest.pth"


def test_the_averaged_weights_of_a_checkpoint_are_read(checkpoint: Path) -> None:
    stage = load_any_stage(checkpoint, expect="prior")
    found = stage.network.blocks[0].mlp_out.weight
    assert torch.equal(found, dalle2_state(seed=1)[FLAT.removeprefix("net.")])
    assert open_weights(checkpoint).metadata["step"] == 7


def test_the_averaged_weights_are_read_from_the_state_of_the_average_alone(checkpoint: Path) -> None:
    content = {"ema": open_weights(checkpoint).metadata["ema"], "model": prefixed(dalle2_state(seed=0))}
    torch.save(content, checkpoint.with_name("early.pth"))
    found = load_any_stage(checkpoint.with_name("early.pth"), expect="prior").network.blocks[0].mlp_out.weight
    assert torch.equal(found, dalle2_state(seed=1)[FLAT.removeprefix("net.")])


def test_no_object_of_a_checkpoint_is_built(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytorch_warmup"]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported it
    warmup = open_weights(checkpoint).metadata["warmup_scheduler"]
    assert isinstance(warmup, torch_pickle._Bookkeeping)
    assert not vars(warmup)
    assert "pytorch_warmup" not in sys.modules
    kept = tuple(name for name in torch_pickle._BOOKKEEPING if "warmup" not in name)
    monkeypatch.setattr(torch_pickle, "_BOOKKEEPING", kept)
    with pytest.raises(
        ValueError, match=r"latest.pth: holds Python objects \(pytorch_warmup.base.LinearWarmup\)"
    ):
        open_weights(checkpoint)


DECODER = {
    "unets.0.to_time_hiddens.0.weights": torch.ones(2),
    "unets.0.downs.0.0.block1.project.weight": torch.ones(2, 2),
    "clip.clip.visual.conv1.weight": torch.ones(2, 3, 1, 1),
    "noise_schedulers.0.betas": torch.ones(9),
}
UPSAMPLER = {
    "unets.0.dummy_parameter": torch.ones(1),
    "unets.1.downs.0.0.block1.project.weight": torch.ones(2, 2),
}


@pytest.mark.parametrize("weights", [DECODER, UPSAMPLER], ids=["decoder", "upsampler"])
@pytest.mark.parametrize("stage", ["decoder", "upsampler", "prior", None])
def test_parts_of_decoders_are_refused(tmp_path: Path, weights: dict, stage: str | None) -> None:
    path = tmp_path / "latest.pth"
    torch.save({"model": weights, "version": "1.10.9", "steps": torch.tensor([3]), "optim0": None}, path)
    with pytest.raises(
        ValueError, match=re.escape(f"{path}: is a part of a decoder of DALLE2-pytorch")
    ) as error:
        load_any_stage(path, expect=stage)
    assert "Get the whole file, such as decoder/v1.0.2/latest.pth of LAION" in str(error.value)


def test_a_prior_that_was_trained_without_captions_is_refused(tmp_path: Path) -> None:
    """Its `condition_on_text_encodings`: the weights do not tell, and captions would lead it astray."""
    torch.save({"model": prefixed(dalle2_state())}, tmp_path / "latest.pth")
    for reads_captions in (True, False):
        config = {"prior": {"condition_on_text_encodings": reads_captions}}
        (tmp_path / "prior_config.json").write_text(json.dumps(config))
        if reads_captions:
            assert load_any_stage(tmp_path / "latest.pth", expect="prior").space.norm == "unit"
    with pytest.raises(ValueError, match="condition_on_text_encodings is False, expected True"):
        load_any_stage(tmp_path / "latest.pth")
