"""Nodes as ComfyUI shows them, wired to their neighbours, for the help pages.

Names, sockets and widgets are read from the classes of the nodes, the colours of our wires from the script
that gives them to ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from help_figures import INK, MARGIN, SOFT, THEME, WIDTH
from PIL import Image, ImageDraw
from unclip.core.pictures.lettering import fit
from unclip.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

SCRIPT = Path(__file__).resolve().parent.parent / "web" / "unclip.js"
COMFYUI_COLOURS = {
    "CLIP_VISION_OUTPUT": "#ad7452",
    "CONDITIONING": "#ffa931",
    "IMAGE": "#64b5f6",
    "LATENT": "#ff9cf9",
    "VAE": "#ff6e6e",
    "MODEL": "#b39ddb",
}
OTHER_COLOUR = "#9aa0a6"

SCALE = 2  # drawn larger, then shrunk: smooth edges
BETWEEN = {2: 62, 3: 32}  # pixels for the wires, by the number of columns
STACKED = 16  # pixels between the nodes of a column
LETTERS, LINE, PADDING, DOT, ROUND = 20, 31, 9, 7, 9
BODY, HEAD, WIDGET, EDGE, CHOSEN = (53, 54, 58), (37, 38, 42), (30, 31, 34), (74, 76, 82), (94, 150, 235)


@dataclass(frozen=True)
class Slots:
    """What a node looks like: its title, and name and type of every socket."""

    title: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


# ComfyUI's own nodes and those of other packs, as far as wires go to them.
COMFYUI_NODES = {
    "CLIPVisionEncode": Slots("CLIP Vision Encode", {}, {"CLIP_VISION_OUTPUT": "CLIP_VISION_OUTPUT"}),
    "unCLIPConditioning": Slots("unCLIPConditioning", {"clip_vision_output": "CLIP_VISION_OUTPUT"}, {}),
    "IPAdapterEmbeds": Slots("IPAdapter Embeds", {"pos_embed": "EMBEDS", "neg_embed": "EMBEDS"}, {}),
    "EmptyChromaRadianceLatentImage": Slots("EmptyChroma Radiance LatentImage", {}, {"LATENT": "LATENT"}),
    "KSampler": Slots(
        "KSampler",
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        {"LATENT": "LATENT"},
    ),
    "VAEDecode": Slots("VAE Decode", {"samples": "LATENT", "vae": "VAE"}, {"IMAGE": "IMAGE"}),
}


@dataclass(frozen=True)
class Diagram:
    """Nodes in columns, and the wires between them.

    Attributes:
        columns: node ids from left to right, from top to bottom.
        wires: ``"NodeId.output NodeId.input"`` each.
        widgets: what is shown of a node's settings, by node id: their names and values.
        note: written below the nodes.
    """

    columns: Sequence[Sequence[str]]
    wires: Sequence[str]
    widgets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    note: str = ""


def slots_of(node_id: str) -> Slots:
    """Title and sockets of one of our nodes or of ComfyUI's."""
    if node_id in COMFYUI_NODES:
        return COMFYUI_NODES[node_id]
    cls = NODE_CLASS_MAPPINGS[node_id]
    declared = {name: spec for group in cls.INPUT_TYPES().values() for name, spec in group.items()}
    inputs = {
        name: kind
        for name, (kind, options) in declared.items()
        if isinstance(kind, str) and ("default" not in options or options.get("forceInput"))
    }
    outputs = dict(zip(cls.RETURN_NAMES, cls.RETURN_TYPES, strict=True))
    return Slots(NODE_DISPLAY_NAME_MAPPINGS[node_id], inputs, outputs)


def draw_diagram(diagram: Diagram, subject: str) -> Image.Image:
    """A picture of WIDTH pixels; the node ``subject`` shows all its sockets and stands out."""
    wires = [tuple(end.split(".") for end in wire.split()) for wire in diagram.wires]
    wired = {(end[0], kind, end[1]) for wire in wires for end, kind in zip(wire, "oi", strict=True)}
    count = len(diagram.columns)
    across = (WIDTH - 2 * MARGIN - BETWEEN[count] * (count - 1)) / count
    columns = [
        [_Box(node_id, across, wired, diagram.widgets.get(node_id, {}), subject) for node_id in column]
        for column in diagram.columns
    ]
    heights = [sum(box.height + STACKED for box in column) - STACKED for column in columns]
    note = fit([diagram.note], LETTERS * SCALE, (WIDTH - 2 * MARGIN) * SCALE, 3)
    tall = max(heights) + 2 * MARGIN
    below = note.height(0) / SCALE + (MARGIN if diagram.note else 0)
    sheet = Image.new("RGB", (WIDTH * SCALE, round((tall + below) * SCALE)), THEME.paper)
    pen = ImageDraw.Draw(sheet)
    boxes = {}
    for number, (column, height) in enumerate(zip(columns, heights, strict=True)):
        top = (tall - height) / 2
        for box in column:
            box.place = (MARGIN + number * (across + BETWEEN[count]), top)
            boxes[box.node_id] = box
            top += box.height + STACKED
    for (start, output), (end, name) in wires:
        _wire(
            pen, boxes[start].socket("o", output), boxes[end].socket("i", name), boxes[start].colour(output)
        )
    for box in boxes.values():
        box.draw(pen)
    note.write(pen, 0, (WIDTH / 2 * SCALE, tall * SCALE), SOFT, "m")
    return sheet.resize((WIDTH, sheet.height // SCALE), Image.Resampling.LANCZOS)


class _Box:
    """One node: what it shows, and where."""

    def __init__(
        self,
        node_id: str,
        width: float,
        wired: set[tuple[str, str, str]],
        widgets: Mapping[str, str],
        subject: str,
    ) -> None:
        self.node_id, self.width, self.widgets = node_id, width, widgets
        self.chosen = node_id == subject
        self.slots = slots_of(node_id)
        shown = {
            kind: [name for name in names if self.chosen or (node_id, kind, name) in wired]
            for kind, names in (("i", self.slots.inputs), ("o", self.slots.outputs))
        }
        self.title = fit([self.slots.title], (LETTERS + 1) * SCALE, self._inner, 3)
        self.names = fit([*shown["i"], *shown["o"]], LETTERS * SCALE, self._inner - 2 * DOT * SCALE, 1)
        # Inputs stand beside the outputs where there is room, else below them.
        lengths = {kind: [self._length(name) for name in names] for kind, names in shown.items()}
        beside = sum(max(each, default=0) for each in lengths.values()) + LETTERS * SCALE < self._inner
        first = 0 if beside else len(shown["o"])
        rows = {("i", name): first + row for row, name in enumerate(shown["i"])}
        self.rows = rows | {("o", name): row for row, name in enumerate(shown["o"])}
        self.head = self.title.height(0) / SCALE + PADDING
        self.lines = max(self.rows.values(), default=-1) + 1
        self.height = self.head + (self.lines + len(widgets)) * LINE + 1.2 * PADDING
        self.place = (0.0, 0.0)

    @property
    def _inner(self) -> int:
        return round((self.width - 2 * PADDING) * SCALE)

    def _length(self, name: str) -> float:
        return self.names.font.getlength(name) + DOT * SCALE

    def colour(self, output: str) -> str:
        return colour_of(self.slots.outputs[output])

    def socket(self, kind: str, name: str) -> tuple[float, float]:
        """Middle of the dot of an input (``i``) or output (``o``), in pixels of the sheet."""
        left, top = self.place
        y = top + self.head + PADDING / 2 + (self.rows[kind, name] + 0.5) * LINE
        return (left + (self.width if kind == "o" else 0)) * SCALE, y * SCALE

    def draw(self, pen: ImageDraw.ImageDraw) -> None:
        left, top = (value * SCALE for value in self.place)
        right, bottom = left + self.width * SCALE, top + self.height * SCALE
        edge = CHOSEN if self.chosen else EDGE
        radius, stroke = ROUND * SCALE, (3 if self.chosen else 1) * SCALE
        pen.rounded_rectangle((left, top, right, bottom), radius, BODY)
        head = top + self.head * SCALE
        pen.rounded_rectangle((left, top, right, head), radius, HEAD, corners=(True, True, False, False))
        pen.rounded_rectangle((left, top, right, bottom), radius, outline=edge, width=stroke)
        pad = PADDING * SCALE
        self.title.write(pen, 0, (left + pad, top + pad / 2), INK)
        half = self.names.line_height / 2
        for index, (kind, name) in enumerate(self.rows):
            x, y = self.socket(kind, name)
            types = self.slots.inputs if kind == "i" else self.slots.outputs
            dot = DOT * SCALE
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), colour_of(types[name]), THEME.paper, SCALE)
            inside = x + (1 if kind == "i" else -1) * (dot + pad / 2)
            self.names.write(pen, index, (inside, y - half), INK, "l" if kind == "i" else "r")
        y = head + (PADDING / 2 + self.lines * LINE) * SCALE
        for name, value in self.widgets.items():
            self._widget(pen, name, value, (left + pad, y + SCALE, right - pad, y + (LINE - 3) * SCALE))
            y += LINE * SCALE

    def _widget(
        self, pen: ImageDraw.ImageDraw, name: str, value: str, box: tuple[float, float, float, float]
    ) -> None:
        pen.rounded_rectangle(box, (LINE - 4) * SCALE / 2, WIDGET)
        inset, size = 7 * SCALE, (LETTERS - 3) * SCALE
        room = box[2] - box[0] - 2 * inset
        label = fit([name], size, int(room), 1)
        middle = (box[1] + box[3] - label.line_height) / 2
        label.write(pen, 0, (box[0] + inset, middle), SOFT)
        said = fit([value], size, int(room - label.width - inset), 1)
        said.write(pen, 0, (box[2] - inset, middle), INK, "r")


def colour_of(kind: str) -> str:
    """Of a socket type; one that takes several types has the colour of the first."""
    ours = dict(re.findall(r'^  (UNCLIP_\w+): "(#[0-9a-f]{6})",$', SCRIPT.read_text("utf-8"), re.MULTILINE))
    return (ours | COMFYUI_COLOURS).get(kind.split(",")[0], OTHER_COLOUR)


def _wire(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: str
) -> None:
    """A curve that leaves to the right and arrives from the left."""
    reach = max(abs(end[0] - start[0]) / 2, 20 * SCALE)
    xs = (start[0], start[0] + reach, end[0] - reach, end[0])
    ys = (start[1], start[1], end[1], end[1])
    points = []
    for step in range(41):
        t = step / 40
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        points.append(tuple(sum(w * v for w, v in zip(weights, line, strict=True)) for line in (xs, ys)))
    pen.line(points, colour, 3 * SCALE, joint="curve")
