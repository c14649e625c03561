"""The shipped workflows of published models, as ComfyUI sees them: only their files are missing."""

from __future__ import annotations

import pytest
from unclip.cli.server.client import ComfyServer as Catalog
from unclip.cli.workflow.reading import load_workflow

from ..helpers.kandinsky_workflows import DECODERS
from .server import PACK, ServerError

MODELS = {
    ("UnCLIPLoad", "bundle"),
    ("UnCLIPLoad", "with_bundle"),  # ComfyUI puts the answer to a check to every input that it reads
    ("UnCLIPLoad", "file"),
    ("CheckpointLoader", "ckpt_name"),
}
NAMES = (
    "karlo_text_to_image",
    "karlo_image_variation",
    "karlo_prior_to_sd21_unclip",
    "kandinsky22_prior_to_sdxl",
    "glide_vs_unclip",
    "glide_inpaint",
    "laion_text_to_image",
    *DECODERS,
)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_files_is_wrong(server, name):
    graph = load_workflow(PACK / "workflows" / f"{name}.json", Catalog(f"http://{server.address}"))
    with pytest.raises(ServerError) as refused:
        server.post("/prompt", {"prompt": graph.to_api()})
    found = refused.value.answer["node_errors"].values()
    assert found
    for node in found:
        for error in node["errors"]:
            entry = error["extra_info"]["input_name"]
            if node["class_type"] == "UnCLIPOperator":
                assert (error["type"], entry) == ("custom_validation_failed", "file")
                assert "pops/texturing/learned_prior.pth" in error["details"]
                continue
            if node["class_type"].startswith("UnCLIPLoad"):  # says where they come from
                assert error["type"] == "custom_validation_failed", error
                assert "download" in error["details"] and " models/unclip/" in error["details"]
            else:
                assert error["type"] == "value_not_in_list", error
            assert any(node["class_type"].startswith(kind) and entry == named for kind, named in MODELS)


def test_the_template_browser_lists_them(server):
    assert set(NAMES) <= set(server.get_json("/workflow_templates")["unclip"])
