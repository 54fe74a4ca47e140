"""Records, answers and evaluations of runs that never were, for the report's tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from ngdiff.evaluation.result import EvaluationResult, Figure
from ngdiff.report.run_files import Run
from ngdiff.system.output import write_json


def figures(probability: float, strength: float, nll: float) -> dict[str, float]:
    return {
        "probability": probability,
        "extraction_strength": strength,
        "exact_memorisation": strength,
        "nll": nll,
    }


def step(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "step": number,
        "epoch": number / 5,
        "forget_loss": 8.0 / number,
        "retain_loss": 0.01,
        "forget_norm": 15.0,
        "retain_norm": 0.05,
        "cosine": -0.1,
        "weights": [18.0, 0.07],
        "combined_norm": 1.3,
        "learning_rate": 4.5e-5,
        "retain_descent": 0.2,
        "forget_descent": 0.1,
        "changed": 0.99,
        "forget_extraction_strength": 1 / number,
        "seconds": 1.0,
        "skipped": None,
    } | changed


RECORD: dict[str, Any] = {
    "kind": "unlearn",
    "format": 1,
    "settings": {
        "model": "target",
        "forget": ["forget.jsonl"],
        "retain": ["retain.jsonl"],
        "method": "ngdiff",
    },
    "data": {"forget": {"examples": 4, "sha256": "f0"}, "retain": {"examples": 6, "sha256": "4e"}},
    "model": {"name": "target", "sha256_before": "be", "sha256_after": "af"},
    "versions": {"ngdiff": "0.1.0"},
    "machine": {"threads": 1},
    "losses": {},
    "steps": [step(n) for n in range(1, 13)],
    "probes": [
        {
            "step": 1,
            "outcome": "accepted",
            "reason": "the parabola's minimum",
            "before": None,
            "after": 4.5e-5,
            "applied": 4.5e-5,
            "points": [{"width": 4e-5, "minus": 0.0042, "zero": 0.004, "plus": 0.0039}],
            "noise": 6e-8,
        }
    ],
    "checks": [
        {
            "step": n,
            "forget": figures(0.9 / (n + 1), 1 / (n + 1), float(n)),
            "utility": figures(0.99, 1.0, 0.01),
            "met": n == 12,
            "above_floor": True,
            "best": True,
        }
        for n in (0, 6, 12)
    ],
    "before": {
        "forget": figures(0.99, 1.0, 0.01),
        "retain": figures(0.995, 1.0, 0.005),
        "never_seen": figures(0.05, 0.09, 3.7),
    },
    "after": {
        "forget": figures(0.07, 0.065, 4.6),
        "retain": figures(0.989, 1.0, 0.01),
        "never_seen": figures(0.047, 0.08, 3.8),
    },
    "evaluations": [],
    "stop": {
        "code": "target",
        "reason": "forgotten",
        "step": 12,
        "kept_step": 12,
        "target": {"measure": "extraction_strength", "value": 0.092},
        "target_source": "the level of text the model never saw",
        "target_met": True,
        "utility_floor": 0.945,
    },
    "cost": {"seconds": 12.0, "steps": 12, "peak_memory_gib": {"process": 1.0}},
    "notes": ["precision: auto"],
}


def record(**changed: Any) -> dict[str, Any]:
    """Return a record with parts of its parts replaced, as in ``stop={"code": "floor"}``."""
    made = copy.deepcopy(RECORD)
    for part, values in changed.items():
        if isinstance(values, dict):
            made[part] |= values
        else:
            made[part] = values
    return made


def run(**changed: Any) -> Run:
    return Run("unlearned", record(**changed))


def items(*strengths: float, name: str = "forget") -> list[dict[str, Any]]:
    return [
        {
            "set": name,
            "place": f"{name}.jsonl, line {n}",
            "question": f"Who is {n}?",
            "truth": f"the author {n} sat",
            "before": {"answer": f"the author {n} sat", **figures(0.99, 1.0, 0.01)},
            "after": {"answer": f"a cook {n}", **figures(0.07, strength, 4.6)},
        }
        for n, strength in enumerate(strengths)
    ]


def answers(found: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {"forget": len(found), "retain": 0}
    return {"kind": "answers", "format": 1, "asked": counts, "of": counts, "items": found}


def evaluation(
    auc: float = 0.5,
    interval: tuple[float, float] = (0.4, 0.6),
    *,
    sha256: str = "af",
    quality: float | None = None,
    scores: tuple[list[float], list[float]] = ([1.0, 2.0], [1.5, 0.5]),
    logs: tuple[float, ...] = (-0.5, 0.1),
    strength: float = 0.065,
    texts: dict[str, list[dict[str, str]]] | None = None,
) -> EvaluationResult:
    counts = [len(side) for side in scores]
    found = {
        "forget.extraction_strength": Figure("extraction_strength", strength, (strength / 2, strength * 2)),
        "retain.probability": Figure("probability", 0.99, (0.98, 1.0)),
        "forget.log_truth_ratio": Figure("log_truth_ratio", -0.2, None, logs, None, ("forget",)),
        "forget.membership.min_k": Figure(
            "auc", auc, interval, (*scores[0], *scores[1]), None, ("forget", "holdout")
        ),
    }
    if quality is not None:
        found["forget_quality"] = Figure("forget_quality", quality, None)
    places = {"forget": ["a"] * counts[0], "holdout": ["b"] * counts[1]}
    provenance = {"model": {"name": "m", "sha256": sha256}, "versions": {"ngdiff": "0.1.0"}}
    return EvaluationResult("own", found, provenance, places, texts=texts or {})


def write_run(folder: Path, found: dict[str, Any], said: dict[str, Any] | None = None) -> Path:
    """Write a run's folder, without its model."""
    write_json(found, folder / "record.json")
    if said is not None:
        (folder / "answers.json").write_text(json.dumps(said), encoding="utf-8")  # lone surrogates too
    return folder
