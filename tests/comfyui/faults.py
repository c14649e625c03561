"""A node pack for the tests' server: stops a prompt, or runs out of memory, in the middle of a node's work.

The server loads it from its custom_nodes. It has no nodes, only the route POST /faults {"node", "call",
"kind"}. At the given call of any network layer, counted while that node of a prompt runs, it sends a message
"fault" in between the others; then ``"stop"`` does what the Stop button does, and ``"memory"`` raises what
PyTorch raises on a GPU that is full. Once.
"""

from __future__ import annotations

import comfy.model_management
from aiohttp import web
from server import PromptServer
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

import nodes

NODE_CLASS_MAPPINGS: dict[str, type] = {}

_armed: list[RemovableHandle] = []

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB (a fault that the tests asked for)."


@PromptServer.instance.routes.post("/faults")
async def arm(request: web.Request) -> web.Response:
    asked = await request.json()
    left = int(asked["call"])
    while _armed:  # one that an earlier test asked for and never met
        _armed.pop().remove()

    def count(_module, _inputs) -> None:
        nonlocal left
        if PromptServer.instance.last_node_id != asked["node"]:
            return
        left -= 1
        if left > 0:
            return
        hook.remove()
        server = PromptServer.instance
        server.send_sync("fault", {"prompt_id": server.last_prompt_id}, server.client_id)
        if asked["kind"] == "stop":
            nodes.interrupt_processing()
        else:
            raise comfy.model_management.OOM_EXCEPTION(MESSAGE)

    hook = register_module_forward_pre_hook(count)
    _armed.append(hook)
    return web.json_response(None)
