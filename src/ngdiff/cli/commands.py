"""The commands, registered on the app by being imported."""

from __future__ import annotations

from ngdiff.cli import audit, bench, demo, evaluate, finetune, listing, merge, recompute, unlearn

__all__ = ["audit", "bench", "demo", "evaluate", "finetune", "listing", "merge", "recompute", "unlearn"]
