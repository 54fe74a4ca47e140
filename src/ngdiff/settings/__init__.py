"""values given for settings -> checked ones; YAML read as data; the hash that names a request."""

from __future__ import annotations

DEFAULT_METHOD = "ngdiff-counterfactual"
"""NGDiff that makes the model answer as if it had never met the subject; docs/results.md compares it.

It stands here, so that help texts can name it before anything heavy is imported.
"""
