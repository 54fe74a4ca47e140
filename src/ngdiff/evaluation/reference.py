"""evaluation of a retrained model -> what forget quality and PrivLeak compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ngdiff.errors import Fault, RequestError
from ngdiff.evaluation.result import EvaluationResult

_WHERE = "--reference"
_LARGEST_EXPONENT = 700.0  # exp overflows at 710


def truth_ratio_from_log(value: float) -> float:
    """Return p(wrong)/p(right) from its logarithm; beyond e^700 it stays there."""
    return math.exp(max(-_LARGEST_EXPONENT, min(_LARGEST_EXPONENT, value)))


@dataclass(frozen=True)
class Reference:
    """What the evaluation of a model that never saw the forget set found.

    Args:
        name: the file or model it came from.
        suite: ``tofu``, ``muse`` or ``own``.
        split: ``forget01``, ``forget05`` or ``forget10`` where the number of items tells it, else ``None``.
        truth_ratios: p(wrong)/p(right) of each item of the forget set, in the data's order; empty where the
            evaluation has none.
        guarded_truth_ratios: the same as p(wrong)/(p(right) + 1e-10), OpenUnlearning's convention.
        membership: attack, such as ``min_k``, to its AUC of forget set against holdout.
        figures: key of a figure, such as ``forget.extraction_strength``, to its value.
        forget_nll: mean NLL of each item of the forget set, in nats per token; empty where it is not known.
        holdout_nll: the same for the holdout.
        forget_sha256: :func:`ngdiff.data.examples.data_hash` of the forget set, where it is known.
    """

    name: str
    suite: str
    split: str | None = None
    truth_ratios: tuple[float, ...] = ()
    guarded_truth_ratios: tuple[float, ...] = ()
    membership: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    forget_nll: tuple[float, ...] = ()
    holdout_nll: tuple[float, ...] = ()
    forget_sha256: str | None = None

    def losses(self, forget: int, holdout: int) -> tuple[Sequence[float], Sequence[float]] | None:
        """Return the losses of both sets' items where they are known and of these sizes, else ``None``."""
        if (len(self.forget_nll), len(self.holdout_nll)) != (forget, holdout):
            return None
        return self.forget_nll, self.holdout_nll

    def forget_truth_ratios(self, size: int, split: str | None = None) -> tuple[float, ...]:
        """Return the truth ratios of the forget set, to compare with those of ``size`` items.

        Args:
            size: number of items in the forget set under evaluation.
            split: its name, such as ``forget10``, where it is a part of TOFU.

        Raises:
            RequestError: where there are none, or where they are of another split or size.
        """
        fix = f"Give the retrained model's evaluation on {split or 'the same forget set'}"
        if not self.truth_ratios:
            raise RequestError(Fault(_WHERE, f"{self.name} has no truth ratios of the forget set", fix))
        # Logs of others do not state their split: it was told from their size, which may agree all the same.
        comparable = self.forget_sha256 is None and len(self.truth_ratios) == size
        if split is not None and self.split is not None and split != self.split and not comparable:
            what = f"{self.name} was evaluated on {self.split}, not on {split}"
            raise RequestError(Fault(_WHERE, what, fix))
        if len(self.truth_ratios) != size:
            count = len(self.truth_ratios)
            what = f"{self.name} has {count} truth ratios for the {size} items of the forget set"
            raise RequestError(Fault(_WHERE, what, fix))
        return self.truth_ratios

    def membership_auc(self, attack: str = "min_k") -> float:
        """Return the AUC that an attack reaches on the retrained model.

        Raises:
            RequestError: where the evaluation has none for this attack.
        """
        if attack not in self.membership:
            what = f"{self.name} has no AUC of the membership attack {attack}"
            found = ", ".join(sorted(self.membership)) or "none"
            fix = f"Evaluate the retrained model with a holdout set (attacks there: {found})"
            raise RequestError(Fault(_WHERE, what, fix))
        return self.membership[attack]


def reference_from_result(result: EvaluationResult, name: str) -> Reference:
    """Return what other evaluations compare with, from an evaluation of a retrained model.

    Figures under another definition than today's are left out: nothing may be compared with them.
    """

    figures = {key: found for key, found in result.figures.items() if found.outdated is None}

    def items(key: str) -> tuple[float, ...]:
        found = figures.get(key)
        return () if found is None else tuple(item for item in found.items if item is not None)

    prefix = "forget.membership."
    values = {key: found.value for key, found in figures.items() if found.value is not None}
    return Reference(
        name=name,
        suite=result.suite,
        split=result.split,
        truth_ratios=tuple(map(truth_ratio_from_log, items("forget.log_truth_ratio"))),
        guarded_truth_ratios=tuple(map(truth_ratio_from_log, items("forget.log_truth_ratio_openunlearning"))),
        membership={key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)},
        figures=values,
        forget_nll=items("forget.nll"),
        holdout_nll=items("holdout.nll"),
        forget_sha256=_forget_hash(result),
    )


def _forget_hash(result: EvaluationResult) -> str | None:
    data = result.provenance.get("data")
    forget = data.get("forget") if isinstance(data, dict) else None
    found = forget.get("sha256") if isinstance(forget, dict) else None
    return found if isinstance(found, str) else None
