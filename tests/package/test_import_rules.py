"""The architecture, kept true: which part may import which, and what no file may do."""

from __future__ import annotations

import ast

import pytest

from ..helpers.sources import FOLDERS, Source, import_graph, imports, sources

MAX_LINES = 400
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
}
COMFYUI |= {"node_helpers", "nodes", "server", "app", "utils"}

# Each room and the rooms that it may use besides itself. A file belongs to the innermost room that holds it.
TENSORS: set[str] = {"core/config", "core/memory"}
STAGES: set[str] = TENSORS | {"core/diffusion", "core/networks", "core/embeddings", "core/stages"}
FORMATS: set[str] = {
    "core/formats",
    "core/formats/files",
    "core/formats/layouts",
    "core/formats/mapping",
    "core/formats/native",
}
LAYERS: dict[str, set[str]] = {
    "core/config": set(),
    "core/memory": set(),
    "core/precision": set(),
    "core/folders": set(),
    "core/text_files": set(),
    "core/writing": set(),
    "core/pictures": {"core/folders", "core/writing"},
    "core/networks": TENSORS,
    "core/diffusion": TENSORS,
    "core/embeddings": TENSORS,
    "core/stages": TENSORS | {"core/diffusion", "core/embeddings", "core/networks", "core/precision"},
    "core/acceleration": {"core/networks", "core/memory", "core/precision"},
    "core/pipelines": STAGES | {"core/acceleration", "core/precision"},
    "core/formats/files": {"core/writing"},
    "core/formats/mapping": STAGES | {"core/formats/files"},
    "core/formats/native": STAGES | {"core/formats/files", "core/formats/mapping"},
    "core/formats/layouts": STAGES | {"core/formats/files", "core/formats/mapping"},
    "core/formats": STAGES | FORMATS | {"core/folders"},
    "core/data": TENSORS | {"core/pictures", "core/text_files", "core/writing"},
}
LAYERS["core/training"] = {*STAGES, *FORMATS, "core/data", "core/training/recipes", "core/writing"}
LAYERS["core/training"] |= {"core/precision", "core/text_files"}
LAYERS["core/training"] |= {"core/pipelines", "core/pictures"}  # sheets
LAYERS["core/training/recipes"] = {*STAGES, *FORMATS, "core/data", "core/training"}
LAYERS["core/evaluation"] = {*STAGES, *FORMATS, "core/pipelines", "core/pictures", "core/precision"}
LAYERS["core/evaluation/quality"] = {*LAYERS["core/evaluation"], "core/evaluation", "core/data"}
LAYERS["core/evaluation/judging"] = {"core/evaluation", "core/data", "core/pictures", "core/writing"}
LAYERS["core/evaluation/judging"] |= {"core/text_files"}
LAYERS["core/evaluation/manipulations"] = {*LAYERS["core/evaluation/quality"], "core/evaluation/quality"}
BESIDE_PIPELINES = ("core/data", "core/training", "core/evaluation")
LAYERS["nodes"] = {name for name in LAYERS if not name.startswith(BESIDE_PIPELINES)}
LAYERS["cli/workflow"] = {"cli", "nodes", "core/pictures", "core/writing"}
LAYERS["cli/server"] = {"cli", "cli/workflow", "core/writing"}
LAYERS["cli"] = set(LAYERS)
LAYERS["core/api"] = {
    "core/config",
    "core/folders",
    "core/formats",
    "core/pipelines",
    "core/pictures",
    "core/precision",
    "core/stages",
}
LAYERS[""] = {"nodes", "core/api"}  # the root, which ComfyUI loads and Python imports

# What knows tensors only touches no files.
FILES = {"glob", "os", "pathlib", "pickle", "safetensors", "shutil", "tempfile", "zipfile"}
WITHOUT_FILES = ("core/networks", "core/diffusion", "core/embeddings")
COMMAND_LINE = {"rich", "typer", "websocket"}

SOURCES = sources()


def layer(parts: tuple[str, ...]) -> str:
    """The room of a module, or of a module that something is imported from."""
    for length in range(len(parts), 0, -1):
        if (name := "/".join(parts[:length])) in LAYERS:
            return name
    return "/".join(parts[:2]) if parts[:1] == ("core",) else ""


def import_violations(source: Source) -> list[str]:
    """What a module must not import, as ``path:line: what``."""
    here = layer(source.parts)
    found = []
    for each in imports(source):
        where, name = f"{source.path}:{each.line}", ".".join(each.target)
        top = each.target[0]
        if each.own:
            there = layer(each.target)
            if there != here and there not in LAYERS.get(here, ()):
                found.append(f"{where}: {here or 'the root'} must not import {name}")
        elif top in (*FOLDERS, "unclip") and not (top in COMFYUI and source.path == "nodes/host.py"):
            found.append(f"{where}: {name}: the package's own modules are imported relatively")
        elif top in COMFYUI and source.path != "nodes/host.py":
            found.append(f"{where}: only nodes/host.py imports ComfyUI ({name})")
        elif here in WITHOUT_FILES and (top in FILES or top == "safetensors"):
            found.append(f"{where}: {here} knows tensors, not files ({name})")
        elif here.startswith("core") and top in COMMAND_LINE:
            found.append(f"{where}: the core does not know the command line ({name})")
    return found


def call_violations(source: Source) -> list[str]:
    """Calls that no module may make."""
    here = layer(source.parts)
    found = []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        where = f"{source.path}:{node.lineno}"
        if name == "print":
            found.append(f"{where}: print")
        if here in WITHOUT_FILES and name in ("open", "torch.load", "torch.save"):
            found.append(f"{where}: {here} knows tensors, not files ({name})")
        if name in ("torch.manual_seed", "random.seed", "np.random.seed", "torch.seed"):
            found.append(f"{where}: {name} changes the generator of the whole process")
        draws = name in ("torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.normal")
        draws = draws or name in ("torch.rand_like", "torch.randn_like", "random.random", "random.choice")
        if draws and not any(keyword.arg == "generator" for keyword in node.keywords):
            found.append(f"{where}: {name} without a generator")
    return found


def top_level_violations(source: Source) -> list[str]:
    """Statements that do something when the module is imported."""
    found = []
    for index, node in enumerate(source.tree.body):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if (isinstance(node, ast.Expr) and not is_text) or isinstance(node, ast.For | ast.While | ast.With):
            found.append(f"{source.path}:{node.lineno}: runs on import: {ast.unparse(node)[:60]}")
        if index == 0 and not is_text:
            found.append(f"{source.path}:1: says nothing about itself in a docstring")
    return found


def test_every_module_is_found() -> None:
    paths = {source.path for source in SOURCES}
    assert {"__init__.py", "nodes/host.py", "cli/app.py", "core/networks/unet.py"} <= paths
    packages = {("core",)}  # which holds its rooms and no code
    assert {layer(source.parts) for source in SOURCES if source.parts not in packages} == set(LAYERS)


@pytest.mark.parametrize("check", [import_violations, call_violations, top_level_violations])
def test_the_rules_hold(check) -> None:
    assert [violation for source in SOURCES for violation in check(source)] == []


def test_no_file_is_long() -> None:
    lines = {source.path: source.text.count("\n") for source in SOURCES}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The files that import themselves around a corner, each with where its way back begins."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting.extend(graph.get(name, ()))
        return seen

    return sorted(path for path in graph if path in reached(path))


def test_no_file_imports_a_file_that_imports_it() -> None:
    assert circles(import_graph(SOURCES)) == []


# --- the rules themselves: each sees what it is there for ---


def test_a_circle_is_seen() -> None:
    texts = {
        "core/x/a.py": "from .b import f",
        "core/x/b.py": "def f():\n    from ..y import c",
        "core/y/c.py": "from ..x.a import g\nfrom ..x import d",
        "core/x/d.py": "",
    }
    graph = import_graph([Source(path, text) for path, text in texts.items()])
    assert graph["core/y/c.py"] == {"core/x/a.py", "core/x/d.py"}
    assert circles(graph) == ["core/x/a.py", "core/x/b.py", "core/y/c.py"]


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("core/networks/x.py", "from ..formats import native", "core/networks must not import core.formats"),
        ("core/networks/x.py", "from pathlib import Path", "knows tensors, not files (pathlib)"),
        ("core/diffusion/x.py", "import safetensors.torch", "knows tensors, not files (safetensors.torch)"),
        (
            "core/pipelines/x.py",
            "from ..formats.native import load_stage",
            "must not import core.formats.native",
        ),
        ("core/pipelines/x.py", "from ..training import ema", "must not import core.training.ema"),
        (
            "core/formats/x.py",
            "from ..pipelines import decode",
            "core/formats must not import core.pipelines",
        ),
        ("core/stages.py", "from ..nodes import host", "core/stages must not import nodes.host"),
        ("core/x/y.py", "def f():\n    from ...cli import app", "core/x must not import cli.app"),
        ("core/formats/x.py", "import folder_paths", "only nodes/host.py imports ComfyUI (folder_paths)"),
        (
            "nodes/decode.py",
            "from comfy.utils import ProgressBar",
            "only nodes/host.py imports ComfyUI (comfy.utils)",
        ),
        ("nodes/decode.py", "from ..cli import app", "nodes must not import cli.app"),
        ("nodes/decode.py", "from ..core.training import ema", "nodes must not import core.training.ema"),
        (
            "cli/x.py",
            "from unclip.core import stages",
            "unclip.core: the package's own modules are imported rel",
        ),
        ("cli/x.py", "import core.stages", "core.stages: the package's own modules are imported relatively"),
        ("core/training/x.py", "import typer", "the core does not know the command line (typer)"),
        ("__init__.py", "from .core import stages", "the root must not import core.stages"),
    ],
)
def test_a_forbidden_import_is_seen(path: str, text: str, expected: str) -> None:
    (violation,) = import_violations(Source(path, text))
    assert violation.startswith(f"{path}:")
    assert expected in violation


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "nodes/host.py",
            "import folder_paths\nfrom comfy import model_management\nfrom ..core import stages",
        ),
        ("core/networks/__init__.py", "from .layers import attention\nfrom ..config import config_to_dict"),
        ("core/training/recipes/decoder.py", "from ..formats.native import save_stage"),
        ("cli/app.py", "from ..nodes import host\nfrom .console import warn\nimport typer"),
        ("__init__.py", "from . import nodes"),
    ],
)
def test_an_allowed_import_passes(path: str, text: str) -> None:
    assert import_violations(Source(path, text)) == []


def test_an_import_that_leaves_the_package_is_seen() -> None:
    with pytest.raises(ValueError, match=r"cli/x\.py:1: the import leaves the package"):
        list(imports(Source("cli/x.py", "from ... import other")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("print('x')", "print"),
        ("def f(p):\n    return open(p)", "knows tensors, not files (open)"),
        ("def f(p):\n    return torch.load(p)", "knows tensors, not files (torch.load)"),
        ("def f():\n    torch.manual_seed(0)", "changes the generator of the whole process"),
        ("def f(x):\n    return torch.randn(x.shape)", "torch.randn without a generator"),
    ],
)
def test_a_forbidden_call_is_seen(text: str, expected: str) -> None:
    (violation,) = call_violations(Source("core/networks/x.py", text))
    assert expected in violation


def test_what_runs_on_import_is_seen() -> None:
    assert top_level_violations(Source("cli/x.py", '"""X."""\nVALUE = 3\n"""About it."""\n')) == []
    found = top_level_violations(Source("cli/x.py", "import sys\nsys.path.append('x')\nfor x in []: pass"))
    assert [violation.split(":", 2)[1] for violation in found] == ["1", "2", "3"]
