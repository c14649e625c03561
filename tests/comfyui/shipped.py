"""The workflows that ship with the pack, and which of them the embedded bundle is enough for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .server import PACK

FOLDER = PACK / "workflows"
WORKFLOWS = tuple(sorted(FOLDER.glob("*.json")))
LOADERS = tuple(f"UnCLIPLoad{what}" for what in ("Bundle", "CLIP", "Prior", "Decoder", "Upsampler"))
MINI = "mini"
HAS_MINI = (PACK / "models" / MINI / "bundle.json").is_file()
MUTED, BYPASSED = 2, 4


def read(path: Path) -> dict[str, Any]:
    """The UI form."""
    return json.loads(path.read_text(encoding="utf-8"))


def needs_only_mini(path: Path) -> bool:
    """True where every loader names the embedded bundle or one of its files."""
    loaded = [
        node["widgets_values"][0]
        for node in read(path)["nodes"]
        if node["type"] in LOADERS and node["mode"] not in (MUTED, BYPASSED)
    ]
    return all(name.split("/")[0] == MINI for name in loaded)
