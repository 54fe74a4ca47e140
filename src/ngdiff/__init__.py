"""NGDiff: make a language model forget.

Public names are loaded when they are first used, so that ``import ngdiff`` and ``ngdiff --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngdiff.errors import Fault, RequestError
    from ngdiff.from_python import Unlearned, unlearn
    from ngdiff.python_trainer import UnlearningTrainer
    from ngdiff.record import RunRecord
    from ngdiff.steps.gradients import GradientPair, Weights
    from ngdiff.steps.stepsize import AutomaticRate, FixedRate
    from ngdiff.steps.weighting import make_rule
    from ngdiff.training.config import UnlearningConfig

_HOME = {
    "AutomaticRate": "steps.stepsize",
    "Fault": "errors",
    "FixedRate": "steps.stepsize",
    "GradientPair": "steps.gradients",
    "RequestError": "errors",
    "RunRecord": "record",
    "Unlearned": "from_python",
    "UnlearningConfig": "training.config",
    "UnlearningTrainer": "python_trainer",
    "Weights": "steps.gradients",
    "make_rule": "steps.weighting",
}

__all__ = [
    "AutomaticRate",
    "Fault",
    "FixedRate",
    "GradientPair",
    "RequestError",
    "RunRecord",
    "Unlearned",
    "UnlearningConfig",
    "UnlearningTrainer",
    "Weights",
    "make_rule",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name == "unlearn":  # a module that can be called: importing any part of it sets it here anyway
        return importlib.import_module("ngdiff.unlearn")
    if name not in _HOME:
        raise AttributeError(f"module 'ngdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ngdiff.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
