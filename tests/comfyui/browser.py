"""ComfyUI's page in a headless Chromium, driven through what frontends 1.27 to 1.58 have in common."""

from __future__ import annotations

import base64
import contextlib
import mimetypes
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .server import ComfyServer

CHROMIUM_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
CARD = "template-workflow-"  # and the name: the test id of its card in the template browser
CARDS = f"[data-testid^='{CARD}']"
CATEGORY = "unclip"  # under Extensions in the template browser: the name of the pack's folder
WAIT = 120_000  # ms; a busy machine takes its time to load the frontend
PICTURE_WAIT = 10  # s
WIDTH, HEIGHT = 1600, 1000
MARGIN = 20

SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the template browser opens by itself
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.LinkRelease.Action": "context menu",
}
# Texts are drawn at every zoom, for pictures of a whole graph; the name of the option has changed.
EVERY_TEXT = {
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
NODES_2 = "Comfy.VueNodes.Enabled"

READY = """() => !!(window.app?.graph && window.app.canvas && window.app.extensionManager?.command
  && window.LiteGraph?.registered_node_types?.UnCLIPDecode)"""
COMMAND = "async id => { await window.app.extensionManager.command.execute(id); }"
CLOSE_DIALOG = """() => document.querySelector("#vue-app").__vue_app__.config.globalProperties.$pinia
  ._s.get("dialog").closeDialog()"""
NODES = "() => window.app.graph._nodes.map(node => `${node.id} ${node.type}`).sort().join()"

# Nodes and links as the page has them; a box includes the title. In Nodes 2.0 a node is as tall as its HTML.
GRAPH = """() => {
  const graph = window.app.graph, { scale } = window.app.canvas.ds;
  const height = node => {
    const element = window.LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`);
    if (element) return element.getBoundingClientRect().height / scale - window.LiteGraph.NODE_TITLE_HEIGHT;
    return node.flags?.collapsed ? 0 : node.size[1];
  };
  return {
    scale,
    links: graph.links.size ?? Object.keys(graph.links).length,
    unknown: graph._nodes.filter(n => !window.LiteGraph.registered_node_types[n.type]).map(n => n.type),
    boxes: graph._nodes.map(n => ({
      name: `${n.id} ${n.title}`,
      box: [n.pos[0], n.pos[1] - window.LiteGraph.NODE_TITLE_HEIGHT,
            n.pos[0] + n.size[0], n.pos[1] + height(n)],
    })),
    groups: graph._groups.map(g => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]]),
  };
}"""

FIT = """([left, top, right, bottom, margin]) => {
  const canvas = window.app.canvas;
  const scale = Math.min((window.innerWidth - 2 * margin) / (right - left),
                         (window.innerHeight - 2 * margin) / (bottom - top));
  canvas.ds.scale = scale;
  canvas.ds.offset = [margin / scale - left, margin / scale - top];
  canvas.setDirty(true, true);
}"""

PICTURE_SIZE = """card => {
  const image = document.querySelector(`${card} img`);
  return image?.complete ? [image.naturalWidth, image.naturalHeight] : null;
}"""

IMAGE_OF = """type => {
  const node = window.app.graph._nodes.find(node => node.type === type);
  const [image] = node.imgs ?? [];
  return image?.complete && image.naturalWidth > 0
    ? { src: image.src, size: [image.naturalWidth, image.naturalHeight] } : null;
}"""


SELECT = """type => {
  const canvas = window.app.canvas;
  canvas.deselectAll();
  canvas.selectNode(window.app.graph._nodes.find(node => node.type === type));
}"""

HELP_PICTURE = """path => {
  const image = document.querySelector(".node-help-content img");
  return image?.complete && image.naturalWidth > 0 && new URL(image.src).pathname.endsWith(path)
    ? [image.naturalWidth, image.naturalHeight] : null;
}"""

# Whether the graph can be reached there: while it is busy, the page lays a mask over itself.
REACHED = """([x, y]) => {
  const element = document.elementFromPoint(x, y);
  return element?.tagName === "CANVAS" || !!element?.closest("[data-node-id]");
}"""
# As if a person had dragged a file from a folder to a place in the window.
DROP = """([name, type, base64, x, y]) => {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  const under = document.elementFromPoint(x, y);
  for (const kind of ["dragenter", "dragover", "drop"])
    under.dispatchEvent(new DragEvent(kind, {
      dataTransfer, clientX: x, clientY: y, bubbles: true, cancelable: true,
    }));
}"""

# The middle of a node's output in the window.
OUTPUT = """([type, slot]) => {
  const node = window.app.graph._nodes.find(node => node.type === type);
  const [x, y] = node.getOutputPos?.(slot) ?? node.getConnectionPos(false, slot);
  const { ds, canvas } = window.app.canvas, box = canvas.getBoundingClientRect();
  return [box.left + (x + ds.offset[0]) * ds.scale, box.top + (y + ds.offset[1]) * ds.scale];
}"""
ALONE = """type => {
  const { app, LiteGraph } = window;
  const node = LiteGraph.createNode(type);
  node.pos = [100, 200];
  app.graph.add(node);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [100, 100];
  app.canvas.setDirty(true, true);
}"""

# Nodes of a class: the value of a widget, and the middle of the node in the window.
WIDGETS = """([type, name]) => window.app.graph._nodes.filter(node => node.type === type).map(node => {
  const canvas = window.app.canvas, box = canvas.canvas.getBoundingClientRect();
  const middle = [0, 1].map(i => (node.pos[i] + node.size[i] / 2 + canvas.ds.offset[i]) * canvas.ds.scale);
  return {
    value: node.widgets.find(widget => widget.name === name).value,
    place: [box.left + middle[0], box.top + middle[1]],
  };
})"""


@contextlib.contextmanager
def opened(server: ComfyServer, nodes_2: bool = False, every_text: bool = False) -> Iterator[ComfyPage]:
    """ComfyUI's page, loaded and without dialogs. Skips the test where there is no browser to show it.

    Args:
        nodes_2: nodes drawn in HTML ("Nodes 2.0"), which newer pages have; skips the test where they lack it.
        every_text: texts are drawn at every zoom, unlike what a person sees.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    server.post("/settings", {**SETTINGS, **(EVERY_TEXT if every_text else {}), NODES_2: nodes_2})
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(CHROMIUM_OPTIONS))
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.set_default_timeout(WAIT)
            comfy = ComfyPage(page, "nodes-2" if nodes_2 else "classic")
            page.goto(f"http://{server.address}")
            page.wait_for_function(READY)
            if nodes_2 and not page.evaluate("() => window.LiteGraph.vueNodesMode"):
                pytest.skip("this page has no Nodes 2.0")
            yield comfy
        finally:
            browser.close()


class ComfyPage:
    """The page and what it complained of.

    Attributes:
        page: playwright's page.
        mode: how it draws nodes, ``classic`` or ``nodes-2``.
        complaints: errors and warnings that concern this pack, since they were last emptied.
    """

    def __init__(self, page: Any, mode: str) -> None:
        self.page = page
        self.mode = mode
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._note(f"{error}\n{error.stack}"))
        page.on("requestfailed", lambda request: self._note(f"failed: {request.url}"))

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._note(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _note(self, text: str) -> None:
        if "unclip" in text.lower():
            self.complaints.append(text)

    def command(self, name: str) -> None:
        self.page.evaluate(COMMAND, name)

    def browse_templates(self) -> Any:
        """Open this pack's page of the template browser, to its end; returns the cards."""
        self.close_dialogs()
        self.command("Comfy.BrowseTemplates")
        self.page.get_by_role("dialog").get_by_text(CATEGORY, exact=True).first.click()
        cards = self.page.locator(CARDS)
        cards.first.wait_for()
        self._show_all(cards)
        return cards

    def _show_all(self, cards: Any) -> None:
        shown = 0
        while cards.count() > shown:  # the page brings some dozens at a time
            shown = cards.count()
            cards.last.scroll_into_view_if_needed()
            self.page.wait_for_timeout(500)

    def search_templates(self, text: str) -> list[str]:
        """The names of the templates, of the page and of all packs, that a search finds, in its order."""
        self.close_dialogs()
        self.command("Comfy.BrowseTemplates")
        dialog = self.page.get_by_role("dialog")
        dialog.locator(CARDS).first.wait_for()
        dialog.get_by_role("textbox").first.fill(text)
        self.page.wait_for_timeout(1000)  # it waits for the next letter
        self._show_all(dialog.locator(CARDS))
        shown = [card.get_attribute("data-testid") for card in dialog.locator(CARDS).all()]
        self.close_dialogs()
        return [name.removeprefix(CARD) for name in shown]

    def shows_picture(self, name: str, size: tuple[int, int]) -> bool:
        """Whether the card of a template has a picture of this size, some seconds after it came into view."""
        self.page.locator(card_of(name)).scroll_into_view_if_needed()
        deadline = time.monotonic() + PICTURE_WAIT
        while self.page.evaluate(PICTURE_SIZE, card_of(name)) != list(size):
            if time.monotonic() > deadline:
                return False
            self.page.wait_for_timeout(100)
        return True

    def open_template(self, name: str, document: dict[str, Any]) -> None:
        """Open a workflow from the template browser and wait until its nodes are there."""
        self.browse_templates()
        self.page.locator(card_of(name)).click()
        expected = ",".join(sorted(f"{node['id']} {node['type']}" for node in document["nodes"]))
        self.page.wait_for_function(f"expected => ({NODES})() === expected", arg=expected)
        self.page.locator(card_of(name)).wait_for(state="detached")

    def new_workflow(self) -> None:
        self.close_dialogs()
        self.command("Comfy.NewBlankWorkflow")
        self.page.wait_for_function("() => window.app.graph._nodes.length === 0")

    def run_button(self) -> Any:
        """The button that queues the workflow; older pages have it inside of what bears its test id."""
        button = self.page.get_by_test_id("queue-button")
        button.wait_for()
        is_button = button.evaluate("element => element.tagName === 'BUTTON'")
        return button if is_button else button.get_by_role("button").first

    def drag_out(self, class_type: str, slot: int) -> list[str]:
        """What the page offers when a wire from the output of a node that stands alone is dropped."""
        self.new_workflow()
        self.page.evaluate(ALONE, class_type)
        self.page.wait_for_timeout(500)  # sockets get their places when the canvas is drawn
        x, y = self.page.evaluate(OUTPUT, [class_type, slot])
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 100, y + 50, steps=5)
        self.page.mouse.move(x + 300, y + 200, steps=5)
        self.page.mouse.up()
        menu = self.page.locator(".litecontextmenu")
        menu.wait_for()
        offered = menu.inner_text().splitlines()
        self.page.keyboard.press("Escape")
        return offered

    def select(self, class_type: str) -> None:
        """Select the first node of a class, alone."""
        self.page.evaluate(SELECT, class_type)

    def drop(self, file: Path, place: tuple[float, float]) -> None:
        """Drop a file at a place in the window."""
        self.page.wait_for_function(REACHED, arg=list(place))
        content = base64.b64encode(file.read_bytes()).decode()
        kind = mimetypes.guess_type(file.name)[0] or ""  # as the system tells the browser
        self.page.evaluate(DROP, [file.name, kind, content, *place])

    def widgets(self, class_type: str, name: str) -> list[dict[str, Any]]:
        """Value of a widget and place in the window, of each node of a class."""
        return self.page.evaluate(WIDGETS, [class_type, name])

    def wait_for_widget(self, class_type: str, name: str, value: str) -> None:
        """Until some node of a class has this value."""
        condition = f"([value, ...which]) => ({WIDGETS})(which).some(node => node.value === value)"
        self.page.wait_for_function(condition, arg=[value, class_type, name])

    def dialogs(self) -> list[str]:
        """The texts of the dialogs that are open."""
        return self.page.get_by_role("dialog").all_inner_texts()

    def close_dialogs(self) -> None:
        for _ in self.dialogs():
            self.page.evaluate(CLOSE_DIALOG)
        self.page.get_by_role("dialog").wait_for(state="detached")

    def graph(self) -> dict[str, Any]:
        return self.page.evaluate(GRAPH)

    def screenshot(self, path: Path) -> None:
        """The whole graph without the menus around it, 1600 pixels wide."""
        graph = self.graph()
        boxes = [entry["box"] for entry in graph["boxes"]] + graph["groups"]
        left, top = (min(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
        height = round((WIDTH - 2 * MARGIN) * (bottom - top) / (right - left)) + 2 * MARGIN
        self.command("Workspace.ToggleFocusMode")
        self.page.add_style_tag(content=".comfy-menu-hamburger { visibility: hidden; }")
        self.page.set_viewport_size({"width": WIDTH, "height": max(400, height)})
        self.page.wait_for_timeout(500)  # the canvas follows the window with a delay
        self.page.evaluate(FIT, [left, top, right, bottom, MARGIN])
        self.page.wait_for_timeout(1000)  # texts are HTML, placed when the canvas is drawn
        self.page.screenshot(path=path, type="jpeg", quality=90)
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        self.command("Workspace.ToggleFocusMode")


def card_of(name: str) -> str:
    return f"[data-testid='{CARD}{name}']"
