"""Node ids, inputs and outputs of every release are still there, in their places."""

from __future__ import annotations

import copy

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS

from ..helpers.releases import NODES, RELEASES, broken_promises, catalog_of, read

VERSIONS = sorted(path.name for path in RELEASES.iterdir())
FIRST = read(RELEASES / "0.7.0" / NODES)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_release_declared_is_kept(version: str) -> None:
    assert broken_promises(read(RELEASES / version / NODES), catalog_of()) == []


def test_all_nodes_of_the_first_kept_release_are_held() -> None:
    assert len(FIRST) == 38
    assert sum(len(each["required"]) + len(each["optional"]) for each in FIRST.values()) == 207
    assert all(each["outputs"] for node_id, each in FIRST.items() if node_id != "UnCLIPSaveEmbedding")


# --- the check itself: it sees what would break people's files, and nothing else ---


def changed(node_id: str, change) -> list[str]:
    """What the check says of a node whose declarations are changed."""
    cls = NODE_CLASS_MAPPINGS[node_id]
    declared = copy.deepcopy(cls.INPUT_TYPES())
    change(declared)
    made = type(node_id, (cls,), {"INPUT_TYPES": classmethod(lambda cls: declared)})
    return broken_promises(FIRST, catalog_of({**NODE_CLASS_MAPPINGS, node_id: made}))


def put_first(group: dict, name: str, declared: tuple) -> None:
    others = dict(group)
    group.clear()
    group.update({name: declared, **others})


NUMBER = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.1})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["optional"].pop("eta"), "UnCLIPDecode: input eta is gone"),
        (lambda d: put_first(d["optional"], "more", NUMBER), "UnCLIPDecode: widgets begin with"),
        (lambda d: put_first(d["required"], "more", ("INT", {})), "UnCLIPDecode: input more is demanded"),
        (lambda d: d["required"].update(decoder=("UNCLIP_PRIOR", {})), "input decoder takes UNCLIP_PRIOR"),
        (lambda d: d["required"].update(seed=NUMBER), "UnCLIPDecode: input seed takes FLOAT, not INT"),
        (
            lambda d: d["required"].update(sampler=(["ddim", "ddpm"], {"default": "ddim"})),
            "UnCLIPDecode: input sampler no longer takes 'dpmpp_2m'",
        ),
        (
            lambda d: d["required"].update(sampler=("STRING", {"default": "ddim"})),
            "UnCLIPDecode: input sampler takes STRING, not ['ddpm', 'ddim', 'dpmpp_2m']",
        ),
    ],
)
def test_a_change_that_breaks_files_is_seen(change, problem: str) -> None:
    assert any(problem in said for said in changed("UnCLIPDecode", change))


def test_a_node_that_is_gone_and_an_output_that_moved_are_seen() -> None:
    gone = {"UnCLIPGone": FIRST["UnCLIPNoise"]}
    assert broken_promises(gone, catalog_of()) == ["UnCLIPGone: is gone"]
    moved = {"UnCLIPNoise": {**FIRST["UnCLIPNoise"], "outputs": [["x", "INT"], ["noise", "UNCLIP_NOISE"]]}}
    (problem,) = broken_promises(moved, catalog_of())
    assert problem.startswith("UnCLIPNoise: outputs begin otherwise")


def test_what_stands_last_breaks_nothing() -> None:
    def change(declared: dict) -> None:
        declared["optional"]["more"] = NUMBER
        declared["required"]["decoder"] = ("UNCLIP_DECODER,MODEL", {})
        kinds, options = declared["required"]["sampler"]
        declared["required"]["sampler"] = ([*kinds, "another"], options)

    assert changed("UnCLIPDecode", change) == []
