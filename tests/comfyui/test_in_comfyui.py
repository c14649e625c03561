"""The pack inside a real ComfyUI server."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from unclip.cli.workflow.local import local_catalog
from unclip.cli.workflow.reading import load_workflow
from unclip.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

from .prompts import DECODE, LOAD, PRIOR, SAVE, STEPS, TEXT, UPSAMPLE, run_here, text_to_image
from .server import PACK, ServerError, counts_up

NODES = {LOAD, TEXT, PRIOR, DECODE, UPSAMPLE, SAVE}


@pytest.fixture(scope="module")
def first_run(server):
    """One prompt, and the log up to then."""
    return server.run(text_to_image(text="the first prompt of all"))


def test_the_pack_is_imported_without_a_warning(server):
    log = server.log.read_text(errors="replace").split("got prompt")[0]  # what prompts say is for other tests
    lines = [line for line in log.splitlines() if "/custom_nodes/unclip" in line]
    assert any("seconds" in line for line in lines), "ComfyUI lists the import time of every pack"
    assert not any("IMPORT FAILED" in line or "Cannot import" in line for line in lines)
    assert "Traceback" not in log
    assert not [line for line in log.splitlines() if "warn" in line.lower() and "unclip" in line.lower()]


def test_the_nodes_are_registered_with_their_descriptions(server):
    info = server.get_json("/object_info")
    for node_id, cls in NODE_CLASS_MAPPINGS.items():
        found = info[node_id]
        assert found["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[node_id]
        assert (found["description"], found["category"]) == (cls.DESCRIPTION, cls.CATEGORY)
        assert found["output"] == list(cls.RETURN_TYPES) and found["output_name"] == list(cls.RETURN_NAMES)
        assert found["python_module"] == "custom_nodes.unclip"
        tooltips = found["input"]["required"].values()
        assert all(declared[1]["tooltip"] for declared in tooltips)


def test_bundles_of_the_model_folder_are_offered(server):
    info = server.get_json("/object_info/UnCLIPLoadBundle")["UnCLIPLoadBundle"]
    assert info["input"]["required"]["bundle"][0] == ["mini", "small", "tiny"]
    decoders = server.get_json("/object_info/UnCLIPLoadDecoder")["UnCLIPLoadDecoder"]["input"]["required"]
    assert {"small/decoder.safetensors", "tiny/decoder.safetensors"} <= set(decoders["file"][0])
    listed = server.get_json("/models/unclip")
    assert "tiny/decoder.safetensors" in listed
    assert all(name.endswith(".safetensors") for name in listed), "only models, not every file"


def test_a_prompt_becomes_a_picture(server, first_run):
    assert first_run.kinds[0] == "execution_start" and first_run.kinds[-1] == "execution_success"
    (picture,) = server.pictures(first_run)
    assert picture.shape == (32, 32, 3) and picture.std() > 1
    assert set(first_run.outputs) == {SAVE}


def test_progress_and_previews_arrive_at_every_step(server, first_run):
    for node in (DECODE, UPSAMPLE):
        assert first_run.progress(node) == [(step, STEPS) for step in range(STEPS + 1)]
    assert counts_up(first_run.progress(PRIOR), STEPS)
    assert len(first_run.previews) == 2 * STEPS, "the prior has no picture to show, the others one a step"
    (picture,) = server.pictures(first_run)
    likeness = [correlation(preview, picture) for preview in first_run.previews[-STEPS:]]
    assert likeness[-1] > 0.8 and likeness[-1] > max(likeness) - 0.02, "the last prediction is the result"
    assert likeness[-1] > likeness[0] + 0.02


def test_the_same_prompt_again_is_not_run_again(server, first_run):
    again = server.run(text_to_image(text="the first prompt of all"))
    (cached,) = again.of("execution_cached")
    assert set(cached["nodes"]) == NODES
    assert not again.of("progress")
    other_seed = server.run(text_to_image(text="the first prompt of all", seed=2))
    (cached,) = other_seed.of("execution_cached")
    assert set(cached["nodes"]) == {LOAD, TEXT}


def test_the_same_seed_gives_the_same_picture_as_outside_comfyui(server, models, monkeypatch):
    monkeypatch.setenv("UNCLIP_MODELS", str(models))
    prompt = text_to_image(seed=11)
    (inside,) = server.pictures(server.run(prompt))
    (outside,) = run_here(prompt)
    (other,) = run_here(text_to_image(seed=12))
    assert difference(inside, outside) <= 1.0  # other releases of PyTorch round otherwise
    assert difference(inside, other) > 5.0


def test_picture_i_of_a_batch_is_the_single_picture_of_seed_plus_i(server):
    batch = server.pictures(server.run(text_to_image(seed=20, batch_size=4)))
    assert len(batch) == 4
    for i in (0, 3):
        (single,) = server.pictures(server.run(text_to_image(seed=20 + i)))
        assert difference(batch[i], single) <= 1.0
    assert difference(batch[0], batch[3]) > 5.0


def test_the_shipped_workflow_gives_the_same_picture_inside_and_outside(server, models, monkeypatch):
    monkeypatch.setenv("UNCLIP_MODELS", str(models))
    prompt = load_workflow(PACK / "workflows" / "text_to_image.json", local_catalog()).to_api()
    if not (PACK / "models" / "mini" / "bundle.json").is_file():
        prompt[LOAD]["inputs"]["bundle"] = "tiny"
    (inside,) = server.pictures(server.run(prompt))
    (outside,) = run_here(prompt)
    assert inside.shape == outside.shape
    assert difference(inside, outside) <= 2.0  # half precision, in two releases of PyTorch
    prompt[TEXT]["inputs"]["text"] = "a flat frog"
    (other,) = run_here(prompt)
    assert difference(inside, other) > 5.0


def test_stop_takes_effect_within_a_step_and_the_next_prompt_runs(server):
    seen_at_stop = []

    def stop_at_the_third_step(run, server):
        done = [value for value, _ in run.progress(DECODE)]
        if done and done[-1] >= 3 and not seen_at_stop:
            server.post("/interrupt", {})
            seen_at_stop.append(len(done))

    # Large batches make steps slow enough for the request to arrive within one.
    prompt = text_to_image(seed=30, batch_size=16, steps=2)
    prompt[DECODE]["inputs"]["steps"] = 1000
    stopped = server.run(prompt, stop_at_the_third_step)
    assert stopped.kinds[-1] == "execution_interrupted"
    assert stopped.of("execution_interrupted")[0]["node_id"] == DECODE
    assert len(stopped.progress(DECODE)) <= seen_at_stop[0] + 2, "the step at work, and a message on its way"
    assert server.run(text_to_image(seed=31)).kinds[-1] == "execution_success"


@pytest.mark.parametrize(
    ("node", "name", "value", "kind"),
    [
        (LOAD, "bundle", "nobody/knows", "custom_validation_failed"),
        (PRIOR, "steps", 0, "value_smaller_than_min"),
        (DECODE, "guidance_scale", 99.0, "value_bigger_than_max"),
        (DECODE, "sampler", "dpm", "value_not_in_list"),
        (DECODE, "decoder", None, "required_input_missing"),
        (UPSAMPLE, "image", [LOAD, 0], "return_type_mismatch"),
    ],
)
def test_a_wrong_input_is_refused_by_name(server, node, name, value, kind):
    prompt = text_to_image()
    if value is None:
        del prompt[node]["inputs"][name]
    else:
        prompt[node]["inputs"][name] = value
    with pytest.raises(ServerError) as refused:
        server.run(prompt)
    errors = refused.value.answer["node_errors"][node]["errors"]
    assert [(error["type"], error["extra_info"]["input_name"]) for error in errors] == [(kind, name)]


def test_a_failing_node_says_why(server):
    run = server.run(text_to_image(bundle="small", upsampler=4))
    (error,) = run.of("execution_error")
    assert error["node_id"] == UPSAMPLE
    assert error["exception_message"].startswith(
        "upsampler: nothing arrived. Either the loaded bundle has no"
    )


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in 8-bit steps."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def correlation(preview: Image.Image, picture: np.ndarray) -> float:
    """Of a preview, which is larger than its picture and a JPEG, with the picture."""
    small = np.asarray(preview.convert("RGB").resize(picture.shape[1::-1], Image.Resampling.BOX))
    return float(np.corrcoef(small.ravel(), picture.ravel())[0, 1])
