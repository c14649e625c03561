"""LoRA files against the networks that they were trained on: names, shapes, alpha, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.lora import read_lora
from unclip.core.pipelines.lora import with_lora

from ...helpers.kandinsky import tiny_unet
from ...helpers.kandinsky_files import tiny_22
from ...helpers.karlo import DIM, LENGTH, save_as_published, tiny_kandinsky_prior, tiny_pipeline, tiny_prior
from ...helpers.lora import ATTENTION, RANK, merged, random_layers, write_old, write_peft
from ...helpers.unet import difference, random_tensor

WITHIN, MOVED = 1e-4, 1e-2


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kandinsky22")
    tiny_22().save_pretrained(folder)
    return load_any_stage(folder, expect="decoder")


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    folder = save_as_published(tiny_kandinsky_prior(), tmp_path_factory.mktemp("prior"))
    return load_any_stage(folder, expect="prior")


@pytest.fixture(scope="module")
def karlo(tmp_path_factory):
    folder = save_as_published(tiny_pipeline(), tmp_path_factory.mktemp("karlo"))
    return load_any_stage(folder, expect="decoder")


def their_decoder():
    return tiny_unet("2.2", dim=DIM).eval()


X, T, Z_I = random_tensor(1, 2, 4, 16, 16), torch.tensor([300, 7]), random_tensor(2, 2, DIM)


@torch.no_grad()
def of_their_decoder(unet):
    return unet(X, T, None, added_cond_kwargs={"image_embeds": Z_I}).sample


@torch.no_grad()
def of_our_decoder(network):
    return network(X, T, network.condition(clip_embedding=Z_I))


TEXT = {
    "encoder_hidden_states": random_tensor(3, 2, LENGTH, DIM),
    "proj_embedding": random_tensor(4, 2, DIM),
    "attention_mask": torch.arange(LENGTH)[None] < torch.tensor([[5], [9]]),
}
EMBEDDINGS = random_tensor(5, 2, DIM)


@torch.no_grad()
def of_their_prior(network):
    return network(EMBEDDINGS, T, **TEXT).predicted_image_embedding


@torch.no_grad()
def of_our_prior(network):
    return network(
        EMBEDDINGS, T, TEXT["encoder_hidden_states"], TEXT["proj_embedding"], TEXT["attention_mask"]
    )


def on(stage, path, strength: float = 1.0):
    return with_lora(stage, read_lora(path).for_networks(stage.network)[0], strength).network


@pytest.mark.parametrize("strength", [1.0, 0.4, -2.0])
def test_kandinsky22_files_of_the_old_script_change_the_decoder_by_their_product(
    decoder, tmp_path, strength
) -> None:
    layers = random_layers(their_decoder())
    path = write_old(layers, tmp_path / "pytorch_lora_weights.safetensors")
    assert any(".processor.add_k_proj_lora.down.weight" in name for name in load_file(path))
    expected = of_their_decoder(merged(their_decoder(), layers, strength))
    found = of_our_decoder(on(decoder, path, strength))
    assert difference(found, expected) <= WITHIN
    assert difference(found, of_our_decoder(decoder.network)) > MOVED


@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model."])
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_kandinsky22_decoder_in_diffusers_and_here_with_one_file(decoder, tmp_path, prefix, alpha) -> None:
    layers = random_layers(their_decoder(), (*ATTENTION, "conv1", "image_proj", "linear_1"))
    path = write_peft(layers, tmp_path / "lora.safetensors", prefix, alpha)
    theirs = their_decoder()
    tensors = {name.removeprefix(prefix): value for name, value in load_file(path).items()}
    settings = None
    if alpha is not None:
        targets = list(layers)
        settings = {"r": RANK, "lora_alpha": alpha, "target_modules": targets}
        settings |= {"rank_pattern": {}, "alpha_pattern": {}}  # which diffusers 0.36 asks for
    theirs.load_lora_adapter(tensors, prefix=None, metadata=settings)
    found = of_our_decoder(on(decoder, path))
    assert difference(found, of_their_decoder(theirs)) <= WITHIN
    assert difference(found, of_our_decoder(decoder.network)) > MOVED


def test_kandinsky22_decoder_by_what_diffusers_saves(decoder, tmp_path) -> None:
    theirs = their_decoder()
    theirs.add_adapter(
        LoraConfig(r=RANK, lora_alpha=7, target_modules=["to_k", "add_v_proj"], init_lora_weights=False)
    )
    theirs.save_lora_adapter(tmp_path)
    found = of_our_decoder(on(decoder, tmp_path / "pytorch_lora_weights.safetensors"))
    assert difference(found, of_their_decoder(theirs)) <= WITHIN
    assert difference(found, of_our_decoder(decoder.network)) > MOVED


def test_kandinsky22_prior_in_diffusers_and_here_with_one_file(prior, tmp_path) -> None:
    theirs = tiny_prior(seed=8)
    layers = random_layers(theirs, ("to_q", "to_v", "to_out.0", "net.2", "proj_in"))
    path = write_peft(layers, tmp_path / "lora.safetensors", "prior.")
    theirs.load_lora_adapter(load_file(path), prefix="prior")
    found = of_our_prior(on(prior, path))
    assert difference(found, of_their_prior(theirs)) <= WITHIN
    assert difference(found, of_our_prior(prior.network)) > MOVED


def test_kandinsky22_prior_by_the_old_script(prior, tmp_path) -> None:
    layers = random_layers(tiny_prior(seed=8))
    path = write_old(layers, tmp_path / "pytorch_lora_weights.safetensors")
    expected = of_their_prior(merged(tiny_prior(seed=8), layers))
    assert difference(of_our_prior(on(prior, path)), expected) <= WITHIN


def test_alpha_tensors_and_pefts_own_settings_scale_the_product(prior, tmp_path) -> None:
    layers = random_layers(tiny_prior(seed=8))
    halved = {name: (down, up / 2) for name, (down, up) in layers.items()}
    expected = of_our_prior(on(prior, write_peft(halved, tmp_path / "halved.safetensors")))

    path = write_peft(layers, tmp_path / "alpha.safetensors")
    alphas = {f"{name}.alpha": torch.tensor(RANK / 2) for name in layers}
    save_file(load_file(path) | alphas, path)
    assert difference(of_our_prior(on(prior, path)), expected) <= 1e-5

    path = write_peft(layers, tmp_path / "adapter_model.safetensors")
    settings = {"lora_alpha": 100, "alpha_pattern": dict.fromkeys(layers, RANK / 2)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert difference(of_our_prior(on(prior, path)), expected) <= 1e-5


def test_karlo_decoder_takes_the_names_of_diffusers(karlo, tmp_path) -> None:
    from ...helpers.karlo import tiny_decoder

    layers = random_layers(tiny_decoder())
    path = write_peft(layers, tmp_path / "lora.safetensors")
    weights = merged(tiny_decoder(), layers).state_dict()
    changed = on(karlo, path)
    qkv = torch.cat([weights[f"mid_block.attentions.0.to_{part}.weight"] for part in "qkv"])
    assert difference(changed.state_dict()["middle.0.attention.qkv.weight"], qkv) <= 1e-6


# --- refused ---


def refusal(path, *stages) -> str:
    with pytest.raises(ValueError) as error:
        read_lora(path).for_networks(*(stage.network for stage in stages))
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_lora_of_another_width_is_named_with_key_and_shapes(decoder, prior, tmp_path) -> None:
    wide = {
        name: (torch.ones(2, 640), torch.ones(640, 2)) for name in random_layers(their_decoder(), ("to_q",))
    }
    message = refusal(write_peft(wide, tmp_path / "wide.safetensors"), prior, decoder)
    assert "another network" in message and "to_q.lora_A.weight [2, 640]" in message
    assert "[128, 128]" in message and "[640, 640]" in message


@pytest.mark.parametrize(
    "key, name",
    [
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_{}.weight",
            "Stable Diffusion",
        ),
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight",
            "Stable Diffusion",
        ),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight", "text encoder"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora.{}.weight", "Flux"),
        ("somewhere.lora.{}.weight", "another network"),
    ],
)
def test_a_lora_for_another_model_is_named(decoder, prior, tmp_path, key, name) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({key.format("down"): torch.ones(2, 320), key.format("up"): torch.ones(320, 2)}, path)
    message = refusal(path, prior, decoder)
    assert f"is a LoRA for {name}" in message or name in message
    assert key.format("down") in message and "[2, 320]" in message


def test_a_decoders_lora_on_a_prior_and_the_other_way_round(decoder, prior, tmp_path) -> None:
    of_decoder = write_peft(random_layers(their_decoder()), tmp_path / "decoder.safetensors")
    of_prior = write_peft(random_layers(tiny_prior()), tmp_path / "prior.safetensors")
    assert "decoder of Karlo or Kandinsky" in refusal(of_decoder, prior)
    assert "prior of Karlo or Kandinsky" in refusal(of_prior, decoder)
    first, second = read_lora(of_decoder).for_networks(prior.network, decoder.network)
    assert first is None and second is not None
    first, second = read_lora(of_prior).for_networks(prior.network, decoder.network)
    assert first is not None and second is None


def test_a_layer_that_the_network_lacks_is_named(prior, tmp_path) -> None:
    layers = random_layers(tiny_prior())
    layers["transformer_blocks.7.attn1.to_q"] = tuple(
        factor.clone() for factor in layers["transformer_blocks.0.attn1.to_q"]
    )
    assert "transformer_blocks.7.attn1.to_q.lora_A.weight" in refusal(
        write_peft(layers, tmp_path / "deep.safetensors"), prior
    )


def damaged(path, change) -> str:
    tensors = load_file(write_peft(random_layers(tiny_prior(), ("to_q",)), path))
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    change(tensors, name)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        read_lora(path)
    assert str(path) in str(error.value)
    return str(error.value)


def put(tensors, name, value) -> None:
    tensors[name] = value


def test_damaged_files_are_named_with_their_key(tmp_path) -> None:
    path = tmp_path / "lora.safetensors"
    assert "lacks the factor up" in damaged(path, lambda tensors, name: tensors.pop(name))
    assert "do not multiply" in damaged(
        path, lambda tensors, name: tensors.update({name: torch.ones(128, 5)})
    )
    assert "NaN" in damaged(path, lambda tensors, name: tensors.update({name: tensors[name] * torch.nan}))
    whole = damaged(path, lambda tensors, name: tensors.update({"to_q.lora_magnitude_vector": torch.ones(3)}))
    assert "DoRA" in whole and "to_q.lora_magnitude_vector" in whole
    assert "whole numbers" in damaged(
        path, lambda tensors, name: tensors.update({name: tensors[name].long()})
    )


def test_a_whole_model_is_no_lora(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"conv_in.weight": torch.ones(4, 4)}, path)
    with pytest.raises(ValueError, match=r"is no LoRA: found conv_in\.weight"):
        read_lora(path)


@pytest.mark.parametrize(
    "about, words",
    [
        ("{", "is not JSON"),
        ('{"alpha_pattern": {"(a+)+": 2}}', "regular expression"),
        ('{"lora_alpha": []}', "settings"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(tmp_path, about, words) -> None:
    path = write_peft(random_layers(tiny_prior(), ("to_q",)), tmp_path / "lora.safetensors")
    save_file(load_file(path), path, {"lora_adapter_metadata": about})
    with pytest.raises(ValueError, match=words):
        read_lora(path)
