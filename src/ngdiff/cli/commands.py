"""The commands, registered on the app by being imported."""

from __future__ import annotations

from ngdiff.cli import demo, finetune, listing, merge, recompute, unlearn

__all__ = ["demo", "finetune", "listing", "merge", "recompute", "unlearn"]
