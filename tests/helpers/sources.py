"""The package's own source files, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cli", "core", "nodes")


@dataclass(frozen=True)
class Source:
    """A module of the package: its path from the root, such as ``core/networks/unet.py``, and its text."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its package and itself below the root: ``("core", "networks", "unet")``."""
        return tuple(self.path.removesuffix(".py").removesuffix("/__init__").split("/"))

    @property
    def package(self) -> tuple[str, ...]:
        """What one dot of a relative import means."""
        if self.path.endswith("__init__.py"):
            return self.parts if "/" in self.path else ()
        return self.parts[:-1]


@dataclass(frozen=True)
class Import:
    """One imported name. ``target`` is from the root for the package's own, else the module's full name."""

    line: int
    own: bool
    target: tuple[str, ...]


def sources() -> list[Source]:
    """Every module of the package (not the tests, benchmarks and tools beside it)."""
    paths = [
        ROOT / "__init__.py",
        *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))),
    ]
    return [
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in paths
        if "__pycache__" not in path.parts and not path.name.startswith(".")
    ]


def imports(source: Source) -> Iterator[Import]:
    """All imports, those inside functions and under TYPE_CHECKING too.

    Raises:
        ValueError: a relative import that leaves the package.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, False, tuple(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield Import(node.lineno, False, tuple((node.module or "").split(".")))
        elif isinstance(node, ast.ImportFrom):
            above = len(source.package) - (node.level - 1)
            if above < 0:
                raise ValueError(f"{source.path}:{node.lineno}: the import leaves the package")
            base = source.package[:above] + tuple(node.module.split(".") if node.module else ())
            for alias in node.names:
                yield Import(node.lineno, True, (*base, alias.name))


def import_graph(modules: Sequence[Source]) -> dict[str, set[str]]:
    """Each module's path and the paths of the modules that it imports."""
    paths = {source.parts: source.path for source in modules}
    graph: dict[str, set[str]] = {}
    for source in modules:
        targets = [each.target for each in imports(source) if each.own]
        # An imported name is a module, or it stands in the module before it.
        found = {paths.get(target) or paths.get(target[:-1]) for target in targets}
        graph[source.path] = {path for path in found if path is not None}
    return graph
