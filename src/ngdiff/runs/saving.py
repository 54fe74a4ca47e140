"""a trained model, possibly sharded -> a folder that contains all of it, or no folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ngdiff.errors import RunError
from ngdiff.models.parameters import all_finite
from ngdiff.runs.checkpoints import forget_older
from ngdiff.runs.workplace import Workplace
from ngdiff.system.disk import disk_reason, is_disk_error
from ngdiff.system.output import RECORD, follow_umask, names_below, write_json
from ngdiff.system.processes import any_process, is_main, is_sharded, on_all, whole

SAVE_MINUTES = 15.0
"""Default interval between two checkpoints."""


def when_to_save(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings for checkpoints that are missing: by steps or by time."""
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
    """Write model, tokenizer and record to the folder from which they are moved into place.

    Every process must call it; the first one writes. Sharded parameters are gathered one at a time, into
    the memory of the first process's CPU.

    Args:
        place: of the run.
        model: the trained model.
        tokenizer: the model's.
        record: plain JSON values; the names of the files of model and tokenizer are added, so that
            ``--overwrite`` knows them.
        also: writes further files to the folder that it is given.

    Raises:
        RunError: a weight is not finite, or the result could not be written, even without the older
            checkpoints.
    """
    write = result_writer(model, tokenizer, record, also)
    on_all(lambda: _write(place, write) if is_main() else None)


def result_writer(
    model: Any, tokenizer: Any, record: dict[str, Any], also: Callable[[Path], None] | None = None
) -> Callable[[Path], None]:
    """Return what writes a result into an empty folder; see :func:`write_result` for the arguments.

    Every process has to call this, and the first one what it returns.

    Raises:
        RunError: a weight is not finite.
    """
    if any_process(not all_finite(model)):
        raise RunError("a weight is not finite, so no model was saved")
    state = whole_state(model)

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        follow_umask(folder)
        write_json({**record, "files": names_below(folder)}, folder / RECORD)
        if also is not None:
            also(folder)

    return write


def _write(place: Workplace, write: Callable[[Path], None]) -> None:
    for last_try in (False, True):
        try:
            shutil.rmtree(place.result, ignore_errors=True)
            place.result.mkdir()
            write(place.result)
            return
        except (OSError, SafetensorError) as error:
            if not is_disk_error(error):
                raise
            shutil.rmtree(place.result, ignore_errors=True)
            if last_try:
                what = f"the model could not be saved ({disk_reason(error)})"
                raise RunError(f"{what}; no partial result was left behind") from error
            forget_older(place.run, 1)


def whole_state(model: Any) -> dict[str, Tensor] | None:
    """Gather the tensors of a sharded model; None where nothing is sharded.

    Processes other than the first release them at once.
    """
    if not is_sharded(model):
        return None
    adapters = hasattr(model, "peft_config")
    # a tied weight is one tensor under two names, and must be one in the file
    gathered: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if adapters and not parameter.requires_grad:
            continue
        if id(parameter) not in gathered:
            tensor = whole(parameter)
            gathered[id(parameter)] = tensor.cpu() if is_main() else tensor.new_empty(0)
        state[name] = gathered[id(parameter)]
    if not adapters:
        state |= {name: value for name, value in model.state_dict().items() if name not in state}
    return state
