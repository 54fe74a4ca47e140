"""Folders of runs -> Markdown tables and a plot, printed and written; nothing is typed by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SETS = ("forget", "retain", "never_seen")
HEAD = (
    "| model | steps | forget P | forget ES | forget NLL | retain P | retain ES | never-seen NLL "
    "| never-seen ES | rate, first → last | s | GiB | ended |"
)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def row(name: str, folder: Path) -> str | None:
    """One row of the table: figures of every set, then what the run cost and why it ended."""
    figures, record = load(folder / "figures.json"), load(folder / "record.json")
    if figures is None:
        return None
    forget, retain, never_seen = (figures[part] for part in SETS)
    cells = [
        name,
        str(record["cost"]["steps"]) if "cost" in record else "",
        f"{forget['probability']:.3f}",
        f"{forget['extraction_strength']:.3f}",
        f"{forget['nll']:.2f}",
        f"{retain['probability']:.3f}",
        f"{retain['extraction_strength']:.3f}",
        f"{never_seen['nll']:.2f}",
        f"{never_seen['extraction_strength']:.3f}",
    ]
    if "cost" in record:
        rates = [step["learning_rate"] for step in record["steps"] if not step["skipped"]]
        kept = record["stop"]["kept_step"]
        ended = record["stop"]["code"] + (f", kept step {kept}" if kept != record["cost"]["steps"] else "")
        peak = record["cost"]["peak_memory_gib"]["process"]
        span = f"{rates[0]:.1e} → {rates[-1]:.1e}" if rates else "–"
        cells += [span, f"{record['cost']['seconds']:.0f}", f"{peak:.1f}", ended]
    else:
        cells += ["", f"{record['seconds']:.0f}", f"{record['peak_memory_gib']['process']:.1f}", ""]
    return "| " + " | ".join(cells) + " |"


def keep_evidence(folder: Path, evidence: Path) -> None:
    """Copy records and figures of all finished runs to where they are published; models stay behind."""
    for found in (*folder.glob("*/figures.json"), *folder.glob("runs/*/figures.json")):
        place = evidence / found.parent.relative_to(folder)
        place.mkdir(parents=True, exist_ok=True)
        for name in ("figures.json", "record.json"):
            publish(found.parent / name, place / name)


def publish(source: Path, target: Path) -> None:
    """Copy a record or an evaluation, without the machine's name and the user's folders."""
    content = load(source)
    for holder in (content, content.get("provenance", {})):
        holder.get("machine", {}).pop("system", None)  # whose machine it was is nobody's business
    text = json.dumps(content, ensure_ascii=False, indent=1 if "provenance" in content else None)
    target.write_text(text.replace(str(Path.home()), "~") + "\n", encoding="utf-8")


def write_tables(folder: Path, output: Path, suffix: str = "") -> None:
    """Print the tables of all runs found, put them into the documentation, and draw the plot."""
    runs = sorted((record.parent for record in (folder / "runs").glob("*/record.json")), key=_order)
    starts = [place for place in runs if place.name == "ngdiff" or "-from-" in place.name]
    others = [place for place in runs if "-from-" not in place.name]
    tables = {"Methods": [folder / "target", folder / "retrained", *others]}
    if len(starts) > 1:
        tables["NGDiff from any starting rate"] = starts
    for title, places in tables.items():
        lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
        lines += [found for place in places if (found := row(place.name, place)) is not None]
        text = "\n".join(lines)
        print(f"{title}\n\n{text}\n")
        put(title + suffix, text)
    if len(starts) > 1:
        plot(runs, output)


def _order(place: Path) -> tuple[int, bool, float, str]:
    """Sort by method, then runs that stop before those that do not, then by rate."""
    name = place.name.removesuffix("-no-stop")
    number = re.search(r"\de-\d$", name)
    methods = ("ngdiff", "graddiff")
    method = next(i for i, known in enumerate(methods) if name.startswith(known))
    return method, name != place.name, float(number[0]) if number else 0.0, name


def plot(folders: list[Path], output: Path) -> None:
    """Draw final retain ES and never-seen NLL against the rate a run began with, and the rates over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.2))
    for method, colour in (("ngdiff-from-", "tab:blue"), ("graddiff-", "tab:orange")):
        found = [f for f in folders if f.name.startswith(method) and not f.name.endswith("no-stop")]
        points = []
        for place in found:
            figures, record = load(place / "figures.json"), load(place / "record.json")
            if figures is None:
                continue
            points.append((float(place.name.removeprefix(method)), figures))
            if method == "ngdiff-from-":
                rates = [step["learning_rate"] for step in record["steps"] if not step["skipped"]]
                right.plot(range(1, len(rates) + 1), rates, marker=".", label=f"from {place.name[12:]}")
        points.sort(key=lambda point: point[0])
        label = "NGDiff, automatic rate begun at" if method == "ngdiff-from-" else "GradDiff, rate fixed at"
        x = [rate for rate, _ in points]
        left.plot(x, [f["retain"]["extraction_strength"] for _, f in points], "o-", color=colour, label=label)
        middle.plot(x, [f["never_seen"]["nll"] for _, f in points], "o-", color=colour, label=label)
    for axes, title in ((left, "retain extraction strength"), (middle, "never-seen NLL (nats/token)")):
        axes.set(xscale="log", xlabel="learning rate", title=title)
        axes.legend()
    right.set(yscale="log", xlabel="optimizer step", title="NGDiff: learning rate")
    if right.lines:
        right.legend()
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"\nplot: {output}")
