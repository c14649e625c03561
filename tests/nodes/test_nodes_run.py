"""The nodes at work on a tiny bundle, wired as a workflow wires them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from unclip.core.embeddings.space import EmbeddingSpace, TextFeatures
from unclip.nodes import NODE_CLASS_MAPPINGS, host

from ..helpers.bundle import DECODED_SIZE, DIM, write_tiny_bundle
from ..helpers.nodes import run


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_bundle(folder / "tiny")
    write_tiny_bundle(folder / "small", upsamplers=1)
    write_tiny_bundle(folder / "stranger", upsamplers=0, space_id="somebody/else")
    return folder


@pytest.fixture(autouse=True)
def _environment(model_folder, monkeypatch):
    monkeypatch.setenv("UNCLIP_MODELS", str(model_folder))
    monkeypatch.setattr(host, "_progress_factory", Steps)
    Steps.seen = []


class Steps:
    """A progress display that counts."""

    seen: list[tuple[str, int, int]] = []

    def __init__(self, title, total):
        self.title = title

    def __enter__(self):
        return lambda done, total: Steps.seen.append((self.title, done, total))

    def __exit__(self, *_):
        return None


@pytest.fixture
def tiny():
    return dict(
        zip(
            (
                "clip",
                "prior",
                "decoder",
                "upsampler_256",
                "upsampler_1024",
                "ar_prior",
                "decoder_clip",
            ),
            run("UnCLIPLoadBundle", bundle="tiny", precision="fp32"),
            strict=True,
        )
    )


TEXT = TextFeatures(
    torch.zeros(1, 1, DIM),
    torch.ones(1, 1, dtype=torch.bool),
    torch.zeros(1, DIM),
    EmbeddingSpace("unclip/tiny", DIM),
)


def picture(tiny, *, prompt="a red fox", seed=0, batch_size=1, steps=3):
    (text,) = run("UnCLIPTextEncode", clip=tiny["clip"], text=prompt)
    embedding, _ = run(
        "UnCLIPDiffusionPrior", prior=tiny["prior"], text=text, seed=seed, batch_size=batch_size, steps=steps
    )
    (image,) = run(
        "UnCLIPDecode", decoder=tiny["decoder"], embedding=embedding, text=text, seed=seed, steps=steps
    )
    return image


def test_a_prompt_becomes_a_picture_through_all_stages(tiny):
    image = picture(tiny)
    assert image.shape == (1, DECODED_SIZE, DECODED_SIZE, 3)
    for stage, size in (("upsampler_256", 32), ("upsampler_1024", 64)):
        (image,) = run("UnCLIPUpsample", upsampler=tiny[stage], image=image, steps=2)
        assert image.shape == (1, size, size, 3)
    assert image.dtype == torch.float32 and image.device.type == "cpu" and image.is_contiguous()
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.01
    titles = [(title, total) for title, done, total in Steps.seen if done == 1]
    assert titles == [("Encode", 1), ("Prior", 3), ("Decode", 3), ("Upsample", 2), ("Upsample", 2)]
    assert all(done <= total for _, done, total in Steps.seen)


def test_a_picture_is_a_function_of_its_inputs_only(tiny):
    state = torch.get_rng_state()
    first = picture(tiny)
    torch.manual_seed(123)
    assert torch.equal(picture(tiny), first)
    assert not torch.allclose(picture(tiny, seed=1), first, atol=1e-3)
    assert not torch.allclose(picture(tiny, prompt="a blue whale"), first, atol=1e-3)
    torch.set_rng_state(state)
    picture(tiny)
    assert torch.equal(torch.get_rng_state(), state), "the global generator belongs to others"


def test_picture_i_of_a_batch_is_the_single_picture_of_seed_plus_i(tiny):
    batch = picture(tiny, seed=7, batch_size=4)
    assert batch.shape[0] == 4
    (large,) = run("UnCLIPUpsample", upsampler=tiny["upsampler_256"], image=batch, seed=7, steps=2)
    for i in range(4):
        single = picture(tiny, seed=7 + i)
        torch.testing.assert_close(batch[i], single[0], atol=1e-4, rtol=0)
        (alone,) = run("UnCLIPUpsample", upsampler=tiny["upsampler_256"], image=single, seed=7 + i, steps=2)
        torch.testing.assert_close(large[i], alone[0], atol=1e-4, rtol=0)
    assert not torch.allclose(batch[0], batch[1], atol=1e-3)


def test_one_embedding_can_be_painted_several_times(tiny):
    (embedding,) = run("UnCLIPImageEncode", clip=tiny["clip"], image=torch.rand(1, 20, 30, 4))
    assert embedding.vectors.shape == (1, DIM)
    (images,) = run("UnCLIPDecode", decoder=tiny["decoder"], embedding=embedding, batch_size=3, steps=2)
    assert images.shape[0] == 3 and not torch.allclose(images[0], images[1], atol=1e-3)


def test_image_encode_sees_the_colours_and_not_the_alpha(tiny):
    image = torch.rand(2, 16, 24, 4)
    (embedding,) = run("UnCLIPImageEncode", clip=tiny["clip"], image=image)
    (opaque,) = run("UnCLIPImageEncode", clip=tiny["clip"], image=image[..., :3])
    (squashed,) = run("UnCLIPImageEncode", clip=tiny["clip"], image=image, fit="squash")
    assert len(embedding) == 2
    assert torch.equal(embedding.vectors, opaque.vectors)
    assert not torch.allclose(embedding.vectors, squashed.vectors, atol=1e-3)


def test_the_advanced_inputs_reach_the_samplers(tiny):
    (text,) = run("UnCLIPTextEncode", clip=tiny["clip"], text="a red fox")
    prior = {"prior": tiny["prior"], "text": text, "steps": 4}
    plain, _ = run("UnCLIPDiffusionPrior", **prior)
    for changed in (
        {"guidance_scale": 6.0},
        {"guidance_start": 0.6},
        {"guidance_end": 0.3},
        {"guidance_rescale": 1.0},
        {"sampler": "ddim"},
        {"candidates": 64},
        {"variance": "analytic"},
    ):
        other, _ = run("UnCLIPDiffusionPrior", **prior, **changed)
        assert not torch.allclose(other.vectors, plain.vectors, atol=1e-4), changed
    ddim = {**prior, "sampler": "ddim"}
    assert not torch.allclose(
        run("UnCLIPDiffusionPrior", **ddim, eta=1.0)[0].vectors,
        run("UnCLIPDiffusionPrior", **ddim)[0].vectors,
        atol=1e-4,
    )

    decoder = {"decoder": tiny["decoder"], "embedding": plain, "steps": 4, "guidance_scale": 3.0}
    (image,) = run("UnCLIPDecode", **decoder)
    for changed in (
        {"guidance_start": 0.6},
        {"guidance_end": 0.3},
        {"guidance_rescale": 1.0},
        {"dynamic_threshold": 0.9},
        {"sampler": "dpmpp_2m"},
        {"eta": 1.0},
        {"text": text},
    ):
        assert not torch.allclose(run("UnCLIPDecode", **decoder, **changed)[0], image, atol=1e-4), changed

    upsampler = {"upsampler": tiny["upsampler_256"], "image": image, "steps": 3}
    (large,) = run("UnCLIPUpsample", **upsampler)
    for changed in ({"noise_level": 0.5}, {"eta": 1.0}, {"sampler": "ddpm"}, {"seed": 1}):
        assert not torch.allclose(run("UnCLIPUpsample", **upsampler, **changed)[0], large, atol=1e-4), changed


def test_each_caption_of_a_batch_gives_several_pictures_by_seeds_of_their_own(tiny):
    (text,) = run(
        "UnCLIPTextEncode", clip=tiny["clip"], text="a red fox\n\nan apple", one_caption_a_line=True
    )
    assert len(text) == 2
    prior = {"prior": tiny["prior"], "steps": 2, "candidates": 1}
    each, _ = run("UnCLIPDiffusionPrior", **prior, text=text, seed=10, repeat=2)
    (fox,) = run("UnCLIPTextEncode", clip=tiny["clip"], text="a red fox")
    (apple,) = run("UnCLIPTextEncode", clip=tiny["clip"], text="an apple")
    alone = [
        run("UnCLIPDiffusionPrior", **prior, text=caption, seed=10 + place)[0].vectors
        for place, caption in enumerate((fox, fox, apple, apple))
    ]
    torch.testing.assert_close(each.vectors, torch.cat(alone), atol=1e-5, rtol=1e-4)

    decoder = {"decoder": tiny["decoder"], "steps": 2}
    (image,) = run("UnCLIPDecode", **decoder, embedding=each, seed=5, repeat=2)
    assert len(image) == 8
    one = replace(each, vectors=each.vectors[2:3])
    (last,) = run("UnCLIPDecode", **decoder, embedding=one, seed=5 + 2 * 2 + 1)
    torch.testing.assert_close(image[5:6], last, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(image[4], image[5], atol=1e-3)

    masks = {"image": torch.rand(1, 16, 16, 3), "mask": torch.ones(1, 16, 16), "resamples": 1}
    (painted,) = run("UnCLIPInpaint", **decoder, **masks, embedding=each, repeat=3)
    assert len(painted) == 12
    (codes,) = run("UnCLIPAutoregressivePrior", prior=tiny["ar_prior"], text=text, candidates=1, repeat=2)
    (copies,) = run("UnCLIPTextAsImageEmbedding", text=text, repeat=3)
    assert len(codes) == 4 and torch.equal(copies.vectors, text.pooled.repeat_interleave(3, 0))


def test_words_are_chosen_by_a_seed_where_it_is_asked_for(tiny):
    def encoded(text, **given):
        return run("UnCLIPTextEncode", clip=tiny["clip"], text=text, **given)[0].pooled

    braces = "a {red|blue} fox"
    words = {tuple(encoded(braces, wildcards=True, wildcard_seed=seed)[0].tolist()) for seed in range(8)}
    plain = {tuple(encoded(f"a {colour} fox")[0].tolist()) for colour in ("red", "blue")}
    assert words == plain and tuple(encoded(braces)[0].tolist()) not in plain
    both = encoded(f"{braces}\n{braces}", one_caption_a_line=True, wildcards=True, wildcard_seed=3)
    assert torch.equal(both[1:], encoded(braces, wildcards=True, wildcard_seed=4))


def test_guidance_runs_from_noise_to_result(tiny):
    """guidance_start 0 is at the noise: guiding only the first half is guiding only the noisy steps."""
    image = {"decoder": tiny["decoder"], "steps": 2, "guidance_scale": 5.0}
    (image["embedding"],) = run("UnCLIPImageEncode", clip=tiny["clip"], image=torch.rand(1, 16, 16, 3))
    calls = []
    hook = tiny["decoder"].network.register_forward_hook(lambda module, inputs, out: calls.append(len(out)))
    run("UnCLIPDecode", **image, guidance_end=0.5)
    run("UnCLIPDecode", **image, guidance_start=0.5)
    hook.remove()
    assert calls == [2, 1, 1, 2], "rows through the network: two where guided"


@pytest.fixture
def ar_prior():
    return run("UnCLIPLoadPrior", file="tiny/ar-prior.safetensors", precision="fp32")[0]


def test_the_autoregressive_prior_takes_the_place_of_the_diffusion_prior(tiny, ar_prior):
    (text,) = run("UnCLIPTextEncode", clip=tiny["clip"], text="a red fox")
    given = {"prior": ar_prior, "text": text, "seed": 7}
    (batch,) = run("UnCLIPAutoregressivePrior", **given, batch_size=3)
    assert batch.vectors.shape == (3, DIM)
    assert Steps.seen == [("Encode", 1, 1), *(("Prior", done, 8) for done in range(1, 9))]
    for i in range(3):
        (alone,) = run("UnCLIPAutoregressivePrior", **{**given, "seed": 7 + i})
        torch.testing.assert_close(batch.vectors[i], alone.vectors[0], atol=1e-5, rtol=0)
    for changed in (
        {"guidance_scale": 6.0},
        {"temperature": 0.2},
        {"top_p": 0.2},
        {"top_k": 1},
        {"candidates": 64},  # the best of so many is hardly among the first four, three times over
    ):
        (other,) = run("UnCLIPAutoregressivePrior", **given, **changed, batch_size=3)
        assert not torch.allclose(other.vectors, batch.vectors, atol=1e-4), changed
    (image,) = run("UnCLIPDecode", decoder=tiny["decoder"], embedding=batch, steps=2)
    assert image.shape[0] == 3


def test_a_prior_of_the_other_kind_says_which_node_to_use(tiny, ar_prior):
    (text,) = run("UnCLIPTextEncode", clip=tiny["clip"], text="a red fox")
    with pytest.raises(ValueError, match=r"prior\.safetensors' is not an auto.*node unCLIP Diffusion Prior"):
        run("UnCLIPAutoregressivePrior", prior=tiny["prior"], text=text)
    with pytest.raises(
        ValueError, match=r"ar-prior\.safetensors' is not a diff.*node unCLIP Autoregressive Pr"
    ):
        run("UnCLIPDiffusionPrior", prior=ar_prior, text=text)


def test_a_text_embedding_is_handed_on_as_an_image_embedding(tiny):
    (text,) = run("UnCLIPTextEncode", clip=tiny["clip"], text="a red fox")
    (embedding,) = run("UnCLIPTextAsImageEmbedding", text=text, batch_size=2)
    assert torch.equal(embedding.vectors, text.pooled.expand(2, -1))
    (image,) = run("UnCLIPDecode", decoder=tiny["decoder"], embedding=embedding, steps=2)
    assert image.shape[0] == 2


def test_precision_sets_the_number_format():
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        (decoder,) = run("UnCLIPLoadDecoder", file="tiny/decoder.safetensors", precision=precision)
        assert {parameter.dtype for parameter in decoder.network.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("node_id", "file", "output"),
    [
        ("UnCLIPLoadCLIP", "tiny/clip.safetensors", "clip"),
        ("UnCLIPLoadPrior", "tiny/prior.safetensors", "prior"),
        ("UnCLIPLoadPrior", "tiny/ar-prior.safetensors", "ar_prior"),
        ("UnCLIPLoadDecoder", "tiny/decoder.safetensors", "decoder"),
        ("UnCLIPLoadUpsampler", "tiny/upsampler-32.safetensors", "upsampler_256"),
        ("UnCLIPLoadUpsampler", "tiny/upsampler-64.safetensors", "upsampler_1024"),
    ],
)
def test_a_stage_loader_gives_what_the_bundle_loader_gives(tiny, node_id, file, output):
    choices, _ = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]["file"]
    assert file in choices
    (stage,) = run(node_id, file=file, precision="fp32")
    expected = tiny[output].network.state_dict()
    assert stage.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in stage.network.state_dict().items())


def test_a_file_of_another_stage_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"prior\.safetensors: holds a prior, but a decoder is expected"):
        run("UnCLIPLoadDecoder", file="tiny/prior.safetensors")


def test_a_bundle_may_lack_upsamplers_until_one_is_used():
    _, _, decoder, first, second, *_ = run("UnCLIPLoadBundle", bundle="small", precision="fp32")
    assert decoder is not None and first is not None and second is None
    with pytest.raises(
        ValueError, match=r"upsampler: nothing arrived\. Either the loaded bundle has no such"
    ):
        run("UnCLIPUpsample", upsampler=second, image=torch.zeros(1, 32, 32, 3))
    assert run("UnCLIPLoadBundle", bundle="stranger")[3:5] == (None, None)


@pytest.mark.parametrize(
    ("node_id", "stage", "rest"),
    [
        ("UnCLIPTextEncode", "clip", {"text": ""}),
        ("UnCLIPImageEncode", "clip", {"image": torch.zeros(1, 8, 8, 3)}),
        ("UnCLIPDiffusionPrior", "prior", {"text": TEXT}),
        ("UnCLIPAutoregressivePrior", "prior", {"text": TEXT}),
        ("UnCLIPDecode", "decoder", {"embedding": None}),
    ],
)
def test_an_empty_stage_is_named(node_id, stage, rest):
    with pytest.raises(ValueError, match=f"^{stage}: nothing arrived"):
        run(node_id, **{stage: None}, **rest)


def test_stages_of_different_clip_models_do_not_mix(tiny):
    _, prior, decoder, *_ = run("UnCLIPLoadBundle", bundle="stranger", precision="fp32")
    (text,) = run("UnCLIPTextEncode", clip=tiny["clip"], text="a red fox")
    embedding, _ = run("UnCLIPDiffusionPrior", prior=tiny["prior"], text=text, steps=1)
    for call in (
        lambda: run("UnCLIPDiffusionPrior", prior=prior, text=text, steps=1),
        lambda: run("UnCLIPDecode", decoder=decoder, embedding=embedding, steps=1),
    ):
        with pytest.raises(ValueError, match="'unclip/tiny'") as error:
            call()
        assert "'somebody/else'" in str(error.value)


def test_errors_name_the_input(tiny):
    (embedding,) = run("UnCLIPImageEncode", clip=tiny["clip"], image=torch.rand(2, 16, 16, 3))
    with pytest.raises(ValueError, match=r"guidance_start: found 0\.8, after guidance_end 0\.2"):
        run(
            "UnCLIPDecode",
            decoder=tiny["decoder"],
            embedding=embedding,
            guidance_start=0.8,
            guidance_end=0.2,
        )
    with pytest.raises(ValueError, match=r"embedding 2, batch_size 3.* set repeat to 3"):
        run("UnCLIPDecode", decoder=tiny["decoder"], embedding=embedding, batch_size=3)
    with pytest.raises(ValueError, match=r"image: found a tensor of shape \[1, 3, 8, 8\]"):
        run("UnCLIPImageEncode", clip=tiny["clip"], image=torch.rand(1, 3, 8, 8))


def test_a_step_callback_that_raises_stops_the_stage(tiny, monkeypatch):
    class Stop(Exception):  # noqa: N818
        pass

    class StopAtTwo(Steps):
        def __enter__(self):
            def update(done, total):
                Steps.seen.append((self.title, done, total))
                if done == 2:
                    raise Stop

            return update

    monkeypatch.setattr(host, "_progress_factory", StopAtTwo)
    (embedding,) = run("UnCLIPImageEncode", clip=tiny["clip"], image=torch.rand(1, 16, 16, 3))
    with pytest.raises(Stop):
        run("UnCLIPDecode", decoder=tiny["decoder"], embedding=embedding, steps=6)
    assert Steps.seen == [("Encode", 1, 1), ("Decode", 1, 6), ("Decode", 2, 6)]
