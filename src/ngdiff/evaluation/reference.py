"""evaluation of a retrained model -> what forget quality and PrivLeak compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ngdiff.errors import Fault, RequestError

_WHERE = "--reference"


@dataclass(frozen=True)
class Reference:
    """What the evaluation of a model that never saw the forget set found.

    Args:
        name: the file or model it came from.
        suite: ``tofu``, ``muse`` or ``own``.
        split: ``forget01``, ``forget05`` or ``forget10`` where the number of items tells it, else ``None``.
        truth_ratios: p(wrong)/p(right) of each item of the forget set, in the data's order; empty where the
            evaluation has none.
        membership: attack, such as ``min_k``, to its AUC of forget set against holdout.
        figures: key of a figure, such as ``forget.extraction_strength``, to its value.
    """

    name: str
    suite: str
    split: str | None = None
    truth_ratios: tuple[float, ...] = ()
    membership: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def forget_truth_ratios(self, size: int, split: str | None = None) -> tuple[float, ...]:
        """Return the truth ratios of the forget set, to compare with those of ``size`` items.

        Args:
            size: number of items in the forget set under evaluation.
            split: its name, such as ``forget10``, where it is a part of TOFU.

        Raises:
            RequestError: where there are none, or where they are of another split or size.
        """
        mend = f"Give the retrained model's evaluation on {split or 'the same forget set'}"
        if not self.truth_ratios:
            raise RequestError(Fault(_WHERE, f"{self.name} has no truth ratios of the forget set", mend))
        if split is not None and self.split is not None and split != self.split:
            what = f"{self.name} was evaluated on {self.split}, not on {split}"
            raise RequestError(Fault(_WHERE, what, mend))
        if len(self.truth_ratios) != size:
            count = len(self.truth_ratios)
            what = f"{self.name} has {count} truth ratios for the {size} items of the forget set"
            raise RequestError(Fault(_WHERE, what, mend))
        return self.truth_ratios

    def membership_auc(self, attack: str = "min_k") -> float:
        """Return the AUC that an attack reaches on the retrained model.

        Raises:
            RequestError: where the evaluation has none for this attack.
        """
        if attack not in self.membership:
            what = f"{self.name} has no AUC of the membership attack {attack}"
            found = ", ".join(sorted(self.membership)) or "none"
            mend = f"Evaluate the retrained model with a holdout set (attacks there: {found})"
            raise RequestError(Fault(_WHERE, what, mend))
        return self.membership[attack]
