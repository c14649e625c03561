"""Cases of damaged workflows, odd command lines, and odd values and objects on the wires of nodes."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import typer
from typer.testing import CliRunner
from unclip.cli import console
from unclip.cli.app import build_app
from unclip.cli.workflow import load_workflow, local, parse_workflow
from unclip.cli.workflow.executor import run_workflow
from unclip.cli.workflow.specs import ClassCatalog
from unclip.cli.workflow.validation import validate
from unclip.core.embeddings.pca import fit_pca
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.load import load_any_bundle
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.noise import draw_starting_noise
from unclip.nodes import NODE_CLASS_MAPPINGS, host

from .case import Case
from .damage import ODD_NUMBERS, ODD_TEXTS, damaged_json, odd_value
from .kinds_of_files import ROOT, chunk, odd_picture

SHIPPED = sorted((ROOT / "workflows").glob("*.json"))
SUBGRAPH = "12345678-0000-0000-0000-{:012d}"


@cache
def catalog() -> ClassCatalog:
    """All node classes here; what they list is asked once."""
    return local.local_catalog()


def damaged_ui(rng: random.Random, document: dict[str, Any]) -> tuple[str, Any]:
    """Damage that knows the UI form: ids, links, widgets, modes, loops, subgraphs."""
    changed = copy.deepcopy(document)
    nodes, links = changed["nodes"], changed["links"]
    node, link = rng.choice(nodes), rng.choice(links)
    way = rng.choice(("link", "link", "id", "type", "widgets", "slots", "mode", "loop", "subgraphs", "gone"))
    if way == "link":
        at = rng.randrange(len(link))
        link[at] = rng.choice((odd_value(rng), 10**6, links[0][0]))
        return f"field {at} of a link is {link[at]!r:.40}", changed
    if way == "id":
        node["id"] = rng.choice((odd_value(rng), nodes[0]["id"]))
    elif way == "type":
        node["type"] = rng.choice(
            (odd_value(rng), "Reroute", "PrimitiveNode", "Note", SUBGRAPH.format(9), "KSampler")
        )
    elif way == "widgets":
        node["widgets_values"] = rng.choice((odd_value(rng), [None] * 30, ["fixed"] * 20, [[]] * 5))
    elif way == "slots":
        side = rng.choice(("inputs", "outputs"))
        if node.get(side):
            slot = rng.choice(node[side])
            key = rng.choice(("name", "type", "link", "links", "widget"))
            slot[key] = odd_value(rng)
            return f"{side}: {key} is {slot[key]!r:.40}", changed
        node[side] = odd_value(rng)
    elif way == "mode":
        for each in rng.sample(nodes, 3):
            each["mode"] = rng.choice((2, 4, odd_value(rng)))
    elif way == "loop":
        link[1], link[2] = link[3], 0
        node["mode"] = rng.choice((0, 4))
    elif way == "subgraphs":
        shown, levels = rng.choice(((1, 3), (1, 400), (2, 30), (8, 6)))
        ids = [SUBGRAPH.format(level) for level in range(levels)]
        last = rng.choice((None, ids[0]))
        defined = [
            {
                "id": own,
                "nodes": [{"id": n, "type": inner} for n in range(shown if inner else 0)],
                "links": [],
            }
            for own, inner in zip(ids, [*ids[1:], last], strict=True)
        ]
        changed["definitions"] = {"subgraphs": defined}
        nodes.append({"id": 90_000, "type": ids[0]})
        return f"{levels} subgraphs, {shown} of each in the one before, the last shows {last}", changed
    elif rng.random() < 0.5:
        nodes.remove(node)
    else:
        links.remove(link)
    return f"{way} of a node", changed


def workflow_case(rng: random.Random, whole: Path, scratch: Path) -> Case:
    """A shipped workflow, damaged, in the UI or API form, as JSON or in a picture; read and checked."""
    source = rng.choice(SHIPPED)
    document = json.loads(source.read_text(encoding="utf-8"))
    if rng.random() < 0.35:
        with contextlib.suppress(ValueError):  # some need nodes that only ComfyUI has
            document = load_workflow(source, catalog()).to_api()
    path = scratch / "workflow.json"
    draw = rng.random()
    if "nodes" in document and draw < 0.55:
        what, changed = damaged_ui(rng, document)
        data = json.dumps(changed).encode()
    else:
        what, data = damaged_json(rng, json.dumps(document).encode())
    if rng.random() < 0.2:
        _, picture = odd_picture(random.Random(1))
        while not picture.startswith(b"\x89PNG"):
            _, picture = odd_picture(rng)
        path = path.with_suffix(".png")
        key = b"prompt" if b"class_type" in data[:400] else b"workflow"
        data = picture[:33] + chunk(b"tEXt", key + b"\0" + data) + picture[33:]
    path.write_bytes(data)
    run = lambda: validate(load_workflow(path, catalog()), catalog())  # noqa: E731
    return Case(f"{source.stem} as {path.suffix}: {what}", run, (path.name, "node", "the workflow"))


# --------------------------------------------------------------------------------------------- command lines

NUMBERS = ("nan", "inf", "-1", "0", "1e400", "1.5", "9" * 5000, "abc", "", "1_000", "0x10", "None")
SETS = (
    "",
    "=",
    "x",
    "3.steps",
    "3.steps=NaN",
    "3.steps=-1",
    "3.steps=[1,2]",
    '3.steps=["1",0]',
    "3.seed=1.5",
)
SETS += (
    "3.steps=" + "[" * 5000,
    "3.steps=" + "9" * 5000,
    "3.sampler=foo",
    '2.clip=["99",0]',
    "99.x=1",
    "2.text=\0",
)
SETS += (
    "7.filename_prefix=../x",
    "7.filename_prefix=" + "a" * 300,
    "7.filename_prefix=x\0y",
    "1.bundle=../x",
)
GENERATE = (
    "--seed",
    "-n",
    "--size",
    "--steps",
    "--guidance-scale",
    "--sampler",
    "--prior-steps",
    "--precision",
)


def argument_case(rng: random.Random, whole: Path, scratch: Path) -> Case:
    """A command line with odd options, names and places; nothing is sampled."""
    (scratch / "file").write_text("x")
    (scratch / "folder").mkdir()
    models = whole / "models"
    odd_paths = [
        scratch / "none",
        scratch / "file",
        scratch / "folder",
        scratch / ("a" * 300),
        scratch / "x\ny",  # no system passes NUL to a program
    ]
    odd_paths += [Path("/"), Path(), Path("/dev/null"), models, models / "karlo" / "tokenizer"]
    out = rng.choice((scratch / "fox.png", scratch / "new" / "fox.png", *odd_paths))
    which = rng.choice(("generate", "run", "run", "inspect", "convert", "eval"))
    if which == "generate":
        bundle = models / "native" if rng.random() < 0.7 else rng.choice(odd_paths)
        words = ["generate", rng.choice(("a fox", *ODD_TEXTS)), "-o", str(out), "--bundle", str(bundle)]
        for option in rng.sample(GENERATE, rng.randrange(4)):
            words += [option, rng.choice(NUMBERS)]
    elif which == "run":
        source = SHIPPED[-3] if rng.random() < 0.7 else rng.choice(odd_paths)
        words = ["run", str(source), "-o", str(out), "--set", rng.choice(SETS)]
        if rng.random() < 0.3:
            words += ["--device", rng.choice(("cuda:99", "foo", "", "meta", "9" * 50))]
    elif which == "eval":
        words = ["eval", str(rng.choice(odd_paths)), "-o", str(out), "-q"]
    else:
        source = models / "native" / "prior.safetensors" if rng.random() < 0.3 else rng.choice(odd_paths)
        words = [which, str(source), *(["-o", str(out)] if which == "convert" else [])]

    def stop(*_: Any, **__: Any) -> None:
        raise ValueError("the workflow was read; stopped before sampling")

    def run() -> None:
        errors: list[Exception] = []
        line, here = console._line, Path.cwd()
        runs = local.run_here
        console._line = lambda error: (errors.append(error), line(error))[1]
        local.run_here = stop
        os.chdir(scratch)
        try:
            result = CliRunner().invoke(build_app(), words)
        finally:
            os.chdir(here)
            console._line, local.run_here = line, runs
        if result.exception is not None and not isinstance(result.exception, (SystemExit, typer.Exit)):
            raise result.exception
        if errors:
            raise errors[-1]
        assert "Traceback" not in result.output and "internal error" not in result.output

    shown = " ".join(word if len(word) < 60 else f"{word[:40]}…" for word in words)
    given = [name for word in words for name in (word, Path(word).name) if len(name) > 3]
    fields = (
        "--",
        "device",
        "bundle",
        "node",
        "file",
        "prompt",
        "WORKFLOW",
        "is the whole disk",
        "the workflow",
    )
    return Case(shown, run, (*fields, *given))


# ----------------------------------------------------------------------------------------------------- nodes

SMALL = {"steps": 1, "prior_steps": 1, "candidates": 1, "batch_size": 1, "frames": 2, "refinements": 0}
SMALL |= {"resamples": 1, "cell_size": 32}
# They need files, a compiler, ComfyUI.
NOT_RUN = {"UnCLIPEncodeFolder", "UnCLIPCompile", "UnCLIPDecoderAsModel", "UnCLIPAutoencoderAsVAE"}


@cache
def wires(whole: Path) -> dict[str, list[Any]]:
    """Socket type → objects that may come along such a wire, a whole one first."""
    bundle = load_any_bundle(whole / "models" / "native", dtype=torch.float32)
    karlo = load_any_bundle(whole / "models" / "karlo", dtype=torch.float32)
    space = bundle.clip.space
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(40, space.dim, generator=generator)
    text = encode_text(bundle.clip, ["a fox"])
    embeddings = [Embedding(vectors[:1], space), Embedding(vectors, space), Embedding(vectors[:0], space)]
    embeddings += [
        Embedding(torch.zeros(2, space.dim), space),
        Embedding(vectors[:2], replace(space, id="other")),
    ]
    embeddings += [Embedding(vectors[:2] * 1e30, space)]

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    images = [rand(1, 16, 16, 3), rand(3, 16, 16, 3), rand(1, 5, 90, 3), rand(1, 1, 1, 3), rand(1, 16, 16, 4)]
    images += [rand(1, 16, 16, 1), rand(16, 16, 3), rand(0, 16, 16, 3), torch.full((1, 16, 16, 3), torch.nan)]
    images += [rand(1, 16, 16, 3) * 1e9, rand(1, 16, 16, 3).half(), (rand(1, 16, 16, 3) * 255).byte(), "text"]
    masks = [
        rand(1, 16, 16),
        torch.zeros(1, 64, 64),
        rand(16, 16),
        rand(5, 16, 16),
        rand(1, 3, 7),
        rand(0, 16, 16),
    ]
    masks += [torch.full((1, 16, 16), torch.nan), rand(1, 16, 16) * -5]
    visions = [SimpleNamespace(image_embeds=each) for each in (vectors[:2], vectors[:2, :5], None)]
    visions += [SimpleNamespace(), SimpleNamespace(image_embeds=vectors[:2] * torch.nan)]
    return {
        "UNCLIP_CLIP": [bundle.clip, karlo.clip, None],
        "UNCLIP_PRIOR": [bundle.prior, bundle.ar_prior, karlo.prior, None],
        "UNCLIP_DECODER": [bundle.decoder, karlo.decoder, None],
        "UNCLIP_UPSAMPLER": [*bundle.upsamplers, None],
        "UNCLIP_TEXT": [
            text,
            encode_text(bundle.clip, ["a", "b", "c"]),
            replace(text, null=None),
            text.rows(0, 0),
        ],
        "UNCLIP_EMBEDDING": embeddings,
        "UNCLIP_NOISE": [draw_starting_noise(each.decoder, seed=0) for each in (bundle, karlo)],
        "UNCLIP_PCA": [fit_pca(embeddings[1], components=3)],
        "IMAGE": images,
        "MASK": masks,
        "CLIP_VISION_OUTPUT": visions,
        "UNCLIP_CLIP,UNCLIP_PRIOR,UNCLIP_DECODER": [bundle.clip, bundle.prior, bundle.decoder, None],
    }


def _source(values: dict[str, Any]) -> type:
    """A node class that gives the object of a name."""

    class Wire:
        RETURN_TYPES, FUNCTION = ("*",), "give"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            return {"required": {"name": ("STRING", {})}}

        def give(self, name: str) -> tuple[Any]:
            return (values[name],)

    return Wire


def _end(seen: list[Any]) -> type:
    """An output node class that keeps what it gets."""

    class Sink:
        RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "take", True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
            return {"required": {}, "optional": {f"value_{n}": ("*",) for n in range(8)}}

        def take(self, **values: Any) -> dict[str, Any]:
            seen.extend(values.values())
            return {}

    return Sink


def node_case(rng: random.Random, whole: Path, scratch: Path) -> Case:
    """One node, with odd values in its widgets and odd objects on its wires; nothing it gives is NaN."""
    names = [n for n in NODE_CLASS_MAPPINGS if not n.startswith("UnCLIPLoad") and n not in NOT_RUN]
    name, values, seen = rng.choice(names), {}, []
    nodes = {**NODE_CLASS_MAPPINGS, "Wire": _source(values), "Sink": _end(seen)}
    own = ClassCatalog(nodes)
    spec = own.spec(name)
    chosen = set(rng.sample(sorted(spec.inputs), min(len(spec.inputs), rng.choice((0, 1, 1, 2)))))
    document: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    notes = []
    for each, entry in spec.inputs.items():
        objects = wires(whole).get(str(entry.declared))
        if objects is not None:
            if not entry.required and each not in chosen and rng.random() < 0.6:
                continue
            number = rng.randrange(len(objects)) if each in chosen else 0
            values[each] = objects[number]
            document[f"wire {each}"] = {"class_type": "Wire", "inputs": {"name": each}}
            inputs[each] = [f"wire {each}", 0]
            notes.append(f"{each}: object {number}")
        elif entry.takes_values:
            value = SMALL.get(each, entry.default)
            if entry.type == "STRING":
                value = value or "a fox\na frog"
            if each in chosen:
                value = rng.choice(ODD_TEXTS if entry.type == "STRING" else (*ODD_NUMBERS, None, "x", []))
                notes.append(f"{each}: {value!r:.40}")
            inputs[each] = {"__value__": value} if isinstance(value, list) else value
    document["n"] = {"class_type": name, "inputs": inputs}
    if not spec.output_node:
        ends = {f"value_{index}": ["n", index] for index in range(len(spec.outputs))}
        document["end"] = {"class_type": "Sink", "inputs": ends}

    def run() -> None:
        host.set_device("cpu")
        host.set_folders(scratch, scratch / "output")
        try:
            run_workflow(parse_workflow(document, own), own)
        finally:
            host.set_folders(None, None)
            host.set_device(None)
        for value in seen:
            found = getattr(value, "vectors", getattr(value, "values", value))
            if isinstance(found, torch.Tensor) and found.is_floating_point():
                assert torch.isfinite(found).all(), "gives NaN, and nothing says so"

    return Case(f"{name}: {'; '.join(notes)}", run, (*spec.inputs, "node n"))
