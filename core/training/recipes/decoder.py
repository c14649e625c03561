"""Recipe: a decoder, CLIP image embeddings and captions to pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...config import POSITIVE, SHARE, require_ranges
from ...data.batches import Batch, PictogramBatches, in_unit_range
from ...data.draws import draw_normal, draw_uniform
from ...data.opening import open_batches
from ...data.pictures import PictureBatches
from ...data.process import Process
from ...data.settings import DataConfig
from ...diffusion.losses import q_sample
from ...diffusion.schedule import schedule_of
from ...diffusion.spec import DiffusionSpec
from ...networks.clip import fit_images
from ...networks.unet import UNet
from ...networks.unet_config import UNetConfig
from ...stages import DecoderStage
from ..frozen_clip import load_frozen_clip
from ..objective import denoising_loss, draw_timesteps, require_outputs
from ..recipe import Recipe
from ..settings import LoopConfig


@dataclass(frozen=True)
class DecoderTraining:
    """Settings of ``unclip train decoder``.

    Attributes:
        clip: file of the trained CLIP stage, which stays frozen.
        drop_clip, drop_text: share of rows that lose z_i and the caption (paper: 10% and 50%). The model's
            ``learned_null`` and ``null_text`` tell what stands for them.
        style_named: share of captions of pictograms that name the style.
        min_snr_gamma: of the min-SNR loss weights (2303.09556); None weighs all timesteps alike.
        timestep_shift: above 1, timesteps are drawn more often where noise is strong (``draw_timesteps``).
    """

    clip: str
    data: DataConfig
    model: UNetConfig
    diffusion: DiffusionSpec
    loop: LoopConfig
    drop_clip: float = 0.1
    drop_text: float = 0.5
    style_named: float = 0.75
    min_snr_gamma: float | None = None
    timestep_shift: float = 1.0

    def __post_init__(self) -> None:
        require_ranges(
            self,
            drop_clip=SHARE,
            drop_text=SHARE,
            style_named=SHARE,
            min_snr_gamma=POSITIVE,
            timestep_shift=POSITIVE,
        )


class ConditionedUNet(nn.Module):
    """A U-Net together with its conditioning, as one module to compile and wrap."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        return self.unet(x, t, self.unet.condition(**conditions))


class DecoderRecipe(Recipe):
    """Min-SNR weighted denoising loss with classifier-free dropping of both conditions."""

    def __init__(self, config: DecoderTraining, process: Process) -> None:
        self.config = config
        self.clip = load_frozen_clip(Path(config.clip))
        self.clip_stage = self.clip.stage
        require_outputs(config.model, config.diffusion)
        self._require_inputs()
        self.empty = self.clip.tokenizer([""])  # [1, L]
        self.stage_network = UNet(config.model).to(memory_format=torch.channels_last)
        self.network = ConditionedUNet(self.stage_network)
        self.schedule = schedule_of(config.diffusion)
        self._padding = config.model.conditioning.read_padding
        self.batches = self._open(process)
        self.clip.tokenise_in(self.batches, self._padding)
        self._process = process

    def _open(self, process: Process, held_out: bool = False) -> PictogramBatches | PictureBatches:
        config, loop = self.config, self.config.loop
        size = self.clip.reading_size(config.model.image_size)
        return open_batches(
            config.data, size, loop.batch_size, loop.seed, process, config.style_named, held_out
        )

    def held_out(self) -> Callable[[int], Batch]:
        return self._open(self._process, held_out=True)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, S, S], as large as CLIP wants them, and token ids [B, N] of their captions."""
        return batch.images, self.clip.tokens_of(batch, self._padding)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        config, device = self.config, generator.device
        conditioning = config.model.conditioning
        images, ids = (tensor.to(device) for tensor in batch)
        images, rows = in_unit_range(images), len(images)
        painted = fit_images(images, config.model.image_size)  # [B, 3, S, S]
        x0 = (2 * painted - 1).contiguous(memory_format=torch.channels_last)
        t = draw_timesteps(rows, len(self.schedule), config.timestep_shift, generator)
        noise = draw_normal(x0.shape, generator)
        noise = noise.contiguous(memory_format=torch.channels_last)
        keep_clip = draw_uniform((rows,), generator) >= config.drop_clip
        keep_text = draw_uniform((rows,), generator) >= config.drop_text

        z_i = self.clip.encode_images(images)  # [B, D]
        if conditioning.standardised:
            z_i = self.clip.space.standardise(z_i)
        if conditioning.null_text == "empty_caption":
            self.empty = self.empty.to(device)  # once
            ids = torch.where(keep_text[:, None], ids, self.empty[:, : ids.shape[1]])
            keep_text = torch.ones_like(keep_text)
        tokens, mask, pooled = self.clip.encode_tokens(ids)  # [B, N, W], [B, N], [B, D]
        x_t = q_sample(self.schedule, x0, t, noise)
        output = network(
            x_t,
            t,
            clip_embedding=z_i,
            keep_clip=keep_clip,
            text_tokens=tokens,
            text_mask=mask & keep_text[:, None],
            text_pooled=pooled,
        )
        losses = denoising_loss(
            self.schedule, config.diffusion, config.min_snr_gamma, output, x0, x_t, noise, t
        )
        return losses.mean()

    def stage(self) -> DecoderStage:
        return DecoderStage(self.stage_network, self.clip.space, self.config.diffusion)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        save_stage(self.stage(), folder / "decoder.safetensors", dtype=torch.float16)

    def _require_inputs(self) -> None:
        """Raise a ValueError unless the model takes what the CLIP model gives."""
        model, clip = self.config.model, self.clip
        if model.conditioning is None or model.conditioning.clip_dim is None:
            raise ValueError(f"model.conditioning.clip_dim is not set, expected {clip.space.dim}")
        if model.concat_channels:
            raise ValueError(f"model.concat_channels is {model.concat_channels}, expected 0 in a decoder")
        widths = {
            "clip_dim": clip.space.dim,
            "text_dim": clip.network.config.text.width,
            "text_pooled_dim": clip.space.dim,
        }
        for name, expected in widths.items():
            found = getattr(model.conditioning, name)
            if found not in (None, expected):
                raise ValueError(
                    f"model.conditioning.{name} is {found}, but {self.config.clip} gives {expected} values"
                )
