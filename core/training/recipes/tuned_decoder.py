"""Recipe: a decoder that is there already, trained on, whole or as a LoRA; in its latent where it has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from ...embeddings.space import require_same_space
from ...networks.clip import ClipNetwork, fit_images, zero_picture
from ...networks.conditioning import ConditioningConfig
from ...networks.movq import MoVQ
from ...networks.unet import UNet, with_null_embedding
from ...stages import DecoderStage
from ..frozen_clip import FrozenClip, load_frozen_clip
from ..low_rank import LowRankConfig, LowRankNetwork
from ..objective import denoising_loss, draw_timesteps
from ..recipe import Recipe
from ..settings import LoopConfig
from ..starting import load_base, trained
from .decoder import ConditionedUNet


@dataclass(frozen=True)
class DecoderTuning:
    """Settings of ``unclip train decoder`` with a base.

    Attributes:
        base: the decoder that training starts from: a file, or a folder in diffusers' layout.
        clip: its CLIP model, which stays frozen.
        text_encoder: that of its captions where it is another one (Kandinsky 2.1); None is ``clip``.
        lora: train a LoRA; None trains the whole network.
        picture_size: side of the pictures; None is that of the base. Of decoders of any size (Kandinsky's)
            also another one.
        drop_clip, drop_text: share of rows that lose z_i and the caption.
        min_snr_gamma: of the min-SNR loss weights (2303.09556); None weighs all timesteps alike.
        timestep_shift: see ``draw_timesteps``.
    """

    base: str
    clip: str
    data: DataConfig
    loop: LoopConfig
    text_encoder: str | None = None
    lora: LowRankConfig | None = None
    picture_size: int | None = None
    drop_clip: float = 0.1
    drop_text: float = 0.5
    min_snr_gamma: float | None = None
    timestep_shift: float = 1.0

    def __post_init__(self) -> None:
        require_ranges(
            self,
            picture_size=POSITIVE,
            drop_clip=SHARE,
            drop_text=SHARE,
            min_snr_gamma=POSITIVE,
            timestep_shift=POSITIVE,
        )


class TunedDecoderRecipe(Recipe):
    """The denoising loss of DecoderRecipe, with the schedule and the conditions of the base.

    A variance that the network gives and its sampler discards (Kandinsky 2.2) is not trained. A dropped z_i
    is what the base takes for it: of Kandinsky the embedding of an all-zero picture.
    """

    def __init__(self, config: DecoderTuning, process: Process) -> None:
        self.config, self._process = config, process
        self.base = load_base(config.base, DecoderStage)
        self.conditioning = _require_trainable(self.base)
        self.clip = load_frozen_clip(Path(config.clip))
        self.clip_stage = self.clip.stage
        require_same_space("clip", self.clip.space, self.base.space)
        self.captions = self.clip
        if config.text_encoder is not None:
            self.captions = load_frozen_clip(Path(config.text_encoder))
        self.reads_text = bool(self.conditioning.text_dim or self.conditioning.text_pooled_dim)
        _require_captions(self.captions, self.conditioning)
        self.empty = self.captions.tokenizer([""])  # [1, L]
        self.size = self._picture_size()
        unet = self.base.network
        if not self.conditioning.null_known:
            unet = with_null_embedding(unet, _zero_embedding(self.clip))
        self.stage_network: UNet = unet
        self.network = trained(ConditionedUNet(unet), unet, config.lora, config.loop)
        if config.lora is None and self.conditioning.null_picture:
            unet.conditioner.null_clip.requires_grad_(False)  # it is a picture's
        self.movq: MoVQ | None = None
        if self.base.autoencoder is not None:
            self.movq = self.base.autoencoder.network.requires_grad_(False)
        self.schedule = schedule_of(self.base.diffusion)
        self.batches = self._open()

    def _picture_size(self) -> int:
        base, asked = self.base, self.config.picture_size
        multiple = base.scale * base.network.config.multiple_of
        if asked is None or asked == base.picture_size:
            return base.picture_size
        if base.network.config.fixed_size or asked % multiple:
            what = f"a multiple of {multiple}"
            if base.network.config.fixed_size:
                what = f"{base.picture_size}, the one size of this decoder"
            raise ValueError(f"picture_size is {asked}, expected {what}")
        return asked

    def _open(self, held_out: bool = False) -> PictogramBatches | PictureBatches:
        loop = self.config.loop
        return open_batches(
            self.config.data,
            self.clip.reading_size(self.size),
            loop.batch_size,
            loop.seed,
            self._process,
            held_out=held_out,
        )

    def held_out(self) -> Callable[[int], Batch]:
        return self._open(held_out=True)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, S, S], as large as CLIP wants them, and token ids [B, L] of their captions."""
        return batch.images, self.captions.tokenizer(batch.captions)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        config, spec, device = self.config, self.base.diffusion, generator.device
        images, ids = (tensor.to(device) for tensor in batch)
        images, rows = in_unit_range(images), len(images)
        x0 = self._targets(fit_images(images, self.size))
        t = draw_timesteps(rows, len(self.schedule), config.timestep_shift, generator)
        noise = draw_normal(x0.shape, generator).contiguous(memory_format=torch.channels_last)
        keep_clip = draw_uniform((rows,), generator) >= config.drop_clip
        keep_text = draw_uniform((rows,), generator) >= config.drop_text
        z_i = self.base.space.in_convention(self.clip.encode_images(images))  # [B, D]
        if self.conditioning.standardised:
            z_i = self.base.space.standardise(z_i)
        given = {"clip_embedding": z_i, "keep_clip": keep_clip}
        if self.reads_text:
            given |= self._caption(ids, keep_text)
        x_t = q_sample(self.schedule, x0, t, noise)
        output = network(x_t, t, **given)
        if spec.variance != "learned_range":
            output = output[:, : x0.shape[1]]
        return denoising_loss(self.schedule, spec, config.min_snr_gamma, output, x0, x_t, noise, t).mean()

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Tensor:
        """What the network paints of pictures [B, 3, S, S] in 0..1: they themselves, or their latents."""
        pixels = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        if self.movq is None:
            return pixels
        self.movq.to(images.device)
        return self.movq.encode(pixels).float()

    def _caption(self, ids: Tensor, keep: Tensor) -> dict[str, Tensor]:
        if self.conditioning.null_text == "empty_caption":
            self.empty = self.empty.to(ids.device)  # once
            ids = torch.where(keep[:, None], ids, self.empty)
            keep = torch.ones_like(keep)
        tokens, mask, pooled = self.captions.encode_tokens(ids)  # [B, L, W], [B, L], [B, D]
        return {"text_tokens": tokens, "text_mask": mask & keep[:, None], "text_pooled": pooled}

    def stage(self) -> DecoderStage:
        return replace(self.base, network=self.stage_network)

    def export(self, state: dict[str, Tensor], folder: Path) -> None:
        from ...formats.native.checkpoints import save_stage

        self.network.load_state_dict(state)
        if isinstance(self.network, LowRankNetwork):
            self.network.write(folder / "decoder-lora.safetensors")
        else:
            save_stage(self.stage(), folder / "decoder.safetensors", dtype=torch.float16)


def _require_trainable(base: DecoderStage) -> ConditioningConfig:
    network = base.network
    conditioning = network.config.conditioning
    if conditioning is None or conditioning.clip_dim is None:
        raise ValueError(
            f"base: {base.source} paints no image embeddings, so that no decoder can be made of it"
        )
    if network.config.concat_channels or conditioning.hint_channels:
        what = "hint pictures" if conditioning.hint_channels else "a masked picture"
        raise ValueError(
            f"base: {base.source} reads {what} besides, which no data here have; train the plain decoder. "
            f"Its LoRA may be tried on this one, whose attention has the same layers"
        )
    return conditioning


def _require_captions(captions: FrozenClip, conditioning: ConditioningConfig) -> None:
    width = captions.network.config.text.width if isinstance(captions.network, ClipNetwork) else None
    if conditioning.text_dim is not None and width not in (None, conditioning.text_dim):
        raise ValueError(
            f"text_encoder: this decoder reads captions of {conditioning.text_dim} values a token, but its "
            f"text encoder gives {width}; name the folder of the decoder's own (Kandinsky 2.1)"
        )


@torch.no_grad()
def _zero_embedding(clip: FrozenClip) -> Tensor:
    """z of an all-zero picture, [D]."""
    return clip.space.in_convention(clip.network.encode_pixels(zero_picture(clip.network)).float())[0]
