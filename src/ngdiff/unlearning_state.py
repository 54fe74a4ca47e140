"""an unlearning trainer at some step -> its state in a checkpoint's folder, and back.

What transformers.Trainer keeps anyway (weights, optimizer, scheduler, random states) is not repeated here,
and the samplers need no state: the order of examples is a function of seed and position.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngdiff.output import write_json
from ngdiff.stepsize import AutomaticRate
from ngdiff.stopping import StoppingRule
from ngdiff.weighting import StatefulRule

if TYPE_CHECKING:
    from ngdiff.trainer import UnlearningTrainer

STATE_FILE = "unlearning_state.json"


def save(trainer: UnlearningTrainer, folder: Path) -> None:
    """Put into a checkpoint what this trainer has beyond transformers' own."""
    rate, rule, compared = trainer._step_size, trainer._rule, trainer._compared
    state = {
        "step_size": rate.state_dict() if isinstance(rate, AutomaticRate) else None,
        "stopping": None if trainer._stopping is None else trainer._stopping.state_dict(),
        "last_check": trainer._last_check,
        "last_strength": trainer._last_strength,
        "skipped_in_a_row": trainer._skipped_in_a_row,
        "before": trainer.record.before,
        "compared": None if compared is None else compared.save(folder, trainer._forget),
        "rule": rule.state_dict() if isinstance(rule, StatefulRule) else None,
    }
    write_json(state, folder / STATE_FILE)
    if trainer.args.should_save and not _is_best(trainer):
        trainer._best.copy_to(folder)


def read(folder: Path) -> dict[str, Any] | None:
    """Return the state in a checkpoint's folder; None where another trainer wrote it."""
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return state


def take_up(trainer: UnlearningTrainer, folder: Path, state: dict[str, Any]) -> None:
    """Put a trainer that is about to begin where the checkpoint's was."""
    if state["step_size"] is not None and isinstance(trainer._step_size, AutomaticRate):
        trainer._step_size.load_state_dict(state["step_size"])
    if state["stopping"] is not None:
        trainer._stopping = StoppingRule.from_state(state["stopping"], trainer.args.check_patience)
        if _is_best(trainer):
            trainer._best.save()
        else:
            trainer._best.take(folder)
    trainer._last_check, trainer._last_strength = state["last_check"], state["last_strength"]
    trainer._skipped_in_a_row = state["skipped_in_a_row"]
    if isinstance(trainer._rule, StatefulRule):
        trainer._rule.load_state_dict(state["rule"])
    trainer.record.before = state["before"]
    trainer._complete_losses()
    assert trainer._compared is not None
    trainer._compared.take_up(folder, state["compared"], trainer._data, trainer.args.device)
    trainer.record.note(f"resumed at step {trainer.state.global_step}")


def _is_best(trainer: UnlearningTrainer) -> bool:
    """Say whether the present weights are those of the best check."""
    best = None if trainer._stopping is None else trainer._stopping.best
    return best is not None and best.step == trainer.state.global_step
