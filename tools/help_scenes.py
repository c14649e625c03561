"""What the nodes that make or change pictures do, shown by the embedded mini, for the help pages.

Captions say which settings made a picture, never what came out: other weights of mini need no other words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from help_figures import WIDTH, Part, Row, figure, strip
from help_studio import CAPTIONS, EXACT, QUICK, Studio, card, mask_pil, noise_pil, pil, run
from PIL import Image
from unclip.core.embeddings.batches import join
from unclip.core.pipelines.noise import StartingNoise

FRAMES = 5

# What a row of the kinds of guidance is called, its scales and settings. Autoguidance needs a weaker decoder,
# and there is none beside mini's.
_SCALES = "1, 3, 6, 12"
GUIDANCES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("cfg", _SCALES, {}),
    ("cfg_pp", "0.2, 0.4, 0.6, 1", {"guidance": "cfg_pp"}),
    ("apg", _SCALES, {"guidance": "apg"}),
    ("pag", _SCALES, {"guidance": "pag"}),
    ("interval 0.2 to 0.8", _SCALES, {"guidance_start": 0.2, "guidance_end": 0.8}),
    ("rescale 0.7", _SCALES, {"guidance_rescale": 0.7}),
    ("threshold 0.995", _SCALES, {"dynamic_threshold": 0.995}),
)


def image_encode(studio: Studio) -> Image.Image:
    (embedding,) = run("UnCLIPImageEncode", clip=studio.clip, image=studio.images[:1])
    varied = studio.paint(embedding, seed=1, batch_size=3)
    parts = [Part(studio.pictures[0], "your picture")]
    for seed, picture in enumerate(varied, 1):
        parts.append(Part(picture, f"seed {seed}", "→" if seed == 1 else ""))
    return figure(Row(parts))


def _imagined(studio: Studio, node_id: str, prior: Any) -> Image.Image:
    embedding = run(node_id, prior=prior, text=studio.text(CAPTIONS[0]), batch_size=4)[0]
    painted = studio.paint(embedding, noise=studio.noise)
    parts = [Part(card(CAPTIONS[0]), "caption")]
    parts += [Part(each, f"seed {seed}", "→" if seed == 0 else "") for seed, each in enumerate(painted)]
    return figure(Row(parts))


def diffusion_prior(studio: Studio) -> Image.Image:
    return _imagined(studio, "UnCLIPDiffusionPrior", studio.prior)


def autoregressive_prior(studio: Studio) -> Image.Image:
    return _imagined(studio, "UnCLIPAutoregressivePrior", studio.ar_prior)


def text_as_image_embedding(studio: Studio) -> Image.Image:
    (embedding,) = run("UnCLIPTextAsImageEmbedding", text=studio.texts)
    plain = studio.paint(embedding, noise=studio.noise)
    return figure(
        strip(plain, CAPTIONS, "The caption's own embedding, without a prior"),
        strip(studio.pictures, CAPTIONS, "Beside it: through the diffusion prior"),
    )


def null_embedding(studio: Studio) -> Image.Image:
    (empty,) = run("UnCLIPNullEmbedding", decoder=studio.decoder, batch_size=len(CAPTIONS))
    given = {"text": studio.texts, "noise": studio.noise}
    return figure(
        strip(studio.paint(empty, **given), CAPTIONS, "Null embedding: from the caption alone"),
        strip(studio.paint(join(studio.embeddings), **given), CAPTIONS, "Caption and embedding of a prior"),
    )


def decode(studio: Studio) -> Image.Image:
    seeds = [f"seed {seed}" for seed in range(4)]
    painted, annealed = (
        studio.paint(studio.embeddings[0], seed=0, batch_size=4, annealing=annealing)
        for annealing in (0.0, 0.4)
    )
    return figure(
        strip(painted, seeds, "One embedding, four seeds"),
        strip(annealed, seeds, "The same with annealing 0.4"),
    )


def upsample(studio: Studio) -> Image.Image:
    (small,), large = pil(studio.small[:1]), studio.pictures[0]
    parts = [Part(small, f"{small.width} pixels"), Part(large, f"{large.width} pixels", "→")]
    return figure(Row(parts))


def noise(studio: Studio) -> Image.Image:
    (other,) = run("UnCLIPNoise", decoder=studio.decoder, seed=1)
    rows = [(studio.noise, 0, studio.pictures[:3]), (other, 1, pil(studio.others))]
    return figure(
        *(
            Row([Part(noise_pil(drawn), f"seed {seed}"), Part(first, "", "→"), *map(Part, rest)])
            for drawn, seed, (first, *rest) in rows
        )
    )


def noise_interpolate(studio: Studio) -> Image.Image:
    first, second = studio.noises
    (path,) = run("UnCLIPNoiseInterpolate", first=first, second=second, frames=FRAMES)
    (embeddings,) = run(
        "UnCLIPInterpolate", first=studio.embeddings[0], second=studio.embeddings[1], frames=FRAMES
    )
    painted = studio.paint(embeddings, noise=path, sampler="ddim", **EXACT)
    noises = [noise_pil(StartingNoise(values[None])) for values in path.values]
    frames = [f"frame {number}" for number in range(1, FRAMES + 1)]
    return figure(
        strip(noises, [""] * FRAMES, "From the noise of one picture to that of another"),
        strip(painted, frames, "Decoded, with unCLIP Interpolate for the embeddings"),
    )


def invert(studio: Studio) -> Image.Image:
    found, same = studio.noises[0], {"noise": studio.noises[0], "sampler": "ddim", **EXACT}
    (back, edited), (varied,) = (
        studio.paint(join(studio.embeddings[:2]), **same),
        studio.paint(studio.embeddings[0], **same, eta=1.0),
    )
    return figure(
        Row(
            [
                Part(studio.pictures[0], "your picture"),
                Part(noise_pil(found), "its noise", "→"),
                Part(back, "decoded, eta 0", "→"),
                Part(varied, "eta 1"),
                Part(edited, "other embedding"),
            ]
        )
    )


def inpaint(studio: Studio) -> Image.Image:
    (result,) = pil(studio.upsampled(studio.repainted))
    return figure(
        Row(
            [
                Part(studio.pictures[0], "image"),
                Part(mask_pil(studio.mask), "mask", "+"),
                Part(studio.pictures[1], "embedding", "+"),
                Part(result, "repainted", "→"),
            ]
        )
    )


def inpaint_whole(studio: Studio) -> Image.Image:
    photo = torch.cat(list(studio.images[:2].split(1)), dim=2)  # beside one another
    (mask,) = run("UnCLIPRegionMask", image=photo, shape="rectangle", x=0.75, width=0.46, height=0.9)
    (result,) = run(
        "UnCLIPInpaintWhole",
        decoder=studio.decoder,
        image=photo,
        mask=mask,
        embedding=studio.embeddings[2],
        upsampler=studio.upsampler,
        seed=0,
        steps=10,
        margin=0.1,
    )
    return figure(
        Row(
            [
                Part(*pil(photo), "image"),
                Part(mask_pil(mask), "mask", "+"),
                Part(studio.pictures[2], "to show", "+"),
                Part(*pil(result), "whole picture", "→"),
            ]
        )
    )


def composite(studio: Studio) -> Image.Image:
    edited, mask = studio.repainted, studio.mask
    (result,) = run("UnCLIPComposite", original=studio.images[:1], edited=edited, mask=mask)
    return figure(
        Row(
            [
                Part(studio.pictures[0], "original"),
                Part(*pil(edited), "edited", "+"),
                Part(mask_pil(mask), "mask", "+"),
                Part(*pil(result), "composite", "→"),
            ]
        )
    )


def region_mask(studio: Studio) -> Image.Image:
    settings = (
        ("rectangle", {}),
        ("ellipse", {}),
        ("ellipse, y 0.3, width 0.9", {"y": 0.3, "width": 0.9}),
    )
    parts = [Part(studio.pictures[0], "image")]
    for said, given in settings:
        (mask,) = run("UnCLIPRegionMask", image=studio.images[:1], shape=said.split(",")[0], **given)
        parts.append(Part(mask_pil(mask), said, "" if parts[1:] else "→"))
    return figure(Row(parts))


def region(studio: Studio) -> Image.Image:
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    (regions,) = run("UnCLIPRegion", mask=left, embedding=studio.embeddings[0])
    (result,) = studio.paint(studio.embeddings[1], seed=3, regions=regions)
    return figure(
        Row(
            [
                Part(studio.pictures[1], "embedding"),
                Part(studio.pictures[0], "region’s embedding", "+"),
                Part(mask_pil(left), "region’s mask", "+"),
                Part(result, "decoded", "→"),
            ]
        )
    )


def interpolate(studio: Studio) -> Image.Image:
    (path,) = run("UnCLIPInterpolate", first=studio.embeddings[2], second=studio.embeddings[3], frames=FRAMES)
    painted = studio.paint(path, noise=studio.noise)
    frames = [f"frame {number}" for number in range(1, FRAMES + 1)]
    return figure(strip(painted, frames, "From one embedding to another, decoded from one noise"))


def text_diff(studio: Studio) -> Image.Image:
    was, becomes = CAPTIONS[:2]
    (path,) = run(
        "UnCLIPTextDiff",
        embedding=studio.embeddings[0],
        target_text=studio.text(becomes),
        baseline_text=studio.text(was),
        frames=FRAMES,
        theta_max=0.6,
    )
    painted = studio.paint(path, noise=studio.noises[0], sampler="ddim", **EXACT)
    angles = [f"θ {0.6 * number / (FRAMES - 1):.2g}" for number in range(FRAMES)]
    return figure(strip(painted, angles, f"From “{was}” towards “{becomes}”"))


def blend(studio: Studio) -> Image.Image:
    first, second = studio.embeddings[0], studio.embeddings[3]
    weights = ((1.0, 1.0), (3.0, 1.0))
    mixed = [
        run("UnCLIPBlend", embedding_1=first, embedding_2=second, weight_1=a, weight_2=b)[0]
        for a, b in weights
    ]
    painted = studio.paint(join(mixed), noise=studio.noise)
    parts = [Part(studio.pictures[0], "embedding 1"), Part(studio.pictures[3], "embedding 2", "+")]
    for (a, b), picture in zip(weights, painted, strict=True):
        parts.append(Part(picture, f"weights {a:g} and {b:g}", "" if parts[2:] else "→"))
    return figure(Row(parts))


def batch_embeddings(studio: Studio) -> Image.Image:
    names = [f"embedding {number}" for number in range(1, len(CAPTIONS) + 1)]
    return figure(strip(studio.pictures, names, "One batch, decoded at once"))  # so they were painted


def zero_shot(studio: Studio) -> Image.Image:
    chart, _, _ = run(
        "UnCLIPZeroShot", clip=studio.clip, captions="\n".join(CAPTIONS), image=studio.images[:1]
    )
    return figure(Row([Part(studio.pictures[0], "image")], tallest=160), Row([Part(*pil(chart), "chart")]))


def sticker(studio: Studio) -> Image.Image:
    (words,) = run("UnCLIPSticker", image=studio.images[:1], words="burger")
    (stuck,) = run("UnCLIPSticker", image=studio.images[:1], words="", sticker=studio.images[2:3], height=0.5)
    return figure(
        Row(
            [
                Part(studio.pictures[0], "image"),
                Part(*pil(words), "words “burger”", "→"),
                Part(*pil(stuck), "a picture as sticker"),
            ]
        )
    )


def pca_from_prior(studio: Studio) -> Image.Image:
    _, chart = run("UnCLIPPCAFromPrior", prior=studio.ar_prior)
    return figure(Row([Part(*pil(chart))], tallest=WIDTH))


def pca_reconstruct(studio: Studio) -> Image.Image:
    pca, _ = run("UnCLIPPCAFromPrior", prior=studio.ar_prior)
    parts, labels = run(
        "UnCLIPPCAReconstruct", pca=pca, embedding=studio.embeddings[0], components="1, 3, 8, 20"
    )
    painted = studio.paint(parts, noise=studio.noise)
    names = [f"{label} components" if label != "1" else "1 component" for label in labels.splitlines()]
    return figure(strip([*painted, studio.pictures[0]], [*names, "all of it"]))


def grid(studio: Studio) -> Image.Image:
    (sheet,) = run(
        "UnCLIPGrid",
        image_1=studio.images[:3],
        image_2=studio.others,
        each_input="row",
        cell_size=176,
        font_size=22,
        row_labels="seed 0\nseed 1",
        column_labels="\n".join(CAPTIONS[:3]),
    )
    return figure(Row([Part(*pil(sheet))], tallest=WIDTH))


def score(studio: Studio) -> Image.Image:
    _, labels, *_ = run("UnCLIPScore", clip=studio.clip, image=studio.images, text=studio.text(CAPTIONS[0]))
    return figure(strip(studio.pictures, labels.splitlines(), f"Scored against “{CAPTIONS[0]}”"))


def guidance_sweep(studio: Studio) -> Image.Image:
    image, labels = run(
        "UnCLIPGuidanceSweep",
        decoder=studio.decoder,
        embedding=studio.embeddings[3],
        noise=studio.noise,
        **QUICK,
    )
    return figure(strip(pil(studio.upsampled(image)), labels.splitlines()))


def augment(studio: Studio) -> Image.Image:
    given = {"embedding": studio.embeddings[0], "seed": 0}
    rows = []
    for name, values in (("noise_level", (0.0, 0.03, 0.06, 0.1)), ("strength", (0.25, 0.5, 1.0, 1.5))):
        found = [run("UnCLIPAugment", **given, **{name: value})[0] for value in values]
        painted = studio.paint(join(found), noise=studio.noise)
        rows.append(strip(painted, [f"{name} {value:g}" for value in values]))
    return figure(*rows)


def guidances(studio: Studio) -> Image.Image:
    """One embedding from one noise: a row for each way to guide, its scales from none to strong."""
    rows = []
    for name, scales, settings in GUIDANCES:
        image, _ = run(
            "UnCLIPGuidanceSweep",
            decoder=studio.decoder,
            embedding=studio.embeddings[3],
            noise=studio.noise,
            guidance_scales=scales,
            **settings,
        )
        painted = zip(pil(studio.upsampled(image)), scales.split(", "), strict=True)
        rows.append(Row([Part(card(name)), *(Part(*each) for each in painted)], tallest=100))
    return figure(*rows)


SCENES: dict[str, Callable[[Studio], Image.Image]] = {
    "UnCLIPImageEncode": image_encode,
    "UnCLIPDiffusionPrior": diffusion_prior,
    "UnCLIPAutoregressivePrior": autoregressive_prior,
    "UnCLIPTextAsImageEmbedding": text_as_image_embedding,
    "UnCLIPNullEmbedding": null_embedding,
    "UnCLIPAugment": augment,
    "UnCLIPDecode": decode,
    "UnCLIPUpsample": upsample,
    "UnCLIPNoise": noise,
    "UnCLIPNoiseInterpolate": noise_interpolate,
    "UnCLIPInvert": invert,
    "UnCLIPInpaint": inpaint,
    "UnCLIPInpaintWhole": inpaint_whole,
    "UnCLIPComposite": composite,
    "UnCLIPRegionMask": region_mask,
    "UnCLIPRegion": region,
    "UnCLIPInterpolate": interpolate,
    "UnCLIPTextDiff": text_diff,
    "UnCLIPBlend": blend,
    "UnCLIPBatchEmbeddings": batch_embeddings,
    "UnCLIPZeroShot": zero_shot,
    "UnCLIPSticker": sticker,
    "UnCLIPPCAFromPrior": pca_from_prior,
    "UnCLIPPCAReconstruct": pca_reconstruct,
    "UnCLIPGrid": grid,
    "UnCLIPScore": score,
    "UnCLIPGuidanceSweep": guidance_sweep,
}

# What pages show below, by node: file name → picture.
FURTHER: dict[str, dict[str, Callable[[Studio], Image.Image]]] = {
    "UnCLIPDecode": {"guidance.webp": guidances},
}
