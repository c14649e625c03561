"""The nodes around embeddings and starting noise, on a tiny bundle."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from unclip.cli.builtin_nodes import Folders
from unclip.cli.local import local_catalog, run_here
from unclip.cli.workflow import parse_workflow
from unclip.core.embeddings.arithmetic import blend, interpolate, slerp, text_diff
from unclip.core.embeddings.space import Embedding
from unclip.core.formats.embedding_file import load_embedding, save_embedding
from unclip.core.formats.safetensors_io import write_tensor_file
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.noise import StartingNoise, draw_starting_noise, interpolate_noise
from unclip.nodes import NODE_CLASS_MAPPINGS, catalogue, embedding_files, host

from .helpers_bundle import DECODED_SIZE, DIM, tiny_bundle, write_tiny_bundle
from .helpers_nodes import run

QUICK = DecodeOptions(steps=3, guidance_scale=2.0)


@pytest.fixture(scope="module")
def tiny():
    return tiny_bundle(upsamplers=0)


@pytest.fixture(scope="module")
def embedding(tiny) -> Embedding:
    return Embedding(torch.randn(2, DIM, generator=torch.Generator().manual_seed(5)), tiny.clip.space)


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


def row(embedding: Embedding, index: int) -> Embedding:
    return replace(embedding, vectors=embedding.vectors[index : index + 1])


def picture(seed: int, *shape: int):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- noise ----------------------------------------------------------------------------------------------


def test_noise_of_a_seed_is_the_one_that_decoding_draws(tiny, embedding) -> None:
    (noise,) = run("UnCLIPNoise", decoder=tiny.decoder, seed=7, batch_size=2)
    assert noise.values.shape == (2, 3, DECODED_SIZE, DECODED_SIZE)
    given = {"decoder": tiny.decoder, "embedding": embedding, "steps": 3}
    (with_noise,) = run("UnCLIPDecode", **given, seed=0, noise=noise)
    assert torch.equal(with_noise, run("UnCLIPDecode", **given, seed=7)[0])
    assert not torch.allclose(with_noise, run("UnCLIPDecode", **given, seed=0)[0], atol=1e-3)


def test_noises_are_interpolated_over_all_pixels(tiny) -> None:
    first, second = (draw_starting_noise(tiny.decoder, seed=seed) for seed in (0, 1))
    (found,) = run("UnCLIPNoiseInterpolate", first=first, second=second, frames=5)
    assert len(found) == 5
    assert torch.equal(found.values[0], first.values[0]) and torch.equal(found.values[4], second.values[0])
    expected = slerp(first.values.flatten(), second.values.flatten(), 0.5).view_as(first.values[0])
    torch.testing.assert_close(found.values[2], expected)
    assert found.values[2].std() == pytest.approx(1, abs=0.05)
    assert ((first.values + second.values) / 2).std() < 0.8  # a straight line loses its strength
    eased = run("UnCLIPNoiseInterpolate", first=first, second=second, frames=5, ease="ease-in")[0]
    assert not torch.equal(eased.values[2], found.values[2])


def test_what_noise_refuses(tiny, embedding) -> None:
    noise = draw_starting_noise(tiny.decoder, seed=0)
    larger = StartingNoise(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="second: the noise is for 32×32 pixels, the first one for 16×16"):
        interpolate_noise(noise, larger, 3)
    with pytest.raises(ValueError, match="frames is 1; expected at least 2"):
        interpolate_noise(noise, noise, 1)
    with pytest.raises(
        ValueError, match=r"noise: found shape \(1, 3, 32, 32\), expected \[batch, 3, 16, 16\]"
    ):
        run("UnCLIPDecode", decoder=tiny.decoder, embedding=embedding, noise=larger)
    with pytest.raises(ValueError, match=r"noise: found shape \(3, 8\)"):
        StartingNoise(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="decoder: nothing arrived"):
        run("UnCLIPNoise", decoder=None)


def test_inverting_and_decoding_gives_the_picture_back(tiny, embedding) -> None:
    image = picture(0, 2, DECODED_SIZE, DECODED_SIZE, 3)
    given = {"decoder": tiny.decoder, "embedding": embedding, "steps": 8, "guidance_scale": 1.0}
    (noise,) = run("UnCLIPInvert", image=image, refinements=6, **given)
    (found,) = run("UnCLIPDecode", noise=noise, **given)
    assert (found - image).square().mean().sqrt() < 0.01
    # Variations: eta leads away from it, and each seed elsewhere.
    away = [
        run("UnCLIPDecode", noise=noise, eta=eta, seed=seed, **given)[0]
        for eta, seed in ((0.5, 0), (1.0, 0), (1.0, 1))
    ]
    distances = [(one - image).square().mean() for one in away]
    assert distances[1] > distances[0] > 1e-3
    assert (away[1] - away[2]).abs().max() > 1e-2


def test_invert_takes_grey_and_transparent_pictures_of_any_size(tiny, embedding) -> None:
    for image in (picture(0, 1, 20, 30, 4), picture(0, 1, 20, 30, 1)):
        (noise,) = run("UnCLIPInvert", decoder=tiny.decoder, embedding=embedding, image=image, steps=2)
        assert noise.values.shape == (2, 3, DECODED_SIZE, DECODED_SIZE)


# --- negative conditions --------------------------------------------------------------------------------


def test_negative_conditions_take_the_place_of_the_null_branch(tiny, embedding) -> None:
    text = encode_text(tiny.clip, ["a red day"])
    negative = row(embedding, 1)

    def paint(options=QUICK, **more):
        return decode(tiny.decoder, row(embedding, 0), text, seed=0, options=options, **more)

    plain = paint()
    assert torch.equal(paint(negative_embedding=None, negative_text=None), plain)
    changed = [
        paint(negative_embedding=negative),
        paint(negative_text=encode_text(tiny.clip, ["two love"])),
        paint(negative_embedding=negative, negative_text=encode_text(tiny.clip, ["two love"])),
    ]
    for index, one in enumerate(changed):
        assert all((one - other).abs().max() > 1e-3 for other in [plain, *changed[:index]])
    # x0 = negative + s·(positive − negative): away from oneself there is nothing to guide.
    same = paint(negative_embedding=row(embedding, 0), negative_text=text)
    unguided = paint(replace(QUICK, guidance_scale=1.0))
    torch.testing.assert_close(same, unguided, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        paint(replace(QUICK, guidance_scale=1.0), negative_embedding=negative), unguided
    )


def test_negative_conditions_are_checked(tiny, embedding) -> None:
    other = tiny_bundle(upsamplers=0, space_id="somebody/else")
    stranger = Embedding(embedding.vectors, other.clip.space)
    given = {"decoder": tiny.decoder, "embedding": row(embedding, 0), "steps": 2, "guidance_scale": 2.0}
    with pytest.raises(ValueError, match="negative_embedding is in the CLIP space 'somebody/else'"):
        run("UnCLIPDecode", **given, negative_embedding=stranger)
    with pytest.raises(ValueError, match="negative_text is in the CLIP space 'somebody/else'"):
        run("UnCLIPDecode", **given, negative_text=encode_text(other.clip, ["a"]))
    with pytest.raises(ValueError, match="embedding 2, batch_size 1, negative_embedding 3"):
        three = replace(embedding, vectors=torch.zeros(3, DIM))
        run("UnCLIPDecode", **{**given, "embedding": embedding}, negative_embedding=three)


# --- embeddings -----------------------------------------------------------------------------------------


def test_the_embedding_nodes_do_their_arithmetic(tiny, embedding) -> None:
    first, second = row(embedding, 0), row(embedding, 1)
    (found,) = run("UnCLIPInterpolate", first=first, second=second, frames=4, ease="smooth")
    torch.testing.assert_close(found.vectors, interpolate(first, second, 4, "smooth").vectors)

    target, baseline = (encode_text(tiny.clip, [caption]) for caption in ("a red day", "two love"))
    change = {"embedding": first, "target_text": target, "theta_max": 0.3, "frames": 3}
    (found,) = run("UnCLIPTextDiff", **change, baseline_text=baseline)
    torch.testing.assert_close(found.vectors, text_diff(first, target, baseline, 0.3, 3).vectors)
    assert not torch.allclose(run("UnCLIPTextDiff", **change)[0].vectors, found.vectors)

    weights = {"weight_1": 1.0, "weight_2": 3.0, "weight_3": 2.0, "weight_4": -0.5}
    (found,) = run("UnCLIPBlend", embedding_1=first, embedding_3=second, embedding_4=embedding, **weights)
    expected = blend([first, second, embedding], [1.0, 2.0, -0.5])
    torch.testing.assert_close(found.vectors, expected.vectors)
    (alone,) = run("UnCLIPBlend", embedding_1=first)
    torch.testing.assert_close(alone.vectors, first.vectors)


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
    save_embedding(row(embedding, 0), path)
    assert node.IS_CHANGED(file="mine.safetensors [input]") != first


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
    with pytest.raises(ValueError, match="embedding: holds NaN or infinite values"):
        save_embedding(replace(embedding, vectors=vectors * float("nan")), path)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_embedding(embedding, tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_saved_in_single(tmp_path, embedding) -> None:
    half = replace(embedding, vectors=embedding.vectors.half())
    found = load_embedding(save_embedding(half, tmp_path / "a.safetensors"))
    assert found.vectors.dtype == torch.float32 and torch.equal(found.vectors, half.vectors.float())


# --- inpainting -----------------------------------------------------------------------------------------


def test_an_edit_goes_back_into_the_original(tiny, embedding) -> None:
    image = picture(0, 1, 40, 24, 3)
    (mask,) = run("UnCLIPRegionMask", image=image, shape="ellipse", x=0.3, width=0.4)
    assert mask.shape == (1, 40, 24) and 0 < mask.mean() < 0.3
    given = {"decoder": tiny.decoder, "embedding": row(embedding, 0), "steps": 3}
    (small,) = run("UnCLIPInpaint", image=image, mask=mask, **given)
    assert small.shape == (1, DECODED_SIZE, DECODED_SIZE, 3)
    (whole,) = run("UnCLIPComposite", original=image, edited=small, mask=mask, feather=2)
    outside = (mask == 0)[..., None].expand_as(image)
    assert torch.equal(whole[outside], image[outside])
    assert (whole - image)[~outside].abs().mean() > 0.05


def test_inpaint_takes_pictures_and_masks_as_load_image_gives_them(tiny, embedding) -> None:
    given = {"decoder": tiny.decoder, "embedding": row(embedding, 0), "steps": 2, "resamples": 1}
    mask = torch.zeros(1, 64, 64)  # another size than the picture
    mask[:, :32] = 1
    image = picture(0, 2, DECODED_SIZE, DECODED_SIZE, 4)
    (found,) = run("UnCLIPInpaint", image=image, mask=mask, **given)
    assert found.shape == (2, DECODED_SIZE, DECODED_SIZE, 3)
    assert torch.equal(found[:, 10:], image[:, 10:, :, :3])
    (grey,) = run("UnCLIPInpaint", image=image[:1, ..., :1], mask=mask[0], **given)
    assert torch.equal(grey[:, 10:], image[:1, 10:, :, :1].expand(-1, -1, -1, 3))
    with pytest.raises(ValueError, match="mask: is empty, so there is nothing to repaint"):
        run("UnCLIPInpaint", image=image, mask=torch.zeros(1, 64, 64), **given)
    with pytest.raises(ValueError, match="decoder: nothing arrived"):
        run("UnCLIPInpaint", **{**given, "decoder": None}, image=image, mask=mask)
