"""an unlearning trainer after its last step -> the best weights it found, and its record complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ngdiff.errors import RunError
from ngdiff.steps.weighting import Verdict
from ngdiff.training.checks import look
from ngdiff.training.stopping import Decision

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer


def conclude(trainer: UnlearningTrainer) -> None:
    """Put the best weights back if the last ones are not they, and complete the record.

    Raises:
        RunError: a weight is not finite, and there are no good ones to go back to.
    """
    stopping = trainer._stopping
    assert stopping is not None
    sound = _go_back_if_broken(trainer)
    # a target met at the start is found out in the loop's first step, which changes nothing
    step = 0 if trainer._step.verdict is Verdict.DONE else trainer.state.global_step
    if sound and stopping.target is not None and trainer._last_check != step:
        found = look(trainer)  # what is kept has been looked at
        if trainer._decision is None and found is not None and found.code == "target":
            trainer._decision = found
    decision = trainer._decision = trainer._decision or _at_the_end(step, trainer.state.max_steps)
    kept = _keep_the_best(trainer, step, sound)
    trainer.record.checks = [check.as_json() for check in stopping.checks]
    trainer.record.after = trainer.survey.everything()
    target = stopping.target
    trainer.record.stop = {
        "code": decision.code,
        "reason": decision.text,
        "step": step,
        "kept_step": kept,
        "target": None if target is None else {"measure": target.measure, "value": target.value},
        "target_source": None if target is None else target.source,
        "target_met": None if target is None else target.met(trainer.record.after["forget"]),
        "utility_floor": stopping.floor,
    }
    _warn_of_vanishing_updates(trainer)
    trainer.record.cost = {
        "seconds": trainer.seconds,
        "steps": step,
        "skipped_steps": sum(entry.skipped == Verdict.NON_FINITE.value for entry in trainer.record.steps),
        "peak_memory_gib": trainer.peak_memory,
    }


def _at_the_end(step: int, most: int) -> Decision:
    """Return why a run ended that no check ended."""
    done, stopped = f"all {step} steps asked for are done", f"stopped from outside after step {step}"
    return Decision("end", done if step == most else stopped)


def _keep_the_best(trainer: UnlearningTrainer, step: int, sound: bool) -> int:
    """Put the best weights back where the last are not they; return the step whose weights are kept."""
    stopping = trainer._stopping
    assert stopping is not None
    best = 0 if stopping.best is None else stopping.best.step
    if not sound:
        return best  # they are back already
    if stopping.target is None or not stopping.checks or stopping.checks[-1].best:
        return step
    trainer._best.restore()
    return best


def _go_back_if_broken(trainer: UnlearningTrainer) -> bool:
    """Put the best weights back where the present ones are not finite; return whether they were."""
    if trainer.weights_are_finite():
        return True
    trainer._best.restore()
    if not trainer.weights_are_finite():
        raise RunError(
            f"a weight is not finite after step {trainer.state.global_step}, and no good weights were kept "
            "to go back to, so no model was saved; a smaller --lr, or the automatic one, may help"
        )
    trainer.record.note(
        f"step {trainer.state.global_step}: a weight was not finite, so the best were put back"
    )
    return False


def _warn_of_vanishing_updates(trainer: UnlearningTrainer) -> None:
    changed = [entry.changed for entry in trainer.record.steps if entry.changed is not None]
    if changed and sum(changed) / len(changed) < 0.5:
        share = 100 * sum(changed) / len(changed)
        trainer.record.note(
            f"a step changed {share:.1f}% of the parameters on average: the others' updates were rounded "
            "away. Use float32 weights, or an optimizer that rounds stochastically."
        )
