"""a record -> its curves over steps, its probes and its checks, as the page draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ngdiff.report.run_files import dig, number, rows_of

COLUMNS = (
    "step",
    "forget_loss",
    "retain_loss",
    "forget_extraction_strength",
    "learning_rate",
    "forget_norm",
    "retain_norm",
    "combined_norm",
    "cosine",
    "retain_descent",
    "forget_descent",
    "changed",
    "seconds",
)
"""Fields of a step that have a curve."""


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Args:
        field: of a step, or of a check where ``checks`` says so.
        label: in the legend.
        role: ``forget``, ``retain`` or ``other``; selects colour, dash and marker.
        checks: taken from the checks, not from the steps.
    """

    field: str
    label: str
    role: str
    checks: bool = False


@dataclass(frozen=True)
class Panel:
    """One small chart.

    Args:
        key: unique on the page.
        title: of the chart.
        unit: of the vertical axis.
        lines: to draw.
        log: whether the vertical axis is logarithmic.
        rules: horizontal lines, (label, value).
    """

    key: str
    title: str
    unit: str
    lines: Sequence[Line]
    log: bool = False
    rules: Sequence[tuple[str, float]] = ()


def curves(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return panels, columns of steps and checks, probes, and the moments to mark."""
    steps = rows_of(record.get("steps"))
    columns: dict[str, list[float | None]] = {name: [number(s.get(name)) for s in steps] for name in COLUMNS}
    for place, name in enumerate(("retain_weight", "forget_weight")):
        columns[name] = [_weight(step.get("weights"), place) for step in steps]
    checks = [_check(check) for check in rows_of(record.get("checks"))]
    return {
        "steps": columns,
        "skipped": [
            {"step": number(step.get("step")), "why": str(step["skipped"])}
            for step in steps
            if step.get("skipped")
        ],
        "checks": checks,
        "probes": [_probe(probe) for probe in rows_of(record.get("probes"))],
        "panels": [_panel(panel) for panel in panels(record) if _drawn(panel, columns, checks)],
        "stopped": number(dig(record, "stop", "step")),
        "kept": number(dig(record, "stop", "kept_step")),
    }


def panels(record: Mapping[str, Any]) -> list[Panel]:
    """Return every panel that a record may fill."""
    stop = record.get("stop")
    target, floor = number(dig(stop, "target", "value")), number(dig(stop, "utility_floor"))
    measure = str(dig(stop, "target", "measure") or "")
    strength = [("target", target)] if target is not None and measure == "extraction_strength" else []
    unseen = number(dig(record, "before", "never_seen", "nll"))
    likelihood = [("never seen", unseen)] if unseen is not None else []
    other = []
    if target is not None and measure in ("exact_memorisation", "probability", "verbatim"):
        lines = [Line(f"forget_{measure}_checked", "forget, checks", "forget", True)]
        title = f"{measure.replace('_', ' ')} of the forget set".capitalize()
        other = [Panel("measure", title, "", lines, rules=[("target", target)])]
    return [
        Panel(
            "strength",
            "Extraction strength of the forget set",
            "share of the answer that the model completes by itself",
            [
                Line("forget_extraction_strength", "step's own batch", "other"),
                Line("forget_extraction_strength_checked", "checks", "forget", True),
            ],
            rules=strength,
        ),
        *other,
        Panel(
            "utility",
            "Answer probability of the retain set",
            "held out, at checks",
            [Line("retain_probability_checked", "checks", "retain", True)],
            rules=[("floor", floor)] if floor else [],
        ),
        _alone("forget_loss", "Forget loss", "nats per token", role="forget"),
        _alone("retain_loss", "Retain loss", "nats per token", role="retain"),
        Panel(
            "nll",
            "Negative log-likelihood of the forget set",
            "nats per token, at checks",
            [Line("forget_nll_checked", "checks", "forget", True)],
            rules=[*likelihood, *([("target", target)] if target is not None and measure == "nll" else [])],
        ),
        _alone("learning_rate", "Learning rate", "per step", key="rate", log=True),
        _of_both("norm", "Norms of the two gradients", key="norms", log=True),
        _of_both("weight", "Weights of the two gradients", key="weights", log=True),
        _alone("cosine", "Cosine between the two gradients", rules=[("", 0.0)]),
        _of_both(
            "descent",
            "Applied update and each gradient",
            "cosine; above 0 lowers that loss",
            rules=[("", 0.0)],
        ),
        _alone("changed", "Share of the parameters changed", "by each step"),
    ]


def _alone(
    field: str, title: str, unit: str = "", *, role: str = "other", key: str | None = None, **more: Any
) -> Panel:
    """Return the panel of one field of the steps."""
    return Panel(key or field, title, unit, [Line(field, field.replace("_", " "), role)], **more)


def _of_both(field: str, title: str, unit: str = "", *, key: str | None = None, **more: Any) -> Panel:
    """Return the panel of a field that both gradients have."""
    lines = [Line(f"{task}_{field}", task, task) for task in ("forget", "retain")]
    return Panel(key or field, title, unit, lines, **more)


def _drawn(
    panel: Panel, columns: Mapping[str, Sequence[float | None]], checks: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether any of a panel's lines has a value to draw (a positive one on a logarithmic axis)."""
    for line in panel.lines:
        values = [check.get(line.field) for check in checks] if line.checks else columns[line.field]
        if any(value is not None and (not panel.log or value > 0) for value in values):
            return True
    return False


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "key": panel.key,
        "title": panel.title,
        "unit": panel.unit,
        "log": panel.log,
        "rules": [list(rule) for rule in panel.rules],
        "lines": [
            {"field": line.field, "label": line.label, "role": line.role, "checks": line.checks}
            for line in panel.lines
        ],
    }


def _weight(weights: Any, place: int) -> float | None:
    return number(weights[place]) if isinstance(weights, list) and len(weights) == 2 else None


def _check(check: Mapping[str, Any]) -> dict[str, Any]:
    measures = ("extraction_strength", "exact_memorisation", "probability", "nll", "verbatim")
    found: dict[str, Any] = {
        "step": number(check.get("step")),
        "above_floor": bool(check.get("above_floor")),
        "met": bool(check.get("met")),
        "best": bool(check.get("best")),
    }
    for part, name in (("forget", "forget"), ("utility", "retain")):
        found |= {f"{name}_{m}_checked": number(dig(check, part, m)) for m in measures}
    return found


def _probe(probe: Mapping[str, Any]) -> dict[str, Any]:
    points = [
        {name: number(point.get(name)) for name in ("width", "minus", "zero", "plus")}
        for point in rows_of(probe.get("points"))
    ]
    return {
        "step": number(probe.get("step")),
        "outcome": str(probe.get("outcome")),
        "reason": str(probe.get("reason")),
        **{name: number(probe.get(name)) for name in ("before", "after", "applied", "noise")},
        "points": points,
    }
