"""Every node says what it is: what ComfyUI and the command line read from the classes."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest
import torch
import unclip
from PIL import Image
from unclip.core.diffusion.guidance import GUIDANCES
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.native.embedding_file import save_embedding
from unclip.core.pipelines.conditions import Conditions
from unclip.core.pipelines.options import settings_of
from unclip.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, host, sockets

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN"}
SOCKETS = {value for name, value in vars(sockets).items() if name.isupper() and isinstance(value, str)}
NODES = sorted(NODE_CLASS_MAPPINGS.items())
INPUTS = [
    pytest.param(node_id, section, name, declared, id=f"{node_id}.{name}")
    for node_id, cls in NODES
    for section, group in cls.INPUT_TYPES().items()
    for name, declared in group.items()
]


def test_every_node_has_a_name_of_its_own():
    assert set(NODE_DISPLAY_NAME_MAPPINGS) == set(NODE_CLASS_MAPPINGS)
    assert len(set(NODE_DISPLAY_NAME_MAPPINGS.values())) == len(NODE_DISPLAY_NAME_MAPPINGS)


def test_the_package_root_shows_the_tables_as_comfyui_asks_for_them():
    assert hasattr(unclip, "NODE_CLASS_MAPPINGS")
    assert unclip.NODE_CLASS_MAPPINGS is NODE_CLASS_MAPPINGS
    assert unclip.NODE_DISPLAY_NAME_MAPPINGS is NODE_DISPLAY_NAME_MAPPINGS
    assert not hasattr(unclip, "comfy_entrypoint")  # V1 and V3 declarations do not mix


@pytest.mark.parametrize(("node_id", "cls"), NODES)
def test_a_node_describes_itself(node_id, cls):
    assert cls.__name__ == node_id
    assert re.fullmatch(r"unCLIP/[a-z]+", cls.CATEGORY)
    assert len(cls.DESCRIPTION) > 30 and cls.DESCRIPTION.endswith(".")
    assert cls.SEARCH_ALIASES and all(alias == alias.lower() for alias in cls.SEARCH_ALIASES)
    assert len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES) == len(cls.OUTPUT_TOOLTIPS)
    assert all(tooltip.endswith(".") for tooltip in cls.OUTPUT_TOOLTIPS)
    assert set(cls.RETURN_TYPES) <= SOCKETS


@pytest.mark.parametrize(("node_id", "cls"), NODES)
def test_the_function_takes_the_declared_inputs(node_id, cls):
    declared = cls.INPUT_TYPES()
    assert set(declared) <= {"required", "optional"}
    parameters = dict(inspect.signature(getattr(cls, cls.FUNCTION)).parameters)
    parameters.pop("self")
    if (options := getattr(cls, "OPTIONS", None)) is not None:
        assert parameters.popitem()[1].kind is inspect.Parameter.VAR_KEYWORD
        settings = settings_of(options)
        declared = {
            section: {name: each for name, each in group.items() if name not in settings}
            for section, group in declared.items()
        }
    optional = declared.get("optional", {})
    assert set(parameters) == {*declared["required"], *optional}
    for name, parameter in parameters.items():
        has_default = parameter.default is not inspect.Parameter.empty
        assert has_default == (name in optional), name
        if name in optional and "default" in optional[name][1]:
            assert parameter.default == optional[name][1]["default"], name


@pytest.mark.parametrize(("node_id", "section", "name", "declared"), INPUTS)
def test_an_input_has_a_tooltip_and_a_range(node_id, section, name, declared):
    kind, options = declared
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert len(options["tooltip"]) > 10 and options["tooltip"].endswith(".")
    if isinstance(kind, list):
        assert kind and options["default"] in kind and all(isinstance(value, str) for value in kind)
        return
    assert kind in WIDGETS | SOCKETS
    if kind in ("INT", "FLOAT"):
        assert options["min"] <= options["default"] <= options["max"]
    if kind == "FLOAT":
        assert options["step"] > 0
        for value in (options["min"], options["max"], options["default"]):
            assert value == pytest.approx(round(value / options["step"]) * options["step"])
    if kind == "STRING":
        assert not options.get("dynamicPrompts"), "captions stay verbatim, inside and outside ComfyUI"


def test_who_runs_a_decoder_takes_all_that_it_is_told():
    """An error that asks for an input is of use only where the node has it."""
    inputs = [{name for group in cls.INPUT_TYPES().values() for name in group} for _, cls in NODES]
    runs = [given for given in inputs if {"decoder", "embedding", "text"} <= given]
    assert len(runs) == 6
    assert all({each.name for each in fields(Conditions)} <= given for given in runs)


HOOKS = [
    pytest.param(cls, hook, id=f"{node_id}.{hook}")
    for node_id, cls in NODES
    for hook in ("VALIDATE_INPUTS", "IS_CHANGED")
    if hasattr(cls, hook)
]


@pytest.mark.parametrize(("cls", "hook"), HOOKS)
def test_what_comes_by_a_wire_is_no_mistake(cls, hook, tmp_path, monkeypatch):
    """ComfyUI asks with None for each wired input, and without those that are missing; an error would be
    swallowed, and the node run at every prompt."""
    monkeypatch.setattr(host, "_input_folder", tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    space = EmbeddingSpace("unclip/test", 4)
    save_embedding(Embedding(torch.ones(1, 4), space), tmp_path / "a.safetensors")
    known = {"file": "a.safetensors [input]"} if cls.__name__ == "UnCLIPLoadEmbedding" else {}
    values = {
        name: options.get("default")
        for group in cls.INPUT_TYPES().values()
        for name, (_, options) in group.items()
    } | known
    ask = getattr(cls, hook)
    takes = set(inspect.signature(ask).parameters)
    if hook == "VALIDATE_INPUTS":  # asked for what it names; what it is asked for it must not require
        values = {name: value for name, value in values.items() if name in takes}
    wired = [dict.fromkeys(values)]
    wired += [{**values, name: None} for name in values]
    wired += [{other: value for other, value in values.items() if other != name} for name in values]
    kind = bool if hook == "VALIDATE_INPUTS" else str
    for given in [*wired, {}]:
        found = ask(**given)
        assert isinstance(found, kind) and found == ask(**given), given


def test_seeds_can_be_controlled_after_a_run():
    seeds = [cls.INPUT_TYPES()["required"].get("seed") for _, cls in NODES]
    assert all(seed[1]["control_after_generate"] and seed[1]["max"] == 2**64 - 1 for seed in seeds if seed)
    assert sum(seed is not None for seed in seeds) >= 3


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("karlo", {"UnCLIPLoadBundle", "UnCLIPLoadPrior", "UnCLIPLoadDecoder", "UnCLIPLoadUpsampler"}),
        ("kandinsky", {"UnCLIPLoadBundle", "UnCLIPLoadPrior"}),
        ("glide", {"UnCLIPLoadCLIP", "UnCLIPLoadDecoder", "UnCLIPLoadUpsampler"}),
        ("remix", {"UnCLIPImageEncode", "UnCLIPBlend", "UnCLIPInterpolate"}),
        ("img2img", {"UnCLIPImageEncode", "UnCLIPDecode", "UnCLIPInvert"}),
        ("text2img", {"UnCLIPTextEncode", "UnCLIPDiffusionPrior", "UnCLIPDecode", "UnCLIPLoadBundle"}),
        ("negative", {"UnCLIPTextEncode", "UnCLIPDecode"}),
        ("dalle", {"UnCLIPLoadBundle", "UnCLIPDiffusionPrior", "UnCLIPDecode"}),
        ("image prompt", {"UnCLIPImageEncode"}),
        ("unclip", {"UnCLIPLoadBundle"}),
    ],
)
def test_people_find_nodes_by_their_own_words(words: str, found: set[str]) -> None:
    # As ComfyUI's page searches: in the name and in the aliases.
    hits = {
        node_id
        for node_id, cls in NODE_CLASS_MAPPINGS.items()
        if words in " ".join([NODE_DISPLAY_NAME_MAPPINGS[node_id], *cls.SEARCH_ALIASES]).lower()
    }
    assert found <= hits
    assert words == "unclip" or len(hits) <= 6, "who finds everything finds nothing"


@pytest.mark.parametrize(
    ("node_id", "cls"),
    [
        pair
        for pair in NODES
        if {"negative_embedding", "negative_text"} <= {*pair[1].INPUT_TYPES().get("optional", ())}
    ],
)
def test_the_words_of_negatives_are_true_of_the_guidance_that_the_node_has(node_id, cls):
    options, declared = getattr(cls, "OPTIONS", None), cls.INPUT_TYPES()["optional"]
    kinds = ("cfg",) if options is None else settings_of(options)["guidance"].choices
    for name in ("negative_embedding", "negative_text"):
        words = declared[name][1]["tooltip"]
        assert {kind for kind in GUIDANCES if re.search(rf"\b{kind}\b", words)} == {
            kind for kind in kinds if GUIDANCES[kind].against != "null" or not GUIDANCES[kind].idle_at_one
        }
        assert ("where only cfg_pp guides" in words) == ("cfg_pp" in kinds)
        assert ("without guidance" in words) == ("cfg_pp" not in kinds)
