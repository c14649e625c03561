"""MoVQ against diffusers' VQModel on the same random weights, and by tiles against itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from torch import Tensor, nn
from unclip.core.formats.files.weight_source import source_of_tensors
from unclip.core.formats.mapping.keymap import load_network
from unclip.core.formats.mapping.movq_rules import diffusers_movq_config, diffusers_movq_rules
from unclip.core.networks.movq import MoVQ, MoVQConfig
from unclip.core.networks.movq_tiles import decode_in_tiles, encode_in_tiles

from ...helpers.kandinsky import deep_movq, tiny_movq
from ...helpers.unet import difference, random_tensor

WITHIN, ROUNDING, OUTSIDE = 1e-4, 1e-3, 1e-2


def ours(theirs: VQModel) -> MoVQ:
    source = source_of_tensors(Path("movq"), theirs.state_dict())
    config = diffusers_movq_config(source)
    return load_network(lambda: MoVQ(config), source, diffusers_movq_rules(config))


@pytest.fixture(scope="module", params=["two levels", "four levels"])
def both(request: pytest.FixtureRequest) -> tuple[VQModel, MoVQ]:
    theirs = tiny_movq() if request.param == "two levels" else deep_movq()
    return theirs.requires_grad_(False), ours(theirs)


def decoded(theirs: VQModel, latent: Tensor) -> Tensor:
    return theirs.decode(latent, force_not_quantize=True).sample


def test_movq_decodes_what_diffusers_decodes(both: tuple[VQModel, MoVQ]) -> None:
    theirs, network = both
    latent = random_tensor(0, 2, 4, 8, 12)
    expected = decoded(theirs, latent)
    assert expected.std() > 0.1
    assert difference(network.decode(latent), expected) < WITHIN
    assert difference(network.decode(latent + 0.05), expected) > OUTSIDE


def test_movq_encodes_what_diffusers_encodes(both: tuple[VQModel, MoVQ]) -> None:
    theirs, network = both
    scale = network.config.scale
    pictures = random_tensor(1, 2, 3, 8 * scale, 12 * scale).clamp(-1, 1)
    expected = theirs.encode(pictures).latents
    assert expected.std() > 0.1
    assert difference(network.encode(pictures), expected) < WITHIN
    assert difference(network.encode(pictures.roll(1, dims=3)), expected) > OUTSIDE


def test_movqs_norms_see_the_latent_before_post_quant_conv(both: tuple[VQModel, MoVQ]) -> None:
    theirs, network = both
    latent = random_tensor(0, 1, 4, 8, 8)
    inner = network.post_quant_conv(latent)
    assert difference(network.decoder(inner, latent), decoded(theirs, latent)) < WITHIN
    assert difference(network.decoder(inner, inner), decoded(theirs, latent)) > OUTSIDE


def test_movq_does_not_use_its_codebook(both: tuple[VQModel, MoVQ]) -> None:
    _, network = both
    latent = random_tensor(0, 1, 4, 4, 4)
    before, codes = network.decode(latent), network.codebook.data
    assert codes.abs().max() > 0
    network.codebook.data = torch.full_like(codes, float("nan"))
    try:
        assert torch.equal(network.decode(latent), before)
    finally:
        network.codebook.data = codes


# --- by tiles ---


@pytest.fixture(scope="module")
def deep() -> MoVQ:
    return ours(deep_movq())


def smooth_picture(height: int, width: int) -> Tensor:
    """[1, 3, height, width] in −1..1, light from left to right and from top to bottom."""
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    waves = torch.stack([rows + columns, rows - columns, (5 * rows * columns).sin()]) / 2
    return waves[None]


@pytest.mark.parametrize("tile", [3, 8, 30])
def test_movq_by_tiles_gives_what_it_gives_as_a_whole(deep: MoVQ, tile: int) -> None:
    pictures = torch.cat([smooth_picture(88, 168), -smooth_picture(88, 168).flip(2)])
    latent = deep.encode(pictures)  # [2, 4, 11, 21]
    assert difference(encode_in_tiles(deep, pictures, tile), latent) < ROUNDING
    whole = deep.decode(latent)
    assert difference(decode_in_tiles(deep, latent, tile), whole) < ROUNDING
    assert difference(decode_in_tiles(deep, latent.flip(0), tile), whole) > OUTSIDE


def test_movq_by_tiles_has_no_seams_where_separate_pictures_have_them(deep: MoVQ) -> None:
    """How much the error changes from one side of a seam to the other."""
    tile = 8
    latent = deep.encode(smooth_picture(88, 168))
    whole = deep.decode(latent)
    seams = torch.arange(tile, latent.shape[3], tile) * deep.config.scale

    def step(found: Tensor) -> float:
        off = found - whole
        return (off[..., seams] - off[..., seams - 1]).abs().mean().item()

    apart = torch.cat([deep.decode(part) for part in latent.split(tile, dim=3)], dim=3)
    assert step(decode_in_tiles(deep, latent, tile)) < 1e-4
    assert step(apart) > 0.01


def test_movq_by_tiles_tells_how_far_it_is_and_can_be_ended(deep: MoVQ) -> None:
    latent, pictures = torch.zeros(1, 4, 11, 21), smooth_picture(88, 168)
    for run in (
        lambda told: decode_in_tiles(deep, latent, 8, told),
        lambda told: encode_in_tiles(deep, pictures, 8, told),
    ):
        seen: list[tuple[int, int]] = []
        run(lambda done, total, seen=seen: seen.append((done, total)))
        total = len(seen)
        assert seen == [(done, total) for done in range(1, total + 1)] and total % 6 == 0  # tiles

        def stop(done: int, _: int) -> None:
            if done == 7:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            run(stop)


def test_tiles_of_movq_take_the_memory_of_a_tile(deep: MoVQ) -> None:
    """Of the largest map that a layer is given."""
    seen: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _, given, made: seen.append(made.numel()))
        for level in deep.decoder.levels[1:]
        for module in level.modules()
        if isinstance(module, nn.Conv2d)
    ]
    latent = random_tensor(0, 1, 4, 24, 24)
    deep.decode(latent)
    whole, _ = max(seen), seen.clear()
    decode_in_tiles(deep, latent, 4)
    for hook in hooks:
        hook.remove()
    assert max(seen) <= whole * (6 / 24) ** 2


# --- what it refuses ---


def test_movq_refuses_other_shapes(deep: MoVQ) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        deep.encode(torch.zeros(1, 3, 64, 60))
    with pytest.raises(ValueError, match=r"expected \[batch, 4, height, width\]"):
        deep.decode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="tile is 0"):
        decode_in_tiles(deep, torch.zeros(1, 4, 8, 8), 0)


def test_movqs_config_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        MoVQConfig(channels=48)
    with pytest.raises(ValueError, match="levels 7"):
        MoVQConfig(attention=(7,))


def test_movqs_real_size_has_the_tensors_of_diffusers() -> None:
    with torch.device("meta"):
        theirs = tiny_movq(
            down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
            block_out_channels=(128, 256, 256, 512),
            layers_per_block=2,
            num_vq_embeddings=16384,
        )
        source = source_of_tensors(Path("movq"), theirs.state_dict())
        assert diffusers_movq_config(source) == MoVQConfig()
        network = MoVQ(MoVQConfig())
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
