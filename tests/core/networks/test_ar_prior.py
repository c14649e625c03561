"""The network of the autoregressive prior: cached against whole passes, causality, shapes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unclip.core.acceleration.packed import packed_copy
from unclip.core.embeddings.codec import EmbeddingCodec
from unclip.core.networks.ar_prior import AutoregressivePrior, AutoregressivePriorConfig
from unclip.core.networks.prior_cache import PriorCache
from unclip.core.stages import PriorStage

from ...helpers.ar_prior import BUCKETS, COMPONENTS, CONFIG, small_ar_prior
from ...helpers.prior import DIM, LENGTH, SPACE, captions

LENGTHS = (3, LENGTH, 6)


@pytest.fixture(scope="module")
def prior() -> PriorStage:
    return small_ar_prior()


def sequences(rows: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(BUCKETS, (rows, COMPONENTS), generator=generator)
    return codes, torch.randint(4, (rows,), generator=generator)


def by_steps(network: AutoregressivePrior, codes: Tensor, match: Tensor, cache) -> Tensor:
    read = [match, *codes.T[:-1]]
    return torch.stack([network.step(previous, cache) for previous in read], dim=1)


@pytest.mark.parametrize("text_codes", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_cached_logits_are_those_of_whole_passes(packed: bool, text_codes: bool) -> None:
    network, text = small_ar_prior(config=replace(CONFIG, text_codes=text_codes)).network, captions(*LENGTHS)
    codes, match = sequences(6)  # two candidates for each caption

    def twice(rows: Tensor) -> Tensor:
        return rows.repeat_interleave(2, dim=0)

    expected = network(codes, match, twice(text.tokens), twice(text.pooled), twice(text.mask))
    assert expected.shape == (6, COMPONENTS, BUCKETS)
    network = packed_copy(network) if packed else network
    prefix = network.prefill(text.tokens, text.pooled, text.mask)
    found = by_steps(network, codes, match, network.start(prefix, text.pooled, 2))
    assert (found - expected).abs().max() < 1e-5
    other = by_steps(network, codes, (match + 1) % 4, network.start(prefix, text.pooled, 2))
    assert (other - expected).abs().max() > 1e-2


def test_captions_of_different_prefixes_join(prior) -> None:
    network, text = prior.network, captions(7)
    null = text.null
    codes, match = sequences(1)
    parts = [network.prefill(t.tokens, t.pooled, t.mask) for t in (text, null)]
    joined = PriorCache.cat(*parts)
    cache = network.start(joined, torch.cat([text.pooled, null.pooled]), 1)
    found = by_steps(network, codes.repeat(2, 1), match.repeat(2), cache)
    for row, part in enumerate((text, null)):
        expected = network(codes, match, part.tokens, part.pooled, part.mask)
        assert (found[row : row + 1] - expected).abs().max() < 1e-5


def test_a_code_is_told_what_comes_before_it_and_nothing_else(prior) -> None:
    text, (codes, match) = captions(4), sequences(1)
    features = (text.tokens, text.pooled, text.mask)
    logits = prior.network(codes, match, *features)
    for index in range(COMPONENTS):
        changed = codes.clone()
        changed[0, index] = (codes[0, index] + 5) % BUCKETS
        moved = (prior.network(changed, match, *features) - logits).abs().amax(dim=2)[0]
        assert (moved[: index + 1] == 0).all()
        assert (moved[index + 1 :] > 1e-4).all()
    for other in (
        prior.network(codes, (match + 1) % 4, *features),
        prior.network(codes, match, text.tokens, -text.pooled, text.mask),
        prior.network(codes, match, -text.tokens, text.pooled, text.mask),
    ):
        assert ((other - logits).abs().amax(dim=2) > 1e-4).all()
    padded = text.tokens.clone()
    padded[:, 4:] = 9.0
    assert (prior.network(codes, match, padded, text.pooled, text.mask) - logits).abs().max() == 0


def test_text_codes_are_those_of_the_codec(prior) -> None:
    codec = EmbeddingCodec.from_state(prior.network.codebook.state_dict(), SPACE)
    text = captions(3, 4, 5).pooled
    assert torch.equal(prior.network.codebook.text_codes(text), codec.encode_text(text))


def test_text_codes_are_the_same_in_training(prior) -> None:
    text = captions(*(4,) * 600).pooled
    expected = prior.network.codebook.text_codes(text)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior.network.codebook.text_codes(text), expected)
        # What rounding would make of them.
        book = prior.network.codebook
        rounded = ((text - book.pca_mean) @ book.pca_components.T).float().T.contiguous()
        assert not torch.equal(torch.searchsorted(book.text_edges, rounded).T, expected)


def test_a_tiny_prior_learns_a_toy_distribution() -> None:
    """The first code is told by z_t, every other one repeats it."""
    torch.manual_seed(0)
    network = AutoregressivePrior(replace(CONFIG, buckets=4, components=3, layers=1))
    network.codebook.load_state_dict(
        small_ar_prior(config=replace(CONFIG, buckets=4, components=3)).network.codebook.state_dict()
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        classes = torch.randint(4, (32,), generator=generator)
        pooled = F.one_hot(classes, DIM).float() * 3
        text = (torch.zeros(32, 2, DIM), pooled, torch.ones(32, 2, dtype=torch.bool))
        codes = classes[:, None].expand(32, 3)
        logits = network(codes, torch.zeros(32, dtype=torch.int64), *text)
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1 and losses[-1] < 0.2


def test_shapes_that_do_not_fit_are_named(prior) -> None:
    network, text, (codes, match) = prior.network, captions(3, 4), sequences(2)
    features = (text.tokens, text.pooled, text.mask)
    prefix = network.prefill(*features)
    full = network.start(prefix, text.pooled, 1)
    by_steps(network, codes, match, full)
    for call, message in (
        (
            lambda: network(codes[:, :3], match, *features),
            "expected codes [2, 6] and match [2], found",
        ),
        (lambda: network(codes[:1], match[:1], *features), "found [1, 6] and [1]"),
        (lambda: network(codes, match, text.tokens[..., :5], *features[1:]), "found [2, 11, 5]"),
        (
            lambda: network.step(match[:1], full),
            "expected as many codes, found shape [1]",
        ),
        (lambda: network.step(match, full), "all 6 codes are there already"),
    ):
        with pytest.raises(ValueError, match="^autoregressive prior: .*" + re.escape(message)):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width 30 is not a multiple of its 4 heads"),
        ({"layers": 0}, "layers is 0, expected more than 0"),
        ({"components": 99}, "components is 99, expected at most dim, 24"),
        ({"buckets": 1}, "buckets is 1, expected at least 2"),
        ({"match_buckets": 3}, "match_buckets is 3, expected an even number"),
    ],
)
def test_configs_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"autoregressive prior: {message}"):
        replace(CONFIG, **change)


def test_the_defaults_are_the_papers_billion() -> None:
    with torch.device("meta"):
        network = AutoregressivePrior(AutoregressivePriorConfig(dim=1024, text_dim=2048))
    assert 0.75e9 < sum(value.numel() for value in network.parameters()) < 1.1e9
