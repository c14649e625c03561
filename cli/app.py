"""The command line ``unclip``. Commands live in one file each; this one lists them and starts them.

The files of commands import only the standard library, typer and rich at the top; torch and the nodes are
imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from copy import copy
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from .console import INTERRUPTED, guarded, set_debug
from .number_errors import NumberCommand
from .sampling_options import SamplingCommand


class Command(NamedTuple):
    """A command ``unclip NAME``: an attribute of a module in this folder.

    The attribute is a function with typer's annotations, or a ``typer.Typer`` that groups commands; ``cls``
    is the function's class of command, where it is not typer's own.
    """

    name: str
    module: str
    attribute: str
    cls: type[TyperCommand] | None = None


COMMANDS: tuple[Command, ...] = (
    Command("generate", "generate", "generate", SamplingCommand),
    Command("run", "run", "run"),
    Command("inspect", "inspect", "inspect"),
    Command("convert", "convert", "convert"),
    Command("download", "download", "download"),
    Command("batch", "batch", "batch"),
    Command("data", "data", "app"),
    Command("embed", "embed", "embed"),
    Command("train", "train", "train"),
    Command("train-all", "train_all", "train_all"),
    Command("eval", "eval", "evaluate"),
    Command("compare", "compare", "compare"),
    Command("probe", "probe", "probe"),
    Command("steps", "steps", "steps"),
)


def build_app(commands: Sequence[Command] = COMMANDS) -> typer.Typer:
    """The typer application with every command of the table, each guarded (see `console.guarded`)."""
    app = typer.Typer(
        name="unclip",
        help="unCLIP (DALL·E 2): pictures from prompts, and ComfyUI workflows without ComfyUI.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for command in commands:
        entry: Any = getattr(importlib.import_module(f".{command.module}", __package__), command.attribute)
        if isinstance(entry, typer.Typer):
            app.add_typer(_guarded_group(entry), name=command.name)
        else:
            app.command(command.name, cls=command.cls or NumberCommand)(guarded(entry))
    return app


def _guarded_group(group: typer.Typer) -> typer.Typer:
    """A copy of a group with guarded commands: applications that are built later guard the original anew."""
    guarded_group = copy(group)
    guarded_group.registered_commands = [copy(each) for each in group.registered_commands]
    for registered in guarded_group.registered_commands:
        if registered.callback is not None:
            registered.callback = guarded(registered.callback)
        registered.cls = NumberCommand
    return guarded_group


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from .console import stdout

        stdout().print(f"unclip {version('unclip')}")
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    set_debug(debug)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: run the command line with the process's arguments (or ``argv``) and exit."""
    arguments = _debug_first(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A Windows console that cannot show a character shows "?" instead of ending the program.
            stream.reconfigure(errors="replace")
    try:
        build_app()(arguments, prog_name="unclip")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _debug_first(arguments: Sequence[str]) -> list[str]:
    """``--debug`` works anywhere on the line, though it belongs to the program and not to a command."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before = list(arguments[:end])
    if "--debug" in before:
        before = ["--debug", *(word for word in before if word != "--debug")]
    return before + list(arguments[end:])


if __name__ == "__main__":  # accelerate launch -m unclip.cli.app …
    main()
