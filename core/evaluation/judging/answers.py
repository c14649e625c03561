"""From the saved answers of people to win rates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...text_files import read_text
from ..statistics import wilson_interval
from .questions import KINDS, Kind, side_of_first

FORMAT = "unclip compare"
CHOICES = ("left", "right", "unsure")


@dataclass(frozen=True)
class WinRate:
    """How often the first set won.

    Attributes:
        kind: what was asked.
        wins, losses, unsure: answers.
        items: pairs (or pairs of grids) that were judged, by however many people.
        value: the mean over the items of the share of their answers that the first set won, half of one where
            the person was not sure.
    """

    kind: Kind
    wins: int
    losses: int
    unsure: int
    items: int
    value: float

    @property
    def interval(self) -> tuple[float, float]:
        """95%, Wilson's, with the items as trials.

        Answers of several people about one item are no independent trials, so they do not narrow it; and half
        a win varies less than a whole one, so that it is rather too wide than too narrow.
        """
        return wilson_interval(self.value * self.items, self.items)

    def to_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("wins", "losses", "unsure", "items")}
        return {**counts, "value": self.value, "interval95": list(self.interval)}


@dataclass(frozen=True)
class Answers:
    """What one or several people answered about two sets.

    Attributes:
        first, second: names of the sets.
        people: sessions that answered.
        rates: by kind, those that were asked.
    """

    first: str
    second: str
    people: int
    rates: tuple[WinRate, ...]


def read_answers(paths: Sequence[Path]) -> Answers:
    """Put saved answers together.

    Of the files of one session, saved more than once, the one with the most answers counts, and of those with
    equally many the one that was saved last: the person has changed some.

    Raises:
        ValueError: a file that holds none, or answers about other pictures than the first.
    """
    sessions: dict[str, dict[str, Any]] = {}
    for path in paths:
        found = _read(path)
        first = next(iter(sessions.values()), found)
        if (found["a"], found["b"]) != (first["a"], first["b"]):
            raise ValueError(
                f"{path} compares {found['a']} and {found['b']}, the files before it {first['a']} and "
                f"{first['b']}: take them separately"
            )
        before = sessions.get(found["session"])
        if before is None or _progress(found) > _progress(before):
            sessions[found["session"]] = found
    by_kind: dict[Kind, dict[str, list[float]]] = {}
    for session in sessions.values():
        for answer in session["answers"]:
            share = _share(session["seed"], answer)
            by_kind.setdefault(answer["question"], {}).setdefault(answer["item"], []).append(share)
    if not by_kind:
        raise ValueError("the files hold no answers yet")
    (a, b) = next((session["a"], session["b"]) for session in sessions.values())
    return Answers(
        a, b, len(sessions), tuple(_rate(kind, by_kind[kind]) for kind in KINDS if kind in by_kind)
    )


def _progress(session: dict[str, Any]) -> tuple[int, datetime]:
    """How far a person was when a file was saved; in a page answers are changed and added, not taken back."""
    return len(session["answers"]), _saved(session)


def _saved(session: dict[str, Any]) -> datetime:
    """When a file was saved; a file that does not tell is taken for the oldest.

    Raises:
        ValueError: it is no time.
    """
    if "saved" not in session:
        return datetime.min.replace(tzinfo=timezone.utc)
    # Python before 3.11 reads no Z, which browsers write.
    time = datetime.fromisoformat(session["saved"].replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _share(seed: int, answer: dict[str, str]) -> float:
    """Of an answer, what the first set won: 1, 0, or ½."""
    if answer["choice"] == "unsure":
        return 0.5
    return float(answer["choice"] == side_of_first(seed, answer["question"], answer["item"]))


def _rate(kind: Kind, items: dict[str, list[float]]) -> WinRate:
    shares = [share for each in items.values() for share in each]
    value = sum(sum(each) / len(each) for each in items.values()) / len(items)
    return WinRate(kind, shares.count(1.0), shares.count(0.0), shares.count(0.5), len(items), value)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no answers: {error}") from error
    kinds = {"a": str, "b": str, "seed": int, "session": str, "answers": list}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} holds no answers; expected a file that a page of unclip compare has saved")
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{path}: {name} is {found.get(name)!r}; the file is damaged, save it again")
    try:
        _saved(found)
    except (AttributeError, ValueError):
        raise ValueError(
            f"{path}: saved is {found['saved']!r}, which is no time; the file is damaged, save it again"
        ) from None
    seen = set()
    for answer in found["answers"]:
        fits = isinstance(answer, dict) and isinstance(answer.get("item"), str)
        if not fits or answer.get("question") not in KINDS or answer.get("choice") not in CHOICES:
            raise ValueError(f"{path}: found the answer {answer!r}; the file is damaged, save it again")
        place = (answer["question"], answer["item"])
        if place in seen:
            raise ValueError(f"{path}: {place} is answered twice; the file is damaged, save it again")
        seen.add(place)
    return found
