"""Recipe: a classifier of true pictograms by their concept, a judge of pictures and part of no system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import POSITIVE, SHARE, Range, require_ranges
from ...data.batches import Batch, PictogramBatches, in_unit_range
from ...data.degradation import Degradation, degrade
from ...data.draws import draw_uniform
from ...data.opening import open_batches
from ...data.process import Process
from ...data.settings import DataConfig
from ...networks.classifier import Classifier, ClassifierConfig
from ..recipe import Recipe
from ..settings import LoopConfig

_LESS_THAN_HALF = Range(0, 0.49)


@dataclass(frozen=True)
class ClassifierTraining:
    """Settings of ``unclip train classifier``.

    Attributes:
        data: pictograms; their concepts are the classes.
        image_size: side of the pictures that it sees.
        blocks: residual blocks of each level of the network; ResNet-18's by default.
        held_out: learn from the held-out pairs too. A judge that has seen every true picture names all of
            them; one that has not may take its own gaps for the generator's.
        shift, zoom: largest move, as a share of the side, and change of size of a picture, either way.
        degradation: what pictures suffer, as the generated ones are less sharp than the true ones; leave
            it out for none.
        smoothing: share of a label that is spread over all classes (1512.00567, section 7).
    """

    data: DataConfig
    loop: LoopConfig
    image_size: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    held_out: bool = False
    shift: float = 0.08
    zoom: float = 0.12
    degradation: Degradation | None = None
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        require_ranges(
            self, image_size=POSITIVE, shift=_LESS_THAN_HALF, zoom=_LESS_THAN_HALF, smoothing=SHARE
        )


class ClassifierRecipe(Recipe):
    """Cross-entropy of the concepts of true pictures over random backgrounds."""

    def __init__(self, config: ClassifierTraining, process: Process) -> None:
        self.config = config
        self._process = process
        _ = config.data.pictograms  # names what other data are
        self.batches = self._open(held_out=None if config.held_out else False)
        concepts = [pictogram.concept for pictogram in self.batches.pictograms]
        classes = tuple(sorted(set(concepts)))
        model = ClassifierConfig(classes, config.image_size, config.blocks)
        self._class_of = {concept: index for index, concept in enumerate(classes)}
        self._labels = torch.tensor([self._class_of[concept] for concept in concepts])
        self.stage_network = self.network = Classifier(model).to(memory_format=torch.channels_last)

    def held_out(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        if self.config.held_out:
            raise ValueError("loop.validate_every: the held-out pairs are learnt from; set held_out = false")
        batches = self._open(held_out=True)
        # A concept that no other picture shows is no class: it counts for nothing.
        labels = torch.tensor([self._class_of.get(each.concept, -100) for each in batches.pictograms])

        def labelled(step: int) -> tuple[Tensor, Tensor]:
            batch = batches(step)
            return batch.images, labels[batch.indices]

        return labelled

    def prepare(self, batch: Batch | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, S, S] and the class of each, [B] int64."""
        return batch if isinstance(batch, tuple) else (batch.images, self._labels[batch.indices])

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        config = self.config
        pictures, labels = (each.to(generator.device) for each in batch)
        x = moved(2 * in_unit_range(pictures) - 1, config.shift, config.zoom, generator)
        if config.degradation is not None:
            x = degrade(x, config.degradation, generator)
        logits = network(x.contiguous(memory_format=torch.channels_last)).float()  # [B, classes]
        return F.cross_entropy(logits, labels, label_smoothing=config.smoothing)

    def read_weights(self, path: Path) -> dict[str, Tensor]:
        from ...formats.native.classifier import load_classifier

        found = load_classifier(path)
        if found.config.classes != self.network.config.classes:
            raise ValueError(
                f"loop.start_from: {path} has {len(found.config.classes)} other classes than the "
                f"{len(self.network.config.classes)} of this config's pictograms: leave start_from out"
            )
        return found.state_dict()

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.classifier import save_classifier

        self.network.load_state_dict(state)
        save_classifier(self.network, folder / "classifier.safetensors", torch.float16)

    def _open(self, held_out: bool | None) -> PictogramBatches:
        config, loop = self.config, self.config.loop
        size = config.image_size
        batches = open_batches(
            config.data, size, loop.batch_size, loop.seed, self._process, held_out=held_out
        )
        assert isinstance(batches, PictogramBatches)
        return batches


def moved(images: Tensor, shift: float, zoom: float, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, H, W], each in another place and size; their edges are continued outwards.

    Args:
        shift: largest move along each axis, as a share of the side.
        zoom: largest change of size: factors are 1 − zoom to 1 + zoom.
    """
    draws = 2 * draw_uniform((len(images), 3), generator) - 1  # [B, 3] in −1..1
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    # The grid says where a pixel comes from: a larger picture comes from a smaller part.
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (1 + zoom * draws[:, 0])
    theta[:, :, 2] = 2 * shift * draws[:, 1:]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
