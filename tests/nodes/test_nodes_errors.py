"""Whatever is wrong with an input, the message begins with the names of inputs that the node has."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from unclip.core.embeddings.pca import fit_pca
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.pictures.files import save
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.noise import StartingNoise, draw_starting_noise
from unclip.core.pipelines.regions import Region, Regions
from unclip.core.stages import Bundle
from unclip.nodes import NODE_CLASS_MAPPINGS, host, sockets

from ..helpers.bundle import DECODED_SIZE, DIM, tiny_bundle
from ..helpers.nodes import run

OTHER = EmbeddingSpace("somebody/else", DIM)

# What is given where the type alone does not tell a value that works; None leaves the input out.
SPECIAL: dict[str, dict[str, Any]] = {
    "UnCLIPUpsample": {"known_image": None, "mask": None},
    "UnCLIPTextDiff": {"baseline_text": None, "target_embedding": None, "baseline_embedding": None},
    "UnCLIPZeroShot": {"captions": "a\nb", "embedding": None},
    "UnCLIPSticker": {"words": "", "sticker": "image"},
    "UnCLIPPCAFit": {"components": 1},
    "UnCLIPPCAFromPrior": {"prior": "ar_prior"},
    "UnCLIPAutoregressivePrior": {"prior": "ar_prior"},
    "UnCLIPPCAReconstruct": {"components": "1, 2"},
    "UnCLIPFromClipVision": {"stage": None},
    # The one guidance that looks at a weaker decoder.
    "UnCLIPDecode": {"guidance": "autoguidance"},
    "UnCLIPGuidanceSweep": {"guidance": "autoguidance"},
}
# Inputs to which nothing here is wrong: free words, weights of any size, what only some networks read.
TAKEN = {
    *(f"UnCLIPTextEncode.{name}" for name in ("text", "one_caption_a_line", "wildcards", "wildcard_seed")),
    "UnCLIPUpsample.text",
    *(f"UnCLIPInpaintWhole.{name}" for name in ("upsampler", "upsampler_2")),  # none is needed
    *(f"UnCLIPRegion.{name}" for name in ("embedding", "text", "regions")),  # Decode says what does not fit
    "UnCLIPSaveEmbedding.embedding",
    "UnCLIPAugment.embedding",
    "UnCLIPGrid.column_labels",  # one input gets as many columns
    "UnCLIPEncodeFolder.subfolders",
    *(f"UnCLIPLoadLoRA.{name}" for name in ("prior", "decoder")),  # no LoRA is chosen
    *(f"UnCLIPCompile.{name}" for name in ("decoder", "upsampler", "prior")),  # each alone; others are there
}
# Which need ComfyUI, or models of Kandinsky's shape; see test_nodes_bridge, test_pops, test_lambda_eclipse.
ELSEWHERE = ("UnCLIPDecoderAsModel", "UnCLIPAutoencoderAsVAE", "UnCLIPOperator", "UnCLIPSubjects")
INPUTS = [
    pytest.param(node_id, name, id=f"{node_id}.{name}")
    for node_id, cls in NODE_CLASS_MAPPINGS.items()
    for group in cls.INPUT_TYPES().values()
    for name in group
    if name != "seed" and node_id not in ELSEWHERE
]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(upsamplers=1)


def embedding(rows: int, space: EmbeddingSpace) -> Embedding:
    return Embedding(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(rows)), space)


def picture(rows: int) -> torch.Tensor:
    shape = (rows, DECODED_SIZE, DECODED_SIZE, 3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(rows))


@pytest.fixture(scope="module")
def good(bundle: Bundle) -> dict[str, Any]:
    """A value for each type of socket."""
    return {
        sockets.CLIP: bundle.clip,
        sockets.PRIOR: bundle.prior,
        sockets.DECODER: bundle.decoder,
        sockets.UPSAMPLER: bundle.upsamplers[0],
        sockets.TEXT: encode_text(bundle.clip, ["a red fox"]),
        sockets.EMBEDDING: embedding(2, bundle.clip.space),
        sockets.NOISE: draw_starting_noise(bundle.decoder, seed=0, batch_size=2),
        sockets.PCA: fit_pca(embedding(6, bundle.clip.space), components=3),
        sockets.REGIONS: Regions((Region(torch.ones(2, 1, 8, 8), embedding(2, bundle.clip.space)),)),
        sockets.IMAGE: picture(2),
        sockets.MASK: torch.ones(2, DECODED_SIZE, DECODED_SIZE),
        sockets.STAGE: bundle.prior,
        sockets.CLIP_VISION_OUTPUT: SimpleNamespace(image_embeds=torch.randn(2, DIM)),
    }


@pytest.fixture(scope="module")
def bad(bundle: Bundle, good: dict[str, Any]) -> dict[str, list[Any]]:
    """Values of the right type that do not fit, or that do not come from a node of this type."""
    text, noise = good[sockets.TEXT], good[sockets.NOISE].values
    return {
        sockets.CLIP: [None, replace(bundle.clip, space=OTHER)],
        sockets.PRIOR: [None, replace(bundle.prior, space=OTHER), bundle.ar_prior],
        sockets.DECODER: [None, replace(bundle.decoder, space=OTHER)],
        sockets.UPSAMPLER: [None],
        sockets.TEXT: [
            replace(text, space=OTHER),
            encode_text(bundle.clip, ["a", "b", "c"]),
            replace(text, null=None),
        ],
        sockets.EMBEDDING: [embedding(2, OTHER), embedding(3, bundle.clip.space), embedding(1, OTHER)],
        sockets.NOISE: [
            StartingNoise(noise[..., :8]),
            StartingNoise(noise[[0, 1, 0]]),
            StartingNoise(noise * torch.nan),
        ],
        sockets.PCA: [fit_pca(embedding(6, OTHER), components=3)],
        sockets.REGIONS: [
            Regions((Region(torch.ones(1, 1, 8, 8), embedding(2, OTHER)),)),
            Regions((Region(torch.ones(3, 1, 8, 8), embedding(2, bundle.clip.space)),)),
        ],
        sockets.IMAGE: [picture(2).movedim(-1, 1), picture(2)[:0], picture(3), "picture"],
        sockets.MASK: [torch.zeros(2, 8, 8), torch.ones(3, 8, 8), torch.ones(1, 3, 8, 8), "mask"],
        sockets.STAGE: [
            replace(bundle.prior, space=OTHER),
            replace(bundle.prior, space=replace(OTHER, dim=7)),
        ],
        sockets.CLIP_VISION_OUTPUT: [None, SimpleNamespace(image_embeds=torch.randn(2, DIM + 1))],
        "INT": [-1],
        "FLOAT": [-1.5, 1e3],
        "STRING": ["", "a\nb\nc\nd", "../../x"],
        "BOOLEAN": [True, False],
    }


def declared(node_id: str) -> dict[str, Any]:
    sections = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES().values()
    return {name: kind for section in sections for name, (kind, _) in section.items()}


def working(node_id: str, bundle: Bundle, good: dict[str, Any]) -> dict[str, Any]:
    """Inputs with which a node runs, in one step."""
    kinds = declared(node_id)
    given = {name: good[kind] for name, kind in kinds.items() if not isinstance(kind, list) and kind in good}
    given |= {name: value for name, value in (("steps", 1), ("batch_size", 2)) if name in kinds}
    special = {"ar_prior": bundle.ar_prior, "image": good[sockets.IMAGE]}
    for name, value in SPECIAL.get(node_id, {}).items():
        given[name] = special.get(value, value) if isinstance(value, str) else value
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path))
    host.set_folders(tmp_path / "input", tmp_path / "output")
    save(torch.zeros(1, 3, 8, 8), tmp_path / "input" / "black.png")
    yield
    host.set_folders(None, None)


def leading_names(message: str) -> set[str]:
    """``text`` of "text is in…", ``x, y`` of "x, y: …", and the names that go with numbers of rows."""
    sizes = re.match(r"batch sizes do not match: (.*?)\. ", message)
    head = re.sub(r" -?\d+", "", sizes[1]) if sizes else re.match(r"\w*(?:(?: \S+)?, \w+)*", message)[0]
    return {entry.split(" ")[0] for entry in head.split(", ")}


# What only people who read the code know: modules and types of Python, calls, dunder and private names, and
# functions of the core. Names of inputs have underscores too.
PYTHON = re.compile(
    r"\btorch\.(?!compile\b)\w+|\b(?:numpy|nn|core)\.\w+|__\w+|\bNoneType\b|<class\b|\w+\(\)|\b(?:Tensor|TextFeatures|dict|"
    r"tuple|SimpleNamespace|None|str|int|float)\b|\b(?:sample|encode|decode|load)_\w+"
)


def python_words(message: str) -> list[str]:
    return PYTHON.findall(message)


@pytest.mark.parametrize(("node_id", "name"), INPUTS)
def test_a_message_names_an_input_that_the_node_has(node_id, name, bundle, good, bad):
    kinds = declared(node_id)
    values = ["nonsense"] if isinstance(kinds[name], list) else bad[kinds[name]]
    given, refused = working(node_id, bundle, good), 0
    for value in values:
        try:
            run(node_id, **{**given, name: value})
        except ValueError as error:
            refused += 1
            assert leading_names(str(error)) <= set(kinds), str(error)
            assert python_words(str(error)) == [], str(error)
            # Where two things do not go together, either may be the one that is named.
            assert name in str(error) or "CLIP space" in str(error), str(error)
    assert bool(refused) != (f"{node_id}.{name}" in TAKEN)


@pytest.mark.parametrize(
    "node_id", [node for node in NODE_CLASS_MAPPINGS if "Load" not in node and node not in ELSEWHERE]
)
def test_the_other_inputs_of_that_test_are_fine(node_id, bundle, good):
    given = working(node_id, bundle, good)
    if node_id == "UnCLIPToClipVision":
        given["target"] = "any"
    if node_id == "UnCLIPFromClipVision":
        given["stage"] = good[sockets.STAGE]
    run(node_id, **given)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("text is in the CLIP space 'x'", {"text"}),
        ("x, y: covers no pixel", {"x", "y"}),
        ("weight_1 0, weight_3 -2.5: expected", {"weight_1", "weight_3"}),
        ("batch sizes do not match: image 2, batch_size 3. Each must be", {"image", "batch_size"}),
        ("images: found", {"images"}),
    ],
)
def test_names_are_read_out_of_messages(message, names):
    assert leading_names(message) == names
