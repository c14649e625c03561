"""An option is written once: default, range, step and meaning stand at its field.

The frozen dataclasses of this folder hold the options of the stages. A field made by :func:`option` is shown:
nodes have an input for it, ``unclip generate`` an option, locales/en and the help pages its words. Other
fields are for Python and configs only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, TypeVar, cast

from ..config import Dataclass, is_whole
from ..config import require_at_least as require_at_least
from ..diffusion.guidance import GUIDANCES
from ..diffusion.guidance import require_scale as require_scale
from ..diffusion.sampling import SAMPLERS
from ..diffusion.schedule import Schedule, schedule_of
from ..diffusion.spacing import SPACINGS
from ..diffusion.spec import DiffusionSpec, FoundSteps, Spacing

Options = TypeVar("Options", bound=Dataclass)

_SHOWN = "shown"  # key of a field's metadata


@dataclass(frozen=True)
class Setting:
    """A value that a person sets: an input of a node, an option of the command line.

    Attributes:
        name: of the input.
        default: its type is the setting's: whole numbers, numbers, text or a switch.
        help: what it does, in sentences.
        low, high: ends of the range that is offered, for numbers; the pipelines may take more.
        step: between two values on a slider; None for whole numbers.
        round: to which values are rounded; None for the step.
        choices: what a text may be.
        advanced: for experts; shown folded.
    """

    name: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    round: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False


@dataclass(frozen=True)
class _Shown:
    """How a field is shown: its settings (without a name: the field's), and the field's value by theirs."""

    settings: tuple[Setting, ...]
    read: Callable[..., Any]

    def named(self, name: str) -> tuple[Setting, ...]:
        return tuple(replace(each, name=each.name or name) for each in self.settings)


def option(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    *,
    help: str,
    round: float | None = None,
    choices: Sequence[str] = (),
    advanced: bool = False,
    none: float | None = None,
) -> Any:
    """A dataclass field that is shown, see ``Setting``.

    Args:
        none: the number that is shown where the field is None. Numbers of the range below 0 mean None too.
    """

    def read(value: Any) -> Any:
        return None if none is not None and (value == none or low <= value < 0) else value

    shown = none if default is None else default
    setting = Setting("", shown, help, low, high, step, round, tuple(choices), advanced)
    return field(default=default, metadata={_SHOWN: _Shown((setting,), read)})


# --- options that several stages have ---


def steps_option(default: int, help: str) -> Any:
    return option(default, 1, 1000, help=help)


def guidance_scale_option(default: float, help: str) -> Any:
    return option(default, 0.0, 30.0, 0.1, help=help, round=0.01)


def candidates_option(default: int) -> Any:
    return option(
        default,
        1,
        64,
        help="Embeddings made for each result; the one that fits the caption best is kept. The paper takes "
        "2.",
    )


def sampler_option(default: str) -> Any:
    meanings = "; ".join(f"{name} {sampler.meaning}" for name, sampler in SAMPLERS.items())
    return option(default, help=f"How the steps are taken. {meanings}.", choices=tuple(SAMPLERS))


OPTIMAL = "optimal"
"""The spacing that a network's own description has, see ``diffusion.few_steps``."""


def spacing_option(*, optimal: bool = False) -> Any:
    """Which timesteps are visited.

    Args:
        optimal: whether those that were found for the network may be chosen, of networks that
            ``unclip steps`` finds some for.
    """
    found = f"; {OPTIMAL} takes what unclip steps has found for this decoder and sampler" if optimal else ""
    return option(
        "default",
        help="Which of the trained noise levels the steps visit. default is the model's own choice; even and "
        "leading are equal strides; trailing leaves the last, nearly clean one out; log_snr and karras are "
        f"ever closer towards the finished result, beta at both ends{found}.",
        choices=("default", *SPACINGS, *((OPTIMAL,) if optimal else ())),
        advanced=True,
    )


def guidance_option(*names: str, help: str = "") -> Any:
    """Which guidance is used, of some names of ``GUIDANCES``."""
    return option("cfg", help=_guidance_help(names) + help, choices=names, advanced=True)


def _guidance_help(names: Sequence[str]) -> str:
    meanings = "; ".join(f"{name} {GUIDANCES[name].meaning}" for name in names)
    return f"How guidance works. {meanings}."


def size_option(side: str) -> Any:
    return option(
        0,
        0,
        4096,
        help=f"Pixels {side}; 0 is the decoder's own size. Rounded up to what the decoder can paint "
        f"(Kandinsky: multiples of 64). Decoders of one size only take 0.",
        advanced=True,
    )


def strength_option(help: str) -> Any:
    return option(
        1.0,
        0.0,
        1.0,
        0.05,
        help=help,
        round=0.01,
        advanced=True,
    )


def eta_option() -> Any:
    return option(
        0.0,
        0.0,
        1.0,
        0.05,
        help="ddim only: fresh noise per step. 0 is the fixed path from the seed's noise, 1 as random as "
        "ddpm.",
        advanced=True,
    )


def guidance_rescale_option() -> Any:
    return option(
        0.0,
        0.0,
        1.0,
        0.05,
        help="Takes back the excess contrast of strong guidance. 0 is off; 0.7 is usual where guidance is "
        "high.",
        advanced=True,
    )


def guidance_interval_option() -> Any:
    """An interval of diffusion time, 0 clean to 1 noise, shown as ``guidance_start`` and ``guidance_end``."""
    settings = (
        Setting(
            "guidance_start",
            0.0,
            "Guidance begins here: 0 is pure noise, 1 the finished result. A late start keeps more variety.",
            0.0,
            1.0,
            0.01,
            advanced=True,
        ),
        Setting(
            "guidance_end",
            1.0,
            "Guidance stops here: 0 is pure noise, 1 the finished result. Steps without it are faster.",
            0.0,
            1.0,
            0.01,
            advanced=True,
        ),
    )
    return field(default=(0.0, 1.0), metadata={_SHOWN: _Shown(settings, time_interval)})


def time_interval(guidance_start: float, guidance_end: float) -> tuple[float, float]:
    """Progress from noise (0) to result (1) → diffusion time, which runs the other way."""
    for name, value in (("guidance_start", guidance_start), ("guidance_end", guidance_end)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: found {value}, expected 0 (pure noise) to 1 (the finished result)")
    if guidance_start > guidance_end:
        raise ValueError(
            f"guidance_start: found {guidance_start}, after guidance_end {guidance_end}; choose a start "
            f"before the end"
        )
    return (1.0 - guidance_end, 1.0 - guidance_start)


def spaced_schedule(
    spec: DiffusionSpec, steps: int, spacing: str = "default", sampler: str = "ddim"
) -> Schedule:
    """A network's schedule of so many steps, spaced by the option of :func:`spacing_option`.

    Args:
        sampler: that takes them.

    Raises:
        ValueError: more steps than there are timesteps; ``optimal`` where none were found for so many.
    """
    full = schedule_of(spec)
    if spacing == OPTIMAL:
        return full.respace(found_timesteps(spec.few_steps, sampler, steps))
    return full.respace(steps, spacing=full.spacing if spacing == "default" else cast(Spacing, spacing))


def found_timesteps(known: Sequence[FoundSteps], sampler: str, steps: int) -> tuple[int, ...]:
    """Those of a sampler and a number of steps; a ValueError where none were found."""
    for each in known:
        if (each.sampler, len(each.timesteps)) == (sampler, steps):
            return each.timesteps
    others = ", ".join(f"{each.sampler} with {len(each.timesteps)}" for each in known)
    raise ValueError(
        f"spacing: optimal needs timesteps that were found for this network, for {sampler} with {steps} "
        f"steps; it has {f'some for {others}' if known else 'none'}. Find them by `unclip steps BUNDLE "
        f"CAPTIONS --sampler {sampler} --steps {steps}`, or choose another spacing"
    )


def annealing_option() -> Any:
    return option(
        0.0,
        0.0,
        1.0,
        0.05,
        help="Makes pictures of one embedding differ more: it is noise at first, and whole from this share "
        "of the steps on (CADS). 0 is off, 0.4 usual.",
        round=0.01,
        advanced=True,
    )


def is_guided(options: Any) -> bool:
    """Whether options with ``guidance`` and ``guidance_scale`` need a second prediction in each step."""
    return GUIDANCES[options.guidance].guides(options.guidance_scale)


# --- what is made of them ---


def settings_of(options: type) -> dict[str, Setting]:
    """The settings of a dataclass of options by name, in the order of its fields."""
    return {
        setting.name: setting
        for each in fields(options)
        if _SHOWN in each.metadata
        for setting in each.metadata[_SHOWN].named(each.name)
    }


def settings_of_noise_alone(options: type) -> dict[str, Setting]:
    """Those that have a use where nothing is given to begin from, and no second decoder."""
    settings = settings_of(options)
    settings.pop("strength", None)
    if (guidance := settings.get("guidance")) is not None:
        names = tuple(name for name in guidance.choices if GUIDANCES[name].against != "weaker")
        settings["guidance"] = replace(guidance, choices=names, help=_guidance_help(names))
    return settings


def from_settings(options: type[Options], given: Mapping[str, Any]) -> Options:
    """Options by the values of their settings; what is not given has its default.

    Raises:
        TypeError: a name that is none of the settings.
        ValueError: a value out of range.
    """
    settings = settings_of(options)
    unknown = [name for name in given if name not in settings]
    if unknown:
        raise TypeError(f"{options.__name__} has no settings {', '.join(unknown)}")
    values = {}
    for each in fields(options):
        if (shown := each.metadata.get(_SHOWN)) is None:
            continue
        named = shown.named(each.name)
        if any(setting.name in given for setting in named):
            values[each.name] = shown.read(*(given.get(each.name, each.default) for each in named))
    return options(**values)


# --- the ranges of values ---


def require_settings(settings: Mapping[str, Setting], given: Mapping[str, Any], where: str) -> None:
    """Raise a ValueError, which begins with ``where``, unless these are some of the settings, in range."""
    for name, value in given.items():
        setting = settings.get(name)
        if setting is None:
            raise ValueError(f"{where} has {name!r}, expected some of {', '.join(settings)}")
        if not _fits(setting, value):
            kind = "a whole number" if isinstance(setting.default, int) else "a number"
            expected = f"one of {', '.join(setting.choices)}" if setting.choices else kind
            if not setting.choices and setting.low is not None:
                expected += f" from {setting.low} to {setting.high}"
            raise ValueError(f"{where}: {name} is {value!r}, expected {expected}")


def _fits(setting: Setting, value: Any) -> bool:
    if setting.choices:
        return value in setting.choices
    if isinstance(value, bool) or isinstance(setting.default, bool):
        return isinstance(value, bool) and isinstance(setting.default, bool)
    kinds = (int,) if isinstance(setting.default, int) else (int, float)
    low, high = setting.low, setting.high
    # A comparison, which holds of no NaN and bears the largest whole number.
    return isinstance(value, kinds) and low is not None and high is not None and low <= value <= high


def check_options(options: Any) -> None:
    """Raise a ValueError that names the first value out of range.

    Args:
        options: a dataclass with some of these fields; others are its own to check. ``steps`` and
            ``candidates`` are 1 or more, ``guidance_scale`` what ``guidance`` takes, ``guidance_interval`` a
            range within 0 to 1, ``width`` and ``height`` 0 or more, ``guidance_rescale``, ``eta``,
            ``strength`` and ``annealing`` 0 to 1, what counts something a whole number, what has choices one
            of them.
    """
    given, settings = vars(options), settings_of(type(options))
    for name, setting in settings.items():
        value = given.get(name)
        if type(setting.default) is int and not is_whole(value):
            raise ValueError(f"{name} is {value!r}; expected a whole number")
        may_be_none = getattr(type(options), name, None) is None
        if type(setting.default) is float and not (_is_number(value) or (value is None and may_be_none)):
            raise ValueError(f"{name} is {value!r}; expected a number")
    require_at_least(1, **{name: given[name] for name in ("steps", "candidates") if name in given})
    sides = {name: given[name] for name in ("width", "height") if name in given}
    require_at_least(0, "which is the decoder's own size", **sides)
    require_scale(given.get("guidance_scale", 1.0), given.get("guidance", "cfg"))
    interval = given.get("guidance_interval", (0.0, 1.0))
    pair = isinstance(interval, Sequence) and len(interval) == 2 and all(map(_is_number, interval))
    if not pair or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            f"guidance_interval is {interval!r}; expected a range within 0 to 1, such as (0.2, 0.8)"
        )
    for name in ("guidance_rescale", "eta", "strength", "annealing"):
        if not 0 <= given.get(name, 0.0) <= 1:
            raise ValueError(f"{name} is {given[name]}; expected 0 to 1")
    for name, setting in settings.items():
        if setting.choices and given[name] not in setting.choices:
            raise ValueError(
                f"{name} {given[name]!r} is not known; choose one of {', '.join(setting.choices)}"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
