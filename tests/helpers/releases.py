"""What each release promised to people's workflow files, and whether this version keeps it.

tests/releases/VERSION holds what ``tools/keep_release.py`` wrote when that version was current: the shipped
workflows as they were, one more in which every widget of every node holds a value of its own, the graphs that
ComfyUI would queue of them, and what the nodes declared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unclip.cli.workflow.local import local_catalog
from unclip.cli.workflow.reading import parse_workflow
from unclip.cli.workflow.specs import ClassCatalog, InputSpec, NodeSpec
from unclip.nodes import NODE_CLASS_MAPPINGS

from .sources import ROOT
from .workflow import node_class

RELEASES = ROOT / "tests" / "releases"
NODES, EVERY_NODE, GRAPH = "nodes.json", "every_node.json", ".graph.json"
# Choices of these are what lies on a disk.
FILES = ("file", "bundle", "folder")

_PICTURE, _COUNT, _SHARE, _NAME = ("IMAGE",), ("INT", {}), ("FLOAT", {}), ("STRING", {})
# ComfyUI's own nodes in the shipped workflows, of which the command line has no stand-in.
COMFYUI_NODES = {
    "CheckpointLoaderSimple": node_class({"ckpt_name": (["model"], {})}, returns=("MODEL", "CLIP", "VAE")),
    "CLIPTextEncode": node_class({"text": _NAME, "clip": ("CLIP",)}, returns=("CONDITIONING",)),
    "ConditioningZeroOut": node_class({"conditioning": ("CONDITIONING",)}, returns=("CONDITIONING",)),
    "unCLIPConditioning": node_class(
        {
            "conditioning": ("CONDITIONING",),
            "clip_vision_output": ("CLIP_VISION_OUTPUT",),
            "strength": _SHARE,
            "noise_augmentation": _SHARE,
        },
        returns=("CONDITIONING",),
    ),
    "EmptyLatentImage": node_class(
        {"width": _COUNT, "height": _COUNT, "batch_size": _COUNT}, returns=("LATENT",)
    ),
    "KSampler": node_class(
        {
            "model": ("MODEL",),
            "seed": ("INT", {"control_after_generate": True}),
            "steps": _COUNT,
            "cfg": _SHARE,
            "sampler_name": (["euler"], {}),
            "scheduler": (["normal"], {}),
            "positive": ("CONDITIONING",),
            "negative": ("CONDITIONING",),
            "latent_image": ("LATENT",),
            "denoise": _SHARE,
        },
        returns=("LATENT",),
    ),
    "VAEDecode": node_class({"samples": ("LATENT",), "vae": ("VAE",)}, returns=_PICTURE),
}


def catalog_of(classes: Mapping[str, type] = NODE_CLASS_MAPPINGS) -> ClassCatalog:
    """Our nodes, the command line's stand-ins, and what else occurs in the shipped workflows."""
    return ClassCatalog({**local_catalog().classes, **COMFYUI_NODES, **classes})


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def graph_of(document: Mapping[str, Any], catalog: ClassCatalog) -> dict[str, Any]:
    """Node id → class and inputs, as ComfyUI would queue them."""
    queued = parse_workflow(document, catalog).to_api()
    return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in queued.items()}


# --- what a version promises ---


def declared(catalog: ClassCatalog) -> dict[str, Any]:
    """What files hold of each of our nodes: inputs and outputs by name, and widgets by position."""
    promises = {}
    for node_id in NODE_CLASS_MAPPINGS:
        spec = catalog.spec(node_id)
        promises[node_id] = {
            "required": {name: _kind(each) for name, each in spec.inputs.items() if each.required},
            "optional": {name: _kind(each) for name, each in spec.inputs.items() if not each.required},
            "widgets": [each.name for each in spec.widgets],
            "outputs": [[name, kind] for name, kind in zip(spec.output_names, spec.outputs, strict=True)],
        }
    return promises


def _kind(spec: InputSpec) -> Any:
    """The type of an input, or its choices."""
    if spec.choices is None:
        return spec.type
    return "COMBO" if spec.name in FILES else list(spec.choices)


def every_node(catalog: ClassCatalog) -> dict[str, Any]:
    """A workflow of all our nodes, unconnected, each widget with a value that no other of its node has."""
    nodes = []
    for number, node_id in enumerate(NODE_CLASS_MAPPINGS, 1):
        values: list[Any] = []
        for place, widget in enumerate(catalog.spec(node_id).widgets, 1):
            values.append(_unlike(widget, place))
            if widget.has_control:
                values.append("increment")
        nodes.append({"id": number, "type": node_id, "mode": 0, "inputs": [], "widgets_values": values})
    return {"nodes": nodes, "links": [], "version": 0.4}


def _unlike(widget: InputSpec, place: int) -> Any:
    """A value within the range of a widget, that its neighbours and its default have not."""
    options, default = widget.options, widget.default
    if widget.name in FILES:
        return f"kept/{place}.safetensors"
    if widget.choices is not None:
        return next((each for each in reversed(widget.choices) if each != default), default)
    if widget.type == "BOOLEAN":
        return not default
    if widget.type == "STRING":
        return f"{widget.name} {place}"
    step = options.get("step", 1)
    value = options["min"] + place * step
    value = value if value != default else value + 20 * step
    return round(min(value, options["max"]), 6)


# --- whether it is kept ---


def broken_promises(promised: Mapping[str, Any], catalog: ClassCatalog) -> list[str]:
    """What files that were made with ``promised`` would no longer find, or find elsewhere."""
    found = []
    for node_id, old in promised.items():
        spec = catalog.spec(node_id)
        if spec is None:
            found.append(f"{node_id}: is gone")
            continue
        found += [f"{node_id}: {problem}" for problem in _broken_inputs(old, spec)]
        widgets = [each.name for each in spec.widgets][: len(old["widgets"])]
        if widgets != old["widgets"]:
            found.append(f"{node_id}: widgets begin with {widgets}, not with {old['widgets']}")
        outputs = [list(each) for each in zip(spec.output_names, spec.outputs, strict=True)]
        if outputs[: len(old["outputs"])] != old["outputs"]:
            found.append(f"{node_id}: outputs begin otherwise than with {old['outputs']}")
    return found


def _broken_inputs(old: Mapping[str, Any], spec: NodeSpec) -> list[str]:
    found = []
    for name, kind in {**old["required"], **old["optional"]}.items():
        if name not in spec.inputs:
            found.append(f"input {name} is gone")
            continue
        now = _kind(spec.inputs[name])
        if isinstance(kind, list) and isinstance(now, list):
            gone = [choice for choice in kind if choice not in now]
            found += [f"input {name} no longer takes {choice!r}" for choice in gone]
        elif isinstance(kind, str) and isinstance(now, str):
            # More types than before may fit.
            if not set(kind.split(",")) <= set(now.split(",")):
                found.append(f"input {name} takes {now}, not {kind}")
        else:
            found.append(f"input {name} takes {now}, not {kind}")
    demanded = [name for name, each in spec.inputs.items() if each.required and name not in old["required"]]
    return [*found, *(f"input {name} is demanded, and old files lack it" for name in demanded)]


def changed_inputs(
    expected: Mapping[str, Any], queued: Mapping[str, Any], catalog: ClassCatalog
) -> list[str]:
    """What a kept file gives its nodes now and did not give them then."""
    found = [f"node {key}: is gone" for key in expected if key not in queued]
    found += [f"node {key}: was not there" for key in queued if key not in expected]
    for key in expected.keys() & queued.keys():
        (old, new), kind = (each[key]["inputs"] for each in (expected, queued)), expected[key]["class_type"]
        where = f"node {key} ({kind})"
        if queued[key]["class_type"] != kind:
            found.append(f"{where}: is a {queued[key]['class_type']}")
            continue
        inputs = catalog.spec(kind).inputs
        for name in [name for name in old if name not in new or new[name] != old[name]]:
            found.append(f"{where}: {name} is {new.get(name)!r}, was {old[name]!r}")
        for name in [name for name in new if name not in old and new[name] != inputs[name].default]:
            found.append(f"{where}: {name} is {new[name]!r}, which the file does not say")
    return sorted(found)
