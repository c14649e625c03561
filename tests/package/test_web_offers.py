"""The script that tells the page which nodes to offer when a wire of unCLIP is dropped on the canvas."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS

from ..helpers.sources import ROOT
from .test_web_extension import TYPES

SCRIPT = ROOT / "web" / "unclip_offers.js"
STAND_IN = "export const app = { registerExtension: (extension) => extension.setup() };"
# As the page fills the lists: one of another pack's nodes, and one of ours that the page knew already.
RUN = """
globalThis.LiteGraph = {
  slot_types_default_out: { UNCLIP_EMBEDDING: ["Reroute", "UnCLIPBlend"] },
  slot_types_default_in: {},
};
await import("./extensions/unclip/unclip_offers.js");
const first = [LiteGraph.slot_types_default_out, LiteGraph.slot_types_default_in];
// As the page begins anew when a node is registered.
LiteGraph.slot_types_default_out = {};
LiteGraph.slot_types_default_in = {};
LiteGraph.slot_types_default_out.UNCLIP_EMBEDDING = ["Reroute", "UnCLIPBlend"];
LiteGraph.slot_types_default_out.IMAGE = ["SaveImage"];
const again = [LiteGraph.slot_types_default_out, LiteGraph.slot_types_default_in];
console.log(JSON.stringify([...first, ...again]));
"""


@pytest.fixture(scope="module")
def offers(tmp_path_factory) -> tuple[dict[str, list[str]], ...]:
    """After an output, before an input: node ids by socket type; then the same when the page began anew."""
    if shutil.which("node") is None:
        pytest.skip("no Node.js to run the script")
    folder: Path = tmp_path_factory.mktemp("page")
    for name, text in {
        "package.json": '{"type": "module"}',
        "scripts/app.js": STAND_IN,
        "extensions/unclip/unclip_offers.js": SCRIPT.read_text("utf-8"),
        "run.js": RUN,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    run = subprocess.run(["node", "run.js"], cwd=folder, capture_output=True, text=True, check=True)
    return tuple(json.loads(run.stdout))


def taken_types(node_id: str) -> set[str]:
    inputs = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    kinds = (spec[0] for part in ("required", "optional") for spec in inputs.get(part, {}).values())
    return {kind for name in kinds if isinstance(name, str) for kind in name.split(",")}


def given_types(node_id: str) -> set[str]:
    return {kind for name in NODE_CLASS_MAPPINGS[node_id].RETURN_TYPES for kind in str(name).split(",")}


def test_every_node_that_takes_or_gives_a_socket_is_offered_there(offers) -> None:
    after, before, *_ = offers
    assert after["UNCLIP_EMBEDDING"][0] == "UnCLIPDecode"
    assert after["UNCLIP_EMBEDDING"].count("UnCLIPBlend") == 1
    assert after["UNCLIP_EMBEDDING"][-1] == "Reroute"  # what others have put there stays, behind ours
    for kind in TYPES:
        ours = {name for name in NODE_CLASS_MAPPINGS if kind in taken_types(name)}
        assert {name for name in after[kind] if name in NODE_CLASS_MAPPINGS} == ours, kind
        ours = {name for name in NODE_CLASS_MAPPINGS if kind in given_types(name)}
        assert {name for name in before[kind] if name in NODE_CLASS_MAPPINGS} == ours, kind


def test_an_input_of_several_kinds_has_an_offer_of_its_own(offers) -> None:
    _, before, *_ = offers
    declared = (group for node in NODE_CLASS_MAPPINGS.values() for group in node.INPUT_TYPES().values())
    kinds = {spec[0] for group in declared for spec in group.values() if isinstance(spec[0], str)}
    several = {kind for kind in kinds if kind.startswith("UNCLIP") and "," in kind}
    assert several
    for kind in several:
        assert before[kind] and all(given_types(name) & set(kind.split(",")) for name in before[kind])


def test_offers_outlast_a_page_that_begins_anew(offers) -> None:
    after, before, after_again, before_again = offers
    assert after_again == {**after, "IMAGE": ["SaveImage"]}
    assert before_again == before
