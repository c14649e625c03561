"""LoRA files in kohya's names: applied where they name layers of the network, and told by them where not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor, nn
from unclip.core.formats.lora import read_lora
from unclip.core.formats.mapping.lora_rules import Part, lora_parts, underlined

from ...helpers.bundle import tiny_bundle

RANK, ALPHA = 2, 6.0
BUNDLE = tiny_bundle(upsamplers=0)


def factors(network: nn.Module, endings: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up of the layers with diffusers' names that end so."""
    generator = torch.Generator().manual_seed(0)
    weights, found = dict(network.named_parameters()), {}
    for name, part in lora_parts(network).items():
        if name.endswith(endings):
            outputs, inputs, *kernel = weights[part.weight].shape
            down = torch.randn(RANK, inputs, *kernel, generator=generator)
            found[name] = (
                down,
                torch.randn(outputs // part.of, RANK, *(1 for _ in kernel), generator=generator),
            )
    assert found
    return found


def written(
    path: Path, layers: dict[str, tuple[Tensor, Tensor]], names: str, prefix: str, flat: bool
) -> Path:
    down_name, up_name = names.split()
    tensors = {}
    for name, (down, up) in layers.items():
        layer = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{layer}.{down_name}.weight": down, f"{layer}.{up_name}.weight": up}
        tensors[f"{layer}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("network", "kind", "endings"),
    [
        (BUNDLE.decoder.network, "unet", (".to_q", ".add_k_proj", ".to_out.0", ".resnets.0.conv1")),
        (BUNDLE.prior.network, "prior", (".attn1.to_q", ".attn1.to_v", ".ff.net.0.proj")),
    ],
)
def test_kohyas_names_change_what_diffusers_names_change(tmp_path, network, kind, endings) -> None:
    layers = factors(network, endings)
    plain = written(tmp_path / "a.safetensors", layers, "lora_A lora_B", f"{kind}.", flat=False)
    kohya = written(tmp_path / "b.safetensors", layers, "lora_down lora_up", f"lora_{kind}_", flat=True)
    (expected,), (found,) = (read_lora(path).for_networks(network) for path in (plain, kohya))
    assert found.changes.keys() == expected.changes.keys()
    for weight, change in expected.changes.items():
        for own, other in zip(found.changes[weight].parts, change.parts, strict=True):
            assert (own is None) == (other is None)
            if own is not None:
                assert own.scale == other.scale == ALPHA / RANK
                assert torch.equal(own.down, other.down) and torch.equal(own.up, other.up)


@pytest.mark.parametrize(
    ("network", "kind", "endings"),
    [
        (BUNDLE.decoder.network, "unet", (".to_q", ".to_k", ".to_v", ".to_out.0")),
        (BUNDLE.prior.network, "prior", (".attn1.to_q", ".attn1.to_v")),
    ],
)
def test_what_diffusers_itself_writes_in_kohyas_names_is_read(tmp_path, network, kind, endings) -> None:
    """Its alphas are whole numbers, and its names of a prior lack ``lora_``."""
    peft = {}
    for name, (down, up) in factors(network, endings).items():
        peft |= {f"{kind}.{name}.lora_A.weight": down, f"{kind}.{name}.lora_B.weight": up}
    kohya = convert_state_dict_to_kohya(dict(peft))
    assert {value.dtype for key, value in kohya.items() if key.endswith("alpha")} == {torch.int64}
    save_file(peft, tmp_path / "a.safetensors")
    save_file(kohya, tmp_path / "b.safetensors")
    (expected,), (found,) = (
        read_lora(tmp_path / name).for_networks(network) for name in ("a.safetensors", "b.safetensors")
    )
    assert found.changes.keys() == expected.changes.keys()
    for weight, change in found.changes.items():
        for own, other in zip(change.parts, expected.changes[weight].parts, strict=True):
            assert own is None or (torch.equal(own.down, other.down) and own.scale > 0)


def test_an_alpha_that_is_no_single_number_is_named(tmp_path) -> None:
    (name, (down, up)), *_ = factors(BUNDLE.decoder.network, (".to_q",)).items()
    start = f"lora_unet_{name.replace('.', '_')}"
    tensors = {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
    save_file({**tensors, f"{start}.alpha": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: .*\.alpha \[2\] is no single number"):
        read_lora(tmp_path / "a.safetensors")


def test_a_name_that_two_layers_would_have_is_none() -> None:
    one, two, same = Part("a.b_c.weight"), Part("a_b.c.weight"), Part("d.weight")
    assert underlined({"a.b_c": one, "a_b.c": two, "d": same}) == {"d": same}


@pytest.mark.parametrize(
    ("keys", "other"),
    [
        (
            (
                "lora_unet_mid_block_attentions_0_proj_in",
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            ),
            "Stable Diffusion",
        ),
        (("lora_unet_output_blocks_0_1_proj_in",), "Stable Diffusion"),
        (("lora_unet_down_blocks_9_attentions_7_to_q",), "a decoder of Karlo or Kandinsky"),
        (("lora_prior_transformer_blocks_77_attn1_to_q",), "a prior of Karlo or Kandinsky"),
        (("lora_unet_double_blocks_0_img_attn_proj",), "Flux or the like"),
        (("lora_te_text_model_encoder_layers_0_mlp_fc1",), "a text encoder"),
        (("lora_unet_blocks_0_cross_attn_q",), "another network"),
    ],
)
def test_what_it_is_for_is_told_by_all_of_its_layers(
    tmp_path: Path, keys: tuple[str, ...], other: str
) -> None:
    layers = {key: (torch.ones(RANK, 4), torch.ones(4, RANK)) for key in keys}
    path = written(tmp_path / "x.safetensors", layers, "lora_down lora_up", "", flat=False)
    with pytest.raises(ValueError, match=f"is a LoRA for {other}"):
        read_lora(path).for_networks(BUNDLE.prior.network, BUNDLE.decoder.network)
