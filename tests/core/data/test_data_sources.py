"""Pictures of one's own: folders and shards as the same batches, whatever is damaged in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from unclip.core.data.batches import FILES_AT_ONCE, EpochSampler, in_unit_range
from unclip.core.data.opening import open_batches, open_crops, workers_of
from unclip.core.data.process import Process
from unclip.core.data.settings import DataConfig

from ...helpers.pictures import colour_of, encoded, picture, write_pictures, write_shards_of


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
    assert torch.equal(in_unit_range(one(5).images), one(5).images.float() / 255)


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
        assert "no picture" in skipped["0007"]
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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are not bound to processors here")
def test_workers_are_no_more_than_the_processors_that_may_be_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert workers_of(of_folder(folder), 1) == 3
