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
from PIL import Image
from unclip.core.training.stages import read_toml

from ..helpers.sources import FOLDERS, ROOT, imports, sources
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
    paths += [
        path.relative_to(ROOT).as_posix()
        for name in ("core", "nodes", "cli")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert "core/evaluation/judging/page.html" in paths
    assert any(path.startswith("models/mini/configs/") for path in paths)
    assert "py.typed" in patterns and (ROOT / "py.typed").is_file()
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
            extra if source.path.startswith(("core/data/", "core/training/", "core/evaluation/")) else set()
        )
        if source.path == "nodes/host.py":
            allowed = allowed | COMFYUI
        if source.path == "cli/extras.py":
            extras = project["optional-dependencies"]
            allowed = allowed | {name_of(line) for name in ("download", "video") for line in extras[name]}
        found = {each.target[0] for each in imports(source) if not each.own}
        standard = {*sys.stdlib_module_names, "tomllib"}  # which Python 3.10 lacks
        assert found - allowed - standard == set(), source.path


def test_every_dependency_is_used() -> None:
    found = {each.target[0] for source in sources() for each in imports(source) if not each.own}
    project = PROJECT["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    unused = {name_of(line) for line in stated if MODULES.get(name_of(line), name_of(line)) not in found}
    assert unused <= {"torchvision", "tensorboard"}  # open_clip's, and a tracker of accelerate's


def test_the_version_is_in_the_changelog() -> None:
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("no CHANGELOG.md in this copy")
    headings = re.findall(r"^## (\S+)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == PROJECT["project"]["version"]
    assert "Unreleased" not in headings[1:]


def test_the_files_that_are_named_are_there() -> None:
    project = PROJECT["project"]
    for name in (project["readme"], *project["license-files"]):
        assert (ROOT / name).stat().st_size > 0, name


# --- the Comfy Registry (docs.comfy.org/registry/specifications) ---


def test_the_registry_is_told_who_what_and_for_which_comfyui() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    name = project["name"]
    assert re.fullmatch(r"[A-Za-z]+([-_.]?[A-Za-z0-9]+)*", name) and len(name) < 100
    assert "comfyui" not in name.lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"]) and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    kinds = [line.split(" :: ")[0] for line in project["classifiers"]]
    assert {"Operating System", "Environment"} <= set(kinds)
    assert all(url.startswith(project["urls"]["Repository"]) for url in project["urls"].values())


def test_the_web_folder_is_named_once() -> None:
    """ComfyUI serves both WEB_DIRECTORY and ``web`` of [tool.comfy], and would run the script twice."""
    import unclip

    assert any((ROOT / unclip.WEB_DIRECTORY).glob("*.js"))
    assert "web" not in PROJECT["tool"]["comfy"]


@pytest.mark.parametrize(("key", "file"), [("Icon", "docs/icon.png"), ("Banner", "docs/banner.png")])
def test_icon_and_banner_are_in_the_repository_and_of_the_registrys_size(key: str, file: str) -> None:
    repository = PROJECT["project"]["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com")
    assert PROJECT["tool"]["comfy"][key] == f"{repository}/main/{file}"
    with Image.open(ROOT / file) as picture:
        width, height = picture.size
    if key == "Icon":
        assert width == height <= 400
    else:
        assert width * 9 == height * 21 and width >= 840


def left_out(path: str) -> bool:
    """Whether .comfyignore, which has only patterns from the root, leaves a file out of the archive."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").split("\n")
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert all(pattern.startswith("/") for pattern in patterns)
    return any(
        path.startswith(pattern[1:]) if pattern.endswith("/") else fnmatch(path, pattern[1:])
        for pattern in patterns
    )


def test_the_archive_holds_what_runs_and_what_users_read() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["unclip"]
    needed = [source.path for source in sources()]
    needed += [
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file()
    ]
    needed += ["README.md", "LICENSE", "NOTICE", "pyproject.toml", "requirements.txt"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    needed += re.findall(r"\]\(([^):#]+)[)#]", readme)  # pictures and links
    assert len(needed) > 150
    assert [path for path in needed if left_out(path)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".ci/run",
        ".github/workflows/ci.yml",
        ".pre-commit-config.yaml",
        "tests/package/test_packaging.py",
        "benchmarks/run.py",
        "tools/make_icon.py",
    ],
)
def test_the_archive_lacks_what_is_for_developers(path: str) -> None:
    assert left_out(path)


def test_what_the_registry_forbids_is_linted() -> None:
    """``comfy node validate`` runs ruff for these: exec, eval, several statements in a line."""
    selected = PROJECT["tool"]["ruff"]["lint"]["select"]
    assert all(any(rule.startswith(each) for each in selected) for rule in ("S102", "S307", "E702"))


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
