"""``report_to`` -> the trainer's settings and callbacks for TensorBoard, trackio, wandb and others.

Trackers receive only numbers, under the record's own names, and no text of a data set.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngdiff.errors import Fault, RequestError, unknown_name
from ngdiff.system.terminal import is_first

if TYPE_CHECKING:
    from ngdiff.record import RunRecord
    from ngdiff.stopping.rule import Check

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}
"""Trackers that are tested here, and the packages of which one is needed; transformers supports more."""


def tracker_names(value: Any) -> tuple[str, ...]:
    """Read the setting ``report_to``: a name, several separated by commas, or a list.

    Raises:
        RequestError: a name is not known, or its package is not installed.
    """
    items = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        fix = "Give names, such as [tensorboard, wandb]"
        raise RequestError(Fault("--set report_to", f"{value!r} is not a list of tracker names", fix))
    names = tuple(dict.fromkeys(item.strip() for item in items))
    names = tuple(name for name in names if name not in ("", "none"))
    faults = [fault for name in names for fault in _faults(name)]
    if faults:
        raise RequestError(faults)
    return names


def _faults(name: str) -> list[Fault]:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    if name not in INTEGRATION_TO_CALLBACK:
        return [unknown_name("--set report_to", "tracker", name, INTEGRATION_TO_CALLBACK)]
    if name in PACKAGES:
        there = any(importlib.util.find_spec(package) for package in PACKAGES[name])
    else:
        there = name in get_available_reporting_integrations()
    return [] if there else [Fault("--set report_to", f"{name} is not installed", f"Run: pip install {name}")]


def tracker_settings(settings: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Return the trainer's settings where a tracker is requested; else none.

    TensorBoard is left out of ``report_to``: :func:`tracker_callbacks` gives it a permanent folder.
    """
    names = tracker_names(settings.get("report_to"))
    if not names:
        return {"report_to": "none"}
    others = [name for name in names if name != "tensorboard"]
    return {
        "report_to": others or "none",
        "logging_strategy": "steps",
        "logging_steps": settings.get("logging_steps", 1),
        "run_name": settings.get("run_name") or output.name,
        "project": settings.get("project") or "ngdiff",
    }


def tracker_callbacks(settings: Mapping[str, Any], output: Path) -> list[Any]:
    """Return a callback that writes TensorBoard's events beside ``output``, where they are requested."""
    if "tensorboard" not in tracker_names(settings.get("report_to")) or not is_first():
        return []
    from transformers.integrations import TensorBoardCallback

    package = "torch.utils.tensorboard" if importlib.util.find_spec("tensorboard") else "tensorboardX"
    writer = importlib.import_module(package).SummaryWriter
    folder = tensorboard_folder(output) / time.strftime("%Y%m%d-%H%M%S")
    return [TensorBoardCallback(writer(log_dir=str(folder)))]


def tensorboard_folder(output: Path) -> Path:
    """Return the folder of TensorBoard's events, which can be watched before ``output`` exists."""
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    return Path(given).expanduser() if given else output.with_name(f"{output.name}-tensorboard")


def step_figures(record: RunRecord, checks: Sequence[Check]) -> dict[str, float]:
    """Return the numbers of the last step, and of its probe and its check.

    Names are the record's; a pair of weights becomes ``retain_weight`` and ``forget_weight``, and entries of
    a probe or a check are prefixed with ``probe_``, ``check_forget_`` or ``check_utility_``.
    """
    if not record.steps:
        return {}
    step = record.steps[-1]
    figures = {key: value for key, value in asdict(step).items() if isinstance(value, float)}
    figures["retain_weight"], figures["forget_weight"] = step.weights
    probe = record.probes[-1] if record.probes else None
    if probe is not None and probe.step == step.step:
        found = {key: getattr(probe, key) for key in ("before", "after", "applied", "noise")}
        figures |= {f"probe_{key}": value for key, value in found.items() if value is not None}
    check = checks[-1] if checks else None
    if check is not None and check.step == step.step:
        figures |= {f"check_forget_{key}": value for key, value in check.forget.items()}
        figures |= {f"check_utility_{key}": value for key, value in check.utility.items()}
        figures |= {f"check_kept_{key}": value for key, value in check.kept.items()}
        if check.left is not None:
            figures["check_left"] = check.left
        for key in ("met", "above_floor", "best"):
            figures[f"check_{key}"] = float(getattr(check, key))
    return figures
