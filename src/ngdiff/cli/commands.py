"""The commands, registered on the app by being imported."""

from __future__ import annotations

from ngdiff.cli import demo, evaluate, finetune, listing, merge, recompute, unlearn

__all__ = ["demo", "evaluate", "finetune", "listing", "merge", "recompute", "unlearn"]
