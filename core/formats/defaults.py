"""Where the sampling settings stand that a model's pictures want: in the description of its folder.

``bundle.json``, or the ``unclip.json`` of a model in another layout, may hold ``"defaults": {"decoder":
{"sampler": "dpmpp_2m", "steps": 8}}``: by stage, under the names of the sampling settings of its node. They
hold where a person says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..stages import Defaults
from .few_steps import description_of
from .files.json_files import read_json_object
from .files.safetensors_io import write_text

DEFAULTS = "defaults"
STAGES = ("prior", "ar_prior", "decoder", "upsampler")


def read_defaults(folders: Sequence[str | Path]) -> Defaults:
    """What folders that belong together say; the first one's word counts most.

    Raises:
        ValueError: a description that cannot be read, or that has no tables there. Names and values are for
            ``pipelines.generate.default_settings`` to check.
    """
    found: dict[str, dict[str, Any]] = {}
    files: list[Path] = []
    for path in dict.fromkeys(description_of(folder) for folder in folders):
        said = read_json_object(path).get(DEFAULTS, {}) if path.is_file() else {}
        if not isinstance(said, Mapping) or not all(_is_table(stage, table) for stage, table in said.items()):
            raise ValueError(
                f"{path}: {DEFAULTS} is {said!r}, expected a table of sampling settings for some of "
                f"{', '.join(STAGES)}"
            )
        for stage, table in said.items():
            found[stage] = {**table, **found.get(stage, {})}
        if said:
            files.append(path)
    return Defaults(found, ", ".join(map(str, files)))


def write_defaults(folder: str | Path, defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """Put them into the description of a folder that has none; written whole or not at all."""
    path = description_of(folder)
    content = read_json_object(path) if path.is_file() else {}
    if defaults and DEFAULTS not in content:
        content[DEFAULTS] = {stage: dict(table) for stage, table in defaults.items()}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _is_table(stage: str, table: Any) -> bool:
    plain = isinstance(table, Mapping) and all(isinstance(v, int | float | str) for v in table.values())
    return stage in STAGES and plain
