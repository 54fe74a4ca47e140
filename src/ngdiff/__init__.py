"""NGDiff: make a language model forget.

Public names are loaded when they are first used, so that ``import ngdiff`` and ``ngdiff --help`` stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngdiff.config import UnlearningConfig
    from ngdiff.errors import Fault, RequestError
    from ngdiff.gradients import GradientPair, Weights
    from ngdiff.record import RunRecord
    from ngdiff.stepsize import AutomaticRate, FixedRate
    from ngdiff.trainer import UnlearningTrainer
    from ngdiff.weighting import make_rule

_HOME = {
    "AutomaticRate": "stepsize",
    "Fault": "errors",
    "FixedRate": "stepsize",
    "GradientPair": "gradients",
    "RequestError": "errors",
    "RunRecord": "record",
    "UnlearningConfig": "config",
    "UnlearningTrainer": "trainer",
    "Weights": "gradients",
    "make_rule": "weighting",
}

__all__ = [
    "AutomaticRate",
    "Fault",
    "FixedRate",
    "GradientPair",
    "RequestError",
    "RunRecord",
    "UnlearningConfig",
    "UnlearningTrainer",
    "Weights",
    "make_rule",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ngdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ngdiff.{_HOME[name]}"), name)
