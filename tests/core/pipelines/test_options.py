"""Options and their settings: what a person sets, and the dataclasses that are made of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
from unclip.core.diffusion.sampling import SAMPLERS
from unclip.core.pipelines.ar_prior import AutoregressiveOptions
from unclip.core.pipelines.decode import DecodeOptions
from unclip.core.pipelines.inpaint import InpaintOptions
from unclip.core.pipelines.inpaint_whole import InpaintWholeOptions
from unclip.core.pipelines.invert import InvertOptions
from unclip.core.pipelines.options import from_settings, option, settings_of
from unclip.core.pipelines.prior import PriorOptions
from unclip.core.pipelines.upsample import UpsampleOptions

ALL = [
    AutoregressiveOptions,
    DecodeOptions,
    InpaintOptions,
    InpaintWholeOptions,
    InvertOptions,
    PriorOptions,
    UpsampleOptions,
]


@dataclass(frozen=True)
class Example:
    steps: int = option(25, 1, 100, help="How many.")
    level: float | None = option(None, -1.0, 1.0, 0.1, help="How strong.", none=-1.0, advanced=True)
    kind: str = option("a", help="Which.", choices=("a", "b"))
    hidden: bool = True


@pytest.mark.parametrize("options", ALL)
def test_the_settings_as_they_are_give_the_defaults(options):
    defaults = {name: setting.default for name, setting in settings_of(options).items()}
    assert from_settings(options, defaults) == from_settings(options, {}) == options()


@pytest.mark.parametrize("options", ALL)
def test_what_is_not_shown_is_for_python_alone(options):
    shown = set(settings_of(options)) | {"guidance_interval"}
    assert {each.name for each in fields(options)} - shown <= {"pack_weights"}


@pytest.mark.parametrize("options", [each for each in ALL if "guidance" in settings_of(each)])
def test_a_scale_that_a_guidance_is_not_made_for_is_refused(options):
    assert options(guidance="cfg", guidance_scale=3.0).guidance_scale == 3.0
    for scale in (0.0, 0.6, 1.0):
        assert options(guidance="cfg_pp", guidance_scale=scale).guidance_scale == scale
    for scale in (1.01, 3.0):
        with pytest.raises(ValueError, match=f"guidance_scale is {scale}; guidance cfg_pp takes 0 to 1"):
            options(guidance="cfg_pp", guidance_scale=scale)
    with pytest.raises(ValueError, match=r"guidance_scale is 1\.5; guidance cfg_pp"):
        from_settings(options, {"guidance": "cfg_pp"})
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"guidance_scale is .*; expected 0 or more"):
            options(guidance_scale=scale)


@pytest.mark.parametrize("options", ALL)
def test_every_setting_reaches_its_field(options):
    for name, setting in settings_of(options).items():
        if setting.choices:
            other = next(choice for choice in setting.choices if choice != setting.default)
        else:
            low, high = setting.low, setting.high
            other = low if setting.default != low and setting.default is not None else high
        if name == "guidance_end":
            other = 0.5
        beside = {"guidance_scale": 0.6} if other == "cfg_pp" else {}
        changed = from_settings(options, {name: other, **beside})
        assert changed != options(), name
        if name not in ("guidance_start", "guidance_end"):
            assert getattr(changed, name) == other, name


def test_settings_in_the_order_of_the_fields():
    assert list(settings_of(Example)) == ["steps", "level", "kind"]
    level = settings_of(Example)["level"]
    assert (level.name, level.default, level.step, level.advanced) == ("level", -1.0, 0.1, True)


@pytest.mark.parametrize(
    ("shown", "meant"), [(-1.0, None), (-0.5, None), (0.0, 0.0), (0.7, 0.7), (-3.0, -3.0)]
)
def test_a_number_that_stands_for_none(shown, meant):
    assert from_settings(Example, {"level": shown}).level == meant


def test_a_threshold_of_zero_is_none():
    assert from_settings(DecodeOptions, {"dynamic_threshold": 0.0}).dynamic_threshold is None
    with pytest.raises(ValueError, match=r"dynamic_threshold is -0\.5"):
        from_settings(DecodeOptions, {"dynamic_threshold": -0.5})


def test_the_interval_runs_from_noise_to_result():
    assert from_settings(DecodeOptions, {"guidance_start": 0.25}).guidance_interval == (0.0, 0.75)
    assert from_settings(DecodeOptions, {"guidance_end": 0.25}).guidance_interval == (0.75, 1.0)
    with pytest.raises(ValueError, match=r"guidance_start: found 0\.8, after guidance_end 0\.2"):
        from_settings(DecodeOptions, {"guidance_start": 0.8, "guidance_end": 0.2})
    with pytest.raises(ValueError, match=r"guidance_end: found 1\.5, expected 0"):
        from_settings(DecodeOptions, {"guidance_end": 1.5})


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="Example has no settings stepz, hidden"):
        from_settings(Example, {"stepz": 3, "hidden": False})


def test_the_samplers_say_what_they_do():
    setting = settings_of(DecodeOptions)["sampler"]
    assert setting.choices == tuple(SAMPLERS)
    assert all(f"{name} {sampler.meaning}" in setting.help for name, sampler in SAMPLERS.items())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (DecodeOptions, "steps"),
        (DecodeOptions, "width"),
        (PriorOptions, "candidates"),
        (InpaintOptions, "feather"),
        (AutoregressiveOptions, "top_k"),
    ],
)
def test_what_is_counted_is_a_whole_number(options, name):
    for wrong in (2.0, "2", None):
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}; expected a whole number"):
            options(**{name: wrong})
    assert getattr(options(**{name: np.int64(3)}), name) == 3
