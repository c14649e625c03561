"""The program around the commands: help without delay, and errors as one line with an exit code."""

from __future__ import annotations

import subprocess
import sys
import typing
from importlib.metadata import version

import pytest
import torch
import typer
from typer.testing import CliRunner
from unclip.cli import app as app_module
from unclip.cli.app import COMMANDS, Command, _debug_first, build_app, main
from unclip.cli.console import guarded
from unclip.cli.workflow.errors import WorkflowError


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_lists_the_commands():
    result = CliRunner().invoke(build_app(), ["--help"])
    assert result.exit_code == 0
    for name in ("run", "generate", "inspect"):
        assert f" {name} " in result.output


def test_every_command_answers_help():
    for command in COMMANDS:
        assert CliRunner().invoke(build_app(), [command.name, "--help"]).exit_code == 0


def test_applications_do_not_guard_the_commands_of_a_group_again_and_again() -> None:
    from unclip.cli.data import app as group

    before = [each.callback for each in group.registered_commands]
    for _ in range(2):
        build_app()
    assert [each.callback for each in group.registered_commands] == before
    result = CliRunner().invoke(build_app(), ["data", "convert", "nowhere", "-o", "x"])
    assert result.exit_code == 1 and "nowhere" in result.output  # guarded all the same


def test_building_the_program_imports_nothing_heavy():
    heavy = (
        "{'torch', 'torchvision', 'open_clip', 'numpy', 'PIL', 'websocket', 'unclip.nodes', 'unclip.core'}"
    )
    code = f"import sys; from unclip.cli.app import build_app; build_app(); print({heavy} & set(sys.modules))"
    assert python(code).strip() == "set()"


def test_painting_imports_nothing_that_takes_longer_than_the_picture(tmp_path):
    """Each of these takes seconds, and what brings one in is easily overlooked: a draw on the meta device
    brings torch's compiler."""
    heavy = {"open_clip", "torchvision", "timm", "transformers", "matplotlib"}
    if torch.__version__ >= (2, 8):  # with older ones einops itself imports the compiler
        heavy |= {"torch._dynamo", "sympy"}
    paint = ["generate", "a fox", "-q", "-o", str(tmp_path / "fox.png"), "--steps", "1", "--prior-steps", "1"]
    code = (
        "import sys, torch; before = set(sys.modules); from unclip.cli.app import build_app; "
        f"build_app()({paint}, standalone_mode=False); print({heavy} & set(sys.modules) - before)"
    )
    assert python(code).splitlines()[-1] == "set()"
    assert (tmp_path / "fox.png").is_file()


def test_the_version():
    result = CliRunner().invoke(build_app(), ["--version"])
    assert result.output.strip() == f"unclip {version('unclip')}"


def program(error: BaseException | None, monkeypatch) -> typer.Typer:
    """A program with the command ``fail``, which raises, and another, so that both have names."""

    def fail() -> None:
        if error is not None:
            raise error

    module = typing.cast(typing.Any, type(sys)("unclip.cli.fake"))
    module.fail = fail
    module.group = typer.Typer()
    module.group.command("inner")(fail)
    module.group.command("other")(lambda: None)
    monkeypatch.setitem(sys.modules, "unclip.cli.fake", module)
    return build_app([Command("fail", "fake", "fail"), Command("group", "fake", "group")])


LESS = "take less at once (a smaller batch, size or model), or close other programs"


@pytest.mark.parametrize("words", [["fail"], ["group", "inner"]])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("steps: found 0, expected 1"), "steps: found 0, expected 1\n"),
        (FileNotFoundError("no fox.json"), "no fox.json\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "a.json: No such file or directory\n"),
        (WorkflowError("node 1: first", "node 2: second"), "node 1: first\nnode 2: second\n"),
        (KeyError("x"), "internal error: KeyError: 'x' (--debug shows where)\n"),
        (MemoryError(), f"out of memory (MemoryError): {LESS}\n"),
        (ValueError("a [red] [/red] fox"), "a [red] [/red] fox\n"),
    ],
)
def test_errors_are_one_line_on_stderr(words, error, line, monkeypatch):
    result = CliRunner().invoke(program(error, monkeypatch), words)
    assert result.exit_code == 1
    assert result.stderr == line
    assert result.stdout == ""


def test_long_messages_are_not_wrapped(monkeypatch):
    message = "word " * 100
    assert CliRunner().invoke(program(ValueError(message), monkeypatch), ["fail"]).stderr.count("\n") == 1


def test_debug_shows_the_traceback(monkeypatch):
    result = CliRunner().invoke(program(ValueError("here"), monkeypatch), ["--debug", "fail"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "raise error" in result.stderr
    again = CliRunner().invoke(program(ValueError("here"), monkeypatch), ["fail"])
    assert "Traceback" not in again.stderr


def test_ctrl_c(monkeypatch):
    result = CliRunner().invoke(program(KeyboardInterrupt(), monkeypatch), ["fail"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_usage_errors_have_their_own_code(monkeypatch):
    result = CliRunner().invoke(program(typer.BadParameter("--size 7: choose 64."), monkeypatch), ["fail"])
    assert result.exit_code == 2
    assert "--size 7: choose 64." in result.stderr
    assert CliRunner().invoke(program(None, monkeypatch), ["fail", "--nonsense"]).exit_code == 2
    assert CliRunner().invoke(program(None, monkeypatch), ["nonsense"]).exit_code == 2


def test_a_commands_own_exit_code(monkeypatch):
    assert CliRunner().invoke(program(typer.Exit(7), monkeypatch), ["fail"]).exit_code == 7


def test_guarded_keeps_the_signature():
    def command(name: str = "x") -> None:
        """Say something."""

    assert guarded(command).__doc__ == "Say something."
    assert guarded(command).__wrapped__ is command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "a.json", "--debug"], ["--debug", "run", "a.json"]),
        (["run", "a.json"], ["run", "a.json"]),
        (["generate", "--", "--debug"], ["generate", "--", "--debug"]),
    ],
)
def test_debug_anywhere_on_the_line(words, expected):
    assert _debug_first(words) == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (ValueError("no"), 1), (typer.BadParameter("no"), 2), (KeyboardInterrupt(), 130)],
)
def test_main_ends_the_process_with_the_code(error, code, monkeypatch, capsys):
    made = program(error, monkeypatch)
    monkeypatch.setattr(app_module, "build_app", lambda: made)
    with pytest.raises(SystemExit) as caught:
        main(["fail", "--debug"] if code == 1 else ["fail"])
    assert caught.value.code == code
    assert ("Traceback" in capsys.readouterr().err) is (code == 1)
