"""rows of a benchmark -> results.md, results.csv, results.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ngdiff.bench.data import sources
from ngdiff.bench.distance import HALF, LEAST, PARTS
from ngdiff.bench.grid import MOST_WIDENINGS, edges, values_tried, with_defaults
from ngdiff.bench.run import BenchResult, tried
from ngdiff.bench.suites import SUITES
from ngdiff.bench.summary import COLUMNS, COMPARED, FORGOT_ENOUGH, NO_STOP, Cell, Row
from ngdiff.bench.trials import ending, selection_score
from ngdiff.bench.variants import ABLATED, SAME, find_variant
from ngdiff.bench.worker import EVALUATION, RECORD
from ngdiff.methods import find_method
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.system.output import finite
from ngdiff.system.untrusted import markdown_cell

# ---- how values are written ----


_SETS = {"holdout": "never seen", "real_authors": "real authors", "world_facts": "world facts"}
_MEASURES = {
    "probability": "P",
    "extraction_strength": "ES",
    "rouge": "ROUGE",
    "truth_ratio": "truth ratio",
    "nll": "NLL",
}


def number(value: float) -> str:
    """Write a number with three digits that say something."""
    if math.isinf(value):
        return "∞"
    if value == 0 or 0.001 <= abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.1e}"


def title_of(key: str) -> str:
    """Return what tables call a figure, such as ``forget ES`` for ``forget.extraction_strength``."""
    if key == "general_nll":
        return "general NLL"
    part, _, measure = key.partition(".")
    return f"{_SETS.get(part, part)} {_MEASURES.get(measure, measure)}"


def written(settings: Mapping[str, Any]) -> str:
    """Write settings in one line."""
    return ", ".join(f"{name.rpartition('.')[2]}={value:g}" for name, value in settings.items())


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are escaped already."""
    rows = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([rows[0], "|" + "---|" * len(head), *rows[1:]])


# ---- pages ----

SHOWN = {
    "forget.verbatim": "forget verbatim memorisation",
    "forget.knowledge": "forget knowledge memorisation",
    "retain.knowledge": "retain knowledge memorisation",
    "privleak": "PrivLeak",
}
"""Figures of the table, by key."""


def after_each(result: BenchResult, split: str) -> str:
    """Return MUSE's sustainability: the figures after each request of every run; empty where there is one."""
    lines: list[list[str]] = []
    for outcome in result.reported:
        found = sorted(outcome.folder.glob(f"after-*/{EVALUATION}"), key=_number)
        if outcome.split != split or outcome.error or not found:
            continue
        files = [*found, outcome.folder / EVALUATION]
        for place, file in enumerate(files, 1):
            figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["figures"]
            values = [(figures.get(key) or {}).get("value") for key in SHOWN]
            cells = ["" if value is None else number(value) for value in values]
            lines.append([outcome.name, outcome.folder.name, str(place), *cells])
    return markdown_table(["method", "run", "request", *SHOWN.values()], lines) if lines else ""


def _number(path: Path) -> int:
    return int(path.parent.name.rpartition("-")[2])


FIGURES = (
    "Figures of a method are means over its seeds with Student's 95% t-interval in brackets; with one "
    "seed, and for target and retrained model, the brackets are the 95% bootstrap interval over items, "
    "where there is one. Means and intervals of p-values are those of their logarithms. *s of tuning* are "
    "those of all trials from which the settings were chosen."
)
FRONT = (
    f"**Bold**: of the methods that forgot at least {FORGOT_ENOUGH:.0%}, no other is better in one of "
    "*forgotten*, *kept* and *collateral kept* and worse in none. A destroyed model (see *distance*) is "
    "never in bold and ranks below all others: its forget quality can be as high as a good model's."
)
CONDITIONS = (
    f"*NAME{SAME}* is {DEFAULT_METHOD} with the forget loss and the rule of NAME (constant weights where "
    "NAME has no retain loss): the same retain loss, step size, stopping rule and floors as "
    f"{DEFAULT_METHOD}. NAME alone is the method as its paper has it, under this benchmark's stopping rule."
)
ABLATION = (
    "One part changed at a time, in bold; everything else is the method's own. A fixed step size begins "
    "with the method's usual rate, or the usual rate of fixed methods where it has none."
)


def markdown(result: BenchResult, rows: Sequence[Row]) -> str:
    """Return the whole page: how settings were chosen, the tables of each split, and what failed."""
    title = SUITES[result.request.suite].title
    parts = [f"# {title}: methods compared", _asked(result), SELECTION, FIGURES, FRONT, DISTANCE]
    parts += [CONDITIONS] if result.request.same_conditions else []
    for split in result.request.splits:
        mine = [row for row in rows if row.split == split]
        parts += [f"## {split}", table(mine)]
        found = after_each(result, split)
        if found:
            parts += [f"### After each request, {split}", found]
        if found := distance_table(mine):
            parts += [f"### Distance, {split}", found]
        if found := ablation_table(mine):
            parts += [f"### Ablation, {split}", ABLATION, found]
    if result.tuned:
        parts += [
            "## Tuning",
            tuned_on(result),
            grid_table(grid_rows(result)),
            tuning_table(tuning_rows(result)),
        ]
    if result.failed:
        parts.append("## Failed")
        parts += [
            f"- {outcome.split}, {outcome.folder.parent.name}, {outcome.folder.name}: "
            f"{markdown_cell(_one_line(outcome.error or ''))}"
            for outcome in result.failed
        ]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Return one split's table, in Markdown, with the columns that the methods' rows fill."""
    methods = [row for row in rows if row.cells and row.name not in COMPARED]
    shown = [column for column in COLUMNS if any(column.key in row.cells for row in methods or rows)]
    arrows = {"up": " ↑", "down": " ↓", None: ""}
    head = ["method", *(column.title + arrows[column.better] for column in shown), "settings", "ended"]
    lines = []
    for row in rows:
        name = f"**{row.name}**" if row.on_front else row.name
        name += " (destroyed)" if row.destroyed else ""
        cells = [
            distance_cell(row) if column.key == "distance" else interval_cell(row.cells.get(column.key))
            for column in shown
        ]
        lines.append([name, *cells, _settings(row), markdown_cell(_ended(row))])
    return markdown_table(head, lines)


def _asked(result: BenchResult) -> str:
    request = result.request
    learned = (
        "" if request.learned is None else f"; the target learned TOFU's last {request.learned} questions"
    )
    kept = ", ".join(map(markdown_cell, request.also_retain))
    kept = f"; beside the retain set every run was to keep {kept}" if kept else ""
    items = "" if request.items is None else f"; at most {request.items} items of each set evaluated"
    return (
        f"Target: {markdown_cell(Path(request.model).name)}{learned}{items}{kept}. "
        f"{request.seeds} reported run(s) a method, "
        f"{request.trials} setting(s) tried where a method has a range to search."
    )


def _settings(row: Row) -> str:
    if row.tried == 0:
        return "the usual ones: no trial ran to its end"
    found = written(row.settings)
    found += f" (of {row.tried})" if found and row.tried > 1 else ""
    at_edge = ", ".join(f"{name.rpartition('.')[2]} the {edge} tried" for name, edge in row.edges.items())
    return found + (f"; {at_edge}" if at_edge else "")


def _ended(row: Row) -> str:
    found = [f"{code} ×{count}" if count > 1 else code for code, count in row.ended.items()]
    return ", ".join(found + ([f"{row.failed} failed"] if row.failed else []))


def _one_line(text: str) -> str:
    return " ".join(text.split())[-300:]


def as_csv(rows: Sequence[Row]) -> str:
    """Return a line a row: every figure with the bounds of its interval."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    keys = [column.key for column in COLUMNS]
    writer.writerow(
        [
            "split",
            "method",
            "on_front",
            "runs",
            "failed",
            "ended",
            "settings",
            "tried",
            "at_edge",
            "distance_part",
            "distance_missing",
            *(f"{k}{end}" for k in keys for end in ("", "_low", "_high")),
        ]
    )
    for row in rows:
        cells: list[Any] = []
        for key in keys:
            cell = row.cells.get(key)
            cells += ["", "", ""] if cell is None else [cell.value, cell.low, cell.high]
        facts = [
            row.on_front,
            row.runs,
            row.failed,
            _no_formula(_ended(row)),
            written(row.settings),
            row.tried,
        ]
        facts += [" ".join(row.edges), next(iter(row.decides), ""), " ".join(row.missing)]
        writer.writerow([row.split, row.name, *facts, *cells])
    return file.getvalue()


def _no_formula(text: str) -> str:
    """Put a space before what a spreadsheet would take for a formula: the text comes from a record."""
    return f" {text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def as_json(result: BenchResult, rows: Sequence[Row]) -> dict[str, Any]:
    """Return plain JSON values: the request, the rows, the tuning scores and the failures."""
    request = json.loads(json.dumps(asdict(result.request), default=str))
    found: dict[str, Any] = finite(
        {
            "kind": "bench",
            "format": 1,
            "request": request,
            "rows": [asdict(row) for row in rows],
            "tuning": tuning_rows(result),
            "grids": grid_rows(result),
            "failed": [str(outcome.folder) for outcome in result.failed],
        }
    )
    return found


# ---- tuning ----


SELECTION = (
    "Settings were chosen by the harmonic mean of three shares: how far the forget set's extraction "
    "strength and its answer probability fell towards those of never-seen text (the lesser of the two), "
    "and how much of the answer probability of held-out retain examples and of never-seen text was left. "
    "The rule was fixed before any trial ran and sees no retrained model. Trials that tune forget authors "
    "that no reported split has, with a seed that no reported run has; they ran under the stopping rule, "
    "also where runs without it (no-stop) are reported. Where the best value of a setting was the least or "
    f"the greatest tried, further trials went a step beyond it, at most {MOST_WIDENINGS} times. Methods "
    "with an automatic rate and no other range to search have nothing to choose."
)


def tuned_on(result: BenchResult) -> str:
    """Say which questions were forgotten and kept to tune."""
    lines = []
    for name in dict.fromkeys(outcome.split for outcome in result.tuned):
        forget, retain = sources(result.request, name)
        lines.append(f"- {name}: forget `{forget}`, keep `{retain}`")
    return "\n".join(lines)


def tuning_rows(result: BenchResult) -> list[dict[str, Any]]:
    """Return a row for every setting tried, its score and how its run went."""
    rows = []
    for outcome in result.tuned:
        record = None if outcome.error else outcome.read(RECORD)
        settings = {} if outcome.trial is None else tried(outcome.trial)
        row: dict[str, Any] = {
            "split": outcome.split,
            "method": outcome.name,
            "settings": settings,
            "score": None,
        }
        if record is not None:
            row |= {
                "score": selection_score(record),
                "forget_extraction_strength": record["after"]["forget"]["extraction_strength"],
                "forget_probability": record["after"]["forget"]["probability"],
                "retain_probability": record["after"]["retain"]["probability"],
                "never_seen_probability": record["after"]["never_seen"]["probability"],
                "steps": record["cost"]["steps"],
                "seconds": record["cost"]["seconds"],
                "ended": ending(record).code,
            }
        row["chosen"] = (
            row["score"] is not None and result.chosen.get((outcome.split, outcome.name)) == settings
        )
        rows.append(row)
    return rows


def tuning_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was tried, in Markdown; the chosen settings in bold."""
    titles = {
        "score": "score ↑",
        "forget_extraction_strength": "forget ES",
        "forget_probability": "forget P",
        "retain_probability": "retain P ↑",
        "never_seen_probability": "never seen P",
        "steps": "steps",
        "seconds": "s ↓",
    }
    figures = [key for key in titles if any(row.get(key) is not None for row in rows)]
    lines = []
    for row in rows:
        settings = written(row["settings"])
        cells = ["" if row.get(key) is None else number(float(row[key])) for key in figures]
        shown = f"**{settings}**" if row["chosen"] else settings
        ended = markdown_cell(str(row.get("ended", "failed")))
        lines.append([row["split"], row["method"], shown, *cells, ended])
    return markdown_table(["split", "method", "settings", *map(titles.__getitem__, figures), "ended"], lines)


def grid_rows(result: BenchResult) -> list[dict[str, Any]]:
    """Return a row for every setting tuned: the values tried, the best, and the edge where it lies at one."""
    rows = []
    for (split, name), best in result.chosen.items():
        method = find_variant(name).method
        mine = [outcome.trial for outcome in result.tuned if (outcome.split, outcome.name) == (split, name)]
        settings = [tried(trial) for trial in mine if trial is not None]
        ends, chosen = edges(method, settings, best), with_defaults(method, best)
        rows += [
            {
                "split": split,
                "method": name,
                "setting": setting,
                "tried": values,
                "best": chosen[setting],
                "edge": ends.get(setting),
            }
            for setting, values in values_tried(method, settings).items()
        ]
    return rows


def grid_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return, for every setting that was tuned, what was tried and whether the best lies at an edge."""
    lines = [
        [
            row["split"],
            row["method"],
            row["setting"],
            ", ".join(f"{value:g}" for value in row["tried"]),
            f"{row['best']:g}",
            "no" if row["edge"] is None else f"yes, the {row['edge']}",
        ]
        for row in rows
    ]
    return markdown_table(["split", "method", "setting", "tried", "best", "at an edge"], lines)


# ---- distance and ablation ----


DISTANCE = (
    "*Distance* is that to the retrained model, the largest of its parts: |x − retrained| / |target − "
    "retrained| for the figures of the forget set, and the loss relative to the target for those that "
    "should not change (0 where nothing is lost). The target is at 1, a model like the retrained one near "
    f"0. Denominators are at least {LEAST}. ∞: destroyed, which is a model that lost {HALF:.0%} or more of "
    "retain P, retain ROUGE or exp(−general NLL). Its parts are means over seeds, in bold the one that "
    "decides in most; nearest first."
)
_FIGURES = (  # that an ablation shows, beside the distance
    "forget.probability",
    "forget.extraction_strength",
    "forget.truth_ratio",
    "retain.probability",
    "model_utility",
    "general_nll",
)


def distance_cell(row: Row) -> str:
    """Return a row's distance with its interval and the part that decides; empty where there is none."""
    if "distance" not in row.cells:
        return ""
    return f"{interval_cell(row.cells['distance'])}, {title_of(next(iter(row.decides)))}"


def interval_cell(cell: Cell | None) -> str:
    """Return a figure with its interval."""
    if cell is None:
        return ""
    if cell.low is None or cell.high is None:
        return number(cell.value)
    return f"{number(cell.value)} ({number(cell.low)}–{number(cell.high)})"


def distance_table(rows: Sequence[Row]) -> str:
    """Return every part of the distance of each row of one split, nearest first; empty without a distance."""
    measured = sorted((row for row in rows if "distance" in row.cells), key=_distance)
    if not measured:
        return ""
    keys = [key for key in PARTS if any(key in row.parts for row in measured)]
    lines = []
    for row in measured:
        cells = {key: number(row.parts[key]) if key in row.parts else "" for key in keys}
        decides = next(iter(row.decides))
        cells[decides] = f"**{cells[decides]}**"
        lines.append([row.name, interval_cell(row.cells["distance"]), *cells.values()])
    table = markdown_table(["method", "distance ↓", *map(title_of, keys)], lines)
    notes = [
        f"{', '.join(names)}: {', '.join(map(title_of, missing))} missing, since the target or the retrained "
        "model has no such figure."
        for missing, names in _missing(measured).items()
    ]
    return "\n\n".join([table, *notes])


def _distance(row: Row) -> float:
    return row.cells["distance"].value


def _missing(rows: Sequence[Row]) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for row in (row for row in rows if row.missing):
        found.setdefault(row.missing, []).append(row.name)
    return found


def ablation_table(rows: Sequence[Row]) -> str:
    """Return the rows with one part of a method changed, below the method's own; empty without any."""
    ablated = {_variant(row).partition("+")[0] for row in rows if "=" in row.name}
    shown = [row for row in rows if _variant(row) in ablated or "=" in row.name]
    if not shown:
        return ""
    keys = [key for key in _FIGURES if any(key in row.cells for row in shown)]
    lines = []
    for row in shown:
        cells = [interval_cell(row.cells.get(key)) for key in keys]
        lines.append([row.name, *_parts(_variant(row)), *cells, distance_cell(row)])
    head = ["method", *(part.replace("_", " ") for part in ABLATED)]
    return markdown_table([*head, *map(title_of, keys), "distance ↓"], lines)


def _variant(row: Row) -> str:
    return row.name.removesuffix(NO_STOP)


def _parts(name: str) -> list[str]:
    """Return the parts of a variant, in bold where they differ from those of its method."""
    variant = find_variant(name)
    usual = find_method(variant.row)
    parts = [(getattr(variant.method, part), getattr(usual, part)) for part in ABLATED]
    return [part if part == other else f"**{part}**" for part, other in parts]
