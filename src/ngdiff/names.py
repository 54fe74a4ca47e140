"""Names that help texts show before anything heavy is imported."""

from __future__ import annotations

DEFAULT_METHOD = "ngdiff-counterfactual"
"""NGDiff that makes the model answer as if it had never met the subject; docs/results.md compares it."""
