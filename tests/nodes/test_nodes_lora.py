"""Load unCLIP LoRA: which of two models a file is for, chains of it, files that are listed or missing."""

from __future__ import annotations

import pytest
import torch
import unclip
from unclip.nodes import NODE_CLASS_MAPPINGS, host
from unclip.nodes.catalogue import list_stage_files
from unclip.nodes.lora_files import find_lora, list_loras

from ..helpers.bundle import tiny_bundle
from ..helpers.lora import bits, random_layers, write_peft
from ..helpers.nodes import run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path))
    loras = tmp_path / "loras"
    (loras / "styles").mkdir(parents=True)
    return loras


@pytest.fixture
def bundle():
    return tiny_bundle()


@pytest.fixture
def files(folder, bundle):
    """One for the decoder and one for the prior, by our own names."""
    decoder = random_layers(bundle.decoder.network, ("conv_out",))
    write_peft(decoder, folder / "styles" / "ink.safetensors")
    write_peft(random_layers(bundle.prior.network, ("qkv",)), folder / "cats.safetensors")
    return folder


def test_files_are_listed_by_their_path_and_are_no_models(files) -> None:
    assert list_loras() == ["none", "cats.safetensors", "styles/ink.safetensors"]
    assert find_lora("styles/ink.safetensors") == files / "styles" / "ink.safetensors"
    assert not any("ink" in name or "cats" in name for name in list_stage_files("decoder"))
    options = NODE_CLASS_MAPPINGS["UnCLIPLoadLoRA"].INPUT_TYPES()["required"]["lora"]
    assert options[0] == list_loras() and options[1]["default"] == "none"


@pytest.mark.parametrize("name", ["../secret.safetensors", "gone.safetensors", "", 3])
def test_names_that_are_no_file_are_refused(files, name) -> None:
    with pytest.raises(ValueError, match="lora"):
        find_lora(name)
    answer = NODE_CLASS_MAPPINGS["UnCLIPLoadLoRA"].VALIDATE_INPUTS(name)
    assert isinstance(answer, str) and "lora: " not in answer


def test_what_is_no_file_of_weights_is_told_and_where_others_may_lie(files) -> None:
    (files / "panda.png").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"^lora: 'panda\.png' is no file of weights, which end in \.safetensors"
    ):
        find_lora("panda.png")
    with pytest.raises(ValueError, match=r"name its folder in the variable UNCLIP_LORAS\.$"):
        find_lora("gone.safetensors")


def test_each_file_changes_the_model_that_it_is_for(files, bundle) -> None:
    before = bits(bundle.prior.network), bits(bundle.decoder.network)
    given = {"prior": bundle.prior, "decoder": bundle.decoder}
    prior, decoder = run("UnCLIPLoadLoRA", lora="styles/ink.safetensors", **given)
    assert prior is bundle.prior and bits(decoder.network) != before[1]
    prior, decoder = run(
        "UnCLIPLoadLoRA", lora="cats.safetensors", strength=0.5, prior=prior, decoder=decoder
    )
    assert bits(prior.network) != before[0] and bits(decoder.network) != before[1]
    assert (bits(bundle.prior.network), bits(bundle.decoder.network)) == before


@pytest.mark.parametrize("given", [{"lora": "none"}, {"lora": "styles/ink.safetensors", "strength": 0.0}])
def test_without_a_file_and_at_strength_0_the_models_pass(files, bundle, given) -> None:
    prior, decoder = run("UnCLIPLoadLoRA", prior=bundle.prior, decoder=bundle.decoder, **given)
    assert prior is bundle.prior and decoder is bundle.decoder


def test_a_file_for_a_model_that_is_not_connected_is_refused(files, bundle) -> None:
    with pytest.raises(ValueError, match="is a LoRA for another network"):
        run("UnCLIPLoadLoRA", lora="styles/ink.safetensors", prior=bundle.prior)
    with pytest.raises(ValueError, match="nothing arrived at either"):
        run("UnCLIPLoadLoRA", lora="styles/ink.safetensors")
    _, decoder = run("UnCLIPLoadLoRA", lora="styles/ink.safetensors", decoder=bundle.decoder)
    assert decoder is not bundle.decoder


def test_pictures_change_by_the_strength(files, bundle) -> None:
    embedding = run("UnCLIPDiffusionPrior", prior=bundle.prior, text=_text(bundle), steps=2)[0]

    def painted(strength: float):
        _, decoder = run(
            "UnCLIPLoadLoRA", lora="styles/ink.safetensors", strength=strength, decoder=bundle.decoder
        )
        return run("UnCLIPDecode", decoder=decoder, embedding=embedding, text=_text(bundle), steps=2)[0]

    plain = run("UnCLIPDecode", decoder=bundle.decoder, embedding=embedding, text=_text(bundle), steps=2)[0]
    assert torch.equal(painted(0.0), plain)
    weak, strong = ((painted(strength) - plain).abs().mean() for strength in (0.02, 0.2))
    assert 0 < weak < strong
    assert torch.equal(painted(0.0), plain)


def _text(bundle):
    return run("UnCLIPTextEncode", clip=bundle.clip, text="a fox")[0]


def test_from_python(files, bundle) -> None:
    changed = unclip.load_lora(bundle, files / "styles" / "ink.safetensors", 0.5)
    assert changed.prior is bundle.prior and changed.decoder is not bundle.decoder
    both = unclip.load_lora(changed, files / "cats.safetensors")
    assert both.decoder is changed.decoder and both.prior is not bundle.prior
    off = unclip.load_lora(bundle, files / "cats.safetensors", 0)
    assert off.prior is bundle.prior and off.decoder is bundle.decoder
