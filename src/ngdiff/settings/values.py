"""values of a run's settings -> what is wrong with their types and ranges, without any library."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ngdiff.errors import Fault, RequestError
from ngdiff.settings import SHORT, flag_of
from ngdiff.settings.faults import minutes_fault, positive_fault, seed_fault

NO_LIMIT = -1
_PARAMETERS = {f"--{short.replace('_', '-')}": name for name, short in SHORT.items()}
"""Flags whose parameter in Python has another name."""
_SETS = {
    **dict.fromkeys(("--forget", "--retain", "--holdout"), "_dataset"),
    **dict.fromkeys(("--earlier", "--keep"), "_datasets"),
}
"""Flags that name data, and the ending of the trainer's parameters for them."""
_FLAG = re.compile(r"--set (\w+)(?:=true\b)?|(?<![\w-])--(?!help\b)[a-z][a-z-]*[a-z]")


def in_python(faults: Iterable[Fault], of_trainer: bool = True) -> list[Fault]:
    """Return faults that name parameters instead of the command line's flags.

    Args:
        faults: that name flags.
        of_trainer: whether data are called ``forget_dataset`` rather than ``forget``.
    """

    def said(text: str) -> str:
        return _FLAG.sub(lambda found: _parameter(found, of_trainer), text)

    return [Fault(said(fault.where), said(fault.what), said(fault.fix)) for fault in faults]


def _parameter(found: re.Match[str], of_trainer: bool) -> str:
    flag = found[0]
    if found[1] == "allow_overlap":
        return "allow_overlap=True"
    name = found[1] or _PARAMETERS.get(flag, flag.removeprefix("--").replace("-", "_"))
    return name + _SETS[flag] if of_trainer and flag in _SETS else name


class SettingError(RequestError):
    """Settings that are wrong, by their names in Python; ``flags`` has the same faults by flag."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.flags = tuple(faults)
        super().__init__(in_python(faults))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# kind of value -> its check, and the settings of this kind
_KINDS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a number": (
        _is_number,
        ("learning_rate", "keep_utility", "num_train_epochs", "save_minutes", "sam_radius"),
    ),
    "a whole number": (
        _is_whole,
        (
            *("probe_every", "check_every", "max_length", "eval_items", "examples_per_step"),
            *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "seed"),
        ),
    ),
    "a name": (
        lambda value: isinstance(value, str),
        ("method", "forget_loss", "retain_loss", "rule", "trainable"),
    ),
}
CHECKED = frozenset(name for _, names in _KINDS.values() for name in names)
"""Settings that can be checked without any library."""


def kind_faults(values: Mapping[str, Any]) -> dict[str, Fault]:
    """Return the settings whose values have the wrong type, with their faults; None is not checked."""
    return {
        name: Fault(flag_of(name), f"{repr(values[name])[:80]} is not {kind}", f"Give {kind}")
        for kind, (fits, names) in _KINDS.items()
        for name in names
        if values.get(name) is not None and not fits(values[name])
    }


def range_faults(values: Mapping[str, Any]) -> list[Fault]:
    """List what is out of range among settings of the right types; missing ones and None are skipped."""
    given = {name: value for name, value in values.items() if value is not None}
    faults: list[Fault | None] = []
    if "num_train_epochs" in given:
        faults.append(positive_fault("--epochs", given["num_train_epochs"], "such as 20"))
    if "seed" in given:
        faults.append(seed_fault(given["seed"]))
    if "save_minutes" in given:
        faults.append(minutes_fault(given["save_minutes"], flag_of("save_minutes")))
    if "learning_rate" in given:
        faults.append(positive_fault("--lr", given["learning_rate"], "such as 1e-5"))
    if not 0 <= given.get("keep_utility", 0) <= 1:
        what = f"{given['keep_utility']} is not a share"
        faults.append(Fault("--keep-utility", what, "Give a number from 0 (no floor) to 1"))
    if not 0 <= given.get("sam_radius", 0) < math.inf:
        what = f"{given['sam_radius']} is not a length"
        faults.append(Fault(flag_of("sam_radius"), what, "Give 0 for none, or more, such as 0.01"))
    return [fault for fault in faults if fault is not None] + _too_small(given)


def _too_small(given: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for name in (
        *("probe_every", "check_every", "eval_items", "max_steps"),
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
    ):
        value = given.get(name, 1)
        if value < 1 and (name, value) != ("max_steps", NO_LIMIT):
            faults.append(Fault(flag_of(name), f"{value} is too small", "Give a whole number of at least 1"))
    if given.get("examples_per_step", 0) < 0:
        what = f"{given['examples_per_step']} is negative"
        faults.append(Fault(flag_of("examples_per_step"), what, "Give 0 or more examples"))
    if given.get("max_length", 8) < 8:
        what = f"{given['max_length']} tokens are too few"
        faults.append(Fault("--max-length", what, "Give at least 8"))
    if "trainable" in given:
        faults += _pattern_faults(given["trainable"])
    return faults


def _pattern_faults(pattern: str) -> list[Fault]:
    try:
        re.compile(pattern)
    except re.error as error:
        what = f"{pattern!r} is not a regular expression ({error})"
        return [Fault(flag_of("trainable"), what, "Give one such as 'layers[.](5|6|7)[.]mlp'")]
    return []
