"""Every number in the settings of evaluations: out of its range it is refused by name, before all else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from unclip.core.config import config_from_dict, config_to_dict
from unclip.core.data.batches import DataConfig
from unclip.core.evaluation.manipulations.config import ManipulationsConfig
from unclip.core.evaluation.quality.config import (
    BindingConfig,
    EvaluationConfig,
    GroupsConfig,
    SharpnessConfig,
    VarietyConfig,
)

CONFIGS = (EvaluationConfig, ManipulationsConfig)
# Any seed is one; of the others 0 means none, no guidance, or black.
ANY_NUMBER = {"seed"}
ZERO = {"upsamplers", "guidance_scale", "guidance_interval", "guidance_rescale", "eta", "top_k", "white"}
ZERO |= {"annealing"}
ZERO |= {"plain", "refinements", "feather", "min_side", "held_out", "strength", "width", "height"}


def settings(config: type) -> dict[str, Any]:
    tables = {"groups": GroupsConfig(), "variety": VarietyConfig(), "sharpness": SharpnessConfig()}
    tables["binding"] = BindingConfig()
    tables = tables if config is EvaluationConfig else {}
    return config_to_dict(config(bundle="bundle", data=DataConfig(shards="shards"), **tables))


def numbers(table: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and values of all numbers, and of all lists of numbers, in nested settings."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from numbers(value, *path, name)
            continue
        entries = value if isinstance(value, list) else [value]
        if entries and all(isinstance(e, (int, float)) and not isinstance(e, bool) for e in entries):
            yield (*path, name), value


CASES = [
    (config, path, value)
    for config in CONFIGS
    for path, old in numbers(settings(config))
    for value in ((-1.0, 0.0, float("nan")) if "." in str(old) else (-1, 0, 0.5))
    if path[-1] not in ANY_NUMBER or value == 0.5
    if value != 0 or path[-1] not in ZERO
]


@pytest.mark.parametrize(
    ("config", "path", "value"), CASES, ids=[f"{c.__name__}-{'.'.join(p)}-{v}" for c, p, v in CASES]
)
def test_a_number_out_of_its_range_is_named(config, path, value) -> None:
    changed = copy.deepcopy(settings(config))
    table = changed
    for name in path[:-1]:
        table = table[name]
    table[path[-1]] = [value] * len(table[path[-1]]) if isinstance(table[path[-1]], list) else value
    with pytest.raises(ValueError, match=path[-1]):
        config_from_dict(config, changed)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_settings_themselves_are_in_range(config) -> None:
    assert config_to_dict(config_from_dict(config, settings(config))) == settings(config)
    assert len(list(numbers(settings(config)))) > 20


@pytest.mark.parametrize("config", [EvaluationConfig, ManipulationsConfig])
def test_what_captions_alone_do_not_bring_is_refused(config) -> None:
    """A picture or an embedding to begin from, and a weaker decoder."""
    for stage, name, value in (
        ("decoder", "strength", 0.5),
        ("prior", "strength", 0.5),
        ("decoder", "guidance", "autoguidance"),
    ):
        changed = settings(config)
        changed[stage][name] = value
        with pytest.raises(ValueError, match=f"{stage}: found {name} "):
            config_from_dict(config, changed)


@pytest.mark.parametrize("stage", ["decoder", "prior"])
def test_a_scale_that_the_guidance_does_not_take_is_refused_before_anything_runs(stage: str) -> None:
    changed = settings(EvaluationConfig)
    changed[stage] |= {"guidance": "cfg_pp", "guidance_scale": 0.6}
    changed["guidance_scales"] = {stage: [0.3, 1.0], "prompts": changed["guidance_scales"]["prompts"]}
    config_from_dict(EvaluationConfig, changed)
    changed["guidance_scales"][stage] = [0.3, 2.0]
    with pytest.raises(ValueError, match=rf"a scale of guidance_scales\.{stage} is 2\.0; guidance cfg_pp"):
        config_from_dict(EvaluationConfig, changed)


def test_a_temperature_without_end_is_refused() -> None:
    changed = settings(EvaluationConfig)
    changed["ar_prior"]["temperature"] = float("inf")
    with pytest.raises(ValueError, match="temperature"):
        config_from_dict(EvaluationConfig, changed)
