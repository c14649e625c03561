"""A decoder's network as ComfyUI's samplers call their own, and what nodes may have put around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ..core.acceleration.remade import remade
from ..core.acceleration.twins import twin_with_own_modules
from ..core.networks.dalle2_unet import Dalle2UNet
from ..core.networks.unet import UNet, UNetCondition
from ..core.pipelines.rows import device_and_dtype
from ..core.stages import DecoderStage

Forward = Callable[..., Tensor]
Around = Callable[[Forward, nn.Module, Mapping[str, Any]], Forward]
"""A network's forward, the network and ComfyUI's options → the forward with what nodes put around it."""


class OfDecoder(nn.Module):
    """A part of the MODEL that says what to do where a node asks for something that it does not have."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Still an AttributeError: what asks by hasattr is to get its no.
            raise AttributeError(
                f"model: a node asks it for {name!r}, which a decoder of unCLIP does not have: that node is "
                f"made for other models. Take it out between unCLIP Decoder as Model and the sampler."
            ) from None


class NativeNetwork(OfDecoder):
    """A decoder's network as ComfyUI calls its own.

    Attributes:
        in_channels, out_channels: of what is painted, which nodes of guidance ask for.
    """

    def __init__(self, network: UNet | Dalle2UNet, scale: int = 1, around: Around | None = None) -> None:
        """
        Args:
            scale: side of a picture divided by that of what the network paints.
            around: None where there are no nodes.
        """
        super().__init__()
        self.network, self.scale = network, scale
        self.in_channels = self.out_channels = network.config.in_channels
        self._given, self._around = ref(network), around

    def is_of(self, decoder: DecoderStage) -> bool:
        """Whether this was made of a decoder's network."""
        return decoder.network is self._given()

    def take_apart(self) -> None:
        """Have modules of its own, in which weights can be replaced that the decoder keeps. They are the same
        weights until then."""
        if self.network is self._given():
            self.network = remade(self.network, twin_with_own_modules)

    @property
    def dtype(self) -> torch.dtype:
        return device_and_dtype(self.network)[1]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> Tensor:
        """x_t [B, C, H, W] and timesteps [B] → what the network was trained to predict, [B, C, H, W].

        Args:
            context, y: ComfyUI's conditions, of which this network has none.
            control, transformer_options: ComfyUI's, of which nothing may reach into the network. What goes
                around it, such as EasyCache, is followed.
            given: ``condition``, ``layout`` and ``known``, see ``_predict``.

        Raises:
            ValueError: a latent of a size that the decoder does not paint, or patches for another network.
        """
        options = transformer_options or {}
        require_no_patches(control, options)
        run = self._predict if self._around is None else self._around(self._predict, self, options)
        # In the order of ComfyUI's own networks, by which the wrappers know them.
        return run(x, t, context, y, control, options, **given)

    def _predict(
        self,
        x: Tensor,
        t: Tensor,
        context: Any,
        y: Any,
        control: Any,
        transformer_options: Mapping[str, Any],
        *,
        condition: UNetCondition,
        layout: Tensor | None = None,
        known: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """
        Args:
            layout: of the condition, where it is made of a hint.
            known: what a network that was trained to inpaint sees of the picture; None for nothing.
        """
        config = self.network.config
        height, width = x.shape[2:]
        if config.fixed_size and (height, width) != (config.image_size, config.image_size):
            raise ValueError(
                f"latent_image: found {width}×{height} pixels, but this decoder paints {config.image_size}×"
                f"{config.image_size}, and its latent is the picture itself. Start from "
                f"EmptyChromaRadianceLatentImage with width and height {config.image_size}."
            )
        if height % config.multiple_of or width % config.multiple_of:
            scale = self.scale
            raise ValueError(
                f"latent_image: found one of a picture of {scale * width}×{scale * height} pixels, but this "
                f"decoder paints multiples of {scale * config.multiple_of}. Choose another size of the empty "
                f"latent, or resize the picture before it is encoded."
            )
        if config.concat_channels and known is None:
            known = x.new_zeros(len(x), config.concat_channels, height, width)
        if layout is not None:
            condition = replace(condition, layout=layout.to(self.dtype))
        x = x.to(self.dtype, memory_format=torch.channels_last)  # Model Compute Dtype may have cast it
        known = None if known is None else known.to(self.dtype)
        output = self.network(x, t, condition, concat=known)
        return output[:, : config.in_channels]  # the rest is the learned variance


def require_no_patches(control: Any, options: Mapping[str, Any]) -> None:
    """Raise a ValueError for what ComfyUI's own networks do inside of them, and this one would leave out."""
    patches = [
        name
        for kind in ("patches", "patches_replace")
        for name, each in options.get(kind, {}).items()
        if each
    ]
    patches += [name for name in ("rope_options",) if options.get(name)]  # of ScaleROPE
    if control is None and not patches:
        return
    what = "a ControlNet" if control is not None else f"what reaches into a network ({', '.join(patches)})"
    raise ValueError(
        f"model: {what} was put on it, which is made for other networks and has no place in this decoder's. "
        f"Take out the node that does (ControlNet, FreeU, Perturbed-Attention Guidance, HyperTile and the "
        f"like). unCLIP Decode has guidance pag of its own."
    )
