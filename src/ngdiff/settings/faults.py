"""values given for settings -> what is wrong with their types and ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field
from typing import Any, get_type_hints

from ngdiff.errors import Fault

_PLAIN = (str, int, float, bool, list, dict)
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a name",
    "dict": "names and values",
    "list": "a list",
}
_RANGES: dict[str, tuple[float, float, str]] = {
    "weight_decay": (0, math.inf, "0 or more"),
    "adam_beta1": (0, 1 - 1e-12, "from 0 to below 1"),
    "adam_beta2": (0, 1 - 1e-12, "from 0 to below 1"),
    "adam_epsilon": (1e-300, math.inf, "above 0"),
    "max_grad_norm": (0, math.inf, "0 (no clipping) or more"),
    "warmup_steps": (0, math.inf, "0 or more"),
    "logging_steps": (1e-300, math.inf, "above 0"),
    "save_steps": (1e-300, math.inf, "above 0"),
    "dataloader_num_workers": (0, math.inf, "0 or more"),
    "per_device_eval_batch_size": (1, math.inf, "1 or more"),
    "neftune_noise_alpha": (0, math.inf, "0 or more"),
}
"""Settings of ``transformers.TrainingArguments`` that fail late, or quietly, outside these bounds."""


def type_faults(
    owner: type[Any], fields: Mapping[str, Field[Any]], values: Mapping[str, Any]
) -> dict[str, Fault]:
    """Compare values with what their settings are declared to be.

    Args:
        owner: the dataclass, whose annotations are read.
        fields: its fields by name.
        values: setting to value; those that equal the default or are no plain values are passed over.

    Returns:
        Setting to its fault.
    """
    given = {
        name: value
        for name, value in values.items()
        if isinstance(value, _PLAIN) and not _is_default(fields[name], value)
    }
    if not given:
        return {}
    hints = get_type_hints(owner)
    found = {name: _fault(name, value, hints[name]) for name, value in given.items()}
    return {name: fault for name, fault in found.items() if fault is not None}


def _is_default(field: Field[Any], value: object) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return type(value) is type(default) and value == default


def _fault(name: str, value: Any, hint: Any) -> Fault | None:
    from pydantic import TypeAdapter, ValidationError

    where, shown = f"--set {name}", repr(value)[:80]
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        kinds = [text for kind, text in _KINDS.items() if kind in str(hint)]
        return Fault(where, f"{shown} does not go there", f"Give {' or '.join(kinds) or 'another value'}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not math.isfinite(value):
        return Fault(where, f"{shown} is not finite", "Give a number")
    least, most, words = _RANGES.get(name, (-math.inf, math.inf, ""))
    if number and not least <= value <= most:
        return Fault(where, f"{shown} is out of range", f"Give a number that is {words}")
    return None


def positive_fault(where: str, value: float, example: str) -> Fault | None:
    """Say so where a number is not positive and finite."""
    if 0 < value < float("inf"):
        return None
    return Fault(where, f"{value} is not above 0 and finite", f"Give a positive number, {example}")


def seed_fault(seed: int) -> Fault | None:
    """Say so where a seed is none that every library takes."""
    if 0 <= seed < 2**32:
        return None
    return Fault("--seed", f"{seed} is no seed", "Give a whole number from 0 to 4294967295")


def minutes_fault(minutes: float) -> Fault | None:
    """Say so where the minutes between two checkpoints are no length of time."""
    if 0 <= minutes < float("inf"):
        return None
    fix = "Give minutes, or 0 for no checkpoints by the clock"
    return Fault("--save-minutes", f"{minutes} is no length of time", fix)
