"""Kandinsky's files: folders of diffusers, 2.1's own checkpoints, and unclip's format made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from unclip.core.diffusion.schedule import schedule_of
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.formats.layouts.kandinsky import DIFFUSION_21, DIFFUSION_22
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.formats.native import load_bundle, load_stage, save_bundle, save_stage
from unclip.core.networks.clip import zero_picture
from unclip.core.stages import AutoencoderStage, DecoderStage

from ...helpers import kandinsky_files as files
from ...helpers import karlo
from ...helpers.unet import difference

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kandinsky") / "kandinsky-2-2-prior"
    return karlo.save_as_published(karlo.tiny_kandinsky_prior(), folder)


@pytest.fixture(scope="module")
def decoder_folder(prior_folder) -> Path:
    files.tiny_22().save_pretrained(prior_folder.parent / "kandinsky-2-2-decoder")
    return prior_folder.parent / "kandinsky-2-2-decoder"


@pytest.fixture(scope="module")
def folder_21(tmp_path_factory) -> Path:
    return files.save_21(files.tiny_21(), tmp_path_factory.mktemp("kandinsky21") / "kandinsky-2-1")


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def same_decoder(a: DecoderStage, b: DecoderStage) -> bool:
    return same_weights(a.network, b.network) and same_weights(a.autoencoder.network, b.autoencoder.network)


# --- diffusers' folders ---


def test_kandinsky22s_decoder_is_a_stage_with_its_autoencoder(decoder_folder) -> None:
    decoder = load_any_stage(decoder_folder, expect="decoder")
    assert decoder.scale == 8
    assert decoder.picture_size == 128
    assert decoder.diffusion == DIFFUSION_22
    assert decoder.network.config.conditioning.norm_clip
    for part in ("unet", f"unet/{WEIGHTS}"):
        assert same_decoder(load_any_stage(decoder_folder / part), decoder)


@pytest.mark.parametrize(
    ("kind", "channels", "hint"), [("2.2 depth", 0, 4), ("2.2 inpaint", 5, 0), ("2.1 inpaint", 5, 0)]
)
def test_kandinsky22_and_kandinsky21_with_more_inputs(tmp_path, kind: str, channels: int, hint: int) -> None:
    if kind.startswith("2.1"):
        files.save_21(files.tiny_21(kind), tmp_path / "model")
    else:
        files.tiny_22(kind).save_pretrained(tmp_path / "model")
    config = load_any_stage(tmp_path / "model", expect="decoder").network.config
    assert (config.in_channels, config.out_channels, config.concat_channels) == (4, 8, channels)
    assert config.conditioning.hint_channels == hint


@pytest.mark.parametrize(
    "options", [{"variant": "fp16"}, {"safe_serialization": False}, {"max_shard_size": "300KB"}]
)
def test_every_way_of_saving_kandinsky22_is_read(tmp_path, decoder_folder, options: dict) -> None:
    files.tiny_22().save_pretrained(tmp_path / "model", **options)
    assert not (tmp_path / "model" / "unet" / WEIGHTS).exists()
    found = load_any_bundle(tmp_path / "model").decoder
    assert same_decoder(found, load_any_stage(decoder_folder, expect="decoder"))


def test_kandinsky22_in_the_cache_of_hugging_face_is_read_through_its_links(tmp_path, decoder_folder) -> None:
    cached = tmp_path / "models--kandinsky-community--kandinsky-2-2-decoder"
    snapshot, blobs = cached / "snapshots" / "0123abcd", cached / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(decoder_folder.rglob("*.*"))):
        blob, link = blobs / f"{number:064x}", snapshot / file.relative_to(decoder_folder)
        shutil.copy(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (cached / "snapshots" / "ffff").mkdir()  # of another revision, unfinished
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abcd")
    for path in (cached, snapshot):
        assert same_decoder(load_any_bundle(path).decoder, load_any_stage(decoder_folder, expect="decoder"))


# --- prior and decoder as one bundle ---


def test_prior_and_decoder_of_kandinsky22_are_one_bundle(prior_folder, decoder_folder) -> None:
    bundle = load_any_bundle(prior_folder, decoder_folder)
    assert bundle.name == "kandinsky-2-2-prior"
    assert None not in (bundle.clip, bundle.prior, bundle.decoder)
    assert bundle.decoder.space == bundle.prior.space  # with the statistics, which only the prior has
    together = load_any_bundle(prior_folder.parent)
    assert together.name == prior_folder.parent.name
    assert same_decoder(together.decoder, bundle.decoder)


def test_the_null_embedding_of_kandinsky22_is_that_of_an_all_zero_picture(
    prior_folder, decoder_folder, tmp_path
) -> None:
    alone = load_any_bundle(decoder_folder).decoder.network
    assert not alone.config.conditioning.null_known
    bundle = load_any_bundle(prior_folder, decoder_folder)
    network = bundle.decoder.network
    pipeline = karlo.tiny_kandinsky_prior()
    assert difference(network.conditioner.null_clip, pipeline.get_zero_embed()[0]) < 1e-5
    assert network.conditioner.null_clip.abs().max() > 0.1
    assert bundle.clip.network.encode_pixels(zero_picture(bundle.clip.network)).shape == (1, karlo.DIM)

    save_bundle(bundle, tmp_path / "native")
    kept = load_bundle(tmp_path / "native").decoder
    assert same_decoder(kept, bundle.decoder)
    assert kept.network.config == network.config


def test_kandinsky22_refuses_two_of_one_kind(decoder_folder) -> None:
    with pytest.raises(ValueError, match="is a second decoder"):
        load_any_bundle(decoder_folder, decoder_folder)


def test_kandinsky22_in_unclips_format(decoder_folder, tmp_path) -> None:
    decoder = load_any_stage(decoder_folder, expect="decoder")
    save_stage(decoder, tmp_path / "decoder.safetensors", max_shard_bytes=500_000)
    found = load_stage(tmp_path / "decoder.safetensors", expect="decoder")
    assert same_decoder(found, decoder)
    assert found.diffusion == decoder.diffusion
    assert found.network.config == decoder.network.config
    assert found.autoencoder.network.config == decoder.autoencoder.network.config


# --- MoVQ alone ---


def test_movq_alone_is_a_stage(decoder_folder, tmp_path) -> None:
    stage = load_any_stage(decoder_folder / "movq")
    assert isinstance(stage, AutoencoderStage)
    save_stage(stage, tmp_path / "movq.safetensors")
    found = load_any_stage(tmp_path / "movq.safetensors", expect="autoencoder")
    assert same_weights(found.network, stage.network)
    with pytest.raises(ValueError, match="holds an autoencoder, but a decoder is expected"):
        load_any_stage(decoder_folder / "movq", expect="decoder")


# --- the original of 2.1 ---


def test_kandinsky21s_own_files_give_what_diffusers_folder_gives(folder_21, tmp_path) -> None:
    path = files.write_original_21(files.tiny_21(), tmp_path)
    found, expected = load_any_stage(path), load_any_stage(folder_21, expect="decoder")
    assert same_decoder(found, expected)
    assert found.diffusion == DIFFUSION_21
    assert same_weights(load_any_stage(tmp_path / "movq_final.ckpt").network, expected.autoencoder.network)
    inpainting = files.tiny_21("2.1 inpaint")
    path = files.write_original_21(inpainting, tmp_path / "inpaint", "inpainting_fp16.ckpt")
    assert load_any_stage(path).network.config.concat_channels == 5


def test_kandinsky21s_own_decoder_needs_movq_beside_it(tmp_path) -> None:
    path = files.write_original_21(files.tiny_21(), tmp_path)
    (tmp_path / "movq_final.ckpt").unlink()
    with pytest.raises(ValueError, match=r"needs movq_final\.ckpt"):
        load_any_stage(path)


# --- 2.1's text encoder ---


def test_kandinsky21s_text_encoder_gives_what_multilingual_clip_gives(folder_21) -> None:
    stage = load_any_bundle(folder_21).decoder_text
    captions = ["a red cat", "", "einé größere katze", "z" * 200]
    theirs = files.tiny_multilingual_tokenizer()(
        captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    ids = stage.tokenizer(captions)
    assert torch.equal(ids, theirs.input_ids)
    tokens, mask, pooled = stage.network.encode_tokens(ids)
    network = files.tiny_multilingual_clip()
    expected, full = network(input_ids=theirs.input_ids, attention_mask=theirs.attention_mask)
    assert torch.equal(mask, theirs.attention_mask.bool())
    assert difference(pooled, expected) < 1e-4
    assert difference(tokens, full) < 1e-4
    assert difference(pooled.roll(1, 0), expected) > 1e-2
    assert difference(network(theirs.input_ids, torch.ones_like(theirs.attention_mask))[0], pooled) > 1e-2


def test_kandinsky21_in_unclips_format_keeps_the_vocabulary(folder_21, tmp_path) -> None:
    bundle = load_any_bundle(folder_21)
    save_bundle(bundle, tmp_path / "native")
    found = load_bundle(tmp_path / "native")
    assert same_decoder(found.decoder, bundle.decoder)
    assert same_weights(found.decoder_text.network, bundle.decoder_text.network)
    assert found.decoder_text.tokenizer(["éa b"]).equal(bundle.decoder_text.tokenizer(["éa b"]))
    assert found.decoder_text.tokenizer(["a \ud800"]).equal(found.decoder_text.tokenizer(["a \ufffd"]))


def test_kandinsky21s_text_encoder_needs_its_tokenizer(folder_21, tmp_path) -> None:
    folder = Path(shutil.copytree(folder_21, tmp_path / "model"))
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        load_any_bundle(folder)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"needs tokenizer\.json"):
        load_any_bundle(folder)


# --- what is not whole ---


@pytest.fixture
def changed(decoder_folder, tmp_path) -> Path:
    return Path(shutil.copytree(decoder_folder, tmp_path / "kandinsky-2-2-decoder"))


@pytest.mark.parametrize("part", ["unet", "movq"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "lacks {name}"),
        ("left over", "holds stranger"),
        ("shape", r"found the shape .*{name}"),
    ],
)
def test_a_malformed_file_of_kandinsky22_is_named(changed, part: str, change: str, message: str) -> None:
    path = changed / part / WEIGHTS
    name = {"unet": "conv_norm_out.weight", "movq": "decoder.conv_norm_out.norm_layer.weight"}[part]
    state = load_file(path)
    if change == "missing":
        del state[name]
    elif change == "left over":
        state["stranger"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3)
    save_file(state, path)
    with pytest.raises(ValueError, match=f"{part}/{WEIGHTS}: .*" + message.format(name=name)):
        load_any_stage(changed, expect="decoder")


def test_kandinsky22s_decoder_needs_the_folder_of_its_autoencoder(changed) -> None:
    shutil.rmtree(changed / "movq")
    with pytest.raises(ValueError, match="needs the folders movq and scheduler"):
        load_any_stage(changed / "unet")
    with pytest.raises(ValueError, match="folders unet and movq"):
        load_any_bundle(changed)


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [("movq", "norm_type", "group"), ("movq", "act_fn", "relu"), ("unet", "norm_eps", 1e-3)],
)
def test_another_kind_of_network_than_kandinsky22s_is_refused(changed, part, option, value) -> None:
    files.change_json(changed / part / "config.json", **{option: value})
    with pytest.raises(ValueError, match=rf"{part}/config\.json: {option} is {value!r}"):
        load_any_stage(changed, expect="decoder")


# --- the scheduler ---


def test_kandinsky22s_scheduler_is_honoured(changed) -> None:
    path = changed / "scheduler" / "scheduler_config.json"
    files.change_json(path, beta_end=0.02, clip_sample=False, timestep_spacing="trailing")
    spec = load_any_stage(changed, expect="decoder").diffusion
    assert spec == DiffusionSpec(
        schedule="linear",
        beta_start=0.00085,
        beta_end=0.02,
        variance="fixed_small",
        clip_x0=None,
        spacing="trailing",
    )
    files.change_json(path, beta_start=0.03)
    with pytest.raises(ValueError, match=r"beta_start is 0\.03"):
        load_any_stage(changed, expect="decoder")


def test_the_schedule_of_kandinsky22_is_that_of_diffusers() -> None:
    theirs = files.scheduler_22()
    ours = schedule_of(DIFFUSION_22)
    assert difference(ours.alphas_cumprod.float(), theirs.alphas_cumprod) < 1e-6
    theirs.set_timesteps(7)
    assert ours.respace(7).timesteps.flip(0).tolist() == theirs.timesteps.tolist()
    assert ours.respace(1).timesteps.tolist() == [999]
    with pytest.raises(ValueError, match="expected both"):
        DiffusionSpec(schedule="linear", beta_start=0.1)
