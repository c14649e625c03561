"""A decoder's autoencoder as a VAE for ComfyUI's own nodes.

ComfyUI's VAE tells from a file's keys what it holds, and knows nothing of MoVQ; so it is built as its
emptiest kind and then given the network, its sizes and its memory. Tiles are our own, which leave no seams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.networks.movq import MoVQ
from ..core.networks.movq_tiles import decode_in_tiles, encode_in_tiles
from ..core.pipelines.canvas import autoencoder_memory, decoded, encoded
from ..core.pipelines.rows import device_and_dtype
from ..core.stages import DecoderStage
from . import host


class NativeAutoencoder(nn.Module):
    """An autoencoder as ComfyUI calls its own. Pictures are [B, 3, H, W] in −1..1, latents [B, C, h, w].

    The network is moved to the device of its input where it is elsewhere, and back.
    """

    def __init__(self, movq: MoVQ) -> None:
        super().__init__()
        self.movq = movq

    def encode(self, pictures: Tensor) -> Tensor:
        return self._each(pictures, encoded)

    def decode(self, latent: Tensor) -> Tensor:
        return self._each(latent, decoded)

    def encode_tiled(self, pictures: Tensor, tile: int) -> Tensor:
        """``tile``: side in places of the latent."""
        return self._told("Encode by tiles", pictures, encode_in_tiles, tile)

    def decode_tiled(self, latent: Tensor, tile: int) -> Tensor:
        return self._told("Decode by tiles", latent, decode_in_tiles, tile)

    def _told(self, title: str, rows: Tensor, function: Callable[..., Tensor], tile: int) -> Tensor:
        """Tile by tile, which can be stopped: a large picture takes minutes."""
        finished = 0
        with host.count_progress(title, len(rows)) as tell:

            def run(movq: MoVQ, row: Tensor) -> Tensor:
                nonlocal finished

                def on_tile(done: int, total: int) -> None:
                    tell(finished * total + done, len(rows) * total)

                made = function(movq, row, tile, on_tile)
                finished += 1
                return made

            return self._each(rows, run)

    @torch.no_grad()
    def _each(self, rows: Tensor, function: Callable[[MoVQ, Tensor], Tensor]) -> Tensor:
        with self._beside(rows.device) as movq:
            rows = rows.to(dtype=device_and_dtype(movq)[1])
            return torch.cat([function(movq, row).to(rows.device) for row in rows.split(1)])

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[MoVQ]:
        home, _ = device_and_dtype(self.movq)
        try:
            yield self.movq.to(device)
        finally:
            if home != device:
                self.movq.to(home)


def native_vae(decoder: DecoderStage) -> Any:
    """A decoder's autoencoder as ComfyUI's VAE. The network is shared, not copied.

    Raises:
        ValueError: outside ComfyUI, or a decoder without an autoencoder.
    """
    comfy = host.native_autoencoding()
    if decoder.autoencoder is None:
        raise ValueError(
            f"decoder: {decoder.source or 'this one'} paints pictures themselves and has no autoencoder. "
            f"With unCLIP Decoder as Model, use the VAE pixel_space of Load VAE"
        )
    return _vae_class(comfy)(decoder)


def _vae_class(comfy: SimpleNamespace) -> type:
    class AutoencoderVAE(comfy.VAE):
        def __init__(self, decoder: DecoderStage) -> None:
            assert decoder.autoencoder is not None, "there is one"
            movq = decoder.autoencoder.network
            _, dtype = device_and_dtype(movq)
            super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=dtype)  # its emptiest kind
            self.first_stage_model = NativeAutoencoder(movq).eval()
            self.latent_channels = movq.config.latent_channels
            self.output_channels = movq.config.picture_channels
            self.downscale_ratio = self.upscale_ratio = scale = movq.config.scale
            self.working_dtypes = [dtype]
            # A plain module cannot run with a part of it elsewhere.
            self.disable_offload = True
            self.patcher = comfy.ModelPatcher(
                self.first_stage_model,
                load_device=self.device,
                offload_device=comfy.models.vae_offload_device(),
            )
            self.size = None  # measured again

            # Of one picture, whatever the batch: they run one after the other.
            def decoding(shape: tuple[int, ...], _: torch.dtype) -> int:
                return autoencoder_memory(movq, shape[-2], shape[-1])

            def encoding(shape: tuple[int, ...], _: torch.dtype) -> int:
                return autoencoder_memory(movq, shape[-2] // scale, shape[-1] // scale)

            self.memory_used_decode, self.memory_used_encode = decoding, encoding

        def get_sd(self) -> dict[str, Tensor]:
            """Asked for by Save VAE and Save Checkpoint."""
            raise ValueError(
                "vae: ComfyUI's files have no place for this autoencoder, and nothing could load what it "
                "would save. It stays in the decoder's own file."
            )

        def decode_tiled_(
            self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 0
        ) -> Tensor:
            """[B, C, h, w] → [B, 3, H, W] in 0..1; tiles need no overlap."""
            latent = samples.to(self.device)
            pictures = self.first_stage_model.decode_tiled(latent, max(1, min(tile_x, tile_y)))
            return self.process_output(pictures.float().to(self.output_device))

        def encode_tiled_(
            self, pixel_samples: Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 0
        ) -> Tensor:
            """[B, 3, H, W] in 0..1 → [B, C, h, w]; tiles need no overlap."""
            pictures = self.process_input(pixel_samples).to(self.device)
            tile = max(1, min(tile_x, tile_y) // self.downscale_ratio)
            return self.first_stage_model.encode_tiled(pictures, tile).float().to(self.output_device)

    return AutoencoderVAE
