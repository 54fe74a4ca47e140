"""name of one of TorchJD's weightings -> Gramian -> two weights.

TorchJD's weightings scale with nothing: dividing the Gramian by a number changes no weight. It is divided by
its largest entry here, so that none of them meets a number beyond what its solver can do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ngdiff.steps.gradients import FORGET, RETAIN, Gramian, Weights

NAMES = {
    "pcgrad": "PCGradWeighting",
    "mgda": "MGDAWeighting",
    "imtlg": "IMTLGWeighting",
    "cagrad": "CAGradWeighting",
    "upgrad": "UPGradWeighting",
    "dualproj": "DualProjWeighting",
}
"""What the command line calls a weighting, to its class in ``torchjd.aggregation``."""

PROJECTING = ("upgrad", "dualproj")
REGULARISATION = 1e-9
"""What is added to the diagonal of the quadratic programs, in float64, after the Gramian is normalised."""


def torchjd_weights(name: str, **settings: float) -> Callable[[Gramian], Weights]:
    """Return the weighting as a function of the Gramian; a task whose gradient is 0 gets weight 0.

    Args:
        name: a key of ``NAMES``.
        settings: of the weighting's class.
    """
    made: list[Any] = []

    def weigh(gramian: Gramian) -> Weights:
        if not made:  # at the first step: the import costs a second that listing the rules should not
            made.append(_make(name, settings))
        squares = gramian.diagonal()
        largest = float(squares.max())
        if largest <= 0:
            return Weights(0.0, 0.0)
        alone = next((task for task in (RETAIN, FORGET) if float(squares[1 - task]) == 0), None)
        if alone is not None:
            return Weights(float(alone == RETAIN), float(alone == FORGET))
        with torch.no_grad():
            found = made[0](gramian / largest)
        return Weights(float(found[RETAIN]), float(found[FORGET]))

    return weigh


def _make(name: str, settings: dict[str, float]) -> Any:
    import torchjd.aggregation
    from torchjd.linalg import QuadprogProjector

    own: dict[str, Any] = dict(settings)
    if name in PROJECTING:  # its default of 1e-4 lets a short gradient's loss rise beside a long one's
        own["projector"] = QuadprogProjector(reg_eps=REGULARISATION)
    return getattr(torchjd.aggregation, NAMES[name])(**own)
