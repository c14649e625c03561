"""Embeddings saved, listed and loaded by the nodes, and the format of their files."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from unclip.cli.workflow.builtin_nodes import Folders
from unclip.cli.workflow.local import local_catalog, run_here
from unclip.cli.workflow.reading import parse_workflow
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.files.safetensors_io import write_tensor_file
from unclip.core.formats.native.embedding_file import load_embedding, save_embedding
from unclip.nodes import NODE_CLASS_MAPPINGS, catalogue, embedding_files, host
from unclip.nodes import embedding as embedding_nodes

from ..helpers.bundle import DIM, tiny_bundle, write_tiny_bundle
from ..helpers.nodes import run


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    vectors = torch.randn(2, DIM, generator=torch.Generator().manual_seed(5))
    return Embedding(vectors, tiny_bundle(upsamplers=0).clip.space)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Model, input and output folder, all empty; and the list of files that were written."""
    for name in ("models", "input", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("UNCLIP_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(host, "PACK_FOLDER", tmp_path / "pack")
    written = []
    host.set_folders(tmp_path / "input", tmp_path / "output", written.append)
    yield SimpleNamespace(
        models=tmp_path / "models", input=tmp_path / "input", output=tmp_path / "output", written=written
    )
    host.set_folders(None, None)


def test_embeddings_are_saved_numbered_and_loaded_again(folders, embedding) -> None:
    assert embedding_files.list_embeddings() == [embedding_files.NONE_YET]
    for _ in range(2):
        report = run("UnCLIPSaveEmbedding", embedding=embedding, filename_prefix="foxes/red")
    name = "unclip_embeddings/foxes/red_00002_.safetensors [output]"
    assert report == {"ui": {"text": [name]}}
    saved = folders.output / "unclip_embeddings" / "foxes"
    assert [path.name for path in sorted(saved.iterdir())] == [
        "red_00001_.safetensors",
        "red_00002_.safetensors",
    ]
    assert folders.written == sorted(saved.iterdir())
    (found,) = run("UnCLIPLoadEmbedding", file=name)
    assert found.space == embedding.space and found.space.mean == embedding.space.mean
    assert torch.equal(found.vectors, embedding.vectors)


def test_a_number_that_another_run_has_taken_meanwhile_stays_its_own(folders, embedding, monkeypatch) -> None:
    """Two ComfyUIs on one output folder look for a free number at the same time."""
    other = folders.output / "unclip_embeddings" / "red_00001_.safetensors"
    monkeypatch.setattr(embedding_nodes, "place_files", lambda *_: (other.parent, "red", 1))
    save_embedding(replace(embedding, vectors=embedding.vectors[:1]), other)
    theirs = other.read_bytes()
    report = run("UnCLIPSaveEmbedding", embedding=embedding, filename_prefix="red")
    assert report == {"ui": {"text": ["unclip_embeddings/red_00002_.safetensors [output]"]}}
    assert other.read_bytes() == theirs
    assert sorted(path.name for path in other.parent.iterdir()) == [
        "red_00001_.safetensors",
        "red_00002_.safetensors",
    ]


def test_embeddings_are_listed_where_people_keep_them(folders, embedding) -> None:
    for folder, name in [
        (folders.models, "embeddings/cats/tom.safetensors"),
        (folders.models, "decoder.safetensors"),
        (folders.input, "mine.safetensors"),
        (folders.input, "deeper/other.safetensors"),
        (folders.input, "photo.png"),
        (folders.output, "unclip_embeddings/red_00001_.safetensors"),
        (folders.output, "unclip_embeddings/.red.tmp.safetensors"),
    ]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_embedding(embedding, folder / name) if name.endswith("tensors") else (folder / name).touch()
    names = ["cats/tom.safetensors", "mine.safetensors [input]"]
    names.append("unclip_embeddings/red_00001_.safetensors [output]")
    assert embedding_files.list_embeddings() == names
    for name in names:
        assert len(run("UnCLIPLoadEmbedding", file=name)[0]) == 2
    # Embeddings are no stages.
    assert catalogue.list_stage_files("decoder") == ["decoder.safetensors"]


def test_nothing_outside_of_the_folders_is_read_or_written(folders, embedding) -> None:
    save_embedding(embedding, folders.output.parent / "secret.safetensors")
    for name in (
        "../secret.safetensors [output]",
        "..\\secret.safetensors [input]",
        "../../secret.safetensors",
        f"{folders.output.parent}/secret.safetensors",
        f"{folders.output.parent}/secret.safetensors [output]",
        "C:/secret.safetensors [input]",
        "",
    ):
        with pytest.raises(ValueError, match=r"is not a name inside|there is no embedding"):
            run("UnCLIPLoadEmbedding", file=name)
        assert NODE_CLASS_MAPPINGS["UnCLIPLoadEmbedding"].VALIDATE_INPUTS(file=name) is not True
    for prefix in ("../red", "/tmp/red", ".."):
        with pytest.raises(ValueError, match=r"filename_prefix .* is not a name inside the output folder"):
            run("UnCLIPSaveEmbedding", embedding=embedding, filename_prefix=prefix)
    assert folders.written == []


def test_a_changed_file_is_loaded_again(folders, embedding) -> None:
    node = NODE_CLASS_MAPPINGS["UnCLIPLoadEmbedding"]
    path = folders.input / "mine.safetensors"
    save_embedding(embedding, path)
    first = node.IS_CHANGED(file="mine.safetensors [input]", other=3)
    assert node.IS_CHANGED(file="mine.safetensors [input]") == first
    assert node.VALIDATE_INPUTS(file="mine.safetensors [input]") is True
    assert node.VALIDATE_INPUTS(file=None) is True
    save_embedding(replace(embedding, vectors=embedding.vectors[:1]), path)
    assert node.IS_CHANGED(file="mine.safetensors [input]") != first


def test_a_file_whose_name_comes_by_a_wire_is_loaded_again_when_any_changed(folders, embedding) -> None:
    node = NODE_CLASS_MAPPINGS["UnCLIPLoadEmbedding"]
    seen = [node.IS_CHANGED(file=None)]
    assert node.IS_CHANGED(file=None) == node.IS_CHANGED() == seen[0], "none of them is no change either"
    for path in (
        folders.models / "embeddings" / "cats" / "tom.safetensors",
        folders.input / "deep" / "mine.safetensors",
        folders.output / "unclip_embeddings" / "red.safetensors",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_embedding(embedding, path)
        assert node.IS_CHANGED(file=None) == node.IS_CHANGED(file=None) not in seen
        seen.append(node.IS_CHANGED(file=None))


def test_the_command_line_saves_and_loads_embeddings(folders) -> None:
    write_tiny_bundle(folders.models / "tiny", upsamplers=0)
    catalog = local_catalog()
    graph = {
        "1": {"class_type": "UnCLIPLoadBundle", "inputs": {"bundle": "tiny", "precision": "fp32"}},
        "2": {"class_type": "UnCLIPTextEncode", "inputs": {"clip": ["1", 0], "text": "a red fox"}},
        "3": {"class_type": "UnCLIPTextAsImageEmbedding", "inputs": {"text": ["2", 0], "batch_size": 1}},
        "4": {
            "class_type": "UnCLIPSaveEmbedding",
            "inputs": {"embedding": ["3", 0], "filename_prefix": "fox"},
        },
    }
    chosen = Folders(folders.input, folders.output)
    run_here(parse_workflow(graph, catalog), catalog, chosen, device="cpu", quiet=True)
    path = folders.output.resolve() / "unclip_embeddings" / "fox_00001_.safetensors"
    assert chosen.written == [path]
    # The list of files was made before this one was saved.
    graph["3"] = {
        "class_type": "UnCLIPLoadEmbedding",
        "inputs": {"file": "unclip_embeddings/fox_00001_.safetensors [output]"},
    }
    host.set_folders(folders.input, folders.output)
    run_here(parse_workflow(graph, catalog), catalog, chosen, device="cpu", quiet=True)
    first, second = (load_embedding(file) for file in chosen.written)
    assert torch.equal(first.vectors, second.vectors)


def test_in_comfyui_its_own_folders_are_used(tmp_path, monkeypatch) -> None:
    folder_paths, management = ModuleType("folder_paths"), ModuleType("comfy.model_management")
    folder_paths.get_input_directory = lambda: str(tmp_path / "in")
    folder_paths.get_output_directory = lambda: str(tmp_path / "out")
    comfy, utils = ModuleType("comfy"), ModuleType("comfy.utils")
    comfy.model_management, comfy.utils, utils.ProgressBar = management, utils, None
    for module in (folder_paths, comfy, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert host.input_folder() == tmp_path / "in" and host.output_folder() == tmp_path / "out"


# --- the file format ------------------------------------------------------------------------------------


def test_a_file_says_what_is_wrong_with_it(tmp_path, embedding) -> None:
    path = tmp_path / "a.safetensors"
    vectors = embedding.vectors
    for tensors, metadata, message in [
        ({"vectors": vectors}, {}, "holds no unCLIP embedding (its metadata lacks 'unclip_embedding'"),
        ({"vectors": vectors}, {"unclip_embedding": "{"}, "its metadata is not JSON"),
        ({"vectors": vectors}, {"unclip_embedding": '{"format": 9}'}, "is in version 9 of the format"),
        ({"vectors": vectors}, {"unclip_embedding": '{"format": 1}'}, "space: expected a table"),
        ({"x": vectors}, {"unclip_embedding": '{"format": 1}'}, "holds the tensors x; expected vectors"),
        (
            {"vectors": vectors},
            {"unclip_embedding": '{"format": 1, "space": {"id": "a", "dim": 5}}'},
            "embedding has shape (2, 32), expected [batch, 5]",
        ),
    ]:
        write_tensor_file(path, tensors, metadata, None)
        with pytest.raises(ValueError) as error:
            load_embedding(path)
        assert str(error.value).startswith(str(path)) and message in str(error.value)
    with pytest.raises(ValueError, match="there is no such file"):
        load_embedding(tmp_path / "none.safetensors")
    path.unlink()
    with pytest.raises(ValueError, match="embedding: it holds NaN or infinite values"):
        save_embedding(replace(embedding, vectors=vectors * float("nan")), path)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_embedding(embedding, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_saved_in_single(tmp_path, embedding) -> None:
    half = replace(embedding, vectors=embedding.vectors.half())
    found = load_embedding(save_embedding(half, tmp_path / "a.safetensors"))
    assert found.vectors.dtype == torch.float32 and torch.equal(found.vectors, half.vectors.float())
