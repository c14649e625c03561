"""What node classes declare about their inputs, in one form for V1 classes and for a server's /object_info.

Enough to name the positional widget values of a UI workflow and to check the inputs of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from .errors import WorkflowError, nearest

# Input types for which ComfyUI's frontend makes a widget; anything else is a socket.
WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "MARKDOWN", "TEXTAREA", "COLOR"})
ANY_TYPES = frozenset({"*", "COMFY_MATCHTYPE_V3"})
# INT inputs that get a control widget by their name alone.
SEED_NAMES = frozenset({"seed", "noise_seed"})
# Choices of which some bring inputs of their own.
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
# Inputs whose shape depends on their value: their widget list is known to ComfyUI's frontend only.
DYNAMIC_PREFIXES = ("COMFY_DYNAMIC", "COMFY_AUTOGROW")

_ZERO = {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}


@dataclass(frozen=True)
class InputSpec:
    """One input of a node class.

    ``declared`` is the type as the class gives it; ``type`` is its name, ``"COMBO"`` for all ways to declare
    choices. ``brings`` are the inputs that the node gets with a choice, by their names below this one.
    """

    name: str
    declared: Any
    options: Mapping[str, Any]
    required: bool
    choices: Sequence[Any] | None = None
    brings: Mapping[str, tuple[InputSpec, ...]] = field(default_factory=dict)

    @property
    def type(self) -> str:
        return "COMBO" if self.choices is not None else str(self.declared)

    @property
    def widget_type(self) -> str:
        return str(self.options.get("widgetType") or self.type)

    @property
    def is_widget(self) -> bool:
        """True where ComfyUI's frontend shows a widget, whose value is stored by position."""
        return self.widget_type in WIDGET_TYPES and not self.options.get("forceInput")

    @property
    def takes_values(self) -> bool:
        """False where only what another node gives fits: a picture, a model."""
        kinds = {part.strip() for part in self.widget_type.split(",")}
        return bool(kinds & (WIDGET_TYPES | ANY_TYPES))

    @property
    def has_control(self) -> bool:
        """True where a "fixed / increment / decrement / randomize" widget follows this one."""
        if self.options.get("control_after_generate"):
            return self.type in ("INT", "COMBO")
        return self.type == "INT" and self.name in SEED_NAMES

    @property
    def is_upload(self) -> bool:
        """True where an upload button follows the required widgets, which stores a value of its own."""
        return any(self.options.get(f"{kind}_upload") for kind in ("image", "video", "animated_image"))

    @property
    def default(self) -> Any:
        """What the widget holds when a workflow stores nothing for it."""
        if "default" in self.options:
            return self.options["default"]
        if self.type == "COMBO":
            return self.choices[0] if self.choices else None
        return _ZERO.get(self.type, "")


@dataclass(frozen=True)
class NodeSpec:
    """The declared inputs (required first, in order) and output types of a node class.

    ``title`` is what ComfyUI writes on a node that has no title of its own.
    """

    class_type: str
    title: str
    inputs: Mapping[str, InputSpec]
    outputs: tuple[Any, ...] = ()
    output_names: tuple[str, ...] = ()
    output_node: bool = False
    hidden: Mapping[str, Any] = field(default_factory=dict)

    @property
    def widgets(self) -> tuple[InputSpec, ...]:
        return tuple(spec for spec in self.inputs.values() if spec.is_widget)

    def with_choice(self, name: str, choice: Any) -> NodeSpec:
        """With the inputs that a choice of the input ``name`` brings, behind it and named after it as ComfyUI
        does: ``format.codec``."""
        inputs: dict[str, InputSpec] = {}
        for key, spec in self.inputs.items():
            inputs[key] = spec
            for each in spec.brings.get(choice, ()) if key == name and isinstance(choice, str) else ():
                inputs[f"{name}.{each.name}"] = replace(each, name=f"{name}.{each.name}")
        return replace(self, inputs=inputs)

    def with_choices(self, chosen: Callable[[NodeSpec, str], Any]) -> NodeSpec:
        """With the inputs that the node's choices bring, which may bring others.

        Args:
            chosen: gives the choice of an input, from the spec as far as it is known and the input's name.
        """
        spec, taken = self, set[str]()
        while True:
            # From the first on: what a choice brings moves the values of all later ones.
            name = next((key for key, each in spec.inputs.items() if each.brings and key not in taken), None)
            if name is None:
                return spec
            taken.add(name)
            spec = spec.with_choice(name, chosen(spec, name))

    def for_inputs(self, inputs: Mapping[str, Any]) -> NodeSpec:
        """With the inputs that the choices in a node's inputs bring."""
        return self.with_choices(lambda _, name: inputs.get(name))

    @property
    def is_dynamic(self) -> bool:
        return any(spec.type.startswith(DYNAMIC_PREFIXES) for spec in self.inputs.values())


class Catalog(Protocol):
    """Where node classes are looked up: this installation, or a server."""

    @property
    def place(self) -> str:
        """Names the catalogue in messages: ``"this installation"``."""
        ...

    def spec(self, class_type: str) -> NodeSpec | None: ...

    def names(self) -> Sequence[str]: ...


class ClassCatalog:
    """The catalogue of V1 node classes in this process; INPUT_TYPES is asked once per class.

    ``titles`` are the display names, by class.
    """

    place = "this installation"

    def __init__(self, classes: Mapping[str, type], titles: Mapping[str, str] | None = None):
        self.classes = classes
        self.titles = titles or {}
        self._specs: dict[str, NodeSpec] = {}

    def spec(self, class_type: str) -> NodeSpec | None:
        if class_type not in self.classes:
            return None
        if class_type not in self._specs:
            title = self.titles.get(class_type, class_type)
            self._specs[class_type] = spec_of_class(class_type, self.classes[class_type], title)
        return self._specs[class_type]

    def names(self) -> Sequence[str]:
        return list(self.classes)


def spec_of_class(class_type: str, node_class: type, title: str | None = None) -> NodeSpec:
    """The spec of a V1 node class."""
    input_types = node_class.INPUT_TYPES()
    outputs = tuple(getattr(node_class, "RETURN_TYPES", ()))
    return NodeSpec(
        class_type=class_type,
        title=title or class_type,
        inputs=_input_specs(input_types),
        outputs=outputs,
        output_names=tuple(getattr(node_class, "RETURN_NAMES", outputs)),
        output_node=getattr(node_class, "OUTPUT_NODE", False) is True,
        hidden=dict(input_types.get("hidden") or {}),
    )


def spec_of_object_info(class_type: str, info: Mapping[str, Any]) -> NodeSpec:
    """The spec of a node class from a ComfyUI server's ``/object_info/<class>``."""
    outputs = tuple(info.get("output") or ())
    return NodeSpec(
        class_type=class_type,
        title=str(info.get("display_name") or class_type),
        inputs=_input_specs(info.get("input") or {}),
        outputs=outputs,
        output_names=tuple(info.get("output_name") or outputs),
        output_node=bool(info.get("output_node")),
    )


def _input_specs(input_types: Mapping[str, Any]) -> dict[str, InputSpec]:
    specs: dict[str, InputSpec] = {}
    for category in ("required", "optional"):
        for name, declared in (input_types.get(category) or {}).items():
            specs.setdefault(name, _input_spec(name, declared, category == "required"))
    return specs


def _input_spec(name: str, declared: Any, required: bool) -> InputSpec:
    kind, *rest = declared if isinstance(declared, (list, tuple)) else (declared,)
    options = rest[0] if rest and isinstance(rest[0], Mapping) else {}
    if isinstance(kind, (list, tuple)):
        return InputSpec(name, kind, options, required, choices=list(kind))
    if str(kind) == DYNAMIC_COMBO and (brought := _brought(options.get("options"))):
        return InputSpec(name, kind, options, required, choices=list(brought), brings=brought)
    choices = list(options.get("options") or []) if str(kind) == "COMBO" else None
    # The type object itself is kept: a wildcard type is a str subclass that overrides its comparison.
    return InputSpec(name, kind, options, required, choices=choices)


def _brought(options: Any) -> dict[str, tuple[InputSpec, ...]] | None:
    """Choice → the inputs that it brings, of a dynamic combo; None where it declares them in another way."""
    try:
        return {str(each["key"]): tuple(_input_specs(each.get("inputs", {})).values()) for each in options}
    except (AttributeError, KeyError, TypeError):
        return None


def unknown_node(node: str, class_type: str, catalog: Catalog) -> str:
    """The message for a node class that a catalogue lacks."""
    advice = nearest(class_type, catalog.names())
    if not advice:
        advice = " Install the node pack it comes from, or run the workflow where it is installed (--server)."
    return f"{node}: {catalog.place} has no node class {class_type!r}.{advice}"


def required_spec(node: str, class_type: str, catalog: Catalog) -> NodeSpec:
    """The spec of a class; raises WorkflowError where the catalogue lacks it."""
    spec = catalog.spec(class_type)
    if spec is None:
        raise WorkflowError(unknown_node(node, class_type, catalog))
    return spec
