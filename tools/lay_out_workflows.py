"""Lay out workflows/*.json: a note at the left, then the groups in rows that fill a wide window.

A workflow that is one long strip opens so small that nobody can read it. Here each group keeps its nodes and
their order; how many columns it has, and where a row of groups ends, is chosen so that the whole is as large
as can be in a window of 1600 × 1000. Every node has room for the picture that grows in it, and nothing lies
below the note, which Nodes 2.0 makes as tall as its text.

    python tools/lay_out_workflows.py [NAME ...]
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip.cli.workflow.specs import NodeSpec, spec_of_class
from unclip.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"

LEGIBLE = 0.62  # zoom; below 0.55 the page leaves out the texts of nodes
WINDOW = (1188.0, 735.0)  # that the page fills with nodes when it opens a template on 1600 × 1000 pixels
WIDTH = 250.0  # of a node without texts or pictures; more where its names need it
NAMES, NAMES_EDGE = (
    8.0,
    10.0,
)  # of an input's and an output's name side by side: a letter, and what is between
HEAD, HEAD_EDGE = 7.5, 60.0  # of a letter of the title, and around it; what is too long, the page cuts
TITLE = 30.0  # of a node, above its position
GAP = 20.0  # between nodes
HEADING = 40.0  # of a group, above its first node
MARGIN = 15.0  # of a group, around its nodes
LANE = 25.0  # between groups
MAX_COLUMNS, MAX_ROWS = 4, 5

# Of a node's height: a row of sockets, a widget, and what is around them, as the page draws it on its canvas
# and as it sets it in HTML (Nodes 2.0).
SOCKET = 20.0
WIDGET, EDGE = 24.0, 24.0
HTML_WIDGET, HTML_EDGE = 28.0, 38.0
HTML_LINE, HTML_TEXT = 36.0, 68.0  # a text of one line, of several lines
NOTICE = 24.0  # below a loader whose file is missing
CONTROL = "seed"  # the widget below which the page puts another, what becomes of it after a run
# Nodes that show a picture while they run: it grows below their widgets.
PICTURE = 220.0
TEXT = 40.0  # of a field of several lines, beside that of a line
SHOWS = {"UnCLIPDecode", "UnCLIPInpaint", "UnCLIPInpaintWhole", "UnCLIPUpsample", "UnCLIPGuidanceSweep"}
SHOWS |= {"UnCLIPInvert", "KSampler"}
# Nodes that are read, written in or looked at, and the largest size that a workflow gives them.
LARGEST = {
    "PrimitiveStringMultiline": (280, 140),
    "CLIPTextEncode": (270, 130),
    "UnCLIPTextEncode": (270, 130),
    "UnCLIPZeroShot": (270, 180),
    "UnCLIPScore": (250, 150),
    "UnCLIPGrid": (280, 516),
    "LoadImage": (280, 330),
    "PreviewImage": (300, 270),
    "SaveImage": (340, 360),
    "SaveAnimatedWEBP": (340, 420),
    "CreateVideo": (250, 110),  # newer versions have one input more
    "SaveVideo": (340, 420),
}
# A note's text as the page sets it in NOTE_WIDTH pixels: of a letter, of a line, and around each paragraph.
NOTE, NOTE_WIDTH = "MarkdownNote", 310.0
LETTER, LINE, PARAGRAPH = 6.4, 18.0, 12.0
# What may be collapsed to its title where a workflow has too many nodes to be read: its pictures are shown
# again further on, or there is little to be set in it.
COLLAPSIBLE = ("UnCLIPPCAReconstruct", "UnCLIPImageEncode", "UnCLIPNoise", "UnCLIPInvert", "UnCLIPUpsample")
COLLAPSIBLE += ("UnCLIPScore", "UnCLIPZeroShot", "UnCLIPGrid", "UnCLIPDecode", "UnCLIPDiffusionPrior")


@dataclass(frozen=True)
class Box:
    """Nodes with their places from a common corner, and the size of it all, titles included."""

    width: float
    height: float
    bottom: float  # of the lowest node, without the room for its picture
    places: tuple[tuple[int, float, float], ...]  # index of the node, x, y


@dataclass(frozen=True)
class Block:
    """A group with its nodes, in every shape that it may take."""

    group: dict[str, Any]
    nodes: tuple[dict[str, Any], ...]
    shapes: tuple[Box, ...]


def lay_out(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same workflow with other positions, read from the first group to the last.

    Where it would be too small to be read, nodes are collapsed, as few as it takes.
    """
    workflow = json.loads(json.dumps(workflow))
    for node in workflow["nodes"]:
        node["flags"].pop("collapsed", None)
        if node["type"] == NOTE:
            node["size"] = [NOTE_WIDTH, _height_of_text(node["widgets_values"][0])]
        elif node["type"] in LARGEST:
            width, height = (min(pair) for pair in zip(node["size"], LARGEST[node["type"]], strict=True))
            node["size"] = [max(width, _width_of_title(node)), height]
            if node["type"] in NODE_CLASS_MAPPINGS:
                needed = max(_canvas_height(node) + TEXT, _html_height(node))
                node["size"][1] = max(node["size"][1], needed)
        else:
            node["size"] = [_least_width(node), max(_canvas_height(node), _html_height(node))]
    candidates = _collapsible(workflow)
    collapsed: list[dict[str, Any]] = []
    while _scale(*_best_rows(workflow)) < LEGIBLE and len(collapsed) < len(candidates):
        collapsed.append(candidates[len(collapsed)])
        collapsed[-1]["flags"]["collapsed"] = True
    for node in reversed(collapsed[:-1]):  # those that the last ones have made room for
        del node["flags"]["collapsed"]
        if _scale(*_best_rows(workflow)) < LEGIBLE:
            node["flags"]["collapsed"] = True
    rows, aside = _best_rows(workflow)
    notes = _blocks(workflow)[0]
    top = 0.0
    for row in rows:
        left = aside
        for block, shape in row:
            _place(block, shape, left, top)
            left += shape.width + LANE
        bottom = top + max(shape.bottom for _, shape in row)
        top += _height(row) + LANE
    for note in notes:
        note["pos"] = [0, round(HEADING + TITLE)]  # as high as the nodes beside it
        note["size"][1] = round(min(note["size"][1], bottom - HEADING - TITLE))
    return workflow


def _best_rows(workflow: dict[str, Any]) -> tuple[list[Row], float]:
    """The rows of groups that can be shown largest, and the width of what lies beside them."""
    notes, blocks = _blocks(workflow)
    aside = NOTE_WIDTH + LANE if notes else 0.0
    rows = min(_foldings(blocks), key=lambda rows: (-round(_scale(rows, aside), 4), len(rows)))
    return rows, aside


def _height_of_text(text: str) -> float:
    """About as high as the page sets a note."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(LINE * math.ceil(LETTER * len(line) / NOTE_WIDTH) + PARAGRAPH for line in lines) + 2 * LINE


def _least_width(node: dict[str, Any]) -> float:
    """Of a node without texts of several lines; the page makes it wider where its names do not fit."""
    sockets, _, outputs = _parts(node)
    names = NAMES * sum(max(map(len, each), default=0) for each in (sockets, outputs)) + NAMES_EDGE
    return max(WIDTH, math.ceil(names), _width_of_title(node))


def _width_of_title(node: dict[str, Any]) -> int:
    title = node.get("title") or NODE_DISPLAY_NAME_MAPPINGS.get(node["type"], node["type"])
    return math.ceil(HEAD * len(title) + HEAD_EDGE)


def _canvas_height(node: dict[str, Any]) -> float:
    """The least that the page draws a node without texts of several lines in."""
    sockets, widgets, outputs = _parts(node)
    rows = max(len(sockets), len(outputs))
    return SOCKET * rows + WIDGET * (len(widgets) + widgets.count(CONTROL)) + EDGE


def _html_height(node: dict[str, Any]) -> float:
    """The least that a node takes in Nodes 2.0, where advanced widgets are behind a button as high as one."""
    sockets, widgets, outputs = _parts(node)
    height = SOCKET * max(len(sockets), len(outputs)) + HTML_EDGE
    if node["type"] not in NODE_CLASS_MAPPINGS:
        return height + HTML_WIDGET * (len(widgets) + widgets.count(CONTROL))
    specs = _spec(node["type"]).widgets
    shown = [spec for spec in specs if not spec.options.get("advanced")]
    for spec in shown:
        if spec.type == "STRING":
            height += HTML_TEXT if spec.options.get("multiline") else HTML_LINE
        else:
            height += HTML_WIDGET * (2 if spec.has_control else 1)
    return height + HTML_WIDGET * (len(shown) < len(specs)) + NOTICE * ("file" in widgets)


def _parts(node: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Names of sockets, widgets and outputs.

    The page shows what a node has today, whatever it had when the file was written.
    """
    if node["type"] in NODE_CLASS_MAPPINGS:
        spec = _spec(node["type"])
        widgets = [each.name for each in spec.widgets]
        return [name for name in spec.inputs if name not in widgets], widgets, list(spec.output_names)
    widgets = [entry["widget"]["name"] for entry in node["inputs"] if "widget" in entry]
    sockets = [entry["name"] for entry in node["inputs"] if "widget" not in entry]
    return sockets, widgets, [each["name"] for each in node["outputs"]]


@functools.cache
def _spec(kind: str) -> NodeSpec:
    return spec_of_class(kind, NODE_CLASS_MAPPINGS[kind])


def _collapsible(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """What may be collapsed: the repeated ones of each kind, then the first ones too."""
    first, repeated = [], []
    for kind in COLLAPSIBLE:
        nodes = [node for node in workflow["nodes"] if node["type"] == kind]
        nodes.sort(key=lambda node: (node["pos"][0], node["pos"][1]))
        first.extend(nodes[:1])
        repeated.extend(nodes[1:])
    return repeated + first


def _blocks(workflow: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Block]]:
    """What lies in no group, which are notes, and the groups."""
    free = list(workflow["nodes"])
    blocks = []
    for group in workflow["groups"]:
        inside = [node for node in free if _holds(group, node)]
        free = [node for node in free if node not in inside]
        inside.sort(key=lambda node: (node["pos"][0], node["pos"][1]))
        blocks.append(Block(group, tuple(inside), _shapes(inside, HEADING, MARGIN)))
    return free, blocks


def _holds(group: dict[str, Any], node: dict[str, Any]) -> bool:
    left, top, width, height = group["bounding"]
    x, y = node["pos"]
    return left <= x < left + width and top <= y < top + height


def _shapes(nodes: Sequence[dict[str, Any]], heading: float, margin: float) -> tuple[Box, ...]:
    """One box for each number of columns; the nodes go down the first column, then the next."""
    sizes = [_size(node) for node in nodes]
    boxes = []
    for columns in range(1, min(MAX_COLUMNS, len(nodes)) + 1):
        best: Box | None = None
        for cuts in itertools.combinations(range(1, len(nodes)), columns - 1):
            x, height, bottom, places = margin, 0.0, 0.0, []
            for start, end in itertools.pairwise((0, *cuts, len(nodes))):
                y = heading
                for index in range(start, end):
                    places.append((index, x, y + TITLE))
                    bottom = max(bottom, y + TITLE + _own_height(nodes[index]))
                    y += TITLE + sizes[index][1] + GAP
                height = max(height, y - GAP + margin)
                x += max(sizes[index][0] for index in range(start, end)) + GAP
            box = Box(x - GAP + margin, height, bottom, tuple(places))
            if best is None or (box.height, box.width) < (best.height, best.width):
                best = box
        if best is not None:
            boxes.append(best)
    return tuple(boxes)


def _size(node: dict[str, Any]) -> tuple[float, float]:
    """Width and height below the title, with room for a picture."""
    grows = node["type"] in SHOWS and not node["flags"].get("collapsed")
    return node["size"][0], _own_height(node) + (PICTURE if grows else 0.0)


def _own_height(node: dict[str, Any]) -> float:
    return 0.0 if node["flags"].get("collapsed") else node["size"][1]


Row = list[tuple[Block, Box]]
Option = tuple[float, float, Row]
"""A row with its width and height."""


def _foldings(blocks: Sequence[Block]) -> list[list[Row]]:
    """Ways to cut the blocks into rows. Within a row each takes its narrowest shape that is low enough."""
    found = []
    heights = sorted({shape.height for block in blocks for shape in block.shapes})
    known: dict[tuple[int, int], list[Option]] = {}
    for count in range(1, min(MAX_ROWS, len(blocks)) + 1):
        for cuts in itertools.combinations(range(1, len(blocks)), count - 1):
            ends = list(itertools.pairwise((0, *cuts, len(blocks))))
            for start, end in ends:
                if (start, end) not in known:
                    known[start, end] = _options(blocks[start:end], heights)
            found.extend(_best_heights([known[each] for each in ends]))
    return found


def _options(blocks: Sequence[Block], heights: Sequence[float]) -> list[Option]:
    """The different rows of the blocks, from the lowest on."""
    options: list[Option] = []
    for height in heights:
        row = _row(blocks, height)
        if row is not None and (not options or row != options[-1][2]):
            options.append((_width(row), _height(row), row))
    return options


def _row(blocks: Sequence[Block], height: float) -> Row | None:
    row: Row = []
    for block in blocks:
        low = [shape for shape in block.shapes if shape.height <= height]
        if not low:
            return None
        row.append((block, min(low, key=lambda shape: shape.width)))
    return row


def _best_heights(options: list[list[Option]]) -> list[list[Row]]:
    """For each width that some row may have: every row as low as that width allows."""
    found = []
    for width in sorted({own for rows in options for own, _, _ in rows}):
        fitting = [[option for option in rows if option[0] <= width] for rows in options]
        if all(fitting):
            found.append([min(rows, key=lambda option: option[1])[2] for rows in fitting])
    return found


def _width(row: Row) -> float:
    return sum(shape.width + LANE for _, shape in row) - LANE


def _height(row: Row) -> float:
    return max(shape.height for _, shape in row)


def _scale(rows: list[Row], aside: float) -> float:
    """The zoom at which all nodes fit into the window; the page does not count the groups around them."""
    width = max(_width(row) for row in rows) - 2 * MARGIN + (aside + MARGIN if aside else 0.0)
    lowest = max(shape.bottom for _, shape in rows[-1])
    height = sum(_height(row) + LANE for row in rows[:-1]) + lowest - HEADING
    return min(WINDOW[0] / width, WINDOW[1] / height)


def _place(block: Block, shape: Box, left: float, top: float) -> None:
    for index, x, y in shape.places:
        block.nodes[index]["pos"] = [round(left + x), round(top + y)]
    block.group["bounding"] = [round(left), round(top), round(shape.width), round(shape.height)]


def zoom(workflow: dict[str, Any]) -> float:
    """The zoom at which the page opens a workflow as it lies."""
    nodes = workflow["nodes"]
    width = max(n["pos"][0] + n["size"][0] for n in nodes) - min(n["pos"][0] for n in nodes)
    height = max(n["pos"][1] + _own_height(n) for n in nodes) - min(n["pos"][1] - TITLE for n in nodes)
    return min(WINDOW[0] / width, WINDOW[1] / height)


def main(names: Sequence[str]) -> None:
    paths = [WORKFLOWS / f"{name}.json" for name in names] or sorted(WORKFLOWS.glob("*.json"))
    for path in paths:
        workflow = lay_out(json.loads(path.read_text(encoding="utf-8")))
        sys.stdout.write(f"{path.name}: {zoom(workflow):.0%}\n")
        path.write_text(json.dumps(workflow, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
