"""Workflows without ComfyUI: read, checked and run here."""

from __future__ import annotations

from .graph import Node, Workflow, is_link
from .reading import load_workflow, parse_workflow

__all__ = ["Node", "Workflow", "is_link", "load_workflow", "parse_workflow"]
