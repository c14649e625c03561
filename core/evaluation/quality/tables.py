"""The numbers of an evaluation as tables to be read: by the command line, and in a Markdown file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARES = {
    "r_precision_classifier": "R-precision classifier, %",
    "r_precision_clip": "R-precision CLIP, %",
    "r_precision_pixels": "R-precision pixels, %",
    "background": "background mean, %",
    "background_median": "background median, %",
}
NUMBERS = {"clip_score": "CLIP score", "cmmd": "CMMD", "precision": "precision", "recall": "recall"}
_REAL = "real pictures"
_BY_GROUP = {
    "r_precision_classifier": "classifier, %",
    "r_precision_clip": "CLIP, %",
    "r_precision_pixels": "pixels, %",
    "background": "background, %",
}


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and rows of as many cells; the first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The title as a heading, and the table below it."""
        lines = [f"## {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        return "\n".join([*lines, *map(_line, self.rows)]) + "\n"


def tables_of(results: Mapping[str, Any], tables: Mapping[str, Any]) -> list[Table]:
    """The tables of an ``Evaluation``: one for each split, then the further ones."""
    found = [_of_split(split, measured) for split, measured in results.items()]
    for name, make in _FURTHER.items():
        if name in tables:
            found += make(tables[name])
    return found


def to_markdown(tables: Sequence[Table]) -> str:
    """All tables, one below the other."""
    return "\n".join(table.markdown() for table in tables)


def title_of(prior: str) -> str:
    """A prior's name in a table."""
    return "no prior" if prior == "none" else f"{prior} prior"


def share(found: Mapping[str, Any] | float) -> str:
    """A share in percent, with its 95% interval where it has one."""
    if not isinstance(found, Mapping):
        return f"{100 * found:.1f}"
    low, high = (100 * bound for bound in found["interval95"])
    return f"{100 * found['value']:.1f} ({low:.1f}–{high:.1f})"


def _of_split(split: str, measured: Mapping[str, Any]) -> Table:
    columns = [measured["real"], *measured["priors"].values()]
    rows = [
        (label, *(share(column[key]) for column in columns))
        for key, label in SHARES.items()
        if key in measured["real"]
    ]
    rows += [(label, *(f"{column[key]:.3f}" for column in columns)) for key, label in NUMBERS.items()]
    title = f"{split.replace('_', '-')} pairs, {measured['prompts']} prompts"
    return Table(title, ("", _REAL, *map(title_of, measured["priors"])), tuple(rows))


def _by_group(found: Mapping[str, Any]) -> list[Table]:
    """A table for the true pictures and for each prior: a row a group, their mean, and held-out pairs."""
    named = [*found["groups"].items(), ("**all groups, mean**", found["overall"])]
    if found["held_out"] is not None:
        named.append(("held-out pairs, all groups", found["held_out"]))

    def table(title: str, pick: Any) -> Table:
        measures = {key: label for key, label in _BY_GROUP.items() if key in found["overall"]["real"]}
        rows = tuple((name, *(share(pick(row)[key]) for key in measures)) for name, row in named)
        return Table(f"by group, {title}", ("", *measures.values()), rows)

    tables = [table(_REAL, lambda row: row["real"])]
    for prior in found["overall"]["priors"]:
        tables.append(table(title_of(prior), lambda row, prior=prior: row["priors"][prior]))
    return tables


def _variety(found: Mapping[str, Any]) -> list[Table]:
    columns = ("", "style named", "open", "between concepts")
    rows = [
        (title_of(prior), *(f"{each[key]:.2g}" for key in ("named", "open", "between")))
        for prior, each in found["priors"].items()
    ]
    real = found["real"]["open"]
    rows.append(("true pictures, style by style", "", "" if real is None else f"{real:.2g}", ""))
    title = f"mean cosine distance of embeddings over {found['seeds']} seeds, {found['captions']} captions"
    return [Table(title, columns, tuple(rows))]


def _sharpness(found: Mapping[str, Any]) -> list[Table]:
    grid, edges = [], []
    for size, measured in found["sizes"].items():
        for name, each in measured["grid"].items():
            cells = [_grid_cells(each[part]) for part in ("all", "flat")]
            grid.append((f"{size} px, {name}", *cells[0], *cells[1]))
        for name, each in measured["edges"].items():
            if each is not None:
                numbers = (f"{each['width']:.2f}", f"{100 * each['overshoot']:.1f}", str(each["edges"]))
                edges.append((f"{size} px, {name}", *numbers))
    patch = f"every {found['patch']} px"
    columns = ("", patch, "between", "energy ratio", f"flat parts, {patch}", "between", "energy ratio")
    return [
        Table(
            f"grid of patches: gradient in levels of 255, {found['pictures']} pictures", columns, tuple(grid)
        ),
        Table("edges", ("", "width, px", "overshoot, %", "edges"), tuple(edges)),
    ]


def _binding(found: Mapping[str, Any]) -> list[Table]:
    titles = {"colours": "“a red … and a yellow …”", "places": "“a … above a …”"}
    labels = {
        "named": "both things named, %",
        "positions": "both places right, %",
        "swapped": "places swapped, %",
        "colours": "both colours right, %",
        "colours_swapped": "colours swapped, %",
    }
    tables = []
    for kind, measured in found.items():
        rows = {_REAL: measured["real"]}
        rows |= {f"{way} alone": measured[way] for way in ("embedding", "caption")}
        rows["embedding and caption"] = measured["both"]
        there = {key: label for key, label in labels.items() if key in measured["real"]}
        cells = tuple((name, *(share(row[key]) for key in there)) for name, row in rows.items())
        title = f"two things together, {titles[kind]}, {measured['pairs']} pairs"
        tables.append(Table(title, ("", *there.values()), cells))
    return tables


def _grid_cells(energy: Mapping[str, Any]) -> tuple[str, str, str]:
    ratio = "" if energy["ratio"] is None else f"{energy['ratio']:.3f}"
    return f"{energy['at']:.3f}", f"{energy['between']:.3f}", ratio


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_FURTHER = {"groups": _by_group, "variety": _variety, "sharpness": _sharpness, "binding": _binding}
