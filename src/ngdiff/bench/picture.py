"""rows and records of a benchmark -> the picture of forgetting against utility, and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ngdiff.bench.run import BenchResult
from ngdiff.bench.summary import COMPARED, FORGOT_ENOUGH, Row
from ngdiff.bench.worker import RECORD

Point = tuple[float, float]


def draw(result: BenchResult, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw ``pareto.png`` and ``curves.png``.

    Raises:
        ImportError: matplotlib is not installed.
    """
    made = [draw_front(result.request.splits, rows, folder / "pareto.png")]
    if any(outcome.read(RECORD) for outcome in result.reported):
        made.append(_curves(result, folder / "curves.png"))
    return made


def draw_front(splits: Sequence[str], rows: Sequence[Row], path: Path) -> Path:
    """Draw forgetting against utility and against the neighbourhood, with their fronts: two panels a split.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, axes = pyplot.subplots(len(splits), 2, figsize=(15, 5 * len(splits)), squeeze=False)
    for line, split in zip(axes, splits, strict=True):
        mine = [row for row in rows if row.split == split and "forgotten" in row.cells]
        numbers = {row.name: number for number, row in enumerate(mine, 1)}
        for panel, measure, title in zip(
            line,
            ("kept", "collateral"),
            (
                "model utility, share of the target's",
                "neighbourhood kept: the worst hit of what was not touched",
            ),
            strict=True,
        ):
            _panel(panel, [row for row in mine if measure in row.cells], measure, numbers)
            panel.set(xlabel="forgotten", ylabel=title, title=split, xlim=(-0.05, 1.22), ylim=(-0.05, 1.08))
        if mine:  # beside the panels, since points near to each other leave names no room
            named = [Line2D([], [], **_marker(row), label=f"{numbers[row.name]}  {row.name}") for row in mine]
            line[1].legend(handles=named, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _marker(row: Row) -> dict[str, Any]:
    colour = (
        "black" if row.name in COMPARED else "tab:blue" if row.name.startswith("ngdiff") else "tab:orange"
    )
    marker = "*" if row.name in COMPARED else "s" if row.name.endswith("-no-stop") else "o"
    return {"marker": marker, "color": colour, "markersize": 9 if row.on_front else 6, "linestyle": ""}


def _panel(panel: Any, rows: Sequence[Row], measure: str, numbers: Mapping[str, int]) -> None:
    for row in rows:
        x, y = row.cells["forgotten"], row.cells[measure]
        panel.plot(x.value, y.value, **_marker(row))
        for cell, along in ((x, "x"), (y, "y")):
            if cell.low is not None and cell.high is not None and len(cell.values) > 1:
                bars = {f"{along}err": [[cell.value - cell.low], [cell.high - cell.value]]}
                panel.errorbar(x.value, y.value, color=_marker(row)["color"], linewidth=0.8, **bars)
    for names, point in together([(str(numbers[row.name]), _place(row, measure)) for row in rows]):
        label = {"textcoords": "offset points", "xytext": (8, 0), "va": "center", "fontsize": 9}
        panel.annotate(", ".join(names), point, **label)
    places = [_place(row, measure) for row in rows if not row.destroyed]
    front = sorted(pareto([place for place in places if place[0] >= FORGOT_ENOUGH]))
    panel.plot([x for x, _ in front], [y for _, y in front], color="grey", linewidth=0.8, linestyle="--")


def _place(row: Row, measure: str) -> Point:
    return row.cells["forgotten"].value, row.cells[measure].value


NEAR = 0.03
"""Points less than this apart, along both axes, share a label."""


def together(points: Sequence[tuple[str, Point]]) -> list[tuple[list[str], Point]]:
    """Gather the names of points that lie so near to each other that their labels would overlap."""
    found: list[tuple[list[str], Point]] = []
    for name, (x, y) in points:
        for names, (there, above) in found:
            if abs(x - there) < NEAR and abs(y - above) < NEAR:
                names.append(name)
                break
        else:
            found.append(([name], (x, y)))
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those points that no other beats in one coordinate without losing in the other."""
    return [
        (x, y)
        for x, y in dict.fromkeys(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]


def _curves(result: BenchResult, path: Path) -> Path:
    from matplotlib import pyplot

    splits = result.request.splits
    panels = {
        "forget_extraction_strength": "forget extraction strength of the step's batch",
        "forget_loss": "forget loss",
        "retain_loss": "retain loss",
        "learning_rate": "learning rate",
    }
    count = len(panels)
    figure, axes = pyplot.subplots(len(splits), count, figsize=(22, 4.2 * len(splits)), squeeze=False)
    for line, split in zip(axes, splits, strict=True):
        for outcome in result.reported:
            record = outcome.read(RECORD)
            if outcome.split != split or record is None or outcome.error or outcome.folder.name != "seed-0":
                continue
            for panel, key in zip(line, panels, strict=True):
                points = [(step["step"], step[key]) for step in record["steps"] if step[key] is not None]
                panel.plot(*zip(*points, strict=True), label=outcome.folder.parent.name) if points else None
        for panel, title in zip(line, panels.values(), strict=True):
            panel.set(xlabel="optimizer step", title=f"{split}: {title}")
        line[1].set(yscale="symlog")  # gradient ascent falls without end, and others stay near 0
        line[3].set(yscale="log")
        if line[1].lines:  # beside the panels: inside, it would hide the curves
            line[3].legend(
                *line[1].get_legend_handles_labels(), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1)
            )
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path
