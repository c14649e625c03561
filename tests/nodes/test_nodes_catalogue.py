"""What the load nodes offer, and what they say when a model is not there."""

from __future__ import annotations

import json

import pytest
from unclip.core.formats.native.checkpoints import save_stage
from unclip.nodes import NODE_CLASS_MAPPINGS, catalogue, embedding_files, host, picture_folders

from ..helpers.bundle import tiny_bundle


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The pack's own model folder with `mini`, and a user's folder; both of empty files."""
    pack, user = tmp_path / "pack", tmp_path / "user"
    monkeypatch.setattr(catalogue, "PACK_FOLDER", pack)
    monkeypatch.setattr(host, "PACK_FOLDER", pack)
    monkeypatch.setenv("UNCLIP_MODELS", str(user))
    user.mkdir()
    write_bundle(pack / "models" / "mini", {"clip": "clip.safetensors", "decoder": "decoder.safetensors"})
    return pack / "models", user


def write_bundle(folder, stages):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps({"format": 1, "name": folder.name, "stages": stages}))
    for entry in stages.values():
        for name in [entry] if isinstance(entry, str) else entry:
            (folder / name).touch()


def test_bundles_are_listed_with_the_embedded_one_first(folders):
    write_bundle(folders[1] / "karlo", {"decoder": "decoder.safetensors"})
    write_bundle(folders[1] / "family" / "apple", {"decoder": "decoder.safetensors"})
    write_bundle(folders[1] / ".trash", {"decoder": "decoder.safetensors"})
    (folders[1] / "no bundle").mkdir()
    assert catalogue.list_bundles() == ["mini", "family/apple", "karlo"]
    assert catalogue.find_bundle("family/apple") == folders[1] / "family" / "apple"


def test_stage_files_are_those_of_bundles_and_loose_ones(folders):
    user = folders[1]
    write_bundle(
        user / "karlo", {"decoder": "d.safetensors", "upsamplers": ["a.safetensors", "b.safetensors"]}
    )
    (user / "loose.safetensors").touch()
    (user / "readme.txt").touch()
    (user / "karlo" / "spare.safetensors").touch()
    decoders = ["mini/decoder.safetensors", "karlo/d.safetensors", "loose.safetensors"]
    assert catalogue.list_stage_files("decoder") == decoders
    assert catalogue.list_stage_files("upsampler") == [
        "karlo/a.safetensors",
        "karlo/b.safetensors",
        "loose.safetensors",
    ]
    assert catalogue.find_stage_file("karlo/d.safetensors") == user / "karlo" / "d.safetensors"
    assert catalogue.find_stage_file("karlo\\d.safetensors") == user / "karlo" / "d.safetensors"


def test_numbers_in_names_are_counted(folders):
    """upsampler-256 comes before upsampler-1024, and is what a new loader node has chosen."""
    pack, user = folders
    upsamplers = ["upsampler-1024.safetensors", "upsampler-256.safetensors"]
    for folder in (pack / "mini", user / "karlo-10", user / "karlo-9"):
        write_bundle(folder, {"upsamplers": upsamplers})
    assert catalogue.list_stage_files("upsampler") == [
        f"{bundle}/upsampler-{size}.safetensors"
        for bundle in ("mini", "karlo-9", "karlo-10")
        for size in (256, 1024)
    ]
    assert catalogue.list_bundles() == ["mini", "karlo-9", "karlo-10"]


def test_of_two_priors_the_one_that_the_bundle_names_first_is_chosen(folders):
    priors = {"prior": "prior.safetensors", "ar_prior": "ar-prior.safetensors"}
    for folder in (folders[0] / "mini", folders[1] / "another"):
        write_bundle(folder, priors)
    assert catalogue.list_stage_files("prior") == [
        f"{bundle}/{file}" for bundle in ("mini", "another") for file in priors.values()
    ]


def test_operators_lie_outside_of_bundles(folders):
    assert catalogue.list_operator_files() == ["learned_prior.pth"], "not empty, and finding it says why"
    with pytest.raises(ValueError, match=r"there is no model file 'learned_prior.pth'"):
        catalogue.find_stage_file("learned_prior.pth")
    write_bundle(folders[0] / "mini", {"prior": "prior.safetensors"})
    (folders[1] / "scene").mkdir()
    (folders[1] / "scene" / "learned_prior.pth").touch()
    assert catalogue.list_operator_files() == ["scene/learned_prior.pth"]


def test_a_checkpoint_in_shards_is_one_name(folders):
    big = folders[1] / "big"
    big.mkdir()
    for name in ("prior-00001-of-00002.safetensors", "prior-00002-of-00002.safetensors"):
        (big / name).touch()
    assert len([n for n in catalogue.list_stage_files("prior") if "-of-" in n]) == 2, "no index, no set"
    (big / "prior.safetensors.index.json").touch()
    assert catalogue.list_stage_files("prior") == ["big/prior.safetensors"]
    found = catalogue.find_stage_file("big/prior.safetensors")
    assert found == big / "prior.safetensors.index.json"


def write_diffusers_folder(folder, *networks):
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    for name in networks:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        (folder / name / "diffusion_pytorch_model.safetensors").touch()


def test_a_model_in_diffusers_layout_is_a_bundle(folders):
    user = folders[1]
    write_diffusers_folder(user / "karlo", "prior", "decoder", "text_encoder", "text_proj", "super_res_first")
    write_diffusers_folder(user / "kandinsky", "prior")
    write_diffusers_folder(user / "other", "unet", "vae")
    assert catalogue.list_bundles() == ["mini", "kandinsky", "karlo", "other"]
    assert catalogue.find_bundle("karlo") == user / "karlo"
    assert catalogue.list_stage_files("prior") == ["kandinsky/prior", "karlo/prior"]
    assert catalogue.list_stage_files("clip") == ["mini/clip.safetensors", "karlo"]
    assert catalogue.list_stage_files("upsampler") == ["karlo/super_res_first"]
    assert catalogue.find_stage_file("karlo/prior") == user / "karlo" / "prior"
    assert catalogue.find_stage_file("karlo") == user / "karlo"


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_files_of_pytorch_are_listed(folders, suffix):
    (folders[1] / f"prior{suffix}").touch()
    (folders[1] / "ViT-L-14_stats.th").touch()  # belongs to a prior
    assert catalogue.list_stage_files("prior") == [f"prior{suffix}"]
    assert catalogue.find_stage_file(f"prior{suffix}") == folders[1] / f"prior{suffix}"


def test_shards_of_pytorch_are_one_name(folders):
    for name in ("x-00001-of-00002.bin", "x-00002-of-00002.bin", "x.bin.index.json"):
        (folders[1] / name).touch()
    assert catalogue.list_stage_files("prior") == ["x.bin"]
    assert catalogue.find_stage_file("x.bin") == folders[1] / "x.bin.index.json"


def test_the_embedded_bundle_wins_over_a_folder_of_its_name(folders):
    write_bundle(folders[1] / "mini", {"decoder": "decoder.safetensors"})
    assert catalogue.find_bundle("mini") == folders[0] / "mini"
    assert catalogue.list_bundles() == ["mini"]


def test_an_unreadable_bundle_stays_in_the_list_and_breaks_nothing(folders):
    for number, content in enumerate(("{", "[]", '{"stages": 3}', '{"stages": {"decoder": 4}}')):
        folder = folders[1] / f"broken{number}"
        folder.mkdir()
        (folder / "bundle.json").write_text(content)
    assert len(catalogue.list_bundles()) == 5
    assert catalogue.list_stage_files("decoder") == ["mini/decoder.safetensors"]


def test_a_missing_embedded_bundle_is_still_offered_and_explained(folders):
    (folders[0] / "mini" / "bundle.json").unlink()
    assert catalogue.list_bundles() == ["mini"]
    with pytest.raises(ValueError, match=r"the embedded bundle 'mini' is missing: .*install the pack again"):
        catalogue.find_bundle("mini")
    (folders[0] / "mini" / "clip.safetensors").unlink()
    (folders[0] / "mini" / "decoder.safetensors").unlink()
    (name,) = catalogue.list_stage_files("decoder")
    with pytest.raises(ValueError, match=r"the embedded bundle 'mini' is missing"):
        catalogue.find_stage_file(name)


def test_an_unknown_name_says_what_there_is_and_where_to_put_it(folders):
    with pytest.raises(
        ValueError, match=r"there is no bundle 'another'; found mini. Put its folder"
    ) as error:
        catalogue.find_bundle("another")
    assert str(folders[1]) in str(error.value)
    with pytest.raises(ValueError, match=r"there is no model file 'x.safetensors' in ") as error:
        catalogue.find_stage_file("x.safetensors")
    assert str(folders[1]) in str(error.value)


def test_a_downloaded_folder_of_single_files_says_how_it_becomes_a_bundle(folders):
    """As ``unclip download laion`` makes it: it is here, and no bundle."""
    file = save_stage(tiny_bundle().decoder, folders[1] / "laion" / "decoder.safetensors")
    with pytest.raises(ValueError, match=r"it holds files of single stages: decoder\.safetensors") as error:
        catalogue.find_bundle("laion", "--bundle")
    assert f"unclip convert {file} -o NAME" in str(error.value)


@pytest.mark.parametrize("name", ["../mini", "mini/../../x", "/etc", "C:\\x", "a\\..\\..\\b", "", " "])
def test_names_do_not_lead_out_of_the_model_folders(folders, name):
    for find in (catalogue.find_bundle, catalogue.find_stage_file):
        with pytest.raises(ValueError, match="is not a name inside the model folders"):
            find(name)


@pytest.mark.parametrize("name", [5, None, ["mini"], "x\0y", "\ud800", "a" * 300, "a/" * 3000 + "x"])
def test_what_cannot_be_a_name_is_said_to_be_none(folders, name):
    for find, what in (
        (catalogue.find_bundle, "bundle"),
        (catalogue.find_stage_file, "file"),
        (embedding_files.find_embedding, "file"),
        (picture_folders.find_folder, "folder"),
    ):
        with pytest.raises(ValueError, match=f"^{what}: "):
            find(name)


def test_links_that_lead_back_are_walked_once(folders):
    """Two of them take exponentially long where each is followed anew."""
    _, user = folders
    (user / "sub" / "deep").mkdir(parents=True)
    (user / "sub" / "weights.safetensors").touch()
    for number in range(4):
        (user / "sub" / f"back{number}").symlink_to(user, target_is_directory=True)
        (user / "sub" / "deep" / f"back{number}").symlink_to(user / "sub", target_is_directory=True)
    assert [n for n in catalogue.list_stage_files("clip") if "weights" in n] == ["sub/weights.safetensors"]
    assert catalogue.list_bundles() == ["mini"]


def test_links_to_models_elsewhere_are_followed_and_real_names_come_first(folders, tmp_path):
    _, user = folders
    write_bundle(tmp_path / "disk" / "karlo", {"clip": "clip.safetensors"})
    write_bundle(user / "own", {"clip": "clip.safetensors"})
    (user / "big").symlink_to(tmp_path / "disk", target_is_directory=True)
    (user / "alias").symlink_to(user / "own", target_is_directory=True)
    assert catalogue.list_bundles() == ["mini", "big/karlo", "own"]
    assert catalogue.find_bundle("alias") == user / "alias"


def loaders(user):
    """(node, what it was given, a file that its result is made of)."""
    write_bundle(user / "own", {"decoder": "decoder.safetensors"})
    (user / "style.safetensors").touch()
    (user / "loras").mkdir()
    (user / "loras" / "style.safetensors").touch()
    (user / "large.safetensors.index.json").touch()
    (user / "large-00001-of-00002.safetensors").touch()
    weights = user / "own" / "decoder.safetensors"
    return [
        ("UnCLIPLoadBundle", {"bundle": "own", "with_bundle": "none"}, weights),
        ("UnCLIPLoadBundle", {"bundle": "mini", "with_bundle": "own"}, user / "own" / "bundle.json"),
        ("UnCLIPLoadDecoder", {"file": "own/decoder.safetensors"}, weights),
        ("UnCLIPLoadPrior", {"file": "large.safetensors"}, user / "large-00001-of-00002.safetensors"),
        ("UnCLIPOperator", {"file": "style.safetensors"}, user / "style.safetensors"),
        ("UnCLIPLoadLoRA", {"lora": "style.safetensors"}, user / "loras" / "style.safetensors"),
    ]


@pytest.mark.parametrize(
    ("node", "given", "beside"),
    [
        ("Decoder", "own/decoder.safetensors", "own/bundle.json"),
        ("Decoder", "kandinsky/decoder_fp16.ckpt", "kandinsky/movq_final.ckpt"),
        ("Upsampler", "laion/latest.pth", "laion/decoder_config.json"),
        ("Prior", "karlo/prior.ckpt", "karlo/ViT-L-14_stats.th"),
        ("Prior", f"{'0a' * 16}/prior.ckpt", f"{'1b' * 16}/ViT-L-14_stats.th"),
        ("Prior", "karlo/prior/", "karlo/prior_scheduler/scheduler_config.json"),
        ("Decoder", "karlo/decoder/", "karlo/text_proj/model.safetensors"),
        ("Decoder", "karlo/decoder/", "karlo/unclip.json"),
        ("Upsampler", "karlo/super_res_first/", "karlo/super_res_last/model.safetensors"),
        ("Decoder", "kandinsky/unet/", "kandinsky/movq/model.safetensors"),
        ("Decoder", "kandinsky/unet/", "kandinsky/scheduler/scheduler_config.json"),
        ("CLIP", "kandinsky/image_encoder/", "kandinsky/feature_extractor/preprocessor_config.json"),
        ("CLIP", "glide/base.pt", "glide/merges.txt"),
        ("LoRA", "ink/adapter_model.safetensors", "loras/ink/adapter_config.json"),
    ],
)
def test_a_stage_is_loaded_again_when_a_file_beside_it_that_it_is_made_of_changes(
    folders, node, given, beside
):
    loader, user = NODE_CLASS_MAPPINGS[f"UnCLIPLoad{node}"], folders[1]
    where, name = (user / "loras", "lora") if node == "LoRA" else (user, "file")
    file = where / given / "config.json" if given.endswith("/") else where / given
    for path in (file, user / beside):
        path.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    named = {name: given.rstrip("/")}
    before = loader.IS_CHANGED(**named)
    for other in ("preview.png", "other.safetensors"):
        (where / given).with_name(other).touch()
        assert loader.IS_CHANGED(**named) == before, other
    for content in (b"one", b"another"):
        (user / beside).write_bytes(content)
        after = loader.IS_CHANGED(**named)
        assert after != before
        before = after


def test_a_model_whose_file_was_replaced_is_loaded_again_and_no_other(folders):
    """ComfyUI keeps what a node gave for as long as its inputs, and what IS_CHANGED says, stay."""
    for node_id, given, file in loaders(folders[1]):
        node = NODE_CLASS_MAPPINGS[node_id]
        before = node.IS_CHANGED(**given, precision="auto", seed=1)
        (folders[1] / "other.safetensors").write_bytes(b"another model")
        assert node.IS_CHANGED(**given) == before, node_id
        file.write_bytes(file.read_bytes() + b"trained further")
        assert node.IS_CHANGED(**given) != before, node_id
        assert node.IS_CHANGED(**dict.fromkeys(given)) == node.IS_CHANGED(**dict.fromkeys(given, "nobody"))
