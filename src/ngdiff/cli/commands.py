"""The commands, registered on the app by being imported."""

from __future__ import annotations

from ngdiff.cli import (
    audit,
    bench,
    demo,
    evaluate,
    finetune,
    listing,
    merge,
    plan,
    push,
    recompute,
    unlearn,
    validate,
    verify,
)

__all__ = [
    "audit",
    "bench",
    "demo",
    "evaluate",
    "finetune",
    "listing",
    "merge",
    "plan",
    "push",
    "recompute",
    "unlearn",
    "validate",
    "verify",
]
