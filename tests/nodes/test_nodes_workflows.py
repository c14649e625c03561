"""The workflows that ship: every node known, every value within its range, every wire of the right type."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN"}
CONTROLS = {"fixed", "increment", "decrement", "randomize"}

# ComfyUI's own nodes in these workflows: sockets, number of widgets, outputs.
OWN = {
    "SaveImage": ({"images": "IMAGE"}, 1, []),
    "CreateVideo": ({"images": "IMAGE"}, 1, ["VIDEO"]),
    "SaveVideo": ({"video": "VIDEO"}, 3, []),  # newer versions have an output
    "PreviewImage": ({"images": "IMAGE"}, 0, []),
    "LoadImage": ({}, 2, ["IMAGE", "MASK"]),
    "LoadImageMask": ({}, 3, ["MASK"]),
    "MarkdownNote": ({}, 1, []),
    "PrimitiveStringMultiline": ({}, 1, ["STRING"]),
    "PrimitiveInt": ({}, 2, ["INT"]),  # with the control behind it
    "CheckpointLoaderSimple": ({}, 1, ["MODEL", "CLIP", "VAE"]),
    "CLIPTextEncode": ({"clip": "CLIP"}, 1, ["CONDITIONING"]),
    "ConditioningZeroOut": ({"conditioning": "CONDITIONING"}, 0, ["CONDITIONING"]),
    "unCLIPConditioning": (
        {"conditioning": "CONDITIONING", "clip_vision_output": "CLIP_VISION_OUTPUT"},
        2,
        ["CONDITIONING"],
    ),
    "EmptyLatentImage": ({}, 3, ["LATENT"]),
    "KSampler": (
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        7,  # with the control behind the seed
        ["LATENT"],
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, 0, ["IMAGE"]),
}
# Models that are published elsewhere, as the loaders list them where the notes say to put them.
PUBLISHED = re.compile(
    r"karlo-v1-alpha(/prior)?|karlo-v1-alpha-image-variations"
    r"|kandinsky-2-[12]-prior|kandinsky-2-2-(decoder(-inpaint)?|controlnet-depth)|kandinsky-2-1"
    r"|pops/texturing/learned_prior\.pth"
    r"|glide/(base|upsample)(_inpaint)?\.pt"
    r"|laion/(ViT-L-14\.pt|prior/best\.pth|decoder/v1\.0\.2/latest\.pth|upsampler/working/latest\.pth)"
)


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def each_node():
    for path in WORKFLOWS:
        for node in load(path)["nodes"]:
            yield pytest.param(node, id=f"{path.stem}-{node['id']}-{node['type']}")


def declared_inputs(node):
    sections = NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES().values()
    return {name: declared for section in sections for name, declared in section.items()}


def is_widget(declared):
    kind, options = declared
    return (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput")


def test_the_first_workflow_is_there():
    assert "text_to_image" in [path.stem for path in WORKFLOWS]


@pytest.mark.parametrize("node", each_node())
def test_a_node_fits_its_class(node):
    assert node["type"] in {*NODE_CLASS_MAPPINGS, *OWN}
    if node["type"] != "MarkdownNote":
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        assert properties["cnr_id"] == ("comfy-core" if node["type"] in OWN else "unclip")
        assert properties["ver"]
    if node["type"] in OWN:
        sockets, widgets, outputs = OWN[node["type"]]
        assert len(node["widgets_values"]) == widgets
        wired = {entry["name"]: entry["type"] for entry in node["inputs"] if "widget" not in entry}
        assert wired == sockets
        assert [out["type"] for out in node["outputs"]] == outputs
        return
    inputs = declared_inputs(node)
    cls = NODE_CLASS_MAPPINGS[node["type"]]
    found = {entry["name"]: entry["type"] for entry in node["inputs"]}
    # What is new since the file was saved may be left out: a widget has its default, a socket stays empty.
    newer = [name for name in inputs if name not in found]
    assert set(newer) <= set(cls.INPUT_TYPES().get("optional", {}))
    assert found == {
        name: "COMBO" if isinstance(kind, list) else kind
        for name, (kind, _) in inputs.items()
        if name not in newer
    }
    outputs = list(zip(cls.RETURN_NAMES, cls.RETURN_TYPES, strict=True))
    assert [(out["name"], out["type"]) for out in node["outputs"]] == outputs[: len(node["outputs"])]


@pytest.mark.parametrize("node", each_node())
def test_widget_values_are_in_the_order_of_the_inputs_and_within_their_ranges(node):
    if node["type"] in OWN:
        return
    values = iter(node["widgets_values"])
    for name, declared in declared_inputs(node).items():
        if not is_widget(declared):
            continue
        kind, options = declared
        if name not in {entry["name"] for entry in node["inputs"]}:
            continue  # newer than the file
        value = next(values)
        if isinstance(kind, list):
            # models are named whether their weights are in this copy or not
            is_model = name in ("bundle", "with_bundle", "file")
            assert value in kind or (
                is_model and (value.split("/")[0] == "mini" or PUBLISHED.fullmatch(value))
            ), name
        elif kind in ("STRING", "BOOLEAN"):
            assert isinstance(value, str if kind == "STRING" else bool), name
        else:
            assert options["min"] <= value <= options["max"], name
            assert isinstance(value, int) or kind == "FLOAT", name
        if options.get("control_after_generate"):
            assert next(values) in CONTROLS
    assert not list(values), "more values than widgets"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_wires_join_outputs_to_inputs_of_their_type(path):
    document = load(path)
    nodes = {node["id"]: node for node in document["nodes"]}
    assert document["version"] == 0.4
    assert document["last_node_id"] == max(nodes)
    assert document["last_link_id"] == max(link[0] for link in document["links"])
    for number, source, output, target, slot, kind in document["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert start["type"] == end["type"] == kind
        assert number in start["links"] and end["link"] == number
    linked = {link[0] for link in document["links"]}
    ends = [entry["link"] for node in nodes.values() for entry in node["inputs"]]
    assert linked == {link for link in ends if link is not None}
    for node in nodes.values():
        required = (
            NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()["required"]
            if node["type"] in NODE_CLASS_MAPPINGS
            else OWN[node["type"]][0]
        )
        sockets = {name for name in required if node["type"] in OWN or not is_widget(required[name])}
        assert sockets <= {entry["name"] for entry in node["inputs"] if entry["link"] is not None}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_numbers_in_the_note_are_those_of_the_groups(path):
    document = load(path)
    (note,) = (node for node in document["nodes"] if node["type"] == "MarkdownNote")
    groups = dict(reversed(group["title"].split(" · ")) for group in document["groups"])
    steps = re.findall(r"^(\d+)\. \*\*(.+?)\*\*", note["widgets_values"][0], re.MULTILINE)
    assert [(number, name) for number, name in steps if groups.get(name, number) != number] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_person_reads_it_row_by_row_from_left_to_right(path):
    document = load(path)
    nodes = {node["id"]: node for node in document["nodes"]}
    corners = [(group["bounding"][1], group["bounding"][0]) for group in document["groups"]]
    assert corners == sorted(corners), "groups stand in rows, in the order of their numbers"

    def place(node):
        """Where a reader comes to it: group after group, within a group column after column."""
        (group,) = (i for i, each in enumerate(document["groups"]) if lies_in(node, each["bounding"]))
        return (group, *node["pos"])

    for _, source, _, target, _, _ in document["links"]:
        assert place(nodes[source]) < place(nodes[target])
    notes = [node for node in nodes.values() if node["type"] == "MarkdownNote"]
    assert notes and all(len(note["widgets_values"][0]) > 100 for note in notes)
    assert len({group["color"] for group in document["groups"]}) == len(document["groups"])
    assert all(group["title"] for group in document["groups"])
    for node in nodes.values():
        if node["type"] == "MarkdownNote":
            continue
        around = [group for group in document["groups"] if lies_in(node, group["bounding"])]
        assert len(around) == 1, f"node {node['id']} lies in one group"
    assert not [
        (a["id"], b["id"])
        for a in nodes.values()
        for b in nodes.values()
        if a["id"] < b["id"] and overlap([*a["pos"], *shown_size(a)], [*b["pos"], *shown_size(b)])
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_saves_a_picture_or_a_video(path):
    nodes = load(path)["nodes"]
    assert [node for node in nodes if node["type"] in ("SaveImage", "SaveVideo") and node["mode"] == 0]


def lies_in(node, bounding):
    (x, y), (width, height), title = node["pos"], shown_size(node), 30
    left, top, across, down = bounding
    return left <= x and top <= y - title and x + width <= left + across and y + height <= top + down


def shown_size(node):
    width, height = node["size"]
    return (width, 0) if node["flags"].get("collapsed") else (width, height)


def overlap(a, b):
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def test_app_mode_shows_inputs_and_outputs_that_are_there():
    """``extra.linearData`` of ComfyUI's page: [node, widget] for each input, nodes for the outputs."""
    shown = {path.stem: load(path)["extra"].get("linearData") for path in WORKFLOWS}
    assert shown["text_to_image"]["inputs"][0] == [2, "text"]
    for name, app in shown.items():
        if app is None:
            continue
        nodes = {node["id"]: node for node in load(FOLDER / f"{name}.json")["nodes"]}
        assert app["inputs"] and app["outputs"]
        for key, widget in app["inputs"]:
            declared = NODE_CLASS_MAPPINGS[nodes[key]["type"]].INPUT_TYPES()
            kind = next(group[widget][0] for group in declared.values() if widget in group)
            assert kind in WIDGETS or isinstance(kind, list), (name, key, widget)
            links = {entry["name"]: entry["link"] for entry in nodes[key]["inputs"]}
            assert links.get(widget) is None, f"{name}: {widget} comes by a wire"
        assert all(OWN[nodes[key]["type"]][2] == [] for key in app["outputs"]), name
