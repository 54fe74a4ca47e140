"""the record of a run -> docs/images/parabola.svg and gradients.svg, the pictures of docs/method.md.

    python -m benchmarks.method_figures RECORD    # a run's record.json: what is drawn of it into docs/study
    python -m benchmarks.method_figures           # the pictures again, from docs/study/method

The losses are those that the first probe measured, norms and cosines those of the steps.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.evidence import STUDY, read_csv, write_csv

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
EVIDENCE = STUDY / "method"
POINT, STEP = ("width", "minus", "zero", "plus"), ("step", "retain_norm", "forget_norm", "cosine")
RETAIN, FORGET, SUM, GREY = "#1a6faf", "#c1440e", "#2d7d46", "#777777"


def parabola(width: float, minus: float, zero: float, plus: float) -> tuple[float, float]:
    """Return slope and curvature of the parabola through three losses at -width, 0 and +width."""
    return (minus - plus) / (2 * width), (plus - 2 * zero + minus) / width**2


def keep(record: dict[str, Any]) -> None:
    """Write the first probe and the norms of the steps into docs/study."""
    probe = record["probes"][0]
    points = [[*(point[name] for name in POINT), probe["after"]] for point in probe["points"]]
    write_csv(EVIDENCE / "probe.csv", (*POINT, "rate_after"), points)
    write_csv(EVIDENCE / "steps.csv", STEP, ([step[name] for name in STEP] for step in record["steps"]))


def read_record() -> dict[str, Any]:
    """Return what :func:`keep` kept, in the form of a record."""
    points = [{name: float(text) for name, text in line.items()} for line in read_csv(EVIDENCE / "probe.csv")]
    steps = [{name: float(text) for name, text in line.items()} for line in read_csv(EVIDENCE / "steps.csv")]
    return {"probes": [{"points": points, "after": points[-1]["rate_after"]}], "steps": steps}


def draw_parabola(record: dict[str, Any]) -> plt.Figure:
    """Draw the first probe: every point it measured, the last parabola, its minimum and the rate taken."""
    probe = record["probes"][0]
    last = probe["points"][-1]
    slope, curvature = parabola(last["width"], last["minus"], last["zero"], last["plus"])
    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    low, high = -1.15 * last["width"], 2.4 * probe["after"]
    line = [low + (high - low) * i / 200 for i in range(201)]
    curve = [1e3 * (last["zero"] - slope * s + curvature * s * s / 2) for s in line]
    axes.plot([1e5 * s for s in line], curve, color=RETAIN, label="parabola through the last three")
    for point in probe["points"]:
        is_last = point is last
        measured = [(-point["width"], point["minus"]), (0.0, point["zero"]), (point["width"], point["plus"])]
        axes.plot(
            [1e5 * s for s, _ in measured],
            [1e3 * loss for _, loss in measured],
            "o" if is_last else ".",
            color=RETAIN if is_last else GREY,
            label="measured last" if is_last else None,
        )
    axes.plot([], [], ".", color=GREY, label="measured on the way there")
    best = slope / curvature
    ends = [1e3 * min(last["plus"], last["zero"]) - 0.02, 1e3 * last["zero"]]
    label = f"its minimum b/a = {best:.2e}: the rate"
    axes.plot([1e5 * best] * 2, ends, color=SUM, linestyle="--", label=label)
    axes.set_xlabel("step along the update, in units of learning rate × 10⁵")
    axes.set_ylabel("retain loss, nats per token × 10³")
    axes.set_title(f"The first probe of a run: from no rate to {probe['after']:.2e}")
    axes.legend(frameon=False, fontsize=8, bbox_to_anchor=(0.36, 1.0), loc="upper left")
    axes.set_xlim(1e5 * low, 1e5 * high)
    return figure


def arrows(axes: Any, retain: tuple[float, float], forget: tuple[float, float], title: str) -> None:
    total = (retain[0] + forget[0], retain[1] + forget[1])
    named = ((retain, RETAIN, "retain"), (forget, FORGET, "forget"), (total, SUM, "sum"))
    for (x, y), color, name in named:
        length = math.hypot(x, y)
        axes.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2})
        axes.plot([], [], color=color, label=f"{name}, {length:.3g} long")
    ends = [vector for vector, _, _ in named] + [(0.0, 0.0)]
    size = max(max(abs(x), abs(y)) for x, y in ends)
    for limit, values in ((axes.set_xlim, [x for x, _ in ends]), (axes.set_ylim, [y for _, y in ends])):
        middle = (min(values) + max(values)) / 2  # a square, so that lengths and angles are true
        limit(middle - 0.65 * size, middle + 0.65 * size)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0))
    axes.set_xticks([])
    axes.set_yticks([])


def draw_gradients(record: dict[str, Any]) -> plt.Figure:
    """Draw both gradients of the first step to scale in their own plane, added as they are and normalised."""
    step = record["steps"][0]
    retain_norm, forget_norm, cosine = step["retain_norm"], step["forget_norm"], step["cosine"]
    sine = math.sqrt(1 - cosine**2)
    figure, (left, right, below) = plt.subplots(1, 3, figsize=(10.5, 3.6))
    retain, forget = (retain_norm, 0.0), (forget_norm * cosine, forget_norm * sine)
    arrows(left, retain, forget, "added as they are (GradDiff)")
    arrows(right, (1.0, 0.0), (cosine, sine), "each divided by its norm (NGDiff)")
    draw_norms(below, record)
    figure.suptitle(f"Step 1 of a run: cosine {cosine:.3f}", fontsize=11)
    return figure


def draw_norms(axes: Any, record: dict[str, Any]) -> None:
    steps = record["steps"]
    for key, color in (("forget_norm", FORGET), ("retain_norm", RETAIN)):
        axes.plot([s["step"] for s in steps], [s[key] for s in steps], color=color, label=key.split("_")[0])
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title("their norms over the run", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, nargs="?", help="record.json of a run")
    args = parser.parse_args()
    if args.record is not None:
        keep(json.loads(args.record.read_text(encoding="utf-8")))
    matplotlib.rcParams["svg.hashsalt"] = "ngdiff"  # the same picture from the same record
    record = read_record()
    for name, draw in (("parabola", draw_parabola), ("gradients", draw_gradients)):
        figure = draw(record)
        figure.tight_layout()
        figure.savefig(DOCS / "images" / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        print(f"docs/images/{name}.svg")


if __name__ == "__main__":
    main()
