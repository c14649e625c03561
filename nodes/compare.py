"""Compare nodes: pictures side by side, scored, and over a range of guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..core.embeddings.space import Embedding, TextFeatures
from ..core.pictures.chart import panel_chart
from ..core.pictures.sheet import THEMES, SheetStyle, arrange, draw_sheet, from_pil, tiles, to_pil
from ..core.pipelines.canvas import picture_size
from ..core.pipelines.conditions import Conditions
from ..core.pipelines.decode import DecodeOptions
from ..core.pipelines.memory import decode_memory, encode_memory
from ..core.pipelines.noise import StartingNoise
from ..core.pipelines.options import from_settings, is_guided, require_scale, settings_of
from ..core.pipelines.score import GroupScore, score_pictures
from ..core.pipelines.sweep import sweep_guidance
from ..core.pipelines.towers import image_tower
from ..core.pipelines.transparency import on_colour
from ..core.stages import ClipStage, DecoderStage
from . import host, inputs, placement, sockets
from .decode import UnCLIPDecode
from .encode import UnCLIPImageEncode

CATEGORY = "unCLIP/compare"

IMAGES = 6


class UnCLIPGrid:
    """Pictures on one labelled sheet."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Lays pictures out on one sheet with names for rows and columns and a line below each picture. One "
        "input is laid out like a page; several inputs become one row or one column each."
    )
    SEARCH_ALIASES = ["contact sheet", "image grid", "xy plot", "compare images", "side by side", "labels"]
    RETURN_TYPES = (sockets.IMAGE,)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The sheet, one picture.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        more = "More pictures: another row or column of the sheet. They may have another size."
        below = "A line of text below each picture of image_{}, such as the labels of unCLIP Score."
        language = (
            "English is always legible; other scripts are where this computer has a font for them, and show "
            "as empty boxes where not."
        )
        return {
            "required": {
                "image_1": inputs.socket(sockets.IMAGE, "Pictures: a batch alone is laid out like a page."),
                "columns": inputs.integer(
                    0,
                    0,
                    64,
                    "Pictures in a row; all pictures then follow each other like words on a page. 0 is "
                    "automatic: several inputs become a row or column each, one input gets as many columns "
                    "as there are column labels, or is made about square.",
                ),
                "each_input": inputs.choice(
                    ["column", "row"], "With several inputs and columns at 0: what each input becomes."
                ),
                "cell_size": inputs.integer(
                    0,
                    0,
                    2048,
                    "Every picture is fitted into a square of so many pixels. 0 takes the size of the "
                    "largest picture. Tiny pictures grow by whole factors and stay sharp.",
                    step=8,
                ),
                "padding": inputs.integer(12, 0, 256, "Pixels between pictures and around all."),
                "background": inputs.choice(
                    list(THEMES), "Colour of the sheet, also behind what is transparent."
                ),
            },
            "optional": {
                **{f"image_{i}": inputs.socket(sockets.IMAGE, more) for i in range(2, IMAGES + 1)},
                **{
                    f"labels_{i}": (
                        sockets.STRING,
                        {"default": "", "forceInput": True, "tooltip": below.format(i)},
                    )
                    for i in range(1, IMAGES + 1)
                },
                "row_labels": _names("Names of the rows, one on each line. " + language, "first row"),
                "column_labels": _names(
                    "Names of the columns, one on each line. " + language, "first column"
                ),
                "font_size": inputs.integer(
                    0, 0, 256, "Height of the letters in pixels; 0 suits the cells.", advanced=True
                ),
            },
        }

    def execute(
        self,
        image_1: Tensor,
        columns: int,
        each_input: str,
        cell_size: int,
        padding: int,
        background: str,
        image_2: Tensor | None = None,
        image_3: Tensor | None = None,
        image_4: Tensor | None = None,
        image_5: Tensor | None = None,
        image_6: Tensor | None = None,
        labels_1: str = "",
        labels_2: str = "",
        labels_3: str = "",
        labels_4: str = "",
        labels_5: str = "",
        labels_6: str = "",
        row_labels: str = "",
        column_labels: str = "",
        font_size: int = 0,
    ) -> tuple[Tensor]:
        images = (image_1, image_2, image_3, image_4, image_5, image_6)
        labels = (labels_1, labels_2, labels_3, labels_4, labels_5, labels_6)
        groups, paper = [], THEMES[background].paper
        for number, (image, text) in enumerate(zip(images, labels, strict=True), start=1):
            if image is not None:
                seen = on_colour(sockets.image_with_alpha(image, f"image_{number}"), paper)
                pictures = to_pil(seen)
                groups.append(tiles(pictures, inputs.lines(text, len(pictures)), f"labels_{number}"))
            elif text.strip():
                raise ValueError(f"labels_{number}: is connected, but image_{number} is not; connect both")
        if not groups:
            sockets.image_to_core(image_1, "image_1")  # which says what it is instead
        names = {"row_labels": inputs.lines(row_labels), "column_labels": inputs.lines(column_labels)}
        sheet = draw_sheet(
            arrange(groups, each=each_input, columns=columns, **names),
            **names,
            style=SheetStyle(cell_size, padding, font_size, background),
        )
        return (sockets.image_from_core(from_pil(sheet)).to(host.result_device()),)


class UnCLIPScore:
    """CLIP scores of pictures against a caption, and how much the pictures differ."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Says how well pictures fit a caption in the eyes of CLIP: 1 is the same thing, 0 unrelated; and how "
        "much they differ from each other, by group where there are some. Compare scores of one CLIP model "
        "only: good pictures score about 0.3 with OpenAI's, 0.8 with that of mini."
    )
    SEARCH_ALIASES = [
        "clip score",
        "similarity",
        "metric",
        "rate image",
        "evaluate",
        "diversity",
        "fidelity",
        "variety",
    ]
    RETURN_TYPES = (sockets.FLOAT, sockets.STRING, sockets.FLOAT, sockets.STRING, sockets.IMAGE)
    RETURN_NAMES = ("score", "labels", "diversity", "group_labels", "chart")
    OUTPUT_TOOLTIPS = (
        "The mean score of all pictures, from -1 to 1.",
        "One line with the score of each picture, for unCLIP Grid.",
        "How much the pictures differ: the mean cosine distance of all pairs, within each group. 0 is the "
        "same picture again and again.",
        "One line with score and diversity of each group, for the column labels of unCLIP Grid.",
        "Score and diversity of each group as curves.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "clip": inputs.socket(sockets.CLIP, "The CLIP model that judges; it encodes the text too."),
                "image": inputs.opaque("Pictures of any size."),
                "text": inputs.socket(
                    sockets.TEXT, "The encoded caption: one for all pictures, or one for each."
                ),
            },
            "optional": {
                "fit": UnCLIPImageEncode.INPUT_TYPES()["optional"]["fit"],
                "groups": (
                    sockets.STRING,
                    {
                        "default": "",
                        "forceInput": True,
                        "tooltip": "Names of groups that are scored apart, one on each line: one for each "
                        "picture, or fewer that take turns, such as the labels of unCLIP Guidance Sweep.",
                    },
                ),
            },
        }

    def execute(
        self, clip: ClipStage | None, image: Tensor, text: TextFeatures, fit: str = "crop", groups: str = ""
    ) -> tuple[float, str, float, str, Tensor]:
        clip = sockets.require_stage(clip, "clip")
        pixels = sockets.image_to_core(image)
        names = [line for line in inputs.lines(groups) if line]
        clip = image_tower(clip)
        with (
            placement.on_device(clip, encode_memory(clip, pixels)),
            host.count_progress("Score", len(pixels)) as on_count,
        ):
            found = score_pictures(clip, pixels, text, groups=names, fit=fit, callback=on_count)
        curves = {"CLIP score": [group.score for group in found.groups]}
        if any(group.diversity is not None for group in found.groups):
            curves["diversity"] = [group.diversity for group in found.groups]
        chart = from_pil(panel_chart([group.name for group in found.groups], curves))
        return (
            found.scores.mean().item(),
            "\n".join(f"CLIP {score:.3f}" for score in found.scores.tolist()),
            found.diversity,
            "\n".join(_summary(group) for group in found.groups),
            sockets.image_from_core(chart).to(host.result_device()),
        )


class UnCLIPGuidanceSweep:
    """The same pictures at several guidance scales."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Paints the same embedding from the same noise at several guidance scales, to see what guidance "
        "gives (clarity, fidelity) and takes (variety, natural colours)."
    )
    SEARCH_ALIASES = ["cfg sweep", "guidance scale", "xy plot", "compare cfg", "fidelity diversity"]
    RETURN_TYPES = (sockets.IMAGE, sockets.STRING)
    RETURN_NAMES = ("image", "labels")
    OUTPUT_TOOLTIPS = (
        "A picture for each scale; of several embeddings, all scales of the first, then of the second.",
        "The scales, one on each line, for the column labels of unCLIP Grid.",
    )
    FUNCTION = "execute"
    OPTIONS = DecodeOptions

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        decode, options = UnCLIPDecode.INPUT_TYPES(), inputs.of(cls.OPTIONS)
        del options["strength"]  # of a picture to begin from, which this node does not take
        del options["guidance_scale"]  # guidance_scales takes its place
        return {
            "required": {
                "decoder": inputs.decoder(),
                "guidance_scales": (
                    sockets.STRING,
                    {
                        "default": "1, 1.5, 2, 4",
                        "placeholder": "1, 1.5, 2, 4",
                        "tooltip": "The scales, separated by commas, from 0 to 30; 1 is without guidance. "
                        "Guidance cfg_pp takes 0 to 1, such as 0.2, 0.6, 1.",
                    },
                ),
                "seed": inputs.seed(),
                **inputs.take(options, "steps", "sampler"),
            },
            "optional": {
                "embedding": inputs.decoded_embedding(),
                "text": inputs.decoded_text(),
                "noise": decode["optional"]["noise"],
                **inputs.negatives(cls.OPTIONS),
                **options,
                "hint": inputs.hint(),
                "weak_decoder": inputs.weak_decoder(),
            },
        }

    def execute(
        self,
        decoder: DecoderStage | None,
        guidance_scales: str,
        seed: int,
        embedding: Embedding | None = None,
        text: TextFeatures | None = None,
        noise: StartingNoise | None = None,
        negative_embedding: Embedding | None = None,
        negative_text: TextFeatures | None = None,
        hint: Tensor | None = None,
        weak_decoder: DecoderStage | None = None,
        **given: Any,
    ) -> tuple[Tensor, str]:
        decoder = sockets.require_stage(decoder, "decoder")
        each = settings_of(self.OPTIONS)["guidance_scale"]
        scales = inputs.numbers(guidance_scales, "guidance_scales", each.low, each.high)
        for scale in scales:
            require_scale(scale, given.get("guidance", "cfg"), "one of guidance_scales")
        options = from_settings(self.OPTIONS, {**given, "guidance_scale": scales[0]})
        hints = None if hint is None else sockets.image_to_core(hint, "hint")
        conditions = Conditions(embedding, text, negative_embedding, negative_text, hints)
        size = picture_size(decoder, options.width, options.height, quiet=True)
        guided = any(is_guided(replace(options, guidance_scale=scale)) for scale in scales)
        needed = decode_memory(decoder, 2.0 if guided else 1.0, conditions, noise, size=size)
        weaker = weak_decoder if options.guidance == "autoguidance" else None
        steps = options.steps * len(scales)
        with placement.sampling(decoder, needed, "Sweep", steps, beside=weaker) as on_step:
            pixels = sweep_guidance(
                decoder,
                **vars(conditions),
                scales=scales,
                seed=seed,
                options=options,
                noise=None if noise is None else noise.values,
                weaker=weak_decoder,
                callback=on_step,
            )
            image = sockets.image_from_core(pixels.flatten(0, 1)).to(host.result_device())
        return image, "\n".join(f"guidance {scale:g}" for scale in scales)


def _summary(group: GroupScore) -> str:
    diversity = "" if group.diversity is None else f", diversity {group.diversity:.3f}"
    return f"{group.name}: CLIP {group.score:.3f}{diversity}"


def _names(tooltip: str, placeholder: str) -> inputs.Input:
    return (
        sockets.STRING,
        {"default": "", "multiline": True, "placeholder": placeholder, "tooltip": tooltip},
    )
