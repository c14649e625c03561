"""CLIP's tokenizer, id by id against open_clip's."""

from __future__ import annotations

import random

import open_clip
import pytest
import torch
from unclip.core.formats.files import clip_tokenizer
from unclip.core.formats.files.clip_tokenizer import ClipTokenizer
from unclip.core.networks.clip import FULL_MERGES

CAPTIONS = ["a red car", "", "the very long tale of one car and of two dogs in a field"]
ODD = [
    "  Don't STOP;   it's we'RE 'LL\n",
    "a <END_OF_TEXT> in <start_of_text> it",
    "&amp;lt;b&amp;gt; &#233;t&eacute;",
    "naïve café ﬁne İstanbul ẞ",
    "mojibake: schÃ¶n, â€œquotedâ€",
    "12,345 cars!! 3d ½ ٣ Ⅻ",
    "😀👨\u200d👩\u200d👧 你好 'ſ",
    "half a pair: \ud800 \udc00",
    "\x1cbells\x07 and\u3000whistles\u200b",
]


@pytest.fixture(scope="module")
def reference() -> open_clip.tokenizer.SimpleTokenizer:
    return open_clip.tokenizer.SimpleTokenizer()


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(FULL_MERGES, context_length=77)


@pytest.fixture(scope="module")
def short() -> ClipTokenizer:
    return ClipTokenizer(2000, context_length=12)


def test_the_vocabulary_is_that_of_open_clip(tokenizer: ClipTokenizer, reference) -> None:
    assert tokenizer.vocabulary == reference.encoder
    assert tokenizer.vocab_size == 49408


@pytest.mark.parametrize("length", [77, 12, 5])
def test_ids_are_those_of_open_clip(reference, length: int) -> None:
    captions = [*CAPTIONS, *ODD]
    found = ClipTokenizer(FULL_MERGES, length)(captions)
    assert found.dtype == torch.int64
    assert torch.equal(found, reference(captions, context_length=length))


@pytest.mark.parametrize("last", [0x24F, 0xFFFF, 0x1FFFF])
def test_any_text_has_the_ids_of_open_clip(tokenizer: ClipTokenizer, reference, last: int) -> None:
    draw = random.Random(last)
    near = "abcdefghij 'stmd.!<>0123&;#x"
    for _ in range(300):
        letters = [
            chr(draw.randint(1, last)) if draw.random() < 0.6 else draw.choice(near) for _ in range(12)
        ]
        text = "".join(letters)
        assert tokenizer.encode(text) == reference.encode(text), ascii(text)


def test_a_short_merge_table_gives_a_small_vocabulary(short: ClipTokenizer) -> None:
    assert short.vocab_size == 2514
    ids = short(CAPTIONS)
    assert ids.shape == (3, 12)
    assert ids.dtype == torch.int64
    assert ids[:, 0].tolist() == [2512] * 3  # start
    assert (ids == 2513).sum(1).tolist() == [1] * 3  # end, the highest id, once, also when cut
    assert ids.max() == 2513
    assert ids[2, -1] == 2513
    assert ids[0, 5:].tolist() == [0] * 7  # padding
    assert ids[1].tolist() == [2512, 2513] + [0] * 10


def test_a_short_merge_table_is_the_beginning_of_the_full_one(short: ClipTokenizer, reference) -> None:
    for word in ("a", "the", "photo", "red"):  # among the first merges
        assert short.encode(word) == reference.encode(word)
    merged = list(reference.encoder)[512:2512]
    assert list(short.vocabulary)[512:2512] == merged
    assert len(short.encode("quintessential")) > len(reference.encode("quintessential"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_tokenizer, "find_spec", lambda name: None)
    clip_tokenizer.merge_table.cache_clear()
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        ClipTokenizer(10, context_length=5)
