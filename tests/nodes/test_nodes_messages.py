"""What artists read when something is wrong: folders as ComfyUI calls them, and no paths of the machine."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from unclip.nodes import NODE_CLASS_MAPPINGS, catalogue, host, messages, placement

from ..helpers.bundle import write_tiny_bundle
from ..helpers.comfyui import comfyui_starter
from ..helpers.nodes import run


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    """A ComfyUI with a bundle, one that is damaged, and files that are none."""
    write_tiny_bundle(tmp_path / "models" / "unclip" / "tiny")
    broken = write_tiny_bundle(tmp_path / "models" / "unclip" / "broken")
    for file in broken.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-10])
    (tmp_path / "models" / "unclip" / "text.safetensors").write_text("no weights")
    for folder in ("input", "output"):
        (tmp_path / folder / "empty").mkdir(parents=True)
    (tmp_path / "output" / "bad.safetensors").write_text("no embedding")
    return comfyui_starter(tmp_path / "models", monkeypatch)()


def text_of(clip):
    return run("UnCLIPTextEncode", clip=clip, text="a red fox")[0]


def wrong_prior():
    clip, *_, ar_prior, _ = run("UnCLIPLoadBundle", bundle="tiny", precision="fp32")
    return lambda: run("UnCLIPDiffusionPrior", prior=ar_prior, text=text_of(clip))


def full_card():
    _, _, decoder, *_ = run("UnCLIPLoadBundle", bundle="tiny", precision="fp32")

    def fail():
        raise RuntimeError(placement._explain([decoder], 1024**3))

    return messages.with_plain_errors(type("Node", (), {"FUNCTION": "go", "go": lambda self: fail()}))().go


CASES = {
    "no bundle": (lambda: lambda: run("UnCLIPLoadBundle", bundle="nobody"), "models/unclip"),
    "no public bundle": (
        lambda: lambda: run("UnCLIPLoadBundle", bundle="karlo-v1-alpha"),
        " models/unclip/karlo",
    ),
    "a damaged bundle": (lambda: lambda: run("UnCLIPLoadBundle", bundle="broken"), "models/unclip/broken/"),
    "no file": (lambda: lambda: run("UnCLIPLoadPrior", file="x.safetensors"), "models/unclip"),
    "no weights": (
        lambda: lambda: run("UnCLIPLoadPrior", file="text.safetensors"),
        "models/unclip/text.safetensors",
    ),
    "another stage": (
        lambda: lambda: run("UnCLIPLoadDecoder", file="tiny/prior.safetensors"),
        "models/unclip/tiny/prior.safetensors",
    ),
    "no embedding": (
        lambda: lambda: run("UnCLIPLoadEmbedding", file="x.safetensors"),
        "models/unclip/embeddings",
    ),
    "a bad embedding": (
        lambda: lambda: run("UnCLIPLoadEmbedding", file="bad.safetensors [output]"),
        "output/bad.safetensors",
    ),
    "no folder": (
        lambda: (
            lambda: run(
                "UnCLIPEncodeFolder", clip=run("UnCLIPLoadCLIP", file="tiny/clip.safetensors")[0], folder="x"
            )
        ),
        "input",
    ),
    "an empty folder": (
        lambda: (
            lambda: run(
                "UnCLIPEncodeFolder",
                clip=run("UnCLIPLoadCLIP", file="tiny/clip.safetensors")[0],
                folder="empty",
            )
        ),
        "input/empty",
    ),
    "another prior": (wrong_prior, "models/unclip/tiny/ar-prior"),
    "a full card": (full_card, "models/unclip/tiny/decoder"),
}


@pytest.mark.parametrize("case", CASES)
def test_folders_are_called_as_in_comfyui(comfyui, tmp_path, case) -> None:
    prepare, expected = CASES[case]
    with pytest.raises((ValueError, OSError, RuntimeError)) as told:
        prepare()()
    message = str(told.value)
    assert expected in message.replace("\\", "/"), message
    for path in (tmp_path, host.PACK_FOLDER):
        assert str(path) not in message and path.as_posix() not in message, message


@pytest.fixture(params=[True, False], ids=["command", "no-command"])
def command(request, monkeypatch) -> bool:
    """Whether the package is installed with its command, or only lies among ComfyUI's custom nodes."""
    found = [EntryPoint("unclip", "unclip.cli.app:main", "console_scripts")] if request.param else []
    monkeypatch.setattr(catalogue, "entry_points", lambda **_: found)
    return request.param


def test_loaders_refuse_an_unknown_name_before_the_run(comfyui, tmp_path, command) -> None:
    bundle, prior = (NODE_CLASS_MAPPINGS[f"UnCLIPLoad{name}"].VALIDATE_INPUTS for name in ("Bundle", "Prior"))
    assert bundle("tiny") is True and bundle("mini") is True and prior("tiny/prior.safetensors") is True
    assert bundle("tiny", "none") is True and "'other'" in bundle("tiny", "other")
    assert bundle() is True, "what comes by a wire is not known yet"
    found = bundle("karlo-v1-alpha")
    by_hand = "hf download kakaobrain/karlo-v1-alpha --local-dir models/unclip/karlo-v1-alpha"
    assert ("unclip download karlo" in found) == command and (by_hand in found) != command
    assert "models/unclip/karlo-v1-alpha" in found and str(tmp_path) not in found
    assert prior("x.pt").startswith("there is no model file 'x.pt'")
    assert isinstance(bundle(5), str)


def test_a_refusal_of_several_inputs_names_those_that_it_means(comfyui) -> None:
    bundle = NODE_CLASS_MAPPINGS["UnCLIPLoadBundle"].VALIDATE_INPUTS
    assert bundle("tiny", "none") is True and bundle() is True
    assert re.match(r"bundle: there is no bundle 'x'", bundle("x", "none"))
    assert re.match(r"with_bundle: there is no bundle 'y'", bundle("tiny", "y"))
    both = bundle("x", "y").split("\n")
    assert [line.split(";")[0] for line in both] == [
        "with_bundle: there is no bundle 'y'",
        "bundle: there is no bundle 'x'",
    ]


def test_only_models_in_diffusers_layout_are_offered_beside_another(comfyui, tmp_path) -> None:
    decoder = tmp_path / "models" / "unclip" / "kandinsky-decoder"
    decoder.mkdir()
    (decoder / "model_index.json").write_text('{"_class_name": "KandinskyV22Pipeline"}')
    node = NODE_CLASS_MAPPINGS["UnCLIPLoadBundle"]
    assert node.INPUT_TYPES()["optional"]["with_bundle"][0] == ["none", "kandinsky-decoder"]
    assert node.VALIDATE_INPUTS("tiny", "kandinsky-decoder") is True
    told = "with_bundle: 'mini' is no model in diffusers' layout"
    assert node.VALIDATE_INPUTS("tiny", "mini").startswith(told)
    with pytest.raises(ValueError, match=told):
        run("UnCLIPLoadBundle", bundle="tiny", with_bundle="mini")


def test_folders_in_model_folders_are_called_by_these(comfyui) -> None:
    assert "'x.safetensors' in models/loras, models/unclip/loras. Put" in (
        NODE_CLASS_MAPPINGS["UnCLIPLoadLoRA"].VALIDATE_INPUTS("x.safetensors")
    )
    told = NODE_CLASS_MAPPINGS["UnCLIPLoadEmbedding"].VALIDATE_INPUTS("x.safetensors")
    assert "'x.safetensors' in models/unclip/embeddings. Save" in told


@pytest.mark.parametrize(
    "node_id", [name for name, node in NODE_CLASS_MAPPINGS.items() if hasattr(node, "VALIDATE_INPUTS")]
)
@pytest.mark.parametrize("name", ["nobody/knows.safetensors", "../x", "", 5])
def test_every_refusal_is_without_paths_and_names_the_input_once(comfyui, tmp_path, node_id, name) -> None:
    check = NODE_CLASS_MAPPINGS[node_id].VALIDATE_INPUTS
    for each in inspect.signature(check).parameters:
        told = check(**{each: name})
        named = re.match(r"(\w+): ", told)
        if len(inspect.signature(check).parameters) == 1:
            assert named is None, "ComfyUI writes the name before it"
        else:
            assert named is not None and named[1] == each, "ComfyUI writes one text at every input"
        for path in (tmp_path, host.PACK_FOLDER):
            assert str(path) not in told and path.as_posix() not in told, told


def test_the_page_is_told_where_missing_models_come_from(comfyui, tmp_path) -> None:
    def told():
        return NODE_CLASS_MAPPINGS["UnCLIPLoadBundle"].INPUT_TYPES()["required"]["bundle"][1][
            "unclip_sources"
        ]

    assert "models/unclip/karlo-v1-alpha" in told()["karlo-v1-alpha"]["text"]
    assert {"kandinsky-2-2-prior", "glide", "laion"} <= set(told())
    write_tiny_bundle(tmp_path / "models" / "unclip" / "karlo")
    assert not {"karlo", "karlo-v1-alpha"} & set(told()), "it is here now"


def test_the_type_and_the_place_of_an_error_stay(comfyui, tmp_path) -> None:
    path = tmp_path / "input" / "x.png"

    class Node:
        FUNCTION = "go"

        def go(self, error):
            raise error

    node = messages.with_plain_errors(Node)()
    with pytest.raises(FileNotFoundError) as told:
        node.go(FileNotFoundError(2, "No such file", str(path)))
    assert told.value.errno == 2 and told.value.filename.replace("\\", "/") == "input/x.png"
    assert told.traceback[-1].name == "go"
    with pytest.raises(KeyError):
        node.go(KeyError(3))


def test_folders_of_another_disk_have_their_last_names(comfyui, tmp_path) -> None:
    other = tmp_path / "disk" / "weights"
    comfyui.folders.folder_names_and_paths["unclip"] = ([str(other)], set())
    text = messages.plain(f"{other / 'a.pt'}: damaged; put it into {tmp_path / 'models' / 'unclip'}")
    assert text.replace("\\", "/") == "disk/weights/a.pt: damaged; put it into models/unclip"


def test_without_comfyui_paths_stay() -> None:
    assert messages.plain(f"{host.PACK_FOLDER}/models/x") == f"{host.PACK_FOLDER}/models/x"


def test_a_linked_pack_is_called_by_the_name_of_the_link(tmp_path) -> None:
    (tmp_path / "custom_nodes").mkdir()
    try:
        (tmp_path / "custom_nodes" / "linked").symlink_to(host.PACK_FOLDER, target_is_directory=True)
    except OSError as error:  # Windows without developer mode
        pytest.skip(f"no links here: {error}")
    code = "from linked.nodes import host; print(host.PACK_NAME, host.PACK_FOLDER.name)"
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "custom_nodes",
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["linked", host.PACK_FOLDER.name]
