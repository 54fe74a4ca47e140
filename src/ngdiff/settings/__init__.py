"""values given for settings -> checked ones; YAML read as data; the hash that names a request."""

from __future__ import annotations

DEFAULT_METHOD = "ngdiff-counterfactual"
"""The default method: NGDiff that makes the model answer as if it had never met the subject.

It is defined here so that help texts can name it without heavy imports; docs/results.md compares it.
"""

SHORT = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
}
"""Settings that the command line knows by a shorter name."""

FLAGS = {
    name: f"--{SHORT.get(name, name).replace('_', '-')}"
    for name in (
        *("model", "forget", "retain", "holdout", "columns", "keep", "earlier", "output"),
        *("method", "forget_loss", "retain_loss", "rule", "learning_rate", "seed"),
        *("stop_at", "keep_utility", "num_train_epochs"),
        *("per_device_train_batch_size", "max_length", "precision", "lora", "qlora"),
        *("gradient_checkpointing", "trust_remote_code"),
    )
}
"""Settings of an unlearning run that have a flag; every other one is given as ``--set NAME=VALUE``."""


def flag_of(name: str) -> str:
    """Return what the command line calls a setting of an unlearning run."""
    return FLAGS.get(name, f"--set {name}")
