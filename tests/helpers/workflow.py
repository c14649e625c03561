"""Small fake node classes, and builders of UI-form workflows, for the tests of the command line."""

from __future__ import annotations

from typing import Any

from unclip.cli.workflow.specs import ClassCatalog


class Number:
    """A source with every kind of widget."""

    RETURN_TYPES = ("INT", "STRING")
    RETURN_NAMES = ("number", "words")
    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "seed": ("INT", {"default": 0, "min": 0, "max": 100}),
                "strength": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0}),
                "mode": (["plain", "fancy"], {"default": "plain"}),
            },
            "optional": {
                "label": ("STRING", {"default": "none"}),
                "loud": ("BOOLEAN", {"default": False}),
            },
        }

    def go(self, seed, strength, mode, label="unset", loud=False):
        return seed, f"{seed}|{strength}|{mode}|{label}|{loud}"


class Double:
    RETURN_TYPES = ("INT",)
    FUNCTION = "go"
    calls = 0

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"value": ("INT", {"forceInput": True})}}

    def go(self, value):
        type(self).calls += 1
        return (value * 2,)


class Show:
    """An output node; what it saw is its report."""

    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"value": ("*",)}}

    def go(self, value):
        return {"ui": {"seen": [value]}}


CLASSES: dict[str, type] = {"Number": Number, "Double": Double, "Show": Show}


def catalog(titles: dict[str, str] | None = None, **more: type) -> ClassCatalog:
    return ClassCatalog({**CLASSES, **more}, titles)


def node_class(
    required: dict[str, Any] | None = None,
    optional: dict[str, Any] | None = None,
    *,
    returns: tuple = (),
    go=lambda self, **given: (),
    **attributes: Any,
) -> type:
    """A V1 node class made of its declarations."""
    declared = {"required": required or {}, "optional": optional or {}, **attributes.pop("declared", {})}
    return type(
        "Made",
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: declared),
            "RETURN_TYPES": returns,
            "FUNCTION": "go",
            "go": go,
            **attributes,
        },
    )


class UiBuilder:
    """Builds a UI-form workflow (version 0.4) the way ComfyUI's frontend saves it."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list[Any]] = []

    def node(
        self,
        class_type: str,
        *values: Any,
        inputs: dict[str, str] | None = None,
        outputs: tuple[str, ...] = (),
        widget_inputs: dict[str, str] | None = None,
        mode: int = 0,
        **more: Any,
    ) -> int:
        """Add a node; ``inputs`` and ``widget_inputs`` map names to types, the latter are widgets."""
        node_id = len(self.nodes) + 1
        slots = [{"name": name, "type": kind, "link": None} for name, kind in (inputs or {}).items()]
        slots += [
            {"name": name, "type": kind, "link": None, "widget": {"name": name}}
            for name, kind in (widget_inputs or {}).items()
        ]
        self.nodes.append(
            {
                "id": node_id,
                "type": class_type,
                "pos": [0, 0],
                "size": [200, 100],
                "flags": {},
                "order": node_id - 1,
                "mode": mode,
                "inputs": slots,
                "outputs": [{"name": kind, "type": kind, "links": []} for kind in outputs],
                "properties": {"Node name for S&R": class_type},
                "widgets_values": list(values),
                **more,
            }
        )
        return node_id

    def link(self, source: int, slot: int, target: int, name: str) -> int:
        """Connect output ``slot`` of ``source`` to the input ``name`` of ``target``."""
        link_id = len(self.links) + 1
        output = self.nodes[source - 1]["outputs"][slot]
        inputs = self.nodes[target - 1]["inputs"]
        index = next(i for i, entry in enumerate(inputs) if entry["name"] == name)
        self.links.append([link_id, source, slot, target, index, output["type"]])
        output["links"].append(link_id)
        inputs[index]["link"] = link_id
        return link_id

    def json(self, **more: Any) -> dict[str, Any]:
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
            **more,
        }
