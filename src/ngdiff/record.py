"""the state of a run -> record.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ngdiff.steps.line import Probe
from ngdiff.steps.parabola import Parabola

FORMAT = 1


@dataclass
class StepRecord:
    """One optimizer step.

    Args:
        step: counted from 1.
        epoch: passes over the forget set so far.
        forget_loss: in nats per token (for NLL losses), before the step.
        retain_loss: in the same unit, before the step.
        forget_norm: norm of the forget gradient; None where the two gradients were not kept apart.
        retain_norm: norm of the retain gradient; None in the same case.
        cosine: between the two gradients.
        weights: factors of the retain and the forget gradient.
        combined_norm: norm of the combined gradient.
        learning_rate: the rate of the step.
        retain_descent: cosine between the retain gradient and minus the update that the optimizer applied,
            on a sample of the parameters: positive where the step lowered the retain loss to first order;
            None where the two gradients were not kept apart.
        forget_descent: the same cosine for the forget gradient.
        changed: share of a sample of the parameters with a gradient whose value the step changed.
        forget_extraction_strength: of the step's own forget batch, before the step.
        seconds: wall-clock time of the step, probes and checks included.
        skipped: why nothing was applied, if nothing was.
    """

    step: int
    epoch: float
    forget_loss: float | None
    retain_loss: float | None
    forget_norm: float | None
    retain_norm: float | None
    cosine: float | None
    weights: tuple[float, float]
    combined_norm: float | None
    learning_rate: float
    retain_descent: float | None
    forget_descent: float | None
    changed: float | None
    forget_extraction_strength: float | None
    seconds: float
    skipped: str | None = None


@dataclass
class RunRecord:
    """One unlearning run; ``notes`` lists every fallback taken.

    ``request_sha256`` is :func:`ngdiff.settings.identity.request_hash` of settings, data and starting model,
    where the run came from ``ngdiff unlearn``. ``sources`` names the paper, or this software, that each part
    of the method comes from. ``losses`` holds the settings of both losses as they were used, including
    those measured at the beginning. ``before`` and ``after`` hold the mean figures of every measured set and,
    under ``items``, those of single items; ``earlier`` the state of earlier requests; ``finished`` the end of
    the run, in UTC.
    """

    request_sha256: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    after: dict[str, Any] = field(default_factory=dict)
    stop: dict[str, Any] = field(default_factory=dict)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    finished: str = ""
    cost: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Note a fallback or a warning, once."""
        if text not in self.notes:
            self.notes.append(text)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as values that JSON (with NaN and infinities) can hold."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved record, in place; notes taken since then follow its own."""
        later = self.notes
        for name in (one.name for one in fields(self) if one.name in state):
            setattr(self, name, state[name])
        self.steps = [_step(entry) for entry in state["steps"]]
        self.probes = [_probe(entry) for entry in state["probes"]]
        for text in later:
            self.note(text)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "unlearn", "format": FORMAT, **asdict(self)}


def _step(entry: dict[str, Any]) -> StepRecord:
    retain, forget = entry["weights"]
    return StepRecord(**{**entry, "weights": (retain, forget)})


def _probe(entry: dict[str, Any]) -> Probe:
    return Probe(**{**entry, "points": tuple(Parabola(**point) for point in entry["points"])})
