"""What a ComfyUI server tells over its websocket while it runs a workflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..progress import StageBars
from ..workflow.errors import WorkflowError, name_node
from ..workflow.graph import Workflow


class Follower:
    """Keeps track of one run from the server's messages, and shows a bar for each node that reports progress.

    Attributes:
        prompt_id: of the run; messages of other runs are passed over.
        started: the server has begun with it.
        done: it is over, and went well.
    """

    def __init__(self, prompt_id: str, workflow: Workflow, bars: StageBars):
        self.prompt_id = prompt_id
        self.workflow = workflow
        self.bars = bars
        self.started = False
        self.done = False
        self._node: str | None = None
        self._update: Callable[[int, int], None] = lambda value, total: None

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take in one text message.

        Raises:
            WorkflowError: the run failed or was interrupted.
        """
        data = message.get("data") or {}
        if data.get("prompt_id") not in (None, self.prompt_id):
            return
        match message.get("type"):
            case "execution_start" | "execution_cached":
                self.started = True
            case "executing":
                # node None with our id: the end, as servers before execution_success said it.
                if data.get("prompt_id") == self.prompt_id:
                    self.started = True
                    self.done = self.done or data.get("node") is None
            case "progress":
                self._show(str(data.get("node") or ""), int(data.get("value", 0)), int(data.get("max", 1)))
            case "execution_success":
                self.done = True
            case "execution_error":
                raise WorkflowError(self._failure(data))
            case "execution_interrupted":
                raise WorkflowError(f"{self._name(data)}: the run was interrupted on the server.")

    def hear_history(self, record: Mapping[str, Any]) -> None:
        """Take in the run's entry in ``/history``, for when the websocket missed the end.

        Raises:
            WorkflowError: the run failed or was interrupted.
        """
        status = record.get("status") or {}
        for kind, data in status.get("messages") or []:
            if kind in ("execution_error", "execution_interrupted"):
                self.hear({"type": kind, "data": data})
        self.done = True

    def _show(self, node_id: str, value: int, total: int) -> None:
        if node_id != self._node:
            title = (
                self.workflow.nodes[node_id].title if node_id in self.workflow.nodes else f"node {node_id}"
            )
            self._node = node_id
            self._update = self.bars.add(title, total)
        self._update(value, total)

    def _name(self, data: Mapping[str, Any]) -> str:
        node_id = str(data.get("node_id") or "?")
        if node_id in self.workflow.nodes:
            return self.workflow.name(node_id)
        return name_node(node_id, str(data.get("node_type") or "?"))

    def _failure(self, data: Mapping[str, Any]) -> str:
        kind = str(data.get("exception_type") or "error").rpartition(".")[2]
        text = str(data.get("exception_message") or "").strip()
        return f"{self._name(data)}: {text if kind == 'ValueError' else f'{kind}: {text}'}"
