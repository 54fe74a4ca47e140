"""The commands, registered on the app by being imported."""

from __future__ import annotations

from ngdiff.cli import (
    ask,
    audit,
    bench,
    check,
    compare,
    demo,
    env,
    evaluate,
    finetune,
    listing,
    merge,
    plan,
    push,
    recompute,
    report,
    unlearn,
    validate,
    verify,
)

__all__ = [
    "ask",
    "audit",
    "bench",
    "check",
    "compare",
    "demo",
    "env",
    "evaluate",
    "finetune",
    "listing",
    "merge",
    "plan",
    "push",
    "recompute",
    "report",
    "unlearn",
    "validate",
    "verify",
]
