"""Options of the command line for what nodes offer to sample with, made of the nodes' own options.

They are known once torch is imported, so a command gets them when it is asked for, not when the program is
built.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .number_errors import NumberCommand, expected_number
from .painting import SAMPLED_STAGES

if TYPE_CHECKING:
    from ..core.diffusion.spec import FoundSteps
    from ..core.pipelines.options import Setting

# Node, and what stands before the name of its options; their group in the help.
STAGES = {
    "UnCLIPDecode": ("", "Decoder"),
    "UnCLIPDiffusionPrior": ("prior_", "Prior"),
    "UnCLIPUpsample": ("upsampler_", "Upsamplers"),
}

_META = "unclip.sampling"


class SamplingCommand(NumberCommand):
    """A command with options for the settings of the nodes in ``STAGES``, which :func:`sampling` reads.

    Every setting has one that takes effect where nothing is given to begin from, and no second decoder.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        if not hasattr(self, "_sampling"):
            self._sampling = _options()
        return [*super().get_params(ctx), *self._sampling]

    def invoke(self, ctx: Any) -> Any:
        ctx.meta[_META] = {each.name: ctx.params.pop(each.name) for each in self._sampling}
        return super().invoke(ctx)


def sampling(ctx: typer.Context) -> dict[str, dict[str, Any]]:
    """By node: the inputs that were named on the command line.

    Raises:
        BadParameter: a word that is none of the choices, or a number out of range.
    """
    given = ctx.meta[_META]
    named: dict[str, dict[str, Any]] = {}
    for node_id, (prefix, _) in STAGES.items():
        named[node_id] = {}
        for name, setting in _settings(node_id).items():
            value = given[prefix + name]
            if value is None:
                continue
            if setting.choices and value not in setting.choices:
                expected = ", ".join(setting.choices)
                raise typer.BadParameter(
                    f"{_flag(prefix + name)}: found {value!r}, expected one of {expected}."
                )
            low, high = setting.low, setting.high
            if low is not None and high is not None and not low <= value <= high:
                # Older releases of typer let NaN pass.
                expected = expected_number(isinstance(setting.default, int), low, high)
                raise typer.BadParameter(f"{_flag(prefix + name)}: found {value}, expected {expected}.")
            named[node_id][name] = value
    return named


def require_fitting(painted: Mapping[str, Mapping[str, Any]], few_steps: Sequence[FoundSteps]) -> None:
    """Raise a ValueError, which names the flag, for settings that do not go together.

    Args:
        painted: by node: the inputs with which it runs.
        few_steps: timesteps that were found for the decoder.
    """
    from ..core.pipelines.generate import stage_options
    from ..core.pipelines.options import OPTIMAL, found_timesteps

    for node_id in STAGES.keys() & painted.keys():
        settings, inputs = _settings(node_id), painted[node_id]
        given = {name: inputs[name] for name in settings if name in inputs}
        try:
            options = stage_options(SAMPLED_STAGES[node_id], given)
            if options.spacing == OPTIMAL:
                found_timesteps(few_steps, options.sampler, options.steps)
        except ValueError as error:
            raise ValueError(_with_flags(str(error), settings, STAGES[node_id][0])) from None


def _with_flags(message: str, settings: Collection[str], prefix: str) -> str:
    """A message with options for the settings that it names: at its beginning, and those of several words.

    Others further on, such as steps, are words of the sentence as well.
    """

    def flag(found: re.Match[str]) -> str:
        name = found[0]
        named = name in settings and (found.start() == 0 or "_" in name)
        return _flag(prefix + name) if named else name

    return re.sub(r"\w+", flag, message)


def idle_options(given: Mapping[str, Mapping[str, Any]], used: Collection[str]) -> list[str]:
    """The flags of options that were named for nodes that do not run.

    Args:
        given: see :func:`sampling`.
        used: the nodes that run.
    """
    return [
        _flag(STAGES[node_id][0] + name)
        for node_id, named in given.items()
        if node_id not in used
        for name in named
    ]


def _flag(name: str) -> str:
    return f"--{name}".replace("_", "-")


def _settings(node_id: str) -> dict[str, Setting]:
    from ..core.pipelines.generate import stage_settings

    return stage_settings(SAMPLED_STAGES[node_id])


def _options() -> list[Any]:
    """The parameters that typer makes of a function with them."""

    def command(**_: Any) -> None: ...

    parameters = list(_parameters())
    made: Callable[..., None] = command
    made.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made.__annotations__ = {each.name: each.annotation for each in parameters}
    app = typer.Typer(add_completion=False)
    app.command(context_settings={"help_option_names": []})(made)
    return list(typer.main.get_command(app).params)


def _parameters() -> Iterator[inspect.Parameter]:
    for node_id, (prefix, group) in STAGES.items():
        for name, setting in _settings(node_id).items():
            yield inspect.Parameter(
                prefix + name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    type(setting.default) | None, _option(_flag(prefix + name), setting, group)
                ],
            )


def _option(flag: str, setting: Setting, group: str) -> Any:
    # Words are checked in ``sampling``, which tells all that there are.
    numbers = {} if setting.choices else {"min": setting.low, "max": setting.high}
    metavar = "|".join(setting.choices) or None
    return typer.Option(
        flag,
        help=setting.help,
        metavar=metavar,
        show_default=str(setting.default),
        rich_help_panel=group,
        **numbers,
    )
