"""Lay out workflows/*.json: their groups in reading order, folded into rows that fill a wide window.

A workflow that is one long strip opens so small that nobody can read it. Here each group keeps its nodes and
their order; how many columns it has, and where a row of groups ends, is chosen so that the whole is as large
as can be in a window of 1600 × 1000. Every node has room for the picture that grows in it.

    python tools/lay_out_workflows.py [NAME ...]
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"

WINDOW = (1600.0, 1000.0)
BARS = (100.0, 110.0)  # what ComfyUI's page keeps of the window for its bars, and around the graph
TITLE = 30.0  # of a node, above its position
GAP = 30.0  # between nodes
HEADING = 50.0  # of a group, above its first node
MARGIN = 15.0  # of a group, around its nodes
LANE = 30.0  # between groups
MAX_COLUMNS, MAX_ROWS = 4, 4

# Nodes that show a picture, live or finished: it grows below their widgets.
SHOWN = 140.0
SHOWS = {"UnCLIPDecode", "UnCLIPInpaint", "UnCLIPUpsample", "UnCLIPGuidanceSweep", "UnCLIPInvert", "KSampler"}


@dataclass(frozen=True)
class Box:
    """Nodes with their places from a common corner, and the size of it all, titles included."""

    width: float
    height: float
    places: tuple[tuple[int, float, float], ...]  # index of the node, x, y


@dataclass(frozen=True)
class Block:
    """A group with its nodes, or a note that stands alone, in every shape that it may take."""

    group: dict[str, Any] | None
    nodes: tuple[dict[str, Any], ...]
    shapes: tuple[Box, ...]


def lay_out(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same workflow with other positions; read from the first group to the last."""
    workflow = json.loads(json.dumps(workflow))
    blocks = _blocks(workflow)
    rows = min(_foldings(blocks), key=lambda rows: (-round(_scale(rows), 4), len(rows)))
    top = 0.0
    for row in rows:
        left = 0.0
        for block, shape in row:
            _place(block, shape, left, top)
            left += shape.width + LANE
        top += max(shape.height for _, shape in row) + LANE
    return workflow


def _blocks(workflow: dict[str, Any]) -> list[Block]:
    free = list(workflow["nodes"])
    blocks = []
    for group in workflow["groups"]:
        inside = [node for node in free if _holds(group, node)]
        free = [node for node in free if node not in inside]
        inside.sort(key=lambda node: (node["pos"][0], node["pos"][1]))
        blocks.append(Block(group, tuple(inside), _shapes(inside, HEADING, MARGIN)))
    notes = [Block(None, (node,), _shapes([node], 0.0, 0.0)) for node in free]
    return notes + blocks


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
            x, height, places = margin, 0.0, []
            for start, end in itertools.pairwise((0, *cuts, len(nodes))):
                y = heading
                for index in range(start, end):
                    places.append((index, x, y + TITLE))
                    y += TITLE + sizes[index][1] + GAP
                height = max(height, y - GAP + margin)
                x += max(sizes[index][0] for index in range(start, end)) + GAP
            box = Box(x - GAP + margin, height, tuple(places))
            if best is None or (box.height, box.width) < (best.height, best.width):
                best = box
        if best is not None:
            boxes.append(best)
    return tuple(boxes)


def _size(node: dict[str, Any]) -> tuple[float, float]:
    width, height = node["size"]
    return width, height + (SHOWN if node["type"] in SHOWS else 0.0)


Row = list[tuple[Block, Box]]


def _foldings(blocks: Sequence[Block]) -> list[list[Row]]:
    """Ways to cut the blocks into rows. Within a row each takes its narrowest shape that is low enough."""
    found = []
    heights = sorted({shape.height for block in blocks for shape in block.shapes})
    for count in range(1, min(MAX_ROWS, len(blocks)) + 1):
        for cuts in itertools.combinations(range(1, len(blocks)), count - 1):
            rows = []
            for start, end in itertools.pairwise((0, *cuts, len(blocks))):
                options = [_row(blocks[start:end], height) for height in heights]
                rows.append([option for option in options if option is not None])
            found.extend(_best_heights(rows))
    return found


def _row(blocks: Sequence[Block], height: float) -> Row | None:
    row: Row = []
    for block in blocks:
        low = [shape for shape in block.shapes if shape.height <= height]
        if not low:
            return None
        row.append((block, min(low, key=lambda shape: shape.width)))
    return row


def _best_heights(options: list[list[Row]]) -> list[list[Row]]:
    """For each width that some row may have: every row as low as that width allows."""
    found = []
    for width in sorted({_width(row) for rows in options for row in rows}):
        fitting = [[row for row in rows if _width(row) <= width] for rows in options]
        if all(fitting):
            found.append([min(rows, key=_height) for rows in fitting])
    return found


def _width(row: Row) -> float:
    return sum(shape.width + LANE for _, shape in row) - LANE


def _height(row: Row) -> float:
    return max(shape.height for _, shape in row)


def _scale(rows: list[Row]) -> float:
    """The zoom at which all rows fit into the window."""
    width = max(_width(row) for row in rows)
    height = sum(_height(row) + LANE for row in rows) - LANE
    return min((WINDOW[0] - BARS[0]) / width, (WINDOW[1] - BARS[1]) / height)


def _place(block: Block, shape: Box, left: float, top: float) -> None:
    for index, x, y in shape.places:
        block.nodes[index]["pos"] = [round(left + x), round(top + y)]
    if block.group is not None:
        block.group["bounding"] = [round(left), round(top), round(shape.width), round(shape.height)]


def zoom(workflow: dict[str, Any]) -> float:
    """The zoom at which a workflow, as it lies, fits into the window."""
    boxes = [(*node["pos"], *_size(node)) for node in workflow["nodes"]]
    boxes += [tuple(group["bounding"]) for group in workflow["groups"]]
    width = max(x + w for x, _, w, _ in boxes) - min(x for x, _, _, _ in boxes)
    height = max(y + h for _, y, _, h in boxes) - min(y - TITLE for _, y, _, _ in boxes)
    return min((WINDOW[0] - BARS[0]) / width, (WINDOW[1] - BARS[1]) / height)


def main(names: Sequence[str]) -> None:
    paths = [WORKFLOWS / f"{name}.json" for name in names] or sorted(WORKFLOWS.glob("*.json"))
    for path in paths:
        workflow = lay_out(json.loads(path.read_text(encoding="utf-8")))
        sys.stdout.write(f"{path.name}: {zoom(workflow):.0%}\n")
        path.write_text(json.dumps(workflow, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
