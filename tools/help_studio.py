"""What the scenes of the help pages share: nodes run by name, mini's stages, its captions and pictures."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from PIL import Image
from torch import Tensor
from unclip.core.embeddings.batches import join
from unclip.core.embeddings.space import Embedding, TextFeatures
from unclip.core.pictures.card import word_card
from unclip.core.pictures.sheet import to_pil
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.noise import StartingNoise
from unclip.nodes import NODE_CLASS_MAPPINGS
from unclip.nodes.sockets import image_to_core

CAPTIONS = ("a flat panda", "a flat penguin", "a flat hamburger", "a flat rooster")
QUICK = {"steps": 8, "sampler": "dpmpp_2m"}
# For inverted noise, which needs ddim and as many steps on the way back.
EXACT = {"steps": 10, "guidance_scale": 1.0}
CARD = 256  # side of a caption that stands in a row like a picture


def run(node_id: str, **given: Any) -> tuple:
    """What a node gives for some inputs, the others at their defaults."""
    cls = NODE_CLASS_MAPPINGS[node_id]
    declared = {name: spec for group in cls.INPUT_TYPES().values() for name, spec in group.items()}
    defaults = {
        name: options["default"]
        for name, (_, options) in declared.items()
        if "default" in options and not options.get("forceInput")
    }
    return cls().execute(**{**defaults, **given})


def pil(image: Tensor) -> list[Image.Image]:
    """The pictures of an IMAGE."""
    return to_pil(image_to_core(image))


def mask_pil(mask: Tensor) -> Image.Image:
    """The first picture of a MASK."""
    return to_pil(mask[:1, None].expand(-1, 3, -1, -1))[0]


def noise_pil(noise: StartingNoise) -> Image.Image:
    """Noise as a picture: a deviation of one is a third of the way to black or white."""
    return to_pil(noise.values[:1, :3] / 6 + 0.5)[0]


def card(words: str, height: int = CARD) -> Image.Image:
    """A caption that stands in a row like a picture."""
    return word_card(words, (CARD, height), "grey")


class Studio:
    """mini's stages, and what several scenes share: four captions, their embeddings and pictures."""

    def __init__(self) -> None:
        self.clip, self.prior, self.decoder, self.upsampler, *_ = run("UnCLIPLoadBundle", precision="fp32")
        (self.ar_prior,) = run("UnCLIPLoadPrior", file="mini/ar-prior.safetensors", precision="fp32")
        (self.noise,) = run("UnCLIPNoise", decoder=self.decoder)

    @cached_property
    def texts(self) -> TextFeatures:
        return encode_text(self.clip, CAPTIONS)

    @cached_property
    def embeddings(self) -> list[Embedding]:
        return [run("UnCLIPDiffusionPrior", prior=self.prior, text=self.text(each))[0] for each in CAPTIONS]

    @cached_property
    def small(self) -> Tensor:
        """The four pictures as the decoder paints them, all from one noise."""
        return self.paint_small(join(self.embeddings), noise=self.noise)

    @cached_property
    def images(self) -> Tensor:
        return self.upsampled(self.small)

    @cached_property
    def pictures(self) -> list[Image.Image]:
        return pil(self.images)

    @cached_property
    def others(self) -> Tensor:
        """The first three of the four from the noise of seed 1."""
        (noise,) = run("UnCLIPNoise", decoder=self.decoder, seed=1)
        return self.upsampled(self.paint_small(join(self.embeddings[:3]), noise=noise))

    @cached_property
    def mask(self) -> Tensor:
        (mask,) = run("UnCLIPRegionMask", image=self.images[:1], shape="ellipse", y=0.35)
        return mask

    @cached_property
    def repainted(self) -> Tensor:
        """The first picture, its masked part painted anew by the second embedding."""
        (image,) = run(
            "UnCLIPInpaint",
            decoder=self.decoder,
            image=self.images[:1],
            mask=self.mask,
            embedding=self.embeddings[1],
            steps=10,
            resamples=2,
        )
        return image

    @cached_property
    def noises(self) -> list[StartingNoise]:
        """From which the first two pictures come back."""
        embedding = join(self.embeddings[:2])
        (found,) = run(
            "UnCLIPInvert", decoder=self.decoder, image=self.images[:2], embedding=embedding, **EXACT
        )
        return [StartingNoise(values[None], found.made_for) for values in found.values]

    def text(self, caption: str) -> TextFeatures:
        return run("UnCLIPTextEncode", clip=self.clip, text=caption)[0]

    def upsampled(self, image: Tensor) -> Tensor:
        return run("UnCLIPUpsample", upsampler=self.upsampler, image=image)[0]

    def paint_small(self, embedding: Embedding, **settings: Any) -> Tensor:
        return run("UnCLIPDecode", decoder=self.decoder, embedding=embedding, **{**QUICK, **settings})[0]

    def paint(self, embedding: Embedding, **settings: Any) -> list[Image.Image]:
        return pil(self.upsampled(self.paint_small(embedding, **settings)))
