"""Pictures of fixed captions while a stage trains: what the curves do not show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.load import load_any_stage
from ..pictures.sheet import contact_sheet, to_pil
from ..pipelines.ar_prior import AutoregressiveOptions
from ..pipelines.decode import DecodeOptions
from ..pipelines.generate import GenerateOptions, generate
from ..pipelines.prior import PriorOptions
from ..pipelines.upsample import UpsampleOptions
from ..stages import Bundle, ClipStage, DecoderStage, PriorStage, Stage, UpsamplerStage
from ..writing import written_whole
from .frozen_clip import stage_file
from .sheet_settings import SheetConfig

FOLDER = "sheets"


class Sheets:
    """Paints the sheets of a run."""

    def __init__(self, config: SheetConfig, stage: Stage | None, clip: ClipStage | None) -> None:
        """Args:
        stage: the one in training, as it is now; None where it makes no pictures.
        clip: the model that it learns from, where there is one.

        Raises:
            ValueError: a file that is not there or of another stage, or a stage that is missing.
        """
        self.config = config
        if stage is None or isinstance(stage, ClipStage):
            raise ValueError("loop.sheet: a CLIP model makes no pictures, leave it out")
        files = {"clip": config.clip, "prior": config.prior, "decoder": config.decoder}
        found: dict[str, Any] = {"clip": clip}
        for name, file in files.items():
            if file is not None:
                found[name] = load_any_stage(stage_file(Path(file)), expect=name)  # type: ignore[arg-type]
        if isinstance(found.get("prior"), PriorStage) and found["prior"].diffusion is None:
            found["ar_prior"] = found.pop("prior")
        self._bundle = Bundle("sheet", **found)
        missing = [name for name, each in self._needed(stage).items() if each is None]
        if missing:
            raise ValueError(
                f"loop.sheet: pictures of this stage need {' and '.join(missing)} too: name the "
                f"file{'s' if len(missing) > 1 else ''} in loop.sheet.{', loop.sheet.'.join(missing)}"
            )

    @torch.no_grad()
    def paint(self, stage: Stage, folder: Path, done: int, device: torch.device) -> Tensor:
        """Write ``sheets/NNNNNNNN.png``; returns the pictures, [N, 3, S, S] in 0..1 on the CPU."""
        config, bundle = self.config, self._with(stage)
        for each in bundle.stages:
            each.network.to(device)
        # The network in training must not be packed: its weights change.
        options = GenerateOptions(
            prior="autoregressive" if bundle.ar_prior else "diffusion" if bundle.prior else "none",
            prior_options=PriorOptions(config.steps, config.prior_guidance, pack_weights=False),
            ar_prior_options=AutoregressiveOptions(config.prior_guidance, pack_weights=False),
            decode_options=DecodeOptions(config.steps, config.guidance_scale, pack_weights=False),
            upsample_options=UpsampleOptions(pack_weights=False),
            upsamplers=len(bundle.upsamplers),
        )
        pictures = generate(bundle, config.captions, seed=config.seed, options=options)
        path = folder / FOLDER / f"{done:08}.png"
        path.parent.mkdir(exist_ok=True)
        with written_whole(path) as unfinished:
            contact_sheet(to_pil(pictures), config.captions).save(unfinished, "PNG")
        return pictures

    def _needed(self, stage: Stage) -> dict[str, Stage | None]:
        bundle = self._with(stage)
        return {"clip": bundle.clip, "decoder": bundle.decoder}

    def _with(self, stage: Stage) -> Bundle:
        """All stages, the one in training among them."""
        if isinstance(stage, PriorStage):
            name = "ar_prior" if stage.diffusion is None else "prior"
            return replace(self._bundle, **{"prior": None, "ar_prior": None, name: stage})
        if isinstance(stage, DecoderStage):
            return replace(self._bundle, decoder=stage)
        assert isinstance(stage, UpsamplerStage)
        return replace(self._bundle, upsamplers=(stage,))


@contextmanager
def weights_replaced(network: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """The network has other weights inside, and its own again, bit by bit, afterwards."""
    parameters = {name: value for name, value in network.named_parameters() if name in weights}
    own = {name: value.detach().clone() for name, value in parameters.items()}
    training = network.training
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(weights[name])
    network.eval()
    try:
        yield
    finally:
        network.train(training)
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(own[name])
