"""an unlearning trainer between two steps -> continue, change the pace, restore better weights, or stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ngdiff.inference.teacher_forced import AnswerScore
from ngdiff.steps.stepsize import AutomaticRate, cut_rate
from ngdiff.steps.weighting import Verdict
from ngdiff.stopping.criterion import View, means
from ngdiff.stopping.forecast import EARLIEST, WORDS, Forecast, suggestion
from ngdiff.stopping.rule import Decision, StoppingRule, floor_title
from ngdiff.system.environment import return_freed_memory
from ngdiff.training.launch import weighted_mean

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer

MOST_SKIPPED_IN_A_ROW = 5
CUT_AFTER_SKIPPED = 3
CHECKS_APART = 2
"""Fewest steps between two checks, however near the target the steps' own batches look."""
ITEMS_APART = 5
"""The same where the means are met and only items are left, about which the means of a batch say little."""
PRICED_OVER = 2
"""Fewest intervals between checks over which the cost of progress is measured."""
RAISED_FROM = 2 / 3
"""Share of the way left from which the rate may exceed the first one: the first steps cost the most."""
BROKEN = 4.0
"""Divisor of the rate after steps that were not finite."""
RETREAT = 2.0
"""Divisor of the rate when a check finds a floor broken, and again when the next check does."""
HALVINGS = 3
"""How often a retreat halves the way to the best weights before it takes all of it."""


def after_step(trainer: UnlearningTrainer) -> Decision | None:
    """Record the step, check where a check is due, and return why to stop, if so."""
    run = trainer.run
    step = run.step
    if step.verdict is Verdict.STATIONARY:
        run.decision = Decision("stationary", "both gradients are zero: nothing is left to change")
    finite = step.verdict is not Verdict.NON_FINITE
    run.skipped_in_a_row = 0 if finite else run.skipped_in_a_row + 1
    if run.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
        text = f"the gradients were not finite in {MOST_SKIPPED_IN_A_ROW} steps in a row"
        run.decision = Decision("non-finite", text)
    elif run.skipped_in_a_row == CUT_AFTER_SKIPPED:
        _recover(trainer)
    strength = weighted_mean(step.extraction_strength)
    if run.decision is None and _is_due(trainer, strength):
        _check(trainer)
    run.last_strength = weighted_mean(step.extraction_strength)
    entry = step.as_record(trainer.state.global_step, float(trainer.state.epoch or 0.0))
    trainer.record.steps.append(replace(entry, forget_extraction_strength=strength))
    rate = f"lr {step.rate:.1e}"
    seen = "" if strength is None else f", forget extraction {strength:.2f}"
    trainer.state.progress_note = f"{step.named('forget')}, {step.named('retain')}, {rate}{seen}"
    return run.decision


def _is_due(trainer: UnlearningTrainer, strength: float | None) -> bool:
    """Return whether a check is due, or the steps' own batches suggest that the target is near."""
    run = trainer.run
    if run.stopping is None or not run.stopping.checks_needed:
        return False
    since = trainer.state.global_step - run.last_check
    if since >= trainer.args.check_every:
        return True
    if run.stopping.target is None:
        return False
    strengths = [value for value in (run.last_strength, strength) if value is not None]
    apart = ITEMS_APART if _items_alone_are_left(run.stopping) else CHECKS_APART
    if since < apart or not strengths:
        return False
    mean = sum(strengths) / len(strengths)
    cheap = {"extraction_strength": mean, "exact_memorisation": mean}
    nll = weighted_mean(run.step.forget_nll)
    if nll is not None:
        cheap |= {"nll": nll, "probability": math.exp(-nll)}
    return run.stopping.target.within_reach(cheap)


def _items_alone_are_left(stopping: StoppingRule) -> bool:
    """Return whether the means met the target at the last check; means of a batch then say little."""
    target, last = stopping.target, stopping.checks[-1] if stopping.checks else None
    if target is None or last is None:
        return False
    return all(bound.within(last.forget[bound.measure], bound.mean) for bound in target.bounds)


def _check(trainer: UnlearningTrainer) -> None:
    """Measure, and act on it: keep the best weights, change the pace, or go back."""
    run = trainer.run
    if not trainer.weights_are_finite():
        _recover(trainer)
        return
    run.decision = look(trainer)
    return_freed_memory()
    assert run.stopping is not None
    if run.decision is not None:
        return
    _warn_early(trainer)
    check = run.stopping.checks[-1]
    if check.best:
        run.best.save()
        run.items.keep()
    if isinstance(run.step_size, AutomaticRate):
        if not check.above_floor:
            if run.stopping.first_below:  # the steps to come may heal it, at half the rate
                _slow_down(trainer, run.step_size)
                return
            run.decision = run.stopping.spent()
            if run.decision is None:
                _retreat(trainer, run.step_size)
        elif check.best:
            _keep_pace(trainer, run.step_size)


def _warn_early(trainer: UnlearningTrainer) -> None:
    """Note once, after a part of the steps, that the rest of them will not be enough, and what would be."""
    done, steps = trainer.state.global_step, trainer.state.max_steps
    if done < EARLIEST * steps or any(WORDS in note for note in trainer.record.notes):
        return
    advice = foresee(trainer)[1]
    if advice is not None:
        trainer.record.note(f"step {done}: {WORDS}: {advice}")


def foresee(trainer: UnlearningTrainer) -> tuple[Forecast | None, str | None]:
    """Return how the run would go on at its present pace, and what to change where that is not enough."""
    stopping = trainer.run.stopping
    found = None if stopping is None else stopping.forecast(trainer.state.max_steps)
    if stopping is None or found is None:
        return None, None
    rates = [step.learning_rate for step in trainer.record.steps if step.skipped is None]
    epochs = trainer.state.max_steps * trainer.epochs_a_step
    rate = rates[-1] if rates else None
    return found, suggestion(found, epochs, rate, stopping.slack_left, stopping.nearing)


def _keep_pace(trainer: UnlearningTrainer, step_size: AutomaticRate) -> None:
    """Change the rate so that utility lasts until the target is reached."""
    run = trainer.run
    assert run.stopping is not None
    before, every = step_size.rate, trainer.args.check_every
    taken = {step.step: step.learning_rate for step in trainer.record.steps}
    taken[trainer.state.global_step] = run.step.rate  # whose entry is still to come
    rates = {step: rate for step, rate in taken.items() if rate is not None}
    factor = run.stopping.pace(before or 1.0, rates, PRICED_OVER * every)
    if factor > 1 and trainer.state.global_step - run.stopping.changed < every:
        return  # near the target checks come thick and fast, and each would raise it
    after = step_size.scale(factor, raise_it=run.stopping.left <= RAISED_FROM)
    if before is not None and after is not None and before != after:
        run.stopping.changed = trainer.state.global_step
        trainer.record.note(
            f"step {trainer.state.global_step}: at the pace so far, utility would "
            f"{'fall under a floor before' if factor < 1 else 'last well beyond where'} the target is "
            f"reached, so the rate went from {before:.1e} to {after:.1e}"
        )


def _retreat(trainer: UnlearningTrainer, step_size: AutomaticRate) -> None:
    """Go back until no floor is broken, and cut the rate."""
    stopping = trainer.run.stopping
    assert stopping is not None
    found, broken = stopping.best, stopping.checks[-1].broken
    best = 0 if found is None else found.step
    share = _go_back_as_far_as_needed(trainer)
    rate = step_size.be_careful(RETREAT)
    stopping.begin_stretch(trainer.state.global_step)
    where = "were restored" if share == 1 else f"were approached by {share:.0%} of the way"
    trainer.record.note(
        f"step {trainer.state.global_step}: {_fell(broken)} in two checks in a row, so the weights of step "
        f"{best} {where}, and the rate was cut to {rate:.1e}"
    )


def _go_back_as_far_as_needed(trainer: UnlearningTrainer) -> float:
    """Halve the way to the best weights until no floor is broken; return the share of it that was undone.

    Damage grows faster along the way than forgetting, so most of the progress stays. A state that is above
    the floors but no better than the best state is replaced by it.
    """
    run = trainer.run
    stopping = run.stopping
    assert stopping is not None
    run.last_strength = None
    run.step.extraction_strength = []  # of weights that are gone
    for halvings in range(1, HALVINGS + 1):
        run.best.restore(0.5)
        found = measure(trainer)
        if not stopping.broken(found.kept):
            run.decision = stopping.judge(trainer.state.global_step, *found)
            if not stopping.checks[-1].best:
                break
            run.best.save()
            run.items.keep()
            return 1 - 0.5**halvings
    _go_back(trainer)
    return 1.0


def _slow_down(trainer: UnlearningTrainer, step_size: AutomaticRate) -> None:
    """Continue from the current weights with smaller steps: the retain task may repair the figure."""
    run = trainer.run
    assert run.stopping is not None
    rate = step_size.be_careful(RETREAT)
    fell = _fell(run.stopping.checks[-1].broken)
    trainer.record.note(f"step {trainer.state.global_step}: {fell}, so the rate was cut to {rate:.1e}")


def _fell(broken: Sequence[str]) -> str:
    names = " and ".join(floor_title(name) for name in broken)
    return f"{names} fell under {'its floor' if len(broken) == 1 else 'their floors'}"


def _go_back(trainer: UnlearningTrainer) -> None:
    run = trainer.run
    run.best.restore()
    run.items.go_back()
    run.last_strength = None
    run.step.extraction_strength = []  # of weights that are gone


def _recover(trainer: UnlearningTrainer) -> None:
    """After several steps that were not finite, restore good weights, if there are any, and cut the rate."""
    run = trainer.run
    _go_back(trainer)
    rate = cut_rate(run.step_size, trainer.optimizer, trainer.lr_scheduler, BROKEN)
    best = None if run.stopping is None else run.stopping.best
    back = "" if best is None else f", so the weights of step {best.step} were restored"
    slower = "" if rate is None else f", and the rate was cut to {rate:.1e}"
    broken = f"{run.skipped_in_a_row} steps in a row were not finite and were skipped"
    text = broken if run.skipped_in_a_row >= CUT_AFTER_SKIPPED else "a weight was not finite"
    trainer.record.note(f"step {trainer.state.global_step}: {text}{back}{slower}")


class Measured(NamedTuple):
    """What one check found.

    Args:
        view: the forget set.
        utility: mean figures of the held-out retain examples.
        kept: by floor, the figure it holds.
    """

    view: View
    utility: dict[str, float]
    kept: dict[str, float]


def look(trainer: UnlearningTrainer, whole: bool = False) -> Decision | None:
    """Measure the forget set and what must be kept, and return why to stop, if so.

    Args:
        trainer: whose model is measured.
        whole: measure every row of the forget set at once.
    """
    run = trainer.run
    stopping, step = run.stopping, trainer.state.global_step
    assert stopping is not None
    run.last_check = step
    return stopping.judge(step, *measure(trainer, whole))


def measure(trainer: UnlearningTrainer, whole: bool = False) -> Measured:
    """Measure the forget set and what must be kept.

    Where a sample of the forget set meets the target, every row is measured, and that decides.

    Args:
        trainer: whose model is measured.
        whole: measure every row of the forget set at once.
    """
    run = trainer.run
    stopping, step = run.stopping, trainer.state.global_step
    assert stopping is not None
    view, scores = forget_view(trainer, every_row(trainer) if whole else run.items.draw(step))
    if stopping.target is not None and not view.complete and stopping.target.forgotten(view):
        view, scores = forget_view(trainer, every_row(trainer))
    retain = trainer.measurements.scores("retain")
    return Measured(view, means(retain), trainer.kept.measure(view.rows, scores, retain))


def every_row(trainer: UnlearningTrainer) -> list[int]:
    """Return all rows of the forget set."""
    return list(range(len(trainer.forget_set)))


def forget_view(trainer: UnlearningTrainer, rows: list[int]) -> tuple[View, list[AnswerScore]]:
    """Score some rows of the forget set; return the view of the whole set and the scores."""
    scores = trainer.measurements.scores("forget", rows)
    return view_of(trainer, rows, scores), scores


def view_of(trainer: UnlearningTrainer, rows: list[int], scores: list[AnswerScore]) -> View:
    """Return the view of the whole forget set that scores of some rows give."""
    run = trainer.run
    target = None if run.stopping is None else run.stopping.target
    if target is None:
        return run.items.view(rows, scores, (), {})
    return run.items.view(rows, scores, target.bounds, target.guesses, target.whole)
