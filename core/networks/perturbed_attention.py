"""A U-Net that sees less, for perturbed-attention guidance (Ahn et al. 2403.17377)."""

from __future__ import annotations

from copy import copy

from einops import rearrange
from torch import Tensor, nn

from .dalle2_unet import Dalle2UNet
from .unet import UNet
from .unet_blocks import Attention, Context


class PerturbedAttention(nn.Module):
    """Attention whose map is the identity: every place sees itself alone (2403.17377, eq. 13)."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, context: Context | None, mask: Tensor | None) -> Tensor:
        """x [B, C, H, W]; context and mask are not looked at."""
        attention, height = self.attention, x.shape[-2]
        h = rearrange(attention.norm(x), "b c h w -> b (h w) c")
        values = attention.qkv(h)[..., 2 * x.shape[1] :]  # all queries, then all keys, then all values
        return x + rearrange(attention.out(values), "b (h w) c -> b c h w", h=height)


def with_perturbed_attention(network: UNet | Dalle2UNet) -> UNet:
    """A U-Net over the same parameters with perturbed attention in its middle block, as in the paper.

    Context tokens are among what that block's attention sees, and are not seen there either.

    Raises:
        ValueError: a network without attention in its middle block, or one of DALLE2-pytorch, whose heads
            share their values.
    """
    if isinstance(network, Dalle2UNet):
        raise ValueError(
            "guidance: 'pag' changes an attention that decoders of DALLE2-pytorch (LAION's) do not have; "
            "choose another guidance"
        )
    first, *others = network.middle
    if not isinstance(first.attention, Attention):
        raise ValueError(
            "guidance: 'pag' changes the attention in the middle of a decoder, and this one has none there; "
            "choose another guidance"
        )
    block, middle, twin = copy(first), copy(network.middle), copy(network)
    block._modules = first._modules | {"attention": PerturbedAttention(first.attention)}
    middle._modules = dict(zip(network.middle._modules, [block, *others], strict=True))
    twin._modules = network._modules | {"middle": middle}
    # A compiled or recorded network has its own way to be called, which would be that of the whole one.
    twin.__dict__.pop("forward", None)
    twin._compiled_call_impl = None
    return twin
