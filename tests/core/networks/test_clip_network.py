from __future__ import annotations

import re
from dataclasses import replace

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.transforms.functional import to_tensor
from unclip.core.formats.mapping.tokenizing import build_tokenizer
from unclip.core.networks import clip as clip_network
from unclip.core.networks.clip import (
    FULL_MERGES,
    ClipConfig,
    ClipNetwork,
    ClipTextConfig,
    ClipTokenizerConfig,
    ClipVisionConfig,
    fit_images,
    preset,
)

from ...helpers.clip import open_clip_of, same_in_open_clip

TOKENIZER = ClipTokenizerConfig(merges=2000)
CONFIG = ClipConfig(
    embed_dim=24,
    vision=ClipVisionConfig(width=32, layers=2, image_size=32, patch_size=8, head_width=16),
    text=ClipTextConfig(width=48, heads=3, layers=2, context_length=12, vocab_size=TOKENIZER.vocab_size),
    tokenizer=TOKENIZER,
)
CAPTIONS = ["a red car", "", "the very long tale of one car and of two dogs in a field"]


@pytest.fixture(scope="module")
def network() -> ClipNetwork:
    generator = torch.Generator().manual_seed(0)
    network = ClipNetwork(CONFIG).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network


@pytest.fixture(scope="module")
def reference(network: ClipNetwork) -> open_clip.CLIP:
    return same_in_open_clip(network)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(CONFIG)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_training_begins_with_the_parameters_of_open_clip(quick_gelu: bool) -> None:
    config = replace(
        CONFIG, quick_gelu=quick_gelu, vision=replace(CONFIG.vision, mlp_ratio=4.9), text=CONFIG.text
    )
    torch.manual_seed(0)
    own = ClipNetwork(config).clip
    torch.manual_seed(0)
    model = open_clip_of(config)
    assert [name for name, _ in own.named_parameters()] == [name for name, _ in model.named_parameters()]
    for name, value in model.state_dict().items():
        assert torch.equal(own.state_dict()[name], value), name
    x = torch.randn(2, 12, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(own.transformer(x), model.transformer(x), rtol=1e-6, atol=1e-6)
    other = ClipNetwork(replace(config, quick_gelu=not quick_gelu)).clip
    other.load_state_dict(own.state_dict())
    assert (other.transformer(x) - model.transformer(x)).abs().max() > 1e-5


def test_half_precision_is_that_of_open_clip(network, reference, tokenizer) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        expected = reference.encode_image(images), reference.encode_text(tokenizer(CAPTIONS))
        found = network.clip.visual(images), network.encode_tokens(tokenizer(CAPTIONS))[2]
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == other.dtype
        assert torch.equal(own, other)


def test_text_features_are_those_of_open_clip(network, reference, tokenizer) -> None:
    ids = tokenizer(CAPTIONS)
    tokens, mask, pooled = network.encode_tokens(ids)
    expected = reference.encode_text(ids, normalize=False)
    assert tokens.shape == (3, 12, 48)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [5, 2, 12]  # start, words, end; the third caption fills the context
    assert (pooled - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert (nn.functional.normalize(pooled, dim=-1) - expected).abs().max() > 1e-2
    # the sequence is not projected yet: the end token's row is what the pooled features are made from
    end = tokens[torch.arange(3), mask.sum(1) - 1]
    torch.testing.assert_close(end @ network.clip.text_projection, pooled)


def test_padding_never_reaches_a_caption(network, tokenizer) -> None:
    ids = tokenizer(["a red car"])
    padded = ids.clone()
    padded[:, 5:] = 7  # behind the end token, and below its id
    tokens, mask, pooled = network.encode_tokens(ids)
    other_tokens, other_mask, other_pooled = network.encode_tokens(padded)
    torch.testing.assert_close(pooled, other_pooled)
    torch.testing.assert_close(tokens[mask], other_tokens[other_mask])
    assert (tokens - other_tokens).abs().max() > 1e-3


def test_image_embeddings_are_those_of_open_clip(network, reference) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    expected = reference.encode_image((images - mean) / std, normalize=False)
    found = network.encode_pixels(images)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert (reference.encode_image(images) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (20, 33)])
def test_resizing_is_that_of_open_clip(size: tuple[int, int]) -> None:
    noise = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(2))
    smooth = nn.functional.interpolate(noise[None], size, mode="bilinear")[0]
    picture = Image.fromarray((smooth * 255).byte().permute(1, 2, 0).numpy())
    reference = open_clip.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))(picture)
    found = fit_images(to_tensor(picture)[None], 32)[0]
    # open_clip resizes 8-bit pictures: a rounding to 1/255 per pass, at most, remains
    assert (found - reference).abs().max() <= 2.5 / 255
    assert (fit_images(to_tensor(picture)[None], 32, "squash")[0] - reference).abs().max() > 10 / 255


def test_squashing_keeps_the_whole_picture() -> None:
    picture = torch.zeros(1, 1, 32, 128)
    picture[..., :32] = 1  # the left quarter, which the middle square does not see
    assert fit_images(picture, 32, "crop").max() < 1e-6
    assert fit_images(picture, 32, "squash")[..., :6].min() > 0.99


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    picture = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(fit_images(picture, 32), picture.float())


def test_training_reaches_every_parameter(tokenizer) -> None:
    network = ClipNetwork(CONFIG)
    image, text, scale = network(torch.rand(3, 3, 32, 32), tokenizer(CAPTIONS))
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    nn.functional.cross_entropy(scale * image @ text.T, torch.arange(3)).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []
    assert network.logit_scale.grad is not None


def test_half_precision_stays_near(network, tokenizer) -> None:
    ids, images = tokenizer(CAPTIONS), torch.rand(1, 3, 32, 32)
    half = ClipNetwork(CONFIG).eval()
    half.load_state_dict(network.state_dict())
    half.bfloat16()
    for found, expected in [
        (half.encode_tokens(ids)[2], network.encode_tokens(ids)[2]),
        (half.encode_pixels(images), network.encode_pixels(images)),
    ]:
        assert found.dtype == torch.bfloat16
        assert nn.functional.cosine_similarity(found.float(), expected).min() > 0.99


def test_the_causal_mask_has_its_values_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = ClipNetwork(CONFIG)
    assert all(value.is_meta for value in network.parameters())
    assert torch.equal(network.clip.attn_mask, torch.full((12, 12), float("-inf")).triu(1))


def test_presets_of_open_clip() -> None:
    large = preset("ViT-L-14-quickgelu")
    assert (large.embed_dim, large.vision.width, large.text.width) == (768, 1024, 768)
    assert large.quick_gelu
    assert large.tokenizer.merges == FULL_MERGES
    big = preset("ViT-bigG-14")
    assert (big.embed_dim, big.vision.head_width, big.vision.mlp_ratio) == (1280, 104, 4.9231)
    with torch.device("meta"):
        parameters = sum(value.numel() for value in ClipNetwork(large).parameters())
    assert parameters == 427_616_513  # as open_clip documents for ViT-L-14


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit-l-14", "no CLIP preset 'vit-l-14'; did you mean 'ViT-L-14'?"),
        ("ViT-Q-99", "no CLIP preset 'ViT-Q-99'; open_clip.list_models() lists them"),
        ("RN50", "CLIP preset 'RN50' is not a plain ViT"),
        ("roberta-ViT-B-32", "CLIP preset 'roberta-ViT-B-32' is not a plain ViT"),
    ],
)
def test_unknown_presets_are_errors(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        preset(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": ClipTokenizerConfig(100)}, "a tokenizer of 100 merges has 614 tokens"),
        (
            {"tokenizer": ClipTokenizerConfig(0), "text": replace(CONFIG.text, vocab_size=514)},
            "tokenizer.merges is 0, expected 1 to 48894",
        ),
        (
            {"vision": replace(CONFIG.vision, image_size=30)},
            "image_size 30 is not a multiple of vision.patch_size 8",
        ),
        (
            {"vision": replace(CONFIG.vision, head_width=10)},
            "width 32 is not a multiple of vision.head_width 10",
        ),
        ({"text": replace(CONFIG.text, heads=0)}, "text.heads is 0, expected more than 0"),
        ({"vision": replace(CONFIG.vision, patch_size=0)}, "vision.patch_size is 0, expected more than 0"),
        ({"embed_dim": 0}, "embed_dim is 0, expected more than 0"),
        ({"image_std": (0.2, 0.0, 0.2)}, "image_std is (0.2, 0.0, 0.2), expected more than 0"),
        ({"text": replace(CONFIG.text, heads=5)}, "text.width 48 is not a multiple of text.heads 5"),
    ],
)
def test_configs_that_cannot_be_built_are_errors(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(CONFIG, **change)


def test_wrong_inputs_are_errors(network) -> None:
    with pytest.raises(ValueError, match=re.escape("token ids have shape (1, 77), expected [batch, 12]")):
        network.encode_tokens(torch.zeros(1, 77, dtype=torch.long))
    with pytest.raises(ValueError, match=re.escape("images have shape (1, 4, 32, 32), expected [batch, 3")):
        network.encode_pixels(torch.zeros(1, 4, 32, 32))
    for width in (32, 40):  # the network's own size, which nothing has to be done to, and another
        with pytest.raises(ValueError, match=r"^fit: 'pad' is not known; expected 'crop' or 'squash'"):
            network.encode_pixels(torch.zeros(1, 3, 32, width), "pad")


@pytest.mark.parametrize("size", [(1, 30000), (30000, 1), (3, 9001), (2, 33)])
def test_a_long_strip_takes_no_more_memory_than_its_middle(size) -> None:
    """Scaled whole to 64 pixels of breadth, 30000 pixels in a row would be 1.5 GB."""
    height, width = size
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    scaled: list[int] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                scaled.append(result.numel())
            return result

    with Watch():
        found = fit_images(picture, 64)
    assert found.shape == (1, 3, 64, 64) and max(scaled) <= 3 * 64 * 64 * 18
    if max(size) < 9001:  # small enough to be scaled whole by hand
        short = min(size)
        whole = F.interpolate(
            picture, (64 * height // short, 64 * width // short), mode="bicubic", antialias=True
        )
        top, left = ((side - 64) // 2 for side in whole.shape[-2:])
        expected = whole.clamp(0, 1)[..., top : top + 64, left : left + 64]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(40, 640), (640, 40), (100, 37), (64, 64)])
def test_pictures_up_to_sixteen_times_as_long_are_scaled_whole(size, monkeypatch) -> None:
    picture = torch.rand(1, 3, *size)
    found = fit_images(picture, 32)
    monkeypatch.setattr(clip_network, "_without_far_ends", lambda images: images)
    assert torch.equal(found, fit_images(picture, 32))
