"""a run -> everything needed to repeat it: the command, settings, versions, hashes, notes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ngdiff.report.run_files import Run, dig
from ngdiff.report.text import visible
from ngdiff.settings import FLAGS, SHORT
from ngdiff.settings.identity import FROM_MEMORY

LONG = {short: name for name, short in SHORT.items()}
WORKED_OUT = frozenset(
    {
        "optimizer",
        "autocast",
        "disable_tqdm",
        "logging_strategy",
        "answers",
        "push_to_hub",
        "private",
    }
)
"""Settings that follow from others, or do not affect the result."""


def command(record: Mapping[str, Any]) -> str:
    """Return the command that makes the same run again, with every setting written out."""
    settings = record.get("settings")
    words = ["ngdiff", "unlearn"]
    given = settings if isinstance(settings, Mapping) else {}
    for name, value in given.items():
        doubled = name == "per_device_train_batch_size" and "batch_size" in given
        unsaid = value is None or value is False or value in ([], {}, "")  # 0 is written out
        if name in WORKED_OUT or doubled or unsaid:
            continue
        if name == "model" and str(value).endswith(FROM_MEMORY):
            value = "MODEL"
        words += _words(str(name), value)
    return " ".join([*words, "--output", "OUT"])


def _words(name: str, value: Any) -> list[str]:
    flag = FLAGS.get(LONG.get(name, name))
    if flag is None:
        return ["--set", shlex.quote(f"{name}={json.dumps(value)}")]
    if value is True:
        return [flag]
    values = value if isinstance(value, list) else [value]
    return [word for item in values for word in (flag, shlex.quote(str(item)))]


def tables(run: Run) -> list[dict[str, Any]]:
    """Return (title, rows) of settings, data, weights, versions, machine, cost, evaluations and receipt."""
    record = run.record or {}
    provenance = {} if run.evaluation is None else run.evaluation.provenance
    parts = [
        ("Settings", record.get("settings") or provenance.get("settings")),
        ("Data", record.get("data") or provenance.get("data")),
        ("Weights", record.get("model") or provenance.get("model")),
        ("Request", {"sha256": record.get("request_sha256")} if record.get("request_sha256") else None),
        ("Losses as used", record.get("losses")),
        ("Versions", record.get("versions") or provenance.get("versions")),
        ("Machine", record.get("machine") or provenance.get("machine")),
        ("Cost", record.get("cost") or provenance.get("seconds")),
    ]
    parts += [
        (f"Evaluation: {label}", _about(evaluation))
        for label, evaluation in (
            ("this model", run.evaluation),
            ("target model", run.before),
            ("retrained model", run.reference),
        )
        if evaluation is not None
    ]
    parts.append(("Receipt", run.receipt))
    return [{"title": title, "rows": flat(content)} for title, content in parts if flat(content)]


def _about(evaluation: Any) -> dict[str, Any]:
    found = evaluation.provenance
    return {
        "suite": evaluation.suite,
        "split": evaluation.split,
        "model": found.get("model"),
        "seed": found.get("seed"),
        "versions": dig(found, "versions", "ngdiff"),
    }


def notes(run: Run) -> list[str]:
    """Return every fallback and warning of the run and of its evaluations."""
    found = [str(note) for note in dig(run.record, "notes") or []]
    found += [f"evaluation: {note}" for note in (run.evaluation.notes if run.evaluation else [])]
    return [visible(note) for note in dict.fromkeys(found)]


def flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (dotted name, text); empty ones are left out."""
    if not isinstance(content, Mapping):
        return []
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += flat(value, f"{name}.")
        elif value not in (None, [], ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            found.append((visible(name), visible(text[:2000])))
    return found
