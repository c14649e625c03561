"""The script that makes the pictures of the help pages."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from unclip.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

from ..helpers.sources import ROOT

PAGES = ROOT / "web" / "docs"


@pytest.fixture(scope="module")
def script():
    """The script and the files beside it, which find each other as if it had been started."""
    folder = str(ROOT / "tools")
    sys.path.insert(0, folder)
    try:
        loaded = runpy.run_path(f"{folder}/make_help_pictures.py")
        yield SimpleNamespace(**loaded, slots_of=sys.modules["help_diagrams"].slots_of)
    finally:
        sys.path.remove(folder)
        for name in ("help_diagrams", "help_figures", "help_scenes", "help_studio", "help_wirings"):
            sys.modules.pop(name, None)


def test_every_node_has_one_picture(script) -> None:
    assert {*script.SCENES, *script.DIAGRAMS} == set(NODE_CLASS_MAPPINGS)
    assert not set(script.SCENES) & set(script.DIAGRAMS)


def test_pictures_further_down_a_page_are_drawn_too(script) -> None:
    drawn = {(node_id, name) for node_id, scenes in script.FURTHER.items() for name in scenes}
    assert drawn == {
        (path.parent.name, path.name) for path in PAGES.glob("*/*.webp") if path.name != script.NAME
    }


def test_wires_go_between_sockets_of_one_type(script) -> None:
    for node_id, diagram in script.DIAGRAMS.items():
        shown = [name for column in diagram.columns for name in column]
        assert node_id in shown and len(set(shown)) == len(shown)
        assert set(diagram.widgets) <= set(shown)
        wired = set()
        for wire in diagram.wires:
            (start, output), (end, name) = (each.split(".") for each in wire.split())
            accepted = script.slots_of(end).inputs[name].split(",")
            assert script.slots_of(start).outputs[output] in accepted, wire
            wired |= {start, end}
        assert wired == set(shown), "a node without a wire"


def test_widgets_are_those_of_the_nodes(script) -> None:
    for diagram in script.DIAGRAMS.values():
        for node_id, widgets in diagram.widgets.items():
            if node_id in NODE_CLASS_MAPPINGS:
                groups = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES().values()
                assert set(widgets) <= {name for group in groups for name in group}


def test_sockets_of_our_nodes_are_read_from_their_classes(script) -> None:
    slots = script.slots_of("UnCLIPInterpolate")
    assert slots.title == NODE_DISPLAY_NAME_MAPPINGS["UnCLIPInterpolate"]
    assert slots.inputs == {"first": "UNCLIP_EMBEDDING", "second": "UNCLIP_EMBEDDING"}  # widgets are none
    assert slots.outputs == {"embedding": "UNCLIP_EMBEDDING"}


def test_a_diagram_is_shown_as_its_node_is(script) -> None:
    for node_id, diagram in script.DIAGRAMS.items():
        drawn = np.asarray(script.draw_diagram(diagram, node_id), dtype=float)
        shipped = np.asarray(Image.open(PAGES / node_id / script.NAME).convert("RGB"), dtype=float)
        assert drawn.shape == shipped.shape, f"run: python tools/make_help_pictures.py {node_id}"
        assert np.abs(drawn - shipped).mean() < 2.5, f"run: python tools/make_help_pictures.py {node_id}"
    node_id = "UnCLIPLoadCLIP"
    diagram = script.DIAGRAMS[node_id]
    shipped = np.asarray(Image.open(PAGES / node_id / script.NAME).convert("RGB"), dtype=float)
    other = replace(diagram, widgets={node_id: dict.fromkeys(diagram.widgets[node_id], "another value")})
    assert np.abs(np.asarray(script.draw_diagram(other, node_id), dtype=float) - shipped).mean() > 0.1


def test_a_picture_is_kept_small(script) -> None:
    plain = Image.new("RGB", (640, 200), (20, 40, 60))
    assert len(script.encoded(plain)) < 1000
    smooth = np.linspace(0, 255, 640 * 640 * 3).reshape(640, 640, 3)
    rough = np.random.default_rng(0).normal(0, 12, smooth.shape)
    written = script.encoded(Image.fromarray((smooth + rough).clip(0, 255).astype(np.uint8)))
    assert 10_000 < len(written) <= script.LARGEST
    with pytest.raises(ValueError, match="bytes in the lowest quality; expected at most 40000"):
        noise = np.random.default_rng(0).integers(0, 256, (800, 640, 3), dtype=np.uint8)
        script.encoded(Image.fromarray(noise))
