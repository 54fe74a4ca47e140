"""Names that help texts show before anything heavy is imported."""

from __future__ import annotations

DEFAULT_METHOD = "ngdiff-selective-kl"
"""NGDiff that spares language and holds the starting model's predictions; docs/results.md compares it."""
