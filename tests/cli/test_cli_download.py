"""``unclip download``: public models from a server that speaks Hugging Face's protocol."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unclip.cli import download as command
from unclip.cli import downloading
from unclip.cli.app import build_app
from unclip.cli.workflow.local import local_catalog
from unclip.cli.workflow.reading import load_workflow
from unclip.core.formats import published
from unclip.core.formats.abilities import read_abilities
from unclip.core.formats.published import PUBLISHED
from unclip.core.pipelines.generate import default_options
from unclip.core.stages import Bundle, Defaults
from unclip.nodes import catalogue, host

from ..helpers import karlo
from ..helpers.hub_server import hub_server
from ..helpers.kandinsky_files import tiny_22
from ..helpers.nodes import run

KARLO = "kakaobrain/karlo-v1-alpha"
WEIGHTS = "prior/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = karlo.save_as_published(karlo.tiny_pipeline(), tmp_path_factory.mktemp("hub") / "karlo")
    (folder / "README.md").write_text("licence: openrail", encoding="utf-8")
    (folder / "prior" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (folder / "prior" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def hub(original, monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    with hub_server({KARLO: original}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def download(*words: str):
    return CliRunner().invoke(build_app(), ["download", *words, "--quiet"])


def test_a_model_becomes_a_bundle_of_that_name(hub, original, models) -> None:
    result = download("karlo")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(models / "karlo")
    assert "CreativeML OpenRAIL-M" in result.stderr and KARLO in result.stderr
    assert (models / "karlo" / "README.md").is_file()
    asked = {name for name, _ in hub.requests}
    assert WEIGHTS in asked and not any(".fp16." in name or name.endswith(".bin") for name in asked)
    assert (models / "karlo" / WEIGHTS).read_bytes() == (original / WEIGHTS).read_bytes()
    # The workflows know it by the name that its makers gave it.
    for name in ("karlo", "karlo-v1-alpha"):
        clip, prior, decoder, *_ = run("UnCLIPLoadBundle", bundle=name, precision="fp32")
        assert None not in (clip, prior, decoder)
    assert catalogue.find_stage_file("karlo-v1-alpha/prior") == models / "karlo" / "prior"

    asked_for = read_abilities(models / "karlo").defaults.tables
    assert asked_for["decoder"] == {"sampler": "ddpm", "steps": 25, "guidance_scale": 8.0}
    own = models / "karlo" / "unclip.json"
    own.write_text(own.read_text().replace("8.0", "7.0"))

    hub.requests.clear()
    assert download("karlo").exit_code == 0
    assert '"guidance_scale": 7.0' in own.read_text(), "what a person changed stays"
    assert hub.requests == [], "what is there is not fetched again"


def test_a_model_of_two_repositories_is_one_bundle(hub, original, models, tmp_path) -> None:
    owner = "kandinsky-community"
    prior = tmp_path / "prior"
    shutil.copytree(original, prior, ignore=shutil.ignore_patterns("decoder*", "super_res*", "text_proj"))
    tiny_22().save_pretrained(tmp_path / "decoder")
    hub.repositories[f"{owner}/kandinsky-2-2-prior"] = prior
    hub.repositories[f"{owner}/kandinsky-2-2-decoder"] = tmp_path / "decoder"
    result = download("kandinsky22")
    assert result.exit_code == 0, result.stderr
    folder = models / "kandinsky22"
    assert catalogue.find_bundle("kandinsky22") == folder and "kandinsky22" in catalogue.list_bundles()
    assert catalogue.find_bundle("kandinsky-2-2-prior") == folder / "kandinsky-2-2-prior"
    (decoder,) = run("UnCLIPLoadDecoder", file="kandinsky-2-2-decoder/unet", precision="fp32")
    assert decoder.network.config.in_channels == 4


def test_a_broken_connection_is_continued_at_once_and_by_the_next_run(
    hub, original, models, monkeypatch
) -> None:
    data = (original / WEIGHTS).read_bytes()
    hub.drop = {WEIGHTS: 1000}
    assert download("karlo").exit_code == 0
    assert [asked for name, asked in hub.requests if name == WEIGHTS] == [None, "bytes=1000-"]
    assert (models / "karlo" / WEIGHTS).read_bytes() == data

    monkeypatch.setattr(downloading, "TRIES", 1)
    (models / "karlo" / WEIGHTS).unlink()
    hub.drop = {WEIGHTS: 500}
    result = download("karlo")
    assert result.exit_code == 1 and "cannot be reached" in result.stderr
    assert not (models / "karlo" / WEIGHTS).exists(), "no half file under its name"
    hub.requests.clear()
    assert download("karlo").exit_code == 0
    assert hub.requests == [(WEIGHTS, "bytes=500-")]
    assert (models / "karlo" / WEIGHTS).read_bytes() == data


def test_a_server_that_cannot_continue_begins_anew(hub, original, models) -> None:
    hub.ranges, hub.drop = False, {WEIGHTS: 1000}
    assert download("karlo").exit_code == 0
    assert (models / "karlo" / WEIGHTS).read_bytes() == (original / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("name", "kind"), [(WEIGHTS, "sha256"), ("prior/config.json", "git")])
def test_what_differs_from_the_hash_is_not_kept(hub, original, models, name, kind) -> None:
    data = bytearray((original / name).read_bytes())
    data[-2] ^= 1
    hub.spoilt = {name: bytes(data)}
    result = download("karlo")
    assert result.exit_code == 1
    assert f"its {kind} differs" in result.stderr.replace("\n", " ")
    assert not any(name.rpartition("/")[2] in path.name for path in (models / "karlo" / "prior").iterdir())
    hub.spoilt = {}
    assert download("karlo").exit_code == 0


def test_offline_it_says_so(models, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    result = download("karlo")
    assert result.exit_code == 1
    assert "127.0.0.1:9 cannot be reached" in result.stderr
    assert "Without a connection nothing can be downloaded" in result.stderr


def test_a_repository_that_is_gone_and_a_name_that_is_none(hub, models) -> None:
    result = download("karlo-variations")
    assert result.exit_code == 1 and "the server answers 404" in result.stderr
    result = download("nothing")
    assert result.exit_code == 2 and "choose karlo, karlo-variations, kandinsky22" in " ".join(
        result.stderr.replace("│", " ").split()
    )


def test_parts_and_plain_addresses_go_where_they_belong(hub, original, models, monkeypatch) -> None:
    part = published.Repository(KARLO, into="kandinsky-2-2-prior")
    files = command.files_of(part)
    assert {file.path.split("/")[0] for file in files} == {"kandinsky-2-2-prior"}
    text = original / "README.md"
    plain = f"{hub.url}/{KARLO}/resolve/0123456789abcdef0123456789abcdef01234567/README.md"
    model = published.PublishedModel("plain", "Plain", "MIT", "small", files=(plain,))
    command.fetch_model(model, models / "plain", quiet=True)
    assert (models / "plain" / "README.md").read_bytes() == text.read_bytes()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "C:\\x", ""])
def test_a_server_cannot_write_elsewhere(hub, tmp_path, path) -> None:
    with pytest.raises(ValueError, match="outside of its folder"):
        downloading.fetch(downloading.RemoteFile(hub.url, path), tmp_path)


def test_without_the_extra_it_says_what_to_install(models, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = download("karlo")
    assert result.exit_code == 1 and 'pip install -e ".[download]"' in result.stderr


def test_the_list_and_the_workflows_name_the_same_models() -> None:
    listed = download("list").stdout
    assert all(model.name in listed and model.licence in listed for model in PUBLISHED)
    assert len({model.name for model in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize("model", [each for each in PUBLISHED if each.defaults], ids=lambda model: model.name)
def test_settings_of_published_models_are_valid_and_those_of_their_workflows(model) -> None:
    default_options(Bundle(model.name, defaults=Defaults(model.defaults)))
    path = Path(host.PACK_FOLDER) / "workflows" / f"{model.name}_text_to_image.json"
    if not path.is_file():
        return
    nodes = load_workflow(path, local_catalog()).nodes.values()
    for stage, node_type in (("prior", "UnCLIPDiffusionPrior"), ("decoder", "UnCLIPDecode")):
        (node,) = (each for each in nodes if each.class_type == node_type)
        assert {name: node.inputs[name] for name in model.defaults[stage]} == model.defaults[stage]


def test_of_several_forms_of_the_same_weights_one_is_taken() -> None:
    names = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/pytorch_model.fp16.bin",
        "prior/diffusion_pytorch_model.fp16.safetensors",
        "big/model-00001-of-00002.safetensors",
        "big/model-00002-of-00002.safetensors",
        "big/model.safetensors.index.json",
        "pictures/cat.png",
        "LICENSE",
        "whole-model.ckpt",
    ]
    assert command.chosen_files(names) == [
        "LICENSE",
        "big/model-00001-of-00002.safetensors",
        "big/model-00002-of-00002.safetensors",
        "big/model.safetensors.index.json",
        "model_index.json",
        "prior/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert command.chosen_files(names, ("LICENSE",)) == ["LICENSE"]


def test_the_md5_of_a_plain_server_is_compared(tmp_path) -> None:
    unfinished = tmp_path / ".x.part"
    unfinished.write_bytes(b"abc")
    file = downloading.RemoteFile("https://x/y", "y")
    downloading._check(file, unfinished, "kAFQmDzST7DWlj99KOF/cg==")  # hashlib.md5(b"abc")
    assert hashlib.md5(b"abc").hexdigest() == "900150983cd24fb0d6963f7d28e17f72"
    with pytest.raises(ValueError, match="its md5 differs"):
        downloading._check(file, unfinished, "AAAQmDzST7DWlj99KOF/cg==")


def test_a_full_disk_is_no_broken_connection(hub, models, monkeypatch) -> None:
    file, *_ = command.files_of(published.Repository(KARLO))
    unfinished = models / "full"
    unfinished.parent.mkdir()
    unfinished.symlink_to("/dev/full")
    monkeypatch.setattr(downloading, "_unfinished", lambda target: unfinished)
    with pytest.raises(OSError, match="No space left") as caught:
        downloading.fetch(file, models)
    assert not isinstance(caught.value, ValueError), "the server was reached"
    assert caught.value.filename == str(unfinished)
    assert len(hub.requests) == 1, "trying again makes no room"


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub, original, models, monkeypatch) -> None:
    needed = sum(file.size for file in command.files_of(published.Repository(KARLO)))
    room = shutil.disk_usage(models.parent)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    result = download("karlo")
    assert result.exit_code == 1 and "GB are to be downloaded" in " ".join(result.stderr.split())
    assert hub.requests == [] and not models.exists()
    (models / "karlo" / WEIGHTS).parent.mkdir(parents=True)
    shutil.copy(original / WEIGHTS, models / "karlo" / WEIGHTS)
    assert download("karlo").exit_code == 0, "what is there needs no room"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(hub, original, models, status) -> None:
    hub.refuse = {WEIGHTS: status}
    assert download("karlo").exit_code == 0
    assert (models / "karlo" / WEIGHTS).read_bytes() == (original / WEIGHTS).read_bytes()


def test_files_without_a_listing_are_compared_when_they_were_continued(hub, original, models) -> None:
    data = (original / "README.md").read_bytes()
    url = f"{hub.url}/{KARLO}/resolve/0123456789abcdef0123456789abcdef01234567/README.md"
    models.mkdir()
    hub.md5 = True
    (models / ".README.md.part").write_bytes(b"x" * 5)  # the beginning of another version
    with pytest.raises(ValueError, match="its md5 differs"):
        downloading.fetch(downloading.RemoteFile(url, "README.md"), models)
    assert downloading.fetch(downloading.RemoteFile(url, "README.md"), models).read_bytes() == data


def test_the_hash_in_an_address_of_clip_is_compared() -> None:
    (laion,) = (model for model in PUBLISHED if model.name == "laion")
    (clip,) = map(command._web_file, laion.files)
    assert clip.path == "ViT-L-14.pt"
    assert clip.sha256 == "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    assert command._web_file("https://x/base.pt").sha256 is None


def test_two_downloads_do_not_write_to_one_file(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "there.bin").write_bytes(b"whole")
    file = downloading.RemoteFile((tmp_path / "there.bin").as_uri(), "here.bin")
    unfinished = tmp_path / "to" / ".here.bin.part"
    unfinished.parent.mkdir()
    with unfinished.open("wb") as others:
        fcntl.flock(others, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another unclip download is at work on it"):
            downloading.fetch(file, tmp_path / "to")
    assert downloading.fetch(file, tmp_path / "to").read_bytes() == b"whole"
