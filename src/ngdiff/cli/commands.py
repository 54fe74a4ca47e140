"""The commands, registered on the app by being imported."""

from __future__ import annotations

from ngdiff.cli import bench, compare, demo, evaluate, finetune, listing, merge, recompute, report, unlearn

__all__ = [
    "bench",
    "compare",
    "demo",
    "evaluate",
    "finetune",
    "listing",
    "merge",
    "recompute",
    "report",
    "unlearn",
]
