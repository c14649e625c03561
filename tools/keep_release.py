"""Write tests/releases/VERSION: what people's workflow files may rely on from this version on.

Run once for a release, on the commit that is tagged, from the root of the repository:
python tools/keep_release.py. A folder that is there is never written again: the promise is the old one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from unclip.core.training.stages import read_toml
from unclip.tests.helpers.releases import (
    EVERY_NODE,
    GRAPH,
    NODES,
    RELEASES,
    catalog_of,
    declared,
    every_node,
    graph_of,
)

ROOT = Path(__file__).resolve().parent.parent


def keep(folder: Path, workflows: list[Path]) -> None:
    """Write workflows, their graphs and the declarations of all nodes into a new folder.

    Raises:
        ValueError: the folder is there.
    """
    if folder.exists():
        raise ValueError(f"{folder}: is there already; what a release promised does not change")
    catalog = catalog_of()
    folder.mkdir(parents=True)
    for path in workflows:
        shutil.copyfile(path, folder / path.name)
    _write(folder / EVERY_NODE, every_node(catalog))
    for path in [*workflows, folder / EVERY_NODE]:
        document = json.loads(path.read_text(encoding="utf-8"))
        _write(folder / f"{path.stem}{GRAPH}", graph_of(document, catalog))
    _write(folder / NODES, declared(catalog))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    version = read_toml(ROOT / "pyproject.toml")["project"]["version"]
    try:
        keep(RELEASES / version, sorted((ROOT / "workflows").glob("*.json")))
    except ValueError as error:
        sys.exit(str(error))
