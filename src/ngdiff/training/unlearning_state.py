"""an unlearning trainer at some step -> its state in a checkpoint's folder, and back.

What transformers.Trainer keeps anyway (weights, optimizer, scheduler, random states) is not repeated here.
The order of examples is a function of the seed, the position and the rows that the epoch draws from, which
are kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngdiff.record import RunRecord
from ngdiff.steps.stepsize import FixedRate
from ngdiff.steps.weighting import StatefulRule
from ngdiff.stopping.never_seen import NeverSeen
from ngdiff.stopping.rule import Decision, StoppingRule

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer

STATE_FILE = "unlearning_state.json"


def save(trainer: UnlearningTrainer, folder: Path) -> None:
    """Put into a checkpoint what this trainer has beyond transformers' own; one process does."""
    if not trainer.args.should_save:
        return
    rate, rule, compared = trainer._step_size, trainer._rule, trainer._compared
    state = {
        "step_size": None if isinstance(rate, FixedRate) else rate.state_dict(),
        "stopping": None if trainer._stopping is None else trainer._stopping.state_dict(),
        "items": trainer._items.state_dict(),
        "kept": trainer.kept.state_dict(),
        "epoch_rows": trainer._epoch_rows,
        "level_source": trainer.level_source,
        "last_check": trainer._last_check,
        "last_strength": trainer._last_strength,
        "skipped_in_a_row": trainer._skipped_in_a_row,
        "decision": None if trainer._decision is None else asdict(trainer._decision),
        "record": trainer.record.state_dict(),
        "seconds": trainer.seconds,
        "peak_memory_gib": trainer.peak_memory,
        "compared": None if compared is None else compared.save(folder, trainer._forget),
        "rule": rule.state_dict() if isinstance(rule, StatefulRule) else None,
    }
    # NaN and infinities of skipped steps and broken probes come back as they were
    (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
    if not _is_best(trainer):
        trainer._best.copy_to(folder)


def read(folder: Path) -> dict[str, Any] | None:
    """Return the state in a checkpoint's folder; None where another trainer wrote it."""
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return state


def restore(trainer: UnlearningTrainer, folder: Path, state: dict[str, Any]) -> None:
    """Put a trainer that is about to begin where the checkpoint's was."""
    if state["step_size"] is not None and not isinstance(trainer._step_size, FixedRate):
        trainer._step_size.load_state_dict(state["step_size"])
    if state["stopping"] is not None:
        trainer._stopping = StoppingRule.from_state(state["stopping"], trainer.args.check_patience)
        trainer._items.load_state_dict(state["items"])
        trainer.kept.load_state_dict(state["kept"])
        if _is_best(trainer):
            trainer._best.save()
        else:
            trainer._best.take(folder)
    if state.get("level_source", trainer.level_source) != trainer.level_source:
        # the part of the retain set that the starting model did not know
        trainer._measure_level_on(NeverSeen(trainer._held_out, state["level_source"], []))
    if state["epoch_rows"] is not None:
        trainer._epoch_rows = (int(state["epoch_rows"][0]), list(state["epoch_rows"][1]))
    trainer._last_check, trainer._last_strength = state["last_check"], state["last_strength"]
    trainer._skipped_in_a_row = state["skipped_in_a_row"]
    if isinstance(trainer._rule, StatefulRule):
        trainer._rule.load_state_dict(state["rule"])
    trainer._decision = None if state["decision"] is None else Decision(**state["decision"])
    trainer._started -= state["seconds"]
    trainer._peak_before = state["peak_memory_gib"]
    _restore_record(trainer.record, state["record"])
    trainer._complete_losses()
    assert trainer._compared is not None
    trainer._compared.restore(folder, state["compared"], trainer._data, trainer.args.device)
    trainer.record.note(f"resumed at step {trainer.state.global_step}")


def _restore_record(record: RunRecord, state: dict[str, Any]) -> None:
    """Go on with the record so far, and say so where versions or machine are no longer what they were."""
    now = {**record.versions, **{name: str(value) for name, value in record.machine.items()}}
    record.load_state_dict(state)
    then = {**record.versions, **{name: str(value) for name, value in record.machine.items()}}
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            text = f"went on under another {name}: {then.get(name)} before, {now.get(name)} after"
            record.note(f"{text}; the result may differ in rounding from that of one go")


def _is_best(trainer: UnlearningTrainer) -> bool:
    """Say whether the present weights are those of the best check."""
    best = None if trainer._stopping is None else trainer._stopping.best
    return best is not None and best.step == trainer.state.global_step
