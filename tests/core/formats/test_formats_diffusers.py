"""diffusers' folders: variants and shards of weights, configs beside them, and folders that are not whole."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from unclip.core.formats.layouts.diffusers_files import open_component, read_scheduler
from unclip.core.formats.layouts.karlo import DECODER_DIFFUSION
from unclip.core.formats.load import load_any_bundle, load_any_stage

from ...helpers import karlo as karlo
from ...helpers import karlo_original as originals

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline():
    return karlo.tiny_pipeline()


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory) -> Path:
    return karlo.save_as_published(pipeline, tmp_path_factory.mktemp("diffusers") / "karlo")


@pytest.fixture(scope="module")
def original(pipeline, tmp_path_factory) -> dict[str, Path]:
    return originals.write_original(tmp_path_factory.mktemp("original"), pipeline)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(saved, tmp_path / "karlo"))


def change_config(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- the file of a network ---


def test_a_network_is_found_by_file_and_by_folder(saved) -> None:
    for path in (saved / "prior" / WEIGHTS, saved / "prior"):
        assert load_any_stage(path, expect="prior").source == str(saved / "prior" / WEIGHTS)
    assert load_any_stage(saved, expect="prior").source == str(saved / "prior" / WEIGHTS)
    assert load_any_stage(saved / "super_res_last", expect="upsampler").low_size == karlo.SIZE


@pytest.mark.parametrize(
    "options", [{"variant": "fp16"}, {"safe_serialization": False}, {"max_shard_size": "300KB"}]
)
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_every_way_of_saving_is_read(pipeline, saved, tmp_path, options: dict, dtype) -> None:
    pipeline.prior.save_pretrained(tmp_path / "prior", **options)
    assert not (tmp_path / "prior" / WEIGHTS).exists()
    found = load_any_stage(tmp_path / "prior", expect="prior", dtype=dtype)
    expected = load_any_stage(saved / "prior", dtype=dtype)
    assert {value.dtype for value in found.network.parameters()} == {dtype or torch.float32}
    state, reference = found.network.state_dict(), expected.network.state_dict()
    assert all(torch.equal(state[name], reference[name]) for name in reference)
    assert found.space == expected.space


WHOLE, BIN, HALF, HALF_BIN, OTHER = (
    f"diffusion_pytorch_model.{kind}"
    for kind in ("safetensors", "bin", "fp16.safetensors", "fp16.bin", "non_ema.safetensors")
)


@pytest.mark.parametrize(
    ("files", "dtype", "expected"),
    [
        ((WHOLE, BIN, HALF, OTHER), None, WHOLE),
        ((WHOLE, BIN, HALF, OTHER), torch.float32, WHOLE),
        ((WHOLE, BIN, HALF, OTHER), torch.bfloat16, WHOLE),
        ((WHOLE, BIN, HALF, OTHER), torch.float16, HALF),
        ((BIN, HALF, OTHER), None, BIN),  # other weights and rounded ones, though in safetensors
        ((BIN, HALF, OTHER), torch.float32, BIN),
        ((WHOLE, HALF_BIN), torch.float16, HALF_BIN),
        ((HALF, HALF_BIN, OTHER), None, HALF),
        ((HALF_BIN, OTHER), torch.float32, HALF_BIN),
        ((OTHER,), torch.float16, OTHER),
        (("pytorch_model.bin", "model.non_ema.safetensors"), None, "pytorch_model.bin"),
    ],
)
def test_of_several_files_the_one_asked_for_or_the_whole_one_is_read(
    tmp_path, files: tuple[str, ...], dtype: torch.dtype | None, expected: str
) -> None:
    for name in files:
        content = {name: torch.zeros(1)}
        (torch.save if name.endswith("bin") else save_file)(content, tmp_path / name)
    assert next(iter(open_component(tmp_path, dtype).shapes)) == expected


def test_a_prior_alone_has_the_values_of_karlo(saved, tmp_path) -> None:
    shutil.copy(saved / "prior" / WEIGHTS, tmp_path / "any name.safetensors")
    prior = load_any_stage(tmp_path / "any name.safetensors", expect="prior")
    assert prior.network.config.heads == 2
    assert prior.diffusion.clip_x0 == 5.0


# --- what configs say ---


def test_heads_and_sizes_are_those_of_the_config(folder) -> None:
    change_config(folder / "prior" / "config.json", num_attention_heads=4)
    change_config(folder / "decoder" / "config.json", sample_size=32, attention_head_dim=[32, 32])
    change_config(folder / "super_res_first" / "config.json", sample_size=128)
    change_config(folder / "super_res_last" / "config.json", sample_size=128)
    bundle = load_any_bundle(folder)
    assert bundle.prior.network.config.heads == 4
    assert (bundle.decoder.network.config.image_size, bundle.decoder.network.config.head_dim) == (32, 32)
    assert bundle.decoder.network.config.attention == (16,)
    assert (bundle.upsamplers[0].low_size, bundle.upsamplers[0].network.config.image_size) == (32, 128)


def test_schedulers_tell_how_a_network_denoises(folder) -> None:
    path = folder / "prior_scheduler" / "scheduler_config.json"
    change_config(path, clip_sample_range=10.0, num_train_timesteps=500)
    diffusion = load_any_stage(folder / "prior").diffusion
    assert (diffusion.clip_x0, diffusion.num_timesteps, diffusion.prediction) == (10.0, 500, "x0")
    change_config(path, clip_sample=False)
    assert load_any_stage(folder / "prior").diffusion.clip_x0 is None
    decoder = load_any_stage(folder / "decoder").diffusion
    assert (decoder.variance, decoder.prediction, decoder.schedule) == ("learned_range", "eps", "cosine")


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        *((kind, 1.0) for kind in ("UnCLIP", "DDPM", "DDIM")),
        *((kind, None) for kind in ("DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete")),
        ("PNDM", None),
    ],
)
def test_what_never_clamps_in_diffusers_does_not_here(tmp_path: Path, kind: str, limit: float | None) -> None:
    import diffusers

    getattr(diffusers, f"{kind}Scheduler")().save_config(tmp_path)
    assert read_scheduler(tmp_path, DECODER_DIFFUSION).clip_x0 == limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prediction_type": "flow"},
            "prediction_type is 'flow', expected one of epsilon, sample, v_prediction",
        ),
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule is 'sigmoid', expected one of squaredcos_cap_v2, linear",
        ),
        ({"variance_type": "learned"}, "variance_type is 'learned', expected one of fixed_small"),
        ({"clip_sample_range": "wide"}, "clip_sample_range is 'wide', expected a positive number"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many', expected a whole number"),
    ],
)
def test_unknown_processes_are_named(tmp_path, change: dict, message: str) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps(change))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_scheduler(tmp_path, DECODER_DIFFUSION)


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        ("decoder", {"act_fn": "gelu"}, "act_fn is 'gelu', expected 'silu'"),
        ("decoder", {"norm_eps": 1e-6}, "norm_eps is 1e-06, expected 1e-05"),
        (
            "decoder",
            {"attention_head_dim": [8, 64]},
            "attention_head_dim is [8, 64], expected a whole number",
        ),
        ("prior", {"num_attention_heads": 3}, "width 128 is not a multiple of its 3 heads"),
        ("prior", {"added_emb_type": None}, "added_emb_type is None, expected 'prd'"),
        ("super_res_first", {"flip_sin_to_cos": False}, "flip_sin_to_cos is False, expected True"),
    ],
)
def test_networks_of_other_kinds_are_named(folder, network: str, change: dict, message: str) -> None:
    change_config(folder / network / "config.json", **change)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_any_stage(folder / network)
    assert str(folder / network) in str(error.value)


# --- folders and files that are not whole ---


def test_neighbours_that_are_missing_are_named(folder) -> None:
    shutil.rmtree(folder / "text_proj")
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'text_proj'}: there is no such folder")):
        load_any_stage(folder / "decoder")
    (folder / "super_res_last" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'super_res_last'}: holds no weights")):
        load_any_stage(folder / "super_res_first")


def test_two_networks_that_do_not_belong_together_are_named(folder) -> None:
    change_config(folder / "super_res_last" / "config.json", sample_size=64)
    with pytest.raises(
        ValueError, match=re.escape(f"{folder / 'super_res_last' / WEIGHTS}: is another kind of")
    ):
        load_any_stage(folder / "super_res_first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("transformer_blocks.1.attn1.to_k.bias"),
            "lacks transformer_blocks.1.attn1.to_k.bias",
        ),
        (lambda t: t.pop("clip_mean"), "has no tensor 'clip_mean'"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds extra, for which its layout has no place"),
        (
            lambda t: t.update({"proj_to_clip_embeddings.weight": torch.zeros(7, 128)}),
            "found the shape proj_to_clip_embeddings.weight [7, 128], expected [32, 128]",
        ),
    ],
)
def test_priors_that_are_not_whole_are_named(folder, change, message: str) -> None:
    path = folder / "prior" / WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load_any_stage(path)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("prior", lambda t: t.pop("model.out_proj.bias"), "lacks model.out_proj.bias"),
        ("prior", lambda t: t.update(extra=torch.zeros(1)), "holds extra, for which its layout has no place"),
        (
            "decoder",
            lambda t: t.pop("model.output_blocks.1.1.encoder_kv.weight"),
            "lacks model.output_blocks.1.1.encoder_kv.weight",
        ),
        ("decoder", lambda t: t.pop("model.text_seq_proj.1.bias"), "lacks model.text_seq_proj.1.bias"),
        (
            "decoder",
            lambda t: t.update({"model.cf_param": torch.zeros(5)}),
            "found the shape model.cf_param [5], expected [32]",
        ),
        (
            "upsampler",
            lambda t: t.pop("model_last_step.middle_block.1.in_layers.0.bias"),
            "lacks model_last_step.middle_block.1.in_layers.0.bias",
        ),
    ],
)
def test_original_files_that_are_not_whole_are_named(original, tmp_path, stage, change, message: str) -> None:
    tensors = torch.load(original[stage], weights_only=True)["state_dict"]
    change(tensors)
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": tensors}, path)
    shutil.copy(original["prior"].with_name("ViT-L-14_stats.th"), tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load_any_stage(path)


def test_the_wrong_stage_is_named(saved, original) -> None:
    for path in (saved / "decoder", original["decoder"]):
        with pytest.raises(ValueError, match=r"holds a decoder, but a prior is expected here\. Load it with"):
            load_any_stage(path, expect="prior")


def test_folders_of_other_pipelines_are_named(tmp_path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    message = f"{tmp_path}: holds a StableDiffusionPipeline of diffusers, which is not unCLIP"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_any_bundle(tmp_path)
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'prior'}: holds no weights")):
        load_any_bundle(tmp_path)
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "prior" / WEIGHTS)
    with pytest.raises(ValueError, match="a checkpoint that unclip knows"):
        load_any_bundle(tmp_path)


def test_an_empty_folder_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: has no bundle.json")):
        load_any_bundle(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is a folder; expected")):
        load_any_stage(tmp_path)


def test_a_stage_that_a_folder_lacks_is_named(folder) -> None:
    shutil.rmtree(folder / "prior")
    with pytest.raises(ValueError, match=re.escape(f"{folder}: has no prior, only clip, decoder, upsampler")):
        load_any_stage(folder, expect="prior")


def test_a_folder_whose_networks_are_of_two_spaces_is_named(folder) -> None:
    karlo.tiny_prior(dim=24).save_pretrained(folder / "prior")
    with pytest.raises(ValueError, match=r"'clip-32' \(32 dimensions\).*'clip-24'"):
        load_any_bundle(folder)
