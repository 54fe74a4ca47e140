"""The commands, registered on the app by being imported."""

from __future__ import annotations

from ngdiff.cli import bench, demo, evaluate, finetune, listing, merge, push, recompute, unlearn, validate

__all__ = [
    "bench",
    "demo",
    "evaluate",
    "finetune",
    "listing",
    "merge",
    "push",
    "recompute",
    "unlearn",
    "validate",
]
