"""The U-Nets of Kandinsky's decoders against diffusers' on the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from unclip.core.acceleration.compiled import compiled_copy
from unclip.core.acceleration.packed import packed_copy
from unclip.core.acceleration.recorded import can_be_recorded, recorded_copy
from unclip.core.formats.files.weight_source import WeightSource, source_of_tensors
from unclip.core.formats.mapping.kandinsky_rules import diffusers_conditioner_rules, diffusers_conditioning
from unclip.core.formats.mapping.keymap import load_network
from unclip.core.formats.mapping.unet_rules import diffusers_config, diffusers_rules
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.unet import UNet, UNetCondition
from unclip.core.networks.unet_config import UNetConfig

from ...helpers.kandinsky import HEAD_DIM, tiny_unet
from ...helpers.unet import difference, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-2
KINDS = {
    "kandinsky22": "2.2",
    "kandinsky22_depth": "2.2 depth",
    "kandinsky22_inpaint": "2.2 inpaint",
    "kandinsky21": "2.1",
    "kandinsky21_inpaint": "2.1 inpaint",
}
DIM, TEXT_DIM, LENGTH, ROWS = 32, 48, 7, 3
T = torch.tensor([0, 420, 981])
X, KNOWN = random_tensor(0, ROWS, 4, 16, 24), random_tensor(1, ROWS, 5, 16, 24)
Z_I, POOLED = random_tensor(2, ROWS, DIM), random_tensor(3, ROWS, DIM)
TOKENS = random_tensor(4, ROWS, LENGTH, TEXT_DIM)
HINT = F.interpolate(random_tensor(5, ROWS, 3, 4, 6).sign().relu(), (128, 192))
MASK = torch.arange(LENGTH) < torch.tensor([[2], [7], [4]])


def config_of(source: WeightSource) -> UNetConfig:
    return diffusers_config(
        source,
        "",
        image_size=16,
        head_dim=HEAD_DIM,
        conditioning=diffusers_conditioning(source),
        in_channels=4,
    )


@cache
def theirs_of(kind: str) -> UNet2DConditionModel:
    return tiny_unet(kind).requires_grad_(False)


def ours(kind: str) -> UNet:
    source = source_of_tensors(Path(kind), theirs_of(kind).state_dict())
    config = config_of(source)
    rules = diffusers_rules(config) + diffusers_conditioner_rules(config.conditioning)
    return load_network(lambda: UNet(config), source, rules)


@cache
def expected(kind: str) -> Tensor:
    given = {"image_embeds": Z_I}
    if kind == "2.1" or kind.startswith("2.1 "):
        given["text_embeds"] = POOLED
    if kind.endswith("depth"):
        given["hint"] = HINT
    x = torch.cat([X, KNOWN], dim=1) if kind.endswith("inpaint") else X
    tokens = TOKENS if kind.startswith("2.1") else None
    return theirs_of(kind)(x, T, encoder_hidden_states=tokens, added_cond_kwargs=given).sample


def conditions(kind: str, **changes: Tensor | None) -> dict[str, Tensor | None]:
    given: dict[str, Tensor | None] = {"clip_embedding": Z_I}
    if kind.startswith("2.1"):
        given |= {"text_tokens": TOKENS, "text_pooled": POOLED, "text_mask": MASK}
    if kind.endswith("depth"):
        given["hint"] = HINT
    return given | changes


def found(network: UNet, kind: str, **changes: Tensor | None) -> Tensor:
    concat = KNOWN if kind.endswith("inpaint") else None
    return network(X, T, network.condition(**conditions(kind, **changes)), concat=concat)


@pytest.mark.parametrize("name", KINDS)
def test_the_decoder_gives_what_diffusers_gives(name: str) -> None:
    kind = KINDS[name]
    network, theirs = ours(kind), expected(kind)
    assert theirs.shape == (ROWS, 8, 16, 24)
    assert 0.3 < theirs.std() < 10
    assert difference(found(network, kind), theirs) < WITHIN
    assert difference(found(network, kind, clip_embedding=Z_I.roll(1, 0)), theirs) > OUTSIDE


@pytest.mark.parametrize("what", ["text_tokens", "text_pooled"])
def test_kandinsky21s_decoder_reads_the_caption(what: str) -> None:
    network = ours("2.1")
    changed = conditions("2.1")[what].roll(1, 0)
    assert difference(found(network, "2.1", **{what: changed}), expected("2.1")) > OUTSIDE


def test_kandinsky21s_decoder_reads_padding_too() -> None:
    network = ours("2.1")
    network.conditioner.config = replace(network.config.conditioning, read_padding=False)
    assert difference(found(network, "2.1"), expected("2.1")) > OUTSIDE


def test_kandinsky22s_depth_decoder_sees_the_hint() -> None:
    network = ours("2.2 depth")
    assert difference(found(network, "2.2 depth", hint=1 - HINT), expected("2.2 depth")) > OUTSIDE
    with pytest.raises(ValueError, match="hint: found shape None"):
        network.condition(clip_embedding=Z_I)
    with pytest.raises(ValueError, match="multiples of 8"):
        network.condition(clip_embedding=Z_I, hint=HINT[..., :-4])
    with pytest.raises(ValueError, match="24×8 places"):
        network(X, T, network.condition(clip_embedding=Z_I, hint=HINT[:, :, :64]))


@pytest.mark.parametrize("what", ["clip_embedding_norm", "clip_context_norm"])
def test_kandinsky22s_norms_count(what: str) -> None:
    network = ours("2.2")
    norm = getattr(network.conditioner, what)
    norm.forward = lambda x: x * norm.weight + norm.bias
    assert difference(found(network, "2.2"), expected("2.2")) > OUTSIDE


@pytest.mark.parametrize("kind", ["2.2", "2.1"])
def test_kandinsky22_and_kandinsky21_have_no_zero_vector_for_a_dropped_embedding(kind: str) -> None:
    network = ours(kind)
    with pytest.raises(ValueError, match="all-zero picture"):
        network.condition(batch=ROWS)
    with pytest.raises(ValueError, match="all-zero picture"):
        network.condition(clip_embedding=Z_I, keep_clip=torch.tensor([True, False, True]))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("copied", [packed_copy, recorded_copy, compiled_copy])
def test_faster_copies_compute_the_same(name: str, copied: Callable[[UNet], UNet]) -> None:
    kind = KINDS[name]
    if copied is compiled_copy and kind not in ("2.2 depth", "2.1"):
        pytest.skip("compiling takes long, and these two hold what the others have")
    network = ours(kind)
    assert can_be_recorded(network)
    with torch.no_grad():
        twin = copied(network, backend="eager") if copied is compiled_copy else copied(network)
        assert twin is not network
        assert difference(found(twin, kind), found(network, kind)) < WITHIN


def test_conditions_of_kandinsky22_with_hints_can_be_joined_and_mapped() -> None:
    network = ours("2.2 depth")
    rows = [network.condition(clip_embedding=Z_I[n : n + 1], hint=HINT[n : n + 1]) for n in range(2)]
    both = UNetCondition.cat(*rows).map(torch.clone)
    joined = network(X[:2], T[:2], both)
    assert difference(joined, expected("2.2 depth")[:2]) < WITHIN


# --- the published sizes ---

KANDINSKY_22 = UNetConfig(
    image_size=64,
    in_channels=4,
    out_channels=8,
    channels=384,
    channel_mult=(1, 2, 3, 4),
    res_blocks=(3, 3, 3, 3),
    attention=(32, 16, 8),
    conditioning=ConditioningConfig(
        clip_dim=1280,
        clip_tokens=32,
        context_dim=768,
        learned_null=False,
        null_picture=True,
        norm_clip=True,
    ),
)


def test_kandinsky22s_real_size_has_its_parameters() -> None:
    with torch.device("meta"):
        network = UNet(KANDINSKY_22)
        depth = UNet(replace(KANDINSKY_22, conditioning=replace(KANDINSKY_22.conditioning, hint_channels=4)))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e9, 3) == 1.253
    assert depth.conv_in.in_channels == 8
    assert not depth.config.fixed_size


@pytest.mark.parametrize("options", [{"norm_clip": True}, {"null_picture": True}])
def test_a_config_without_embedding_has_nothing_to_norm_or_drop(options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="needs clip_dim"):
        ConditioningConfig(text_dim=8, context_dim=8, **options)


def test_a_hint_and_a_layout_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        ConditioningConfig(clip_dim=8, clip_layout=2, hint_channels=4)
