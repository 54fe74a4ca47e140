"""values given for settings -> what is wrong with their types and ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field
from typing import Any, get_type_hints

from ngdiff.errors import Fault
from ngdiff.settings import flag_of

_PLAIN = (str, int, float, bool, list, dict)
_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a name",
    "dict": "names and values",
    "numbers": "a mapping of names to numbers",
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


def type_faults(owner: type[Any], values: Mapping[str, Any]) -> dict[str, Fault]:
    """Check values against the declared types of their settings.

    Args:
        owner: the dataclass with the annotations. Inherited settings are checked only for plain values.
        values: setting to value; values that equal the default are not checked.

    Returns:
        Setting to its fault.
    """
    fields = owner.__dataclass_fields__
    given = {
        name: value
        for name, value in values.items()
        if (name in owner.__annotations__ or isinstance(value, _PLAIN))
        and not _is(value, default_of(fields[name]))
    }
    if not given:
        return {}
    hints = get_type_hints(owner)
    found = {name: _fault(name, value, hints[name]) for name, value in given.items()}
    return {name: fault for name, fault in found.items() if fault is not None}


def default_of(field: Field[Any]) -> Any:
    """Return the default of a dataclass's field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _is(value: object, default: object) -> bool:
    return type(value) is type(default) and value == default


def _fault(name: str, value: Any, hint: Any) -> Fault | None:
    from pydantic import TypeAdapter, ValidationError

    where, shown = flag_of(name), repr(value)[:80]
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        kinds = " or ".join(text for kind, text in _KINDS.items() if kind in _named(hint)) or "valid"
        return Fault(where, f"{shown} is not {kinds}", f"Give {kinds}" if kinds != "valid" else "Omit it")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and not math.isfinite(value):
        return Fault(where, f"{shown} is not finite", "Give a finite number")
    least, most, words = _RANGES.get(name, (-math.inf, math.inf, ""))
    if number and not least <= value <= most:
        return Fault(where, f"{shown} is out of range", f"Give a number that is {words}")
    return None


def _named(hint: Any) -> str:
    """Return the name of a type; one word for a mapping of names to numbers."""
    return str(hint).replace("dict[str, float]", "numbers")


def positive_fault(where: str, value: float, example: str) -> Fault | None:
    """Return the fault of a number that is not positive and finite."""
    if 0 < value < float("inf"):
        return None
    return Fault(where, f"{value} is not a positive number", f"Give a finite number above 0, {example}")


def seed_fault(seed: int) -> Fault | None:
    """Return the fault of a seed that some library does not accept."""
    if 0 <= seed < 2**32:
        return None
    return Fault("--seed", f"{seed} is not a valid seed", "Give a whole number from 0 to 4294967295")


def minutes_fault(minutes: float, where: str = "--save-minutes") -> Fault | None:
    """Return the fault of an interval between two checkpoints that is not a length of time."""
    if 0 <= minutes < float("inf"):
        return None
    fix = "Give a number of minutes, or 0 for no checkpoints by time"
    return Fault(where, f"{minutes} is not a length of time", fix)
