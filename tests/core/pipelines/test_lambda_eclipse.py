"""λ-ECLIPSE's prior and its subject pictures, against a statement of the public code by diffusers' blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import PriorTransformer
from torch import Tensor, nn
from unclip.core.diffusion.noise import draw_noise, image_generators
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.formats.load import load_any_bundle, load_any_stage
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.networks.one_pass_prior import OnePassPrior
from unclip.core.pipelines.conditioning import zero_embedding
from unclip.core.pipelines.encode import encode_text
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.pipelines.subjects import encode_with_subjects
from unclip.core.stages import PriorStage

from ...helpers import karlo
from ...helpers.karlo import DIM, LENGTH
from ...helpers.nodes import run
from ...helpers.unet import difference, random_tensor, randomised

WITHIN, OUTSIDE, SEED = 1e-5, 1e-3, 5
CAPTION, NAMES = "a cat wearing sun glasses", ["cat", "sun glasses"]


@pytest.fixture(scope="module")
def pipeline():
    return karlo.with_exact_tables(karlo.tiny_kandinsky_prior())


@pytest.fixture(scope="module")
def clip(pipeline, tmp_path_factory):
    folder = karlo.save_as_published(pipeline, tmp_path_factory.mktemp("prior") / "prior")
    return load_any_bundle(folder).clip


@pytest.fixture(scope="module")
def theirs() -> PriorTransformer:
    """Four tokens behind the caption; the first is the control, which has a projection of its own."""
    network = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        embedding_dim=DIM,
        num_embeddings=LENGTH,
        additional_embeddings=4,
    )
    del network.time_embedding
    network.embedding_control = nn.Linear(DIM, 32)
    return randomised(network, 3)


@pytest.fixture(scope="module")
def prior(theirs, tmp_path_factory) -> PriorStage:
    folder = tmp_path_factory.mktemp("lambda-eclipse")
    theirs.save_pretrained(folder)
    return load_any_stage(folder, expect="prior")


@torch.no_grad()
def reference(theirs, noise: Tensor, features: dict[str, Tensor], control: Tensor) -> Tensor:
    tokens = torch.cat(
        [
            theirs.encoder_hidden_states_proj(features["text_encoder_hidden_states"]),
            theirs.embedding_control(control)[:, None],
            theirs.embedding_proj(features["prompt_embeds"])[:, None],
            theirs.proj_in(noise)[:, None],
            theirs.prd_embedding.expand(len(noise), -1, -1),
        ],
        dim=1,
    )
    padding = F.pad((1 - features["text_mask"].float()) * -10000.0, (0, 4))
    mask = (padding[:, None] + theirs.causal_attention_mask).repeat_interleave(2, dim=0)
    tokens = tokens + theirs.positional_embedding
    for block in theirs.transformer_blocks:
        tokens = block(tokens, attention_mask=mask)
    return theirs.proj_to_clip_embeddings(theirs.norm_out(tokens)[:, -1])


@torch.no_grad()
def their_features(pipeline, caption: str, vectors: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The tokens of each name become its picture, wherever they stand; the pooled caption stays."""
    encoded = pipeline.tokenizer(
        caption, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    found = pipeline.text_encoder(**encoded)
    hidden, ids = found.last_hidden_state.clone(), encoded["input_ids"][0].tolist()
    for vector, name in zip(vectors, names, strict=True):
        for token in pipeline.tokenizer(name)["input_ids"][1:-1]:
            for place, each in enumerate(ids):
                if each == token:
                    hidden[0, place] = vector
    return {
        "prompt_embeds": found.text_embeds,
        "text_encoder_hidden_states": hidden,
        "text_mask": encoded["attention_mask"],
    }


SUBJECTS = random_tensor(1, 2, DIM)


def test_subjects_and_control_give_their_embedding(pipeline, theirs, clip, prior) -> None:
    assert isinstance(prior.network, OnePassPrior) and prior.network.config.control
    features = their_features(pipeline, CAPTION, SUBJECTS, NAMES)
    size = pipeline.image_encoder.config.image_size
    zero = pipeline.image_encoder(torch.zeros(1, 3, size, size)).image_embeds.detach()
    text = encode_with_subjects(clip, CAPTION, Embedding(SUBJECTS, clip.space), NAMES)
    assert (
        difference(
            text.tokens[text.mask], features["text_encoder_hidden_states"][features["text_mask"].bool()]
        )
        < WITHIN
    )
    assert difference(text.control, zero) < WITHIN
    options = PriorOptions(candidates=1)
    for seed in (SEED, SEED + 1):
        noise = draw_noise(image_generators(seed, 1), (DIM,))
        expected = reference(theirs, noise, features, zero)
        found = sample_diffusion_prior(prior, text, seed=seed, options=options)
        assert difference(found.vectors, expected) < WITHIN
    plain = encode_with_subjects(clip, CAPTION, Embedding(SUBJECTS.flip(0), clip.space), NAMES)
    assert (
        difference(sample_diffusion_prior(prior, plain, seed=seed, options=options).vectors, expected)
        > OUTSIDE
    )

    outlines = random_tensor(2, 1, DIM)
    text = encode_with_subjects(
        clip, CAPTION, Embedding(SUBJECTS, clip.space), NAMES, Embedding(outlines, clip.space)
    )
    expected = reference(theirs, noise, features, outlines)
    found = sample_diffusion_prior(prior, text, seed=seed, options=options)
    assert difference(found.vectors, expected) < WITHIN


def test_the_node_and_several_pictures_of_one_caption(clip, prior) -> None:
    given = {"clip": clip, "text": CAPTION, "subject_names": "cat\nsun glasses\n"}
    (text,) = run("UnCLIPSubjects", **given, embedding=Embedding(SUBJECTS, clip.space))
    (found, _) = run("UnCLIPDiffusionPrior", prior=prior, text=text, batch_size=2, candidates=2, seed=3)
    assert len(found) == 2
    (alone, _) = run("UnCLIPDiffusionPrior", prior=prior, text=text, candidates=2, seed=4)
    assert difference(found.vectors[1:], alone.vectors) < WITHIN
    (repeated, _) = run("UnCLIPDiffusionPrior", prior=prior, text=text, repeat=2, candidates=2, seed=3)
    assert difference(repeated.vectors, found.vectors) < WITHIN


def test_it_is_kept_in_our_format(prior, tmp_path) -> None:
    path = save_stage(prior, tmp_path / "p.safetensors")
    assert load_stage(path, expect="prior").network.config == prior.network.config


def test_captions_and_priors_that_do_not_go_together_say_so(clip, prior) -> None:
    with pytest.raises(ValueError, match="encode it with unCLIP Subjects"):
        sample_diffusion_prior(prior, encode_text(clip, [CAPTION]), seed=1)


def test_what_does_not_fit_is_named(clip) -> None:
    subjects = Embedding(SUBJECTS, clip.space)
    with pytest.raises(ValueError, match="subject_names: 'dog' is not in the caption"):
        encode_with_subjects(clip, CAPTION, subjects, ["cat", "dog"])
    with pytest.raises(ValueError, match="subject_names: found 1 names for 2 embeddings"):
        encode_with_subjects(clip, CAPTION, subjects, ["cat"])
    with pytest.raises(ValueError, match="embedding is in the CLIP space 'somebody/else'"):
        encode_with_subjects(clip, CAPTION, Embedding(SUBJECTS, EmbeddingSpace("somebody/else", DIM)), NAMES)
    two = Embedding(zero_embedding(clip).vectors.repeat(2, 1), clip.space)
    with pytest.raises(ValueError, match="control: found 2 embeddings"):
        encode_with_subjects(clip, CAPTION, subjects, NAMES, two)


@pytest.mark.parametrize("name", ["cat at", "glasses cat", "at cat a", "cat glasses"])
def test_a_name_stands_in_the_caption_with_its_words_side_by_side(clip, name) -> None:
    subject = Embedding(SUBJECTS[:1], clip.space)
    with pytest.raises(ValueError, match=f"subject_names: '{name}' is not in the caption"):
        encode_with_subjects(clip, CAPTION, subject, [name])
