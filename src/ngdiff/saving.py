"""a trained model -> a folder that holds all of it, or none; and when checkpoints are written on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ngdiff.checkpoints import forget_older
from ngdiff.disk import disk_reason, is_disk_error
from ngdiff.errors import RunError
from ngdiff.output import RECORD, write_json
from ngdiff.parameters import all_finite
from ngdiff.unfinished import Workplace

SAVE_MINUTES = 15.0
"""From one checkpoint to the next, where nothing else is asked for."""


def when_to_save(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return when to write checkpoints, where the settings do not say it all: by steps or by the clock."""
    if "save_strategy" in settings:
        return {}
    if "save_steps" in settings:
        return {"save_strategy": "steps"}
    return {"save_minutes": SAVE_MINUTES}


def write_result(
    place: Workplace,
    model: Any,
    tokenizer: Any,
    record: dict[str, Any],
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write model, tokenizer and record where they wait for being put in their place.

    Args:
        place: where.
        model: what was trained.
        tokenizer: its own.
        record: plain JSON values.
        also: writes what goes beside them into the folder it is given.

    Raises:
        RunError: a weight is not finite, or the disk would not take the result, even without the older
            checkpoints.
    """
    if not all_finite(model):
        raise RunError("a weight is not finite, so no model was saved")
    for last_try in (False, True):
        try:
            shutil.rmtree(place.result, ignore_errors=True)
            place.result.mkdir()
            model.save_pretrained(place.result)
            tokenizer.save_pretrained(place.result)
            write_json(record, place.result / RECORD)
            if also is not None:
                also(place.result)
            return
        except (OSError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            shutil.rmtree(place.result, ignore_errors=True)
            if last_try:
                what = f"the model could not be saved ({disk_reason(error)})"
                raise RunError(f"{what}; no half of it was left behind") from error
            forget_older(place.run, 1)
