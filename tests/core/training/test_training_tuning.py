"""Training from published models, as a LoRA and whole: Karlo's, Kandinsky's and LAION's in miniature."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.data.batches import in_unit_range
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.layouts.eclipse import ONE_STEP
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.lora import read_lora
from unclip.core.formats.native.checkpoints import save_stage
from unclip.core.networks.dalle2_prior import Dalle2Prior, Dalle2PriorConfig
from unclip.core.networks.one_pass_prior import OnePassPrior, OnePassPriorConfig
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.lora import with_lora
from unclip.core.stages import PriorStage
from unclip.core.training.stages import build_recipe, train_stage
from unclip.nodes import host

from ...helpers import karlo
from ...helpers.kandinsky import tiny_unet
from ...helpers.kandinsky_files import save_21, tiny_21, tiny_22
from ...helpers.karlo import DIM, LENGTH
from ...helpers.nodes import run
from ...helpers.pictures import write_pictures
from ...helpers.sources import ROOT
from ...helpers.stages import LOOP, changed, read_log, write_config
from ...helpers.unet import difference, random_tensor, randomised

WITHIN, MOVED = 1e-4, 1e-3
STEPS = 4
FAST = {"steps": STEPS, "batch_size": 4, "learning_rate": 0.02, "warmup": 0, "ema_decay": 0.0}
KINDS = ["kandinsky22 prior", "kandinsky22 decoder", "karlo decoder", "karlo prior"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders as published; the CLIP model of Kandinsky's prior serves all."""
    folder = tmp_path_factory.mktemp("models")
    karlo.save_as_published(karlo.tiny_kandinsky_prior(), folder / "kandinsky22-prior")
    tiny_22().save_pretrained(folder / "kandinsky22-decoder")
    tiny_22("2.2 inpaint").save_pretrained(folder / "kandinsky22-inpaint")
    karlo.save_as_published(karlo.tiny_pipeline(), folder / "karlo")
    write_pictures(folder / "pictures", 20)
    return folder


def settings(models: Path, kind: str, **more: Any) -> tuple[str, dict[str, Any]]:
    model, stage = kind.split(" ")
    folder = {"kandinsky22": f"kandinsky22-{stage}", "karlo": "karlo"}[model]
    return stage, {
        "base": str(models / folder),
        "clip": str(models / "kandinsky22-prior"),
        "data": {"source": "folder", "path": str(models / "pictures"), "workers": 0},
        "loop": {
            **LOOP,
            "steps": STEPS,
            "batch_size": 4,
            "learning_rate": 0.02,
            "warmup": 0,
            "ema_decay": 0.0,
        },
        **more,
    }


def trained(folder: Path, stage: str, config: dict[str, Any], **options: Any) -> list[float]:
    folder.mkdir(exist_ok=True)
    train_stage(stage, write_config(folder / "config.toml", config), folder / "run", cpu=True, **options)
    return [row["loss"] for row in read_log(folder / "run" / "log.jsonl")]


@pytest.fixture(scope="module")
def lora(models, tmp_path_factory):
    """The file that a run of each kind writes, once."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("run")
            stage, config = settings(models, kind, lora={"rank": 3, "alpha": 6.0})
            with torch.enable_grad():
                losses = trained(folder, stage, config)
            assert len(losses) == STEPS
            made[kind] = folder / "run" / f"{stage}-lora.safetensors"
        return made[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_of_some_steps_changes_its_model_by_the_strength(models, lora, kind) -> None:
    stage, config = settings(models, kind)
    base = load_any_stage(config["base"], expect=stage)
    (found,) = read_lora(lora(kind)).for_networks(base.network)
    before = {name: value.clone() for name, value in base.network.state_dict().items()}
    changes = []
    for strength in (0.25, 1.0):
        network = with_lora(base, found, strength).network.state_dict()
        changes.append(sum((network[name] - value).abs().sum() for name, value in before.items()))
    assert changes[0] > 0 and abs(changes[1] / changes[0] - 4) < 0.01
    assert with_lora(base, found, 0.0) is base
    assert all(torch.equal(value, before[name]) for name, value in base.network.state_dict().items())


@pytest.mark.parametrize("kind", ["kandinsky22 decoder", "karlo decoder"])
def test_pictures_change_in_the_node_and_at_strength_0_they_are_the_same(
    models, lora, kind, monkeypatch
) -> None:
    stage, config = settings(models, kind)
    base = load_any_stage(config["base"], expect=stage)
    clip = load_any_stage(config["clip"], expect="clip")
    path = lora(kind)
    monkeypatch.setenv(host.LORA_FOLDERS_VARIABLE, str(path.parent))
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(path.parent))
    given = Embedding(random_tensor(1, 1, DIM), base.space), encode_text(clip, ["a fox"])
    options = DecodeOptions(steps=2, guidance_scale=1.0)

    def painted(strength: float):
        _, decoder = run("UnCLIPLoadLoRA", lora=path.name, strength=strength, decoder=base)
        return decode(decoder, *given, seed=1, options=options)

    plain = decode(base, *given, seed=1, options=options)
    assert torch.equal(painted(0.0), plain)
    weak, strong = ((painted(strength) - plain).abs().mean() for strength in (0.02, 1.0))
    assert 0 < weak < strong and strong > MOVED


T = torch.tensor([300, 7])


@torch.no_grad()
def test_a_trained_kandinsky22_decoder_lora_gives_the_same_in_diffusers(models, lora) -> None:
    theirs = tiny_unet("2.2", dim=DIM).eval()
    x, z_i = random_tensor(1, 2, 4, 16, 16), random_tensor(2, 2, DIM)

    def given(network):
        return network(x, T, None, added_cond_kwargs={"image_embeds": z_i}).sample

    plain = given(theirs)
    theirs.load_lora_adapter(str(lora("kandinsky22 decoder")), prefix=None)
    base = load_any_stage(models / "kandinsky22-decoder", expect="decoder")
    (found,) = read_lora(lora("kandinsky22 decoder")).for_networks(base.network)
    network = with_lora(base, found, 1.0).network
    ours = network(x, T, network.condition(clip_embedding=z_i))
    assert difference(ours, given(theirs)) <= WITHIN
    assert difference(ours, plain) > MOVED


@torch.no_grad()
def test_a_trained_kandinsky22_prior_lora_gives_the_same_in_diffusers(models, lora) -> None:
    theirs = karlo.tiny_prior(seed=8).eval()
    mask = torch.arange(LENGTH)[None] < torch.tensor([[5], [9]])
    x, tokens, pooled = random_tensor(1, 2, DIM), random_tensor(2, 2, LENGTH, DIM), random_tensor(3, 2, DIM)

    def given(network):
        return network(x, T, pooled, tokens, mask).predicted_image_embedding

    plain = given(theirs)
    theirs.load_lora_adapter(str(lora("kandinsky22 prior")), prefix=None)
    base = load_any_stage(models / "kandinsky22-prior", expect="prior")
    (found,) = read_lora(lora("kandinsky22 prior")).for_networks(base.network)
    ours = with_lora(base, found, 1.0).network(x, T, tokens, pooled, mask)
    assert difference(ours, given(theirs)) <= WITHIN
    assert difference(ours, plain) > MOVED


def test_the_file_is_small_and_says_what_it_is(lora) -> None:
    path = lora("kandinsky22 decoder")
    tensors = load_file(path)
    assert "mid_block.attentions.0.add_k_proj.lora_A.weight" in tensors
    assert all(min(value.shape) == 3 for value in tensors.values())
    assert read_lora(path).made_for == "UNet"


def test_a_lora_run_goes_on_where_it_was_stopped(models, tmp_path) -> None:
    stage, config = settings(models, "kandinsky22 decoder", lora={"rank": 2})
    straight = trained(tmp_path / "one", stage, config)
    trained(tmp_path / "two", stage, config, steps=2)
    state = torch.load(tmp_path / "two" / "run" / "checkpoint.pt", weights_only=True)
    assert all(name.endswith((".lora_A", ".lora_B")) for name in state["network"])
    assert trained(tmp_path / "two", stage, config) == straight
    first, second = (
        load_file(tmp_path / name / "run" / "decoder-lora.safetensors") for name in ("one", "two")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_whole_kandinsky22_decoder_trains_in_its_latent_and_is_kept_with_it(models, tmp_path) -> None:
    stage, config = settings(models, "kandinsky22 decoder", picture_size=64)
    trained(tmp_path / "run", stage, {**config, "loop": {**config["loop"], "gradient_checkpointing": True}})
    base = load_any_stage(config["base"], expect="decoder")
    made = load_any_stage(tmp_path / "run" / "run" / "decoder.safetensors", expect="decoder")
    assert made.autoencoder is not None and made.diffusion == base.diffusion
    assert made.network.config.conditioning.null_known  # of the CLIP model, for guidance
    name = "middle.0.residual.conv_in.weight"
    old, new = base.network.state_dict()[name], made.network.state_dict()[name].float()
    assert MOVED < difference(old, new) < 0.2


@pytest.mark.parametrize("kind", ["kandinsky22 prior", "karlo prior"])
def test_a_whole_prior_keeps_its_statistics_and_schedule(models, tmp_path, kind) -> None:
    stage, config = settings(models, kind)
    trained(tmp_path / "run", stage, config)
    base = load_any_stage(config["base"], expect="prior")
    made = load_any_stage(tmp_path / "run" / "run" / "prior.safetensors")
    assert made.space == base.space and made.diffusion == base.diffusion
    assert difference(made.network.out.weight.float(), base.network.out.weight) > MOVED


def test_the_loss_of_a_kandinsky22_decoder_is_that_of_its_training_script(models) -> None:
    """diffusers' loss: noise against the first four channels, over MoVQ's latents as they are."""
    stage, config = settings(models, "kandinsky22 decoder", drop_clip=0.0)
    _, recipe = build_recipe(stage, config, "config")
    pipeline = tiny_22()
    unet, movq, encoder = pipeline.unet, pipeline.movq, karlo.tiny_kandinsky_prior().image_encoder
    seen: dict[str, torch.Tensor] = {}

    def network(x, t, **given):
        seen.update(x=x, t=t, **given)
        return recipe.network(x, t, **given)

    batch = recipe.batch(0)
    pictures = in_unit_range(batch[0])
    from unclip.core.data.draws import StepGenerator

    generator = StepGenerator(torch.device("cpu"), 4, slice(0, 4))
    generator.start(7, slice(0, 4))
    with torch.no_grad():
        found = recipe.loss(network, batch, generator)
        latents = movq.encode(2 * pictures - 1).latents
        acp = recipe.schedule.alphas_cumprod[seen["t"]].float()[:, None, None, None]
        noise = (seen["x"] - acp.sqrt() * latents) / (1 - acp).sqrt()
        predicted = unet(
            seen["x"], seen["t"], None, added_cond_kwargs={"image_embeds": seen["clip_embedding"]}
        ).sample[:, :4]
        assert abs(torch.nn.functional.mse_loss(predicted, noise) - found) < 1e-3
        mean, std = (
            torch.tensor(each)[:, None, None]
            for each in (recipe.clip.network.config.image_mean, recipe.clip.network.config.image_std)
        )
        resized = torch.nn.functional.interpolate(pictures, size=32, mode="bicubic", antialias=True)
        z_i = encoder((resized - mean) / std).image_embeds
        assert difference(seen["clip_embedding"], z_i) < 0.05


def test_kandinsky21_reads_its_captions_by_its_own_text_encoder(models, tmp_path) -> None:
    save_21(tiny_21(), tmp_path / "kandinsky21")
    _, config = settings(models, "kandinsky22 decoder", lora={"rank": 2})
    config |= {"base": str(tmp_path / "kandinsky21")}
    with pytest.raises(ValueError, match="text_encoder: this decoder reads captions of 48 values"):
        trained(tmp_path / "no", "decoder", config)
    config |= {"text_encoder": str(tmp_path / "kandinsky21")}
    assert len(trained(tmp_path / "run", "decoder", config)) == STEPS
    base = load_any_stage(tmp_path / "kandinsky21", expect="decoder")
    file = read_lora(tmp_path / "run" / "run" / "decoder-lora.safetensors")
    assert file.for_networks(base.network)[0] is not None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"base": "nowhere"}, "base: there is no file or folder nowhere"),
        ({"lora.targets": ["to_q"]}, "lora.targets names 'to_q', but no layer"),
        ({"lora.rank": 0}, "lora.rank is 0"),
        ({"picture_size": 60}, "picture_size is 60, expected a multiple of"),
        ({"loop.start_from": "x.safetensors"}, "loop.start_from goes with"),
    ],
)
def test_settings_that_do_not_fit_are_named(models, change, message) -> None:
    stage, config = settings(models, "kandinsky22 decoder", lora={"rank": 2})
    for name, value in change.items():
        config = changed(config, name, value)
    with pytest.raises(ValueError, match=message):
        build_recipe(stage, config, "config")


def test_what_cannot_start_from_a_base_says_so(models) -> None:
    stage, config = settings(models, "kandinsky22 decoder")
    with pytest.raises(ValueError, match="reads a masked picture besides"):
        build_recipe(stage, {**config, "base": str(models / "kandinsky22-inpaint")}, "config")
    with pytest.raises(ValueError, match="base: a clip starts from a model of our own only"):
        build_recipe("clip", config, "config")


def test_the_style_of_the_documentation_trains_and_paints_in_miniature(models, tmp_path, monkeypatch) -> None:
    """The config and the commands of docs/training.md, with a small model and few steps."""
    section = (ROOT / "docs" / "training.md").read_text().split("## A style of your own")[1].split("\n## ")[0]
    config = re.search(r"```toml\n(.*?)```", section, re.DOTALL)[1]
    commands = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].splitlines()
    assert len(commands) == 2 and "base = " in config
    for name, model in (("prior", "kandinsky22-prior"), ("decoder", "kandinsky22-decoder")):
        copytree(models / model, tmp_path / "kandinsky22" / f"kandinsky-2-2-{name}")
    write_pictures(tmp_path / "my-style", 20)
    config = re.sub(r"(?m)^steps = .*", "steps = 2", config)
    (tmp_path / "style.toml").write_text(config + 'precision = "no"\nlog_with = []\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path))
    monkeypatch.setenv(host.LORA_FOLDERS_VARIABLE, "")
    short = ["--cpu"], ["--size", "128", "--steps", "2", "--prior-steps", "2", "-q"]
    for command, more in zip(commands, short, strict=True):
        result = CliRunner().invoke(build_app(), [*shlex.split(command)[1:], *more])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "fox.png").is_file()


@pytest.mark.parametrize("kind", ["LAION", "ECLIPSE"])
@pytest.mark.parametrize("lora", [None, {"rank": 2, "targets": ["attention", "mlp"]}])
def test_laions_and_eclipses_priors_are_trained_on_too(models, tmp_path, kind, lora) -> None:
    clip = load_any_stage(models / "kandinsky22-prior", expect="clip")
    if kind == "LAION":
        shape = {"dim": DIM, "layers": 2, "heads": 2, "head_dim": 16, "text_length": LENGTH}
        network: Any = randomised(Dalle2Prior(Dalle2PriorConfig(**shape)))
        space = EmbeddingSpace(clip.space.id, DIM, "unit")
        spec = DiffusionSpec(num_timesteps=network.config.timesteps, prediction="x0", clip_x0=None)
    else:
        shape_of_it = OnePassPriorConfig(DIM, DIM, width=32, layers=2, heads=2, text_length=LENGTH)
        network, space, spec = randomised(OnePassPrior(shape_of_it)), clip.space, ONE_STEP
    path = save_stage(PriorStage(network, space, spec), tmp_path / "base.safetensors")
    _, config = settings(models, "kandinsky22 prior", base=str(path), **({"lora": lora} if lora else {}))
    assert all(0 < loss < 100 for loss in trained(tmp_path / "run", "prior", config))
    base, folder = load_any_stage(path), tmp_path / "run" / "run"
    if lora is None:
        made = load_any_stage(folder / "prior.safetensors")
        assert made.space == space and type(made.network) is type(network)
        assert difference(made.network.out.weight.float(), base.network.out.weight) > MOVED
    else:
        (found,) = read_lora(folder / "prior-lora.safetensors").for_networks(base.network)
        assert any("mlp_in" in name for name in found.changes)
