"""Run workflows in this process: the node classes there are, and how a run is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console import warn
from ..progress import StageBars
from .graph import Workflow
from .specs import ClassCatalog

if TYPE_CHECKING:
    from .builtin_nodes import Folders


def local_catalog() -> ClassCatalog:
    """This pack's nodes and the stand-ins for ComfyUI's own. Imports torch and all nodes."""
    from ... import nodes
    from . import builtin_nodes

    return ClassCatalog(
        {**builtin_nodes.NODE_CLASS_MAPPINGS, **nodes.NODE_CLASS_MAPPINGS},
        {**builtin_nodes.NODE_DISPLAY_NAME_MAPPINGS, **nodes.NODE_DISPLAY_NAME_MAPPINGS},
    )


def run_here(
    workflow: Workflow,
    catalog: ClassCatalog,
    folders: Folders,
    *,
    device: str | None = None,
    quiet: bool = False,
) -> None:
    """Run a workflow with a bar per stage; ``folders.written`` lists the files it wrote, even if it fails.

    Raises:
        WorkflowError: see `executor.run_workflow`.
        ValueError: no such device.
    """
    from ...nodes import host
    from .builtin_nodes import use_folders
    from .executor import run_workflow

    host.set_device(device)
    host.set_folders(folders.input, folders.output, folders.written.append)
    with use_folders(folders), StageBars(quiet=quiet) as bars:
        host.set_progress_factory(bars.open)
        try:
            run_workflow(workflow, catalog, on_node=bars.on_node, warn=warn)
        finally:
            host.set_progress_factory(None)
            host.set_folders(None, None)
