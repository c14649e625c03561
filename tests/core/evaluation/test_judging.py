"""``unclip compare``: what is asked, the page in a browser, and win rates of answers."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner
from unclip.cli.app import build_app
from unclip.core.data.folders import FolderSource
from unclip.core.data.shards import ShardSource
from unclip.core.evaluation.judging.answers import read_answers
from unclip.core.evaluation.judging.page import write_page
from unclip.core.evaluation.judging.questions import GRID, make_questions, side_of_first
from unclip.core.evaluation.statistics import wilson_interval

from ...helpers.pictures import write_shards_of

FIRST, SECOND = (200, 30, 30), (30, 30, 200)  # colours of the two sets, so that a picture tells its set
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def write_set(folder: Path, colour: tuple[int, int, int]) -> Path:
    """Sixteen pictures of one caption, and four of others; they say in their files whose they are."""
    folder.mkdir(parents=True)
    captions = ["a fox"] * GRID + ["<b>a bear</b>", "狐狸", "a hare", "an owl"]
    about = PngInfo()
    about.add_itxt("unclip", json.dumps({"bundle": folder.name}))
    for number, caption in enumerate(captions):
        shade = tuple(channel + number for channel in colour)
        Image.new("RGB", (24, 24), shade).save(folder / f"{number:06}.png", pnginfo=about)
        (folder / f"{number:06}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compared")
    write_set(place / "one", FIRST)
    write_set(place / "two", SECOND)
    write_shards_of(place / "two", place / "two-shards")
    return place


def is_first(path: Path) -> bool:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return bool(pixels[2, 2, 0] > pixels[2, 2, 2])


# --- what is asked ---


def test_questions_are_the_papers(place: Path) -> None:
    one, two = FolderSource(place / "one"), ShardSource(str(place / "two-shards"))
    questions = make_questions(one, two, seed=3)
    kinds = [question.kind for question in questions]
    assert kinds == sorted(kinds, key=["realism", "caption", "diversity"].index)
    assert Counter(kinds) == {"realism": 5, "caption": 5, "diversity": 1}
    assert {question.caption for question in questions if question.kind == "caption"} == {
        *("a fox", "<b>a bear</b>", "狐狸", "a hare", "an owl")
    }
    assert questions[-1].first == questions[-1].second == tuple(range(GRID))
    orders = {tuple(q.item for q in make_questions(one, two, ["realism"], seed=s)) for s in range(10)}
    assert len(orders) > 5
    few = make_questions(one, two, ["caption"], most=2, seed=1)
    assert [q.kind for q in few] == ["caption"] * 2


def test_sides_are_shared_out_evenly() -> None:
    sides = Counter(side_of_first(0, "realism", f"{number:06}") for number in range(1000))
    assert 440 < sides["left"] < 560
    assert side_of_first(0, "realism", "000003") == side_of_first(0, "realism", "000003")


def test_sets_that_do_not_belong_together_are_refused(place: Path, tmp_path: Path) -> None:
    one = FolderSource(place / "one")
    (write_set(tmp_path / "other", SECOND) / "000017.txt").write_text("a wolf")
    with pytest.raises(ValueError, match="000017 is '狐狸' in one set and 'a wolf' in the other"):
        make_questions(one, FolderSource(tmp_path / "other"))
    moved = tmp_path / "moved"
    moved.mkdir()
    Image.new("RGB", (8, 8)).save(moved / "x.png")
    with pytest.raises(ValueError, match="no picture of one set has the name of one in the other"):
        make_questions(one, FolderSource(moved, captions="optional"))
    plain = FolderSource(moved, captions="optional")
    assert [q.kind for q in make_questions(plain, plain)] == ["realism"]
    with pytest.raises(
        ValueError, match="nothing to ask: the match of captions needs captions, diversity 16"
    ):
        make_questions(plain, plain, ["caption", "diversity"])


def test_what_cannot_be_used_is_left_out_and_told(place: Path, tmp_path: Path) -> None:
    one, two = write_set(tmp_path / "one", FIRST), write_set(tmp_path / "two", SECOND)
    whole = make_questions(FolderSource(one), FolderSource(two), seed=3)
    (two / "000000.png").write_text("no picture")  # of the foxes, of whom another stands in
    (one / "000018.png").write_bytes((one / "000018.png").read_bytes()[:-30])
    (one / "000017.txt").write_bytes("狐狸".encode("gbk"))
    skipped: list[tuple[str, str]] = []
    found = make_questions(FolderSource(one), FolderSource(two), seed=3, skipped=skipped)
    kept = [each for each in whole if each.item not in ("000017", "000018")]
    assert [each.kind for each in found] == [each.kind for each in kept if each.kind != "diversity"]
    foxes = [each for each in found if each.caption == "a fox"]
    assert [each.first for each in foxes] == [(1,), (1,)], "and 15 make no grid"
    assert [name for name, _ in skipped[:1]] == ["000017"] and "000017.txt is not UTF-8" in skipped[0][1]
    assert sorted(name for name, _ in skipped[1:]) == ["000000 of the second set", "000018 of the first set"]
    words = ["compare", str(one), str(two), "-o", str(tmp_path / "page"), "--seed", "3"]
    result = CliRunner().invoke(build_app(), words)
    said = " ".join(result.output.split())
    assert result.exit_code == 0, said
    assert "left out: 000017: " in said and "3 pairs of pictures that could not be used were left out" in said
    assert "realism: 3, caption: 3, diversity: 0" in said
    for number in (0, 16, 19):
        (one / f"{number:06}.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"nothing to ask: .*; 000000 cannot be used: .* UTF-16"):
        make_questions(FolderSource(one), FolderSource(two), ["diversity"])


# --- the page ---


@pytest.fixture(scope="module")
def page(place: Path) -> Path:
    arguments = ["compare", place / "one", place / "two-shards", "-o", place / "page", "--seed", 7]
    result = CliRunner().invoke(build_app(), [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    assert "realism: 5, caption: 5, diversity: 1" in result.output
    return place / "page"


def facts_of(page: Path) -> dict[str, Any]:
    text = (page / "index.html").read_text(encoding="utf-8")
    start = text.index('type="application/json">') + len('type="application/json">')
    return json.loads(text[start : text.index("</script>", start)])


def test_the_page_shows_each_set_on_its_side(page: Path) -> None:
    facts = facts_of(page)
    assert len(facts["questions"]) == 11
    for asked in facts["questions"]:
        side = side_of_first(7, asked["question"], asked["item"])
        other = "right" if side == "left" else "left"
        assert is_first(page / asked[side])
        assert not is_first(page / asked[other])
    with Image.open(page / facts["questions"][-1]["left"]) as grid:
        assert grid.size == (4 * 24 + 3 * 4,) * 2
        assert len({grid.getpixel((28 * x + 12, 28 * y + 12)) for x in range(4) for y in range(4)}) == GRID


def test_nothing_tells_whose_a_picture_is(page: Path) -> None:
    files = sorted((page / "pictures").iterdir())
    assert len(files) == 2 * 6, "a pair that is asked about twice is written once"
    for path in files:
        with Image.open(path) as picture:
            assert not picture.text
    ends = {
        path.stem[-1]: {is_first(each) for each in files if each.stem[-1] == path.stem[-1]} for path in files
    }
    assert ends == {"x": {True, False}, "y": {True, False}}
    text = (page / "index.html").read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", ""), "everything lies beside the page"
    assert "<b>" not in text


def test_a_page_is_there_whole_or_not_at_all(place: Path, page: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        build_app(), ["compare", str(place / "one"), str(place / "two"), "-o", str(page)]
    )
    assert result.exit_code == 1
    assert "exists already: choose a new folder" in " ".join(result.output.split())
    broken = write_set(tmp_path / "broken", SECOND)
    one, other = FolderSource(place / "one"), FolderSource(broken)
    questions = make_questions(one, other)
    (broken / "000018.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^000018: "):
        write_page(tmp_path / "page", [("a", one), ("b", other)], questions, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
class TestInABrowser:
    @pytest.fixture
    def tab(self, page: Path) -> Iterator[Any]:
        sync_api = pytest.importorskip("playwright.sync_api")
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
            )
            context = browser.new_context(locale="en-US", accept_downloads=True)
            tab = context.new_page()
            tab.set_default_timeout(60_000)
            self.errors: list[str] = []
            tab.on("pageerror", lambda error: self.errors.append(str(error)))
            tab.goto((page / "index.html").as_uri())
            yield tab
            assert self.errors == []
            browser.close()

    def test_a_person_judges_and_the_answers_say_who_won(self, page: Path, tab: Any, tmp_path: Path) -> None:
        facts = facts_of(page)
        assert tab.inner_text("#question") == "Which picture looks more realistic?"
        assert tab.inner_text("#caption") == ""
        for number, asked in enumerate(facts["questions"]):
            shown = {side: tab.get_attribute(f"#{side}-picture", "src") for side in ("left", "right")}
            assert shown == {side: asked[side] for side in ("left", "right")}
            assert tab.evaluate("document.getElementById('left-picture').decode().then(() => true)")
            if asked["question"] != "realism":
                assert tab.inner_text("#caption") == asked["caption"]
            first = "left" if is_first(page / asked["left"]) else "right"
            other = "right" if first == "left" else "left"
            # The first set wins every pair of realism but one, by clicks and keys; none of captions.
            if number == 0:
                tab.click("#unsure")
            elif asked["question"] == "realism":
                tab.click(f"#{first}")
            elif asked["question"] == "caption":
                tab.keyboard.press("ArrowLeft" if other == "left" else "ArrowRight")
            else:
                tab.keyboard.press("ArrowDown")
            if number == 4:
                tab.reload()  # the answers are kept
                assert tab.inner_text("#count") == "5 / 11"
        assert tab.is_visible("#done")
        with tab.expect_download() as download:
            tab.click("#save")
        assert download.value.suggested_filename.startswith("answers-")
        download.value.save_as(tmp_path / "answers.json")
        found = read_answers([tmp_path / "answers.json"])
        realism, caption, diversity = found.rates
        assert (realism.wins, realism.losses, realism.unsure, realism.items) == (4, 0, 1, 5)
        assert realism.value == pytest.approx(4.5 / 5)
        assert (caption.wins, caption.losses, caption.value) == (0, 5, 0)
        assert (diversity.unsure, diversity.value) == (1, 0.5)
        words = ["compare", "--answers", str(tmp_path / "answers.json"), "-o", str(tmp_path / "rates.json")]
        result = CliRunner().invoke(build_app(), words)
        assert result.exit_code == 0, result.output
        assert "90.0 (" in result.output
        rates = json.loads((tmp_path / "rates.json").read_text(encoding="utf-8"))
        assert rates["win_rates_of_a"]["caption"]["interval95"] == list(wilson_interval(0, 5))
        assert rates["people"] == 1

    def test_answers_are_changed_and_passed_over(self, tab: Any) -> None:
        tab.click("#left")
        tab.keyboard.press("Backspace")
        assert tab.get_attribute("#left", "aria-pressed") == "true"
        tab.click("#right")
        tab.click("#back")
        assert tab.get_attribute("#left", "aria-pressed") == "false"
        assert tab.get_attribute("#right", "aria-pressed") == "true"
        tab.click("#skip")
        tab.click("#skip")  # the second question is passed over
        for _ in range(9):
            tab.keyboard.press("ArrowDown")
        assert tab.is_visible("#judging"), "it comes again before the end"
        assert tab.inner_text("#count") == "10 / 11"
        tab.keyboard.press("ArrowDown")
        assert tab.is_visible("#done")


# --- answers ---


def saved(path: Path, session: str, choices: dict[tuple[str, str], str], **more: object) -> Path:
    answers = [{"question": kind, "item": item, "choice": choice} for (kind, item), choice in choices.items()]
    facts = {
        "format": "unclip compare",
        "a": "x",
        "b": "y",
        "seed": 1,
        "session": session,
        "answers": answers,
    }
    path.write_text(json.dumps({**facts, **more}), encoding="utf-8")
    return path


def test_several_people_are_put_together_item_by_item(tmp_path: Path) -> None:
    rng = random.Random(0)
    items = [f"{number:06}" for number in range(40)]
    sides = {item: side_of_first(1, "realism", item) for item in items}
    other = {"left": "right", "right": "left"}
    # One person always takes the first set; another one in half of the items.
    ones = {("realism", item): sides[item] for item in items}
    half = {
        ("realism", item): sides[item] if number % 2 else other[sides[item]]
        for number, item in enumerate(items)
    }
    paths = [saved(tmp_path / "1.json", "p", ones), saved(tmp_path / "2.json", "q", half)]
    rng.shuffle(paths)
    (rate,) = read_answers(paths).rates
    assert (rate.wins, rate.losses, rate.unsure, rate.items) == (60, 20, 0, 40)
    assert rate.value == pytest.approx(0.75)
    assert rate.interval == pytest.approx(wilson_interval(30, 40))
    # A session that was saved before it was done does not count twice.
    early = saved(tmp_path / "3.json", "p", dict(list(ones.items())[:5]))
    assert read_answers([*paths, early]).rates == (rate,)
    assert read_answers([early, *paths]).people == 2


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ({"saved": "2026-01-09T23:59:59.900Z"}, {"saved": "2026-01-10T00:00:00.000Z"}),
        ({"saved": "2026-01-10T01:00:00+02:00"}, {"saved": "2026-01-10T00:00:00Z"}),
        ({}, {"saved": "2026-01-10T00:00:00"}),
    ],
)
def test_of_answers_that_were_changed_the_last_count(tmp_path: Path, early: dict, late: dict) -> None:
    right = side_of_first(1, "realism", "0")
    wrong = {"left": "right", "right": "left"}[right]
    paths = [
        saved(tmp_path / "answers-p.json", "p", {("realism", "0"): wrong}, **early),
        saved(tmp_path / "answers-p (1).json", "p", {("realism", "0"): right}, **late),
    ]
    for order in (paths, paths[::-1]):
        (rate,) = read_answers(order).rates
        assert (rate.wins, rate.losses) == (1, 0)
    more = {("realism", "0"): wrong, ("realism", "1"): wrong}
    fuller = saved(tmp_path / "more.json", "p", more, **early)
    assert read_answers([fuller, *paths]).rates[0].items == 2


def test_the_interval_holds_the_true_rate(tmp_path: Path) -> None:
    """Of 200 comparisons of 30 items each, at a true rate of 0.6 with ties, at least 93% of intervals do."""
    rng = random.Random(5)
    held = 0
    for trial in range(200):
        shares = [rng.choices([1.0, 0.5, 0.0], [0.5, 0.2, 0.3])[0] for _ in range(30)]
        low, high = wilson_interval(sum(shares), len(shares))
        held += low <= 0.6 <= high
        assert trial < 200
    assert held / 200 > 0.93


def test_files_that_hold_no_answers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        ("{", r"a\.json holds no answers"),
        ("[]", r"a\.json holds no answers; expected a file that a page of unclip compare has saved"),
        ('{"format": "unclip compare"}', r"a\.json: a is None; the file is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_answers([path])
    for answer, message in (
        ({"question": "size", "item": "0", "choice": "left"}, "found the answer"),
        ({"question": "realism", "item": "0", "choice": "up"}, "found the answer"),
        ({"question": "realism", "item": 0, "choice": "left"}, "found the answer"),
    ):
        saved(path, "p", {}, answers=[answer])
        with pytest.raises(ValueError, match=message):
            read_answers([path])
    for time in ("yesterday", 3, None):
        with pytest.raises(ValueError, match=r"saved is .*, which is no time; the file is damaged"):
            read_answers([saved(path, "p", {}, saved=time)])
    saved(path, "p", {}, answers=[{"question": "realism", "item": "0", "choice": "left"}] * 2)
    with pytest.raises(ValueError, match="is answered twice"):
        read_answers([path])
    with pytest.raises(ValueError, match="hold no answers yet"):
        read_answers([saved(path, "p", {})])
    one = saved(tmp_path / "b.json", "p", {("realism", "0"): "left"})
    with pytest.raises(ValueError, match="compares x and z, the files before it x and y"):
        read_answers([one, saved(path, "q", {("realism", "0"): "left"}, b="z")])


def test_the_command_says_what_it_needs(place: Path) -> None:
    one, two = str(place / "one"), str(place / "two")
    for arguments, message in (
        ([one], "found 1 sets of pictures, expected two"),
        ([one, two], "where does the page go?"),
        ([one, two, "-o", str(place / "p"), "--questions", "size"], "--questions: found size; expected some"),
    ):
        result = CliRunner().invoke(build_app(), ["compare", *arguments])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
