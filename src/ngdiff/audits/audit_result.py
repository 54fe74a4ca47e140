"""what audits brought out -> audit.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ngdiff.audits.findings import Finding
from ngdiff.audits.subject import Outcome, Role
from ngdiff.evaluation.result import EvaluationResult, Figure
from ngdiff.system.output import write_json

KIND = "audit"
FORMAT = 2


@dataclass
class AuditResult:
    """One audit of one model.

    Args:
        suite: ``own`` or ``tofu``.
        before: role to figures before any audit.
        outcomes: audit to role to form to outcome.
        findings: what the audited model's figures say, compared.
        provenance: models, data, settings, versions, machine, seconds.
        notes: every audit left out and every fallback taken.
        split: ``forget01``, ``forget05`` or ``forget10`` of TOFU, else ``None``.
    """

    suite: str
    before: Mapping[Role, Mapping[str, Figure]]
    outcomes: Mapping[str, Mapping[Role, Mapping[str, Outcome]]]
    findings: Sequence[Finding]
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    split: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "suite": self.suite,
            "split": self.split,
            "findings": [asdict(finding) for finding in self.findings],
            "before": {role: _figures(found) for role, found in self.before.items()},
            "audits": {
                name: {role: _forms(forms) for role, forms in roles.items()}
                for name, roles in self.outcomes.items()
            },
            "notes": self.notes,
            "provenance": self.provenance,
        }


def _forms(forms: Mapping[str, Outcome]) -> dict[str, Any]:
    return {
        form: {
            "figures": _figures(outcome.figures),
            "rows": {name: list(places) for name, places in outcome.rows.items()},
            "note": outcome.note,
        }
        for form, outcome in forms.items()
    }


def _figures(found: Mapping[str, Figure]) -> Any:
    """Return figures as an ``eval.json`` has them."""
    return EvaluationResult("", dict(found), {}).as_json()["figures"]


def write_audit(result: AuditResult, path: Path) -> None:
    """Write ``audit.json`` whole or not at all."""
    write_json(result.as_json(), path)


def is_audit(path: Path) -> bool:
    """Return whether a file gives itself out as an ``audit.json``, whole or cut short."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open(encoding="utf-8") as file:
            head = file.read(200)
    except (OSError, UnicodeDecodeError):
        return False
    return f'"kind": "{KIND}"' in head
