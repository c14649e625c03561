"""What pip, ComfyUI-Manager and ComfyUI are told about the package."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
from unclip.core.training.stages import read_toml

from .helpers_sources import FOLDERS, ROOT, imports, sources
from .test_import_rules import COMFYUI

PROJECT = read_toml(ROOT / "pyproject.toml")
# Names of modules where they differ from the name of what pip installs.
MODULES = {
    "open_clip_torch": "open_clip",
    "pillow": "PIL",
    "resvg-py": "resvg_py",
    "websocket-client": "websocket",
}
# Every ComfyUI has these, and Manager must not touch them.
COMFYUI_HAS = ("torch", "torchvision")


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group()


def test_every_folder_of_modules_is_packaged() -> None:
    folders = {path.parent for name in FOLDERS for path in (ROOT / name).rglob("__init__.py")}
    expected = {"unclip", *(".".join(("unclip", *path.relative_to(ROOT).parts)) for path in folders)}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected
    assert {path.parent for name in FOLDERS for path in (ROOT / name).rglob("*.py")} == folders


def test_the_data_of_the_package_is_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["unclip"]
    paths = [
        path.relative_to(ROOT).as_posix()
        for name in ("models/mini", "workflows", "web", "locales")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]
    assert any(path.startswith("models/mini/configs/") for path in paths)
    assert [path for path in paths if not any(fnmatch(path, pattern) for pattern in patterns)] == []


def test_manager_installs_the_dependencies_that_comfyui_lacks() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    expected = [line for line in PROJECT["project"]["dependencies"] if name_of(line) not in COMFYUI_HAS]
    assert [line for line in lines if line] == expected


def test_every_imported_package_is_a_dependency() -> None:
    project = PROJECT["project"]
    dependencies = {MODULES.get(name_of(line), name_of(line)) for line in project["dependencies"]}
    extra = {MODULES.get(name_of(line), name_of(line)) for line in project["optional-dependencies"]["train"]}
    for source in sources():
        allowed = dependencies | (
            extra if source.path.startswith(("core/training/", "core/evaluation/")) else set()
        )
        if source.path == "nodes/host.py":
            allowed = allowed | COMFYUI
        found = {each.target[0] for each in imports(source) if not each.own}
        assert found - allowed - set(sys.stdlib_module_names) == set(), source.path


def test_every_dependency_is_used() -> None:
    found = {each.target[0] for source in sources() for each in imports(source) if not each.own}
    project = PROJECT["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    unused = {name_of(line) for line in stated if MODULES.get(name_of(line), name_of(line)) not in found}
    assert unused <= {"torchvision"}  # open_clip's


def test_the_version_is_in_the_changelog() -> None:
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("no CHANGELOG.md in this copy")
    headings = re.findall(r"^## (\S+)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == PROJECT["project"]["version"]


def test_the_files_that_are_named_are_there() -> None:
    project = PROJECT["project"]
    for name in (project["readme"], *project["license-files"]):
        assert (ROOT / name).stat().st_size > 0, name
    web = PROJECT["tool"]["comfy"].get("web")
    assert web is None or any((ROOT / web).glob("**/*.js"))


# --- as ComfyUI loads it: a folder of any name, under a module name of ComfyUI's making ---


@pytest.fixture
def custom_node(tmp_path: Path) -> Iterator[ModuleType]:
    folder = tmp_path / "custom_nodes" / "un-clip.v2 (copy)"
    for source in sources():
        target = folder / source.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.text, encoding="utf-8")
    name = str(folder).replace(".", "_x_")  # as ComfyUI's nodes.py
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[loaded]


def test_a_folder_of_any_name_loads_in_comfyui(custom_node: ModuleType) -> None:
    nodes = custom_node.NODE_CLASS_MAPPINGS
    assert {"UnCLIPLoadBundle", "UnCLIPDecode"} <= set(nodes)
    assert set(custom_node.NODE_DISPLAY_NAME_MAPPINGS) == set(nodes)
    folder = Path(custom_node.__file__).parent
    files = {Path(sys.modules[node.__module__].__file__) for node in nodes.values()}
    assert all(path.is_relative_to(folder) for path in files)  # not those of an installed unclip
