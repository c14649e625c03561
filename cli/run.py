"""``unclip run``: run a workflow file here, or on a ComfyUI server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import print_path, warn

if TYPE_CHECKING:
    from .workflow.graph import Workflow
    from .workflow.specs import Catalog


def run(
    workflow: Annotated[
        Path,
        typer.Argument(
            metavar="WORKFLOW",
            help="A workflow as ComfyUI saves it (.json, UI or API form), or a picture or "
            "video that carries one.",
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NODE.INPUT=VALUE",
            help="Change an input. NODE is an id, a title, or a class that occurs once; VALUE is JSON or "
            "text. May be given several times.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the pictures that SaveImage writes.")
    ] = Path("output"),
    input_: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Folder in which LoadImage finds its pictures. Default: the current one; with --server, the "
            "server's own, and pictures of a folder given here are uploaded.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Run on this ComfyUI server, for example http://127.0.0.1:8188."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device to run on here: cpu, cuda, cuda:1, mps. Default: the best.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run a workflow and print the files it wrote, one path a line."""
    from .workflow.file_names import with_file_names
    from .workflow.overrides import apply_overrides, parse_override
    from .workflow.reading import load_workflow, require_file

    overrides = [parse_override(text) for text in set_ or []]
    require_file(workflow)
    if server is not None:
        from .server.client import ComfyServer
        from .server.files import upload_pictures
        from .server.remote_run import run_on_server

        if device is not None:
            raise typer.BadParameter(
                "--device chooses a device of this machine; it does nothing with --server."
            )
        client = ComfyServer(server)
        graph = apply_overrides(load_workflow(workflow, client), overrides, client)
        graph = with_file_names(graph, warn=warn)
        _require_output(graph, client, output)
        if input_ is not None:
            graph = upload_pictures(graph, client, input_)
        for path in run_on_server(graph, client, output=output, quiet=quiet):
            print_path(path)
        return

    from .workflow.local import local_catalog, run_here

    catalog = local_catalog()
    from .workflow.builtin_nodes import Folders, use_folders

    folders = Folders(input_ or Path(), output)
    with use_folders(folders):
        graph = apply_overrides(load_workflow(workflow, catalog), overrides, catalog)
    graph = with_file_names(graph, warn=warn)
    _require_output(graph, catalog, output)
    try:
        run_here(graph, catalog, folders, device=device, quiet=quiet)
    finally:
        for path in folders.written:
            print_path(path)


def _require_output(graph: Workflow, catalog: Catalog, output: Path) -> None:
    """Say before a run, not after it, that its results cannot be written; previews go elsewhere."""
    from .measuring import require_folder

    kinds = {node.class_type for node in graph.nodes.values()} - {"PreviewImage"}
    if any(spec is not None and spec.output_node for spec in map(catalog.spec, kinds)):
        require_folder(output)
