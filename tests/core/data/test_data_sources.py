"""Pictures of one's own: folders, shards and embeddings as the same batches, whatever is damaged in them."""

from __future__ import annotations

import functools
import http.server
import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.data.batches import FILES_AT_ONCE, EpochSampler
from unclip.core.data.decoding import UnfitPictureError, open_picture, square
from unclip.core.data.embeddings import EmbeddingSource
from unclip.core.data.folders import FolderSource
from unclip.core.data.opening import ALLOW_PIPE, open_batches, open_crops, open_embeddings, workers_of
from unclip.core.data.process import Process
from unclip.core.data.settings import DataConfig
from unclip.core.data.shards import ShardSource, local_shard, shard_names

from ...helpers.pictures import colour_of, encoded, picture, write_pictures, write_shards_of, write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "folder")


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    return write_shards_of(folder, folder.parent / "shards")


def of_folder(folder: Path, **more) -> DataConfig:
    return DataConfig(source="folder", path=str(folder), **more)


# --- the same whatever it is read from ---


def test_a_folder_and_shards_of_it_give_the_same_batches(folder: Path, shards: Path) -> None:
    one = open_batches(of_folder(folder, crop="random"), 24, 8, seed=3)
    other = open_batches(DataConfig(source="webdataset", path=str(shards), crop="random"), 24, 8, seed=3)
    for step in (0, 6, 7, 20):
        first, second = one(step), other(step)
        assert first.images.shape == (8, 3, 24, 24)
        assert first.images.dtype == torch.uint8
        assert torch.equal(first.images, second.images)
        assert first.captions == second.captions == [f"a {colour_of(int(i))} disc" for i in first.indices]
    assert torch.equal(one(5).floats(), one(5).images.float() / 255)


def test_rows_do_not_depend_on_who_reads_them(folder: Path) -> None:
    def batches(process: Process):
        return open_batches(of_folder(folder, crop="random"), 24, 8, seed=3, process=process)

    whole = batches(Process())(4)
    shares = [batches(Process(rank, 4))(4) for rank in range(4)]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images)
    assert torch.equal(batches(Process(1, 4)).whole(4).images, whole.images)
    other_seed = open_batches(of_folder(folder, crop="random"), 24, 8, seed=4)(4)
    assert not torch.equal(other_seed.images, whole.images)


def test_held_out_pictures_are_in_one_of_the_two_only(folder: Path) -> None:
    config = of_folder(folder, held_out=0.25)
    sets = [
        {int(i) for step in range(12) for i in open_batches(config, 8, 8, 0, held_out=held)(step).indices}
        for held in (False, True)
    ]
    counts = [len(open_batches(config, 8, 8, 0, held_out=held).source) for held in (False, True)]
    assert sum(counts) == 60
    assert 6 <= counts[1] <= 24
    assert [len(found) for found in sets] == counts


def test_many_files_are_read_a_few_at_a_time() -> None:
    groups = tuple(range(3, 43))
    sampler = EpochSampler(sum(groups), 10, seed=1, groups=groups)
    for epoch in range(2):
        order = sampler._order(epoch)
        assert sorted(order) == list(range(sum(groups)))
        files = np.searchsorted(np.cumsum(groups), order, side="right")
        seen = 0
        for window in range(0, len(groups), FILES_AT_ONCE):
            chosen = list(dict.fromkeys(files[seen:]))[: FILES_AT_ONCE if window < 32 else 8]
            count = sum(groups[file] for file in chosen)
            assert set(files[seen : seen + count]) == set(chosen)
            assert len(chosen) <= FILES_AT_ONCE
            seen += count


# --- decoding ---


def decoded(content: bytes, size: int = 16, crop: str = "center") -> np.ndarray:
    return square(open_picture(content), size, crop, random.Random(0))


def test_a_picture_is_scaled_and_cropped_to_its_middle() -> None:
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste("blue", (16, 0, 48, 32))
    assert (decoded(encoded(wide))[:, 1:-1] == (0, 0, 255)).all()
    moved = {square(open_picture(encoded(wide)), 16, "random", random.Random(i)).tobytes() for i in range(9)}
    assert len(moved) > 5


def test_exif_turns_are_done() -> None:
    upright = Image.new("RGB", (32, 32), "white")
    upright.paste("black", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found = decoded(encoded(upright, "jpg", exif=exif.tobytes(), quality=95))
    assert found[2].mean() > 240 > 15 > found[-3].mean()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 32, 16))
    image = clear.convert(mode)
    found = decoded(encoded(image, **({"transparency": image.getpixel((0, 31))} if mode == "P" else {})))
    assert found[2].max() < 40
    assert found[-3].min() > 240


def test_sixteen_bits_keep_their_grey() -> None:
    grey = Image.fromarray(np.full((20, 20), 0x8000, np.uint16))
    assert abs(int(decoded(encoded(grey)).mean()) - 128) <= 1


def test_pictures_that_do_not_fit_are_left_out() -> None:
    for content, options, reason in (
        (encoded(picture(0)), {"min_side": 41}, "its smaller side has 40 pixels, fewer than 41"),
        (encoded(picture(0, (90, 30))), {"max_aspect": 2.5}, "90×30 is longer than 1:2.5"),
        (b"no picture", {}, "cannot identify"),
        (b"GIF89a" + bytes(20), {}, "cannot identify"),
    ):
        with pytest.raises(UnfitPictureError, match=reason):
            open_picture(content, **options)
    with pytest.raises(UnfitPictureError):
        decoded(encoded(picture(0))[:300])


# --- what is damaged ---


def test_damaged_pictures_are_named_and_others_stand_for_them(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 12)
    (folder / "0003.png").write_bytes((folder / "0003.png").read_bytes()[:200])
    (folder / "0007.png").write_text("no picture")
    (folder / "0009.txt").write_text(" \n")
    shards = write_shards_of(folder, tmp_path / "shards", per_shard=5)
    of_shards = DataConfig(source="webdataset", path=str(shards))
    for config in (of_folder(folder), of_shards):
        batches = open_batches(config, 16, 12, seed=0)
        skipped = dict(batches(0).skipped)
        assert skipped.keys() == {"0003", "0007", "0009"}
        assert "cannot identify" in skipped["0007"]
        assert skipped["0009"] == "its caption is empty"
        assert len(batches(0).captions) == 12
        again = open_batches(config, 16, 12, seed=0)(0)
        assert torch.equal(batches(0).images, again.images)
        halves = [open_batches(config, 16, 12, seed=0, process=Process(rank, 2))(0) for rank in range(2)]
        assert torch.equal(torch.cat([half.images for half in halves]), again.images)


def test_data_of_which_nothing_can_be_used_end_the_run(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 4)
    batches = open_batches(of_folder(folder, min_side=500), 16, 4, seed=0)
    with pytest.raises(ValueError, match=r"none can be used; 000\d: its smaller side has 40 pixels"):
        batches(0)


def test_a_shard_that_is_cut_has_what_lies_before_the_cut(folder: Path, tmp_path: Path) -> None:
    shards = write_shards_of(folder, tmp_path / "shards", per_shard=60)
    path = shards / "00000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 20 < len(ShardSource(str(path))) < 40
    (shards / "00001.tar").write_text("no tar")
    with pytest.raises(ValueError, match=r"00001\.tar is no tar file"):
        ShardSource(str(shards))


def test_only_named_endings_are_read(tmp_path: Path) -> None:
    """Webdataset's own decoders would unpickle the first, and run what it says."""
    image = encoded(picture(0))
    write_tar(
        tmp_path / "a.tar",
        {
            "x/0.pyd": b"cos\nsystem\n(S'false'\ntR.",
            "x/0.png": image,
            "x/0.txt": b"a disc",
            "1.jpg": encoded(picture(1), "jpg"),
            "1.json": b'{"caption": "one", "width": 48}',
            "2.webp": encoded(picture(2), "webp"),
            "3.txt": b"no picture",
            "4.a.png": image,
        },
    )
    source = ShardSource(str(tmp_path / "a.tar"))
    assert [source.key(i) for i in range(len(source))] == ["x/0", "1"]
    assert [source.read(i).caption for i in range(2)] == ["a disc", "one"]
    assert source.missing == ("a.tar/2", "a.tar/3", "a.tar/4")


# --- captions in metadata ---


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_come_from_metadata(tmp_path: Path, kind: str) -> None:
    folder = write_pictures(tmp_path / "folder", 3)
    write_pictures(folder / "sub", 2)
    rows = [("0000.png", "an ä"), ("0002.png", "a, b"), ("sub/0001.png", "inner"), ("gone.png", "x")]
    if kind == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    else:
        lines = ["file_name,text", *(f'{name},"{text}"' for name, text in rows)]
    (folder / f"metadata.{kind}").write_text("\n".join(lines), encoding="utf-8")
    source = FolderSource(folder)
    found = {source.key(i): source.read(i).caption for i in range(len(source))}
    expected = {"0000": "an ä", "0001": "a green disc", "0002": "a, b", "sub/0001": "inner"}
    assert found == {**expected, "sub/0000": "a red disc"}


def test_metadata_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 2)
    for content, message in (
        ('{"file_name": "0000.png", "words": "x"}', r"row 1: no text or caption among file_name, words"),
        ('{"file": "0000.png"}', r"row 1: file_name is None"),
        ("[1]", r"metadata\.jsonl: expected one JSON object a line"),
        ("{", r"metadata\.jsonl cannot be read"),
    ):
        (folder / "metadata.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            FolderSource(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "0000.png", "words": "x"}')
    assert FolderSource(folder, "words").read(0).caption == "x"


# --- where shards lie ---


def test_names_of_shards_are_expanded(shards: Path) -> None:
    every = [str(shards / f"0000{number}.tar") for number in range(3)]
    assert shard_names(str(shards)) == every
    assert shard_names(str(shards / "*.tar")) == every
    assert shard_names(str(shards / "{00000..00001}.tar")) == every[:2]
    assert shard_names(f"{every[2]}::{every[0]}") == [every[2], every[0]]
    assert shard_names("https://x.org/{0..2}.tar") == [f"https://x.org/{n}.tar" for n in range(3)]
    for name in (str(shards / "9*.tar"), str(shards / "9.tar")):
        with pytest.raises(ValueError, match=r"there are no shards .*9"):
            shard_names(name)
    for bomb in ("{0..99999999999}.tar", "{0..999}{0..999}{0..999}.tar"):
        with pytest.raises(ValueError, match="means more than 1,000,000 shards"):
            shard_names(bomb)


def test_shards_are_fetched_once(shards: Path, tmp_path: Path) -> None:
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(shards))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{{00000..00002}}.tar"
        for _ in range(2):
            assert len(ShardSource(url, cache=tmp_path / "cache")) == 60
        assert len(asked) == 3
        with pytest.raises(OSError, match=r"9\.tar: cannot be fetched"):
            ShardSource(url.replace("{00000..00002}", "9"), cache=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 3
    finally:
        server.shutdown()
        server.server_close()


def test_commands_run_only_where_they_are_allowed(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"pipe:cat {shards / '00000.tar'}"
    config = DataConfig(source="webdataset", path=command)
    monkeypatch.delenv(ALLOW_PIPE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"is a command; .* unless you allow it: --allow-pipe"):
        open_batches(config, 16, 4, seed=0)
    with pytest.raises(ValueError, match="for gs write pipe: and the command"):
        local_shard("gs://bucket/0.tar", tmp_path, allow_pipe=True)
    monkeypatch.setenv(ALLOW_PIPE, "1")
    assert len(open_batches(config, 16, 4, seed=0).source) == 25
    with pytest.raises(OSError, match=r"false: the command ended with 1"):
        ShardSource("pipe:false", cache=tmp_path, allow_pipe=True)


# --- embeddings ---


def write_clip_retrieval(folder: Path, rows: tuple[int, ...] = (5, 7)) -> np.ndarray:
    import pyarrow
    from pyarrow import parquet

    vectors = np.random.default_rng(0).normal(size=(sum(rows), 6)).astype(np.float16)
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    first = 0
    for number, count in enumerate(rows):
        part = vectors[first : first + count]
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", part)
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", -part)
        table = {"caption": [f"caption {first + row}" for row in range(count)], "key": list(range(count))}
        parquet.write_table(pyarrow.table(table), folder / "metadata" / f"metadata_{number}.parquet")
        first += count
    return vectors


def test_embeddings_of_clip_retrieval_are_read_with_their_captions(tmp_path: Path) -> None:
    vectors = write_clip_retrieval(tmp_path)
    source = EmbeddingSource(tmp_path)
    assert (len(source), source.dim, source.space_id, source.groups) == (12, 6, "", (5, 7))
    for row in (0, 4, 5, 11):
        found = source.read(row)
        assert found.caption == f"caption {row}"
        assert np.array_equal(found.image, vectors[row].astype(np.float32))
        assert np.array_equal(found.text, -found.image)
    batches = open_embeddings(DataConfig(source="embeddings", path=str(tmp_path)), 6, seed=0)
    batch = batches(3)
    assert torch.equal(batch.images, torch.from_numpy(vectors[batch.indices].astype(np.float32)))
    assert batch.captions == [f"caption {row}" for row in batch.indices]


def test_rows_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    write_clip_retrieval(tmp_path, (8,))
    path = tmp_path / "img_emb" / "img_emb_0.npy"
    vectors = np.load(path)
    vectors[2, 1] = np.nan
    vectors[5] = 0
    np.save(path, vectors)
    batch = open_embeddings(DataConfig(source="embeddings", path=str(tmp_path)), 8, seed=0)(0)
    assert dict(batch.skipped).keys() == {"2", "5"}
    assert batch.images.isfinite().all()


def test_embeddings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no embeddings; expected the shards of `unclip embed`"):
        EmbeddingSource(tmp_path)
    write_clip_retrieval(tmp_path)
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", np.zeros((3, 6), np.float32))
    with pytest.raises(ValueError, match=r"img_emb_1\.npy: embeddings float32 \[3, 6\] for 7 captions"):
        EmbeddingSource(tmp_path)
    (tmp_path / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(ValueError, match=r"its captions are not there, expected .*metadata_1\.parquet"):
        EmbeddingSource(tmp_path)


# --- crops and settings ---


def test_crops_of_pictures_are_cut_from_them(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "folder", 6, size=(96, 64))
    write_pictures(folder / "small", 6)
    crops = open_crops(of_folder(folder), 64, crop=16, margin=4, align=4, batch_size=8, seed=0)
    found = [crops(step) for step in range(6)]
    assert all(batch.images.shape == (8, 3, 24, 24) for batch in found)
    skipped = {name for batch in found for name, _ in batch.skipped}
    assert skipped and all(name.startswith("small/") for name in skipped)
    shares = [
        open_crops(of_folder(folder), 64, 16, 4, 4, batch_size=8, seed=0, process=Process(rank, 2))(2)
        for rank in range(2)
    ]
    assert torch.equal(torch.cat([share.images for share in shares]), found[2].images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "data.shards is not set: where are the pictograms?"),
        ({"source": "folder"}, "data.path is not set: where are the folder?"),
        ({"shards": "a", "path": "b"}, "data.shards and data.path are both set"),
        ({"source": "folder", "path": "a", "shards": "b"}, "data.shards is 'b', which data.source 'folder'"),
        ({"source": "folder", "path": "a", "white": 0.1}, "data.white is 0.1, which data.source 'folder'"),
        ({"shards": "a", "min_side": 3}, "data.min_side is 3, which data.source 'pictograms' does not know"),
        ({"source": "folder", "path": "a", "max_aspect": 0.5}, "data.max_aspect is 0.5, expected at least 1"),
        ({"source": "folder", "path": "a", "held_out": 1.0}, "data.held_out is 1.0, expected 0 to 0.9"),
        ({"source": "folder", "path": "a", "workers": -1}, "data.workers is -1, expected at least 0"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        DataConfig(**settings)


def test_places_without_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        open_batches(of_folder(tmp_path / "none"), 16, 4, seed=0)
    (tmp_path / "a.png").write_bytes(encoded(picture(0)))
    with pytest.raises(ValueError, match=r"no pictures with captions \(1 without\)"):
        open_batches(of_folder(tmp_path), 16, 4, seed=0)
    write_pictures(tmp_path, 2)
    with pytest.raises(ValueError, match=r"none are held out: raise data\.held_out"):
        open_batches(of_folder(tmp_path), 16, 4, seed=0, held_out=True)


def test_workers_are_as_many_as_there_is_room_for(folder: Path) -> None:
    assert workers_of(of_folder(folder, workers=3), 2) == 3
    assert 1 <= workers_of(of_folder(folder), 1) <= 8
    assert workers_of(of_folder(folder), 10_000) == 1
    assert workers_of(DataConfig("shards"), 1) == 0


# --- from one form into another ---


def convert(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["data", "convert", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_a_folder_becomes_shards_and_a_folder_again(folder: Path, tmp_path: Path) -> None:
    assert convert(folder, "-o", tmp_path / "shards", "--per-shard", 25)[0] == 0
    assert convert(folder, "-o", tmp_path / "again", "--per-shard", 25)[0] == 0
    tars = sorted((tmp_path / "shards").iterdir())
    assert [path.name for path in tars] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [path.read_bytes() for path in tars] == [
        path.read_bytes() for path in sorted((tmp_path / "again").iterdir())
    ]
    one = open_batches(of_folder(folder), 24, 8, seed=3)(0)
    other = open_batches(DataConfig(source="webdataset", path=str(tmp_path / "shards")), 24, 8, seed=3)(0)
    assert torch.equal(one.images, other.images)
    assert convert(tmp_path / "shards", "-o", tmp_path / "back")[0] == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_cannot_be_converted_is_told(tmp_path: Path) -> None:
    image = encoded(picture(0))
    write_tar(tmp_path / "out.tar", {"../0.png": image, "../0.txt": b"x"})
    code, output = convert(tmp_path / "out.tar", "-o", tmp_path / "sub" / "new")
    assert code == 1
    assert "leads out of the folder: nothing was written" in output
    assert not list((tmp_path / "sub").iterdir())
    folder = write_pictures(tmp_path / "folder", 2)
    (folder / "0000.webp").write_bytes(encoded(picture(5), "webp"))
    code, output = convert(folder, "-o", tmp_path / "new")
    assert code == 1
    assert "two pictures have the name '0000': rename one of them" in output
    (folder / "0000.webp").unlink()
    (folder / "0001.txt").unlink()
    assert not (tmp_path / "new").exists()
    code, output = convert(folder, "-o", tmp_path / "new")
    assert code == 0
    assert "left out: 0001.png: it has no caption or no picture" in output
    code, output = convert(folder, "-o", tmp_path / "new")
    assert code == 1
    assert "exists already: choose a new folder, or remove it" in output
