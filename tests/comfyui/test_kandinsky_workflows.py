"""The shipped workflows of Kandinsky run on a server, with small models in the published layout."""

from __future__ import annotations

import shutil

import pytest
from unclip.cli.server.client import ComfyServer as Client
from unclip.cli.workflow.reading import load_workflow

from ..helpers import kandinsky_workflows as kandinsky
from .server import PACK

SAVES = {"SaveImage", "SaveVideo"}


@pytest.fixture(scope="module")
def in_place(server, models):
    """The models are there while this module runs, and the picture that the workflows load."""
    base = server.log.parent
    written = kandinsky.write_models(models)
    before = (base / "input" / "example.png").read_bytes()
    picture = kandinsky.write_picture(base / "input")
    yield
    picture.write_bytes(before)
    for folder in written:
        shutil.rmtree(folder)


@pytest.mark.usefixtures("in_place")
@pytest.mark.parametrize("name", kandinsky.MAKES)
def test_it_runs_in_comfyui(server, name):
    graph = load_workflow(PACK / "workflows" / f"{name}.json", Client(f"http://{server.address}"))
    for node_id, node in graph.nodes.items():
        graph = graph.with_inputs(node_id, **kandinsky.small(node.inputs))
    run = server.run(graph.to_api())  # raises where node_errors is not empty
    assert run.kinds[-1] == "execution_success", run.of("execution_error")
    (node,) = (key for key, node in graph.nodes.items() if node.class_type in SAVES)
    if graph.nodes[node].class_type == "SaveVideo":
        pictures, rate = server.film(run, node)
        assert rate == kandinsky.FRAME_RATE
    else:
        pictures = server.pictures(run, node)
    assert [picture.shape for picture in pictures] == [(*size, 3) for size in kandinsky.MAKES[name]]
    assert min(picture.std() for picture in pictures) > 5
