"""Operator node: one embedding of two, by a prior that was trained to put them together."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.formats.operators import load_operator
from ..core.pipelines.memory import prior_memory
from ..core.pipelines.operator import OperatorOptions, apply_operator
from ..core.pipelines.options import from_settings
from ..core.pipelines.repeats import repeat_each, results_to_make
from ..core.stages import PriorStage
from . import catalogue, host, inputs, messages, placement, sockets

# The last operator of each prior, for as long as that prior is there: a new seed does not read the file anew.
_LOADED: WeakKeyDictionary[nn.Module, tuple[object, PriorStage]] = WeakKeyDictionary()


class UnCLIPOperator:
    """Two embeddings to one, or one and a caption."""

    CATEGORY = "unCLIP/prior"
    DESCRIPTION = (
        "Puts two image embeddings together by an operator of pOps: an object in the texture of another "
        "picture, an object in a scene, two objects in one picture, or, with a caption, a picture that is "
        "changed as it says. The decoder paints the result."
    )
    SEARCH_ALIASES = ["pops", "texturing", "texture", "scene", "union", "instruct", "combine", "compose"]
    RETURN_TYPES = (sockets.EMBEDDING,)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("Image embeddings: repeat of each row of a batch.",)
    FUNCTION = "execute"
    OPTIONS = OperatorOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        options = inputs.of(cls.OPTIONS)
        return {
            "required": {
                "prior": inputs.socket(
                    sockets.PRIOR, "Kandinsky 2.2's diffusion prior, of which the operators were made."
                ),
                "file": inputs.choice(
                    catalogue.list_operator_files(),
                    "The operator: a learned_prior.pth of pOps, in a folder of models/unclip named after it.",
                ),
                "embedding": inputs.socket(
                    sockets.EMBEDDING,
                    "The first picture: the object (texturing, scene, union), or what a caption changes "
                    "(instruct).",
                ),
                "seed": inputs.seed(),
                **inputs.take(options, "steps", "guidance_scale", "sampler"),
            },
            "optional": {
                "embedding_b": inputs.socket(
                    sockets.EMBEDDING,
                    "The second picture: the texture, the background, or the other object.",
                ),
                "text": inputs.socket(
                    sockets.TEXT, "For instruct: the encoded caption, in place of a second picture."
                ),
                **inputs.take(options, "eta", "guidance_start", "guidance_end", "guidance_rescale"),
                "repeat": inputs.repeat("Embeddings"),
                **options,
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file: Any = None) -> bool | str:  # noqa: N802
        return messages.refusal(catalogue.find_stage_file, file)

    @classmethod
    def IS_CHANGED(cls, file: Any = None, **_: Any) -> str:  # noqa: N802
        return catalogue.state_of(catalogue.find_stage_file, file)

    def execute(
        self,
        prior: PriorStage | None,
        file: str,
        embedding: Embedding,
        seed: int,
        embedding_b: Embedding | None = None,
        text: TextFeatures | None = None,
        repeat: int = 1,
        **given: Any,
    ) -> tuple[Embedding]:
        prior = sockets.require_stage(prior, "prior")
        options = from_settings(self.OPTIONS, given)
        operator = _operator(prior, file)
        named = {"embedding": embedding, "embedding_b": embedding_b, "text": text}
        sizes = {name: len(each) for name, each in named.items() if each is not None}
        rows = results_to_make(repeat, 1, **sizes)
        embedding, embedding_b = repeat_each(embedding, rows), repeat_each(embedding_b, rows)
        needed = prior_memory(operator, rows, rows, options.steps)
        with placement.sampling(operator, needed, "Operator", options.steps, pictures=False) as on_step:
            found = apply_operator(
                operator,
                embedding,
                embedding_b,
                repeat_each(text, rows),
                seed=seed,
                batch_size=rows,
                options=options,
                callback=on_step,
            )
            return (found.to(host.result_device()),)


def _operator(prior: PriorStage, file: str) -> PriorStage:
    path = catalogue.find_stage_file(file)
    key = (catalogue.state_of(catalogue.find_stage_file, file), next(prior.network.parameters()).dtype)
    kept = _LOADED.get(prior.network)
    if kept is None or kept[0] != key:
        _LOADED.pop(prior.network, None)  # its memory goes before more is taken
        kept = _LOADED[prior.network] = (key, placement.managed(load_operator(path, prior)))
    return kept[1]
