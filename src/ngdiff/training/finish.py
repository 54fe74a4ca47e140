"""an unlearning trainer after its last step -> the best weights found, and a complete record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ngdiff.errors import RunError
from ngdiff.models import packing
from ngdiff.models.head import refused
from ngdiff.models.logprobs import output_head
from ngdiff.outcome import verdict
from ngdiff.steps import fused
from ngdiff.steps.weighting import Verdict
from ngdiff.stopping.criterion import SHARE, View
from ngdiff.stopping.rule import Decision, ForgetTarget, StoppingRule, floor_title
from ngdiff.training.checks import every_row, foresee, look, view_of

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer

STEPS = 10
"""Number of further steps that a forecast is made for."""


def further_cost(stopping: StoppingRule) -> str | None:
    """Return in words what further steps would bring and cost, judging by the last checks.

    None without a forget target, or where fewer than two checks are informative.
    """
    checks = stopping.stretch
    if stopping.target is None or len(checks) < 2 or checks[0].left is None or checks[-1].left is None:
        return None
    # half of the stretch at least, so that one noisy check does not decide
    first, last = checks[min(len(checks) - 2, len(checks) // 2)], checks[-1]
    if last.step == first.step or first.left is None or last.left is None:
        return None
    scale = STEPS / (last.step - first.step)
    down = scale * (first.left - last.left)
    lost = {
        name: scale * (first.kept[name] - last.kept[name]) / floor.start
        for name, floor in stopping.floors.items()
        if floor.start > 0
    }
    worst = max(lost, key=lambda name: lost[name]) if lost else None
    brought = f"bring about {down:.1f} items down" if down > 0 else "bring no item down yet"
    if worst is None:
        return f"each further {STEPS} steps would {brought}"
    dear = f"cost about {100 * lost[worst]:.1f}% of {floor_title(worst)}"
    cost = dear if lost[worst] > 0 else "cost nothing of what must be kept"
    return f"each further {STEPS} steps would {brought} and {cost}"


def conclude(trainer: UnlearningTrainer) -> None:
    """Restore the best weights if the last ones are not the best, and complete the record.

    Raises:
        RunError: a weight is not finite, and there are no good weights to restore.
    """
    run = trainer.run
    stopping = run.stopping
    assert stopping is not None
    sound = _go_back_if_broken(trainer)
    # a target met at the start is found out in the loop's first step, which changes nothing
    step = 0 if run.step.verdict is Verdict.DONE else trainer.state.global_step
    if sound and stopping.checks_needed and run.last_check != step:
        found = look(trainer, whole=True)  # what is kept has been looked at
        if run.decision is None and found is not None and found.code == "target":
            run.decision = found
    decision = run.decision = run.decision or _at_the_end(step, trainer.state.max_steps)
    kept = _keep_the_best(trainer, step, sound)
    trainer.record.checks = [check.as_json() for check in stopping.checks]
    view, ends = _final_look(trainer)
    trainer.record.stop = {
        "code": decision.code,
        "reason": decision.text,
        "step": step,
        "kept_step": kept,
        **_of_the_target(stopping.target, view),
        "level_source": trainer.level_source,
        "left": _left(trainer, view),
        "looked_at": {"rows": len(view.rows), "of": view.of},
        "floors": {name: asdict(floor) | {"end": ends[name]} for name, floor in stopping.floors.items()},
        "utility_floor": stopping.floors["retain"].least if "retain" in stopping.floors else 0.0,
        "forecast": _forecast(trainer),
        "price": None if decision.code == "target" else further_cost(stopping),
    }
    said = verdict(trainer.record.stop, trainer.record.after["forget"])
    trainer.record.stop["verdict"] = {"line": said.line, "advice": said.advice}
    _note_broken(trainer, ends)
    _warn_of_vanishing_updates(trainer)
    _note_slower_ways(trainer)
    trainer.record.cost = {
        "seconds": run.seconds,
        "steps": step,
        "skipped_steps": sum(entry.skipped == Verdict.NON_FINITE.value for entry in trainer.record.steps),
        "peak_memory_gib": run.peak_memory,
    }


def _final_look(trainer: UnlearningTrainer) -> tuple[View, dict[str, float]]:
    """Measure every row of every set under the weights that are kept."""
    scores = {name: trainer.measurements.scores(name) for name in ("forget", "retain")}
    trainer.record.after = trainer.measurements.everything(scores)
    rows = every_row(trainer)
    return view_of(trainer, rows, scores["forget"]), trainer.kept.measure(
        rows, scores["forget"], scores["retain"]
    )


def _forecast(trainer: UnlearningTrainer) -> dict[str, Any] | None:
    """Return what the last checks say of further steps, where a run ended short of its target."""
    decision = trainer.run.decision
    if decision is None or decision.code != "end":
        return None
    found, advice = foresee(trainer)
    return None if found is None else found.as_json() | {"advice": advice}


def _of_the_target(target: ForgetTarget | None, view: View) -> dict[str, Any]:
    if target is None:
        return {"target": None, "target_source": None, "target_met": None, "shares_left": {}}
    return {
        "target": {
            "measure": target.measure,
            "value": target.value,
            "bounds": [asdict(bound) for bound in target.bounds],
            "share": SHARE,
        },
        "target_source": target.source,
        "target_met": target.forgotten(view),
        "shares_left": dict(view.shares),
    }


def _left(trainer: UnlearningTrainer, view: View) -> list[dict[str, Any]]:
    """Return the items that are left: place, figures and thresholds, without their text."""
    stopping = trainer.run.stopping
    assert stopping is not None
    items, target = trainer.record.after["items"]["forget"], stopping.target
    found = []
    for row in view.left if target is not None else ():
        assert target is not None
        nll, tokens = items["nll"][row], items["tokens"][row]
        found.append(
            {
                "row": row + 1,
                "place": trainer.forget_set[row].example.place,
                "extraction_strength": items["extraction_strength"][row],
                "verbatim": items["verbatim"][row],
                "probability": math.exp(-nll / tokens),
                "thresholds": {b.measure: b.of_item(target.guesses.get(row)) for b in target.bounds},
                "whole": row in view.whole,
            }
        )
    return found


def _note_broken(trainer: UnlearningTrainer, ends: Mapping[str, float]) -> None:
    """Note each floor that the kept weights are below, because no state was above it."""
    stopping = trainer.run.stopping
    assert stopping is not None
    for name, floor in stopping.floors.items():
        if not ends[name] >= floor.least:
            trainer.record.note(
                f"{floor_title(name)} is {ends[name]:.3f}, under its floor of {floor.least:.3f}"
            )


def _at_the_end(step: int, most: int) -> Decision:
    """Return why a run ended, where no check ended it."""
    done, stopped = f"all {step} steps are done", f"stopped from outside after step {step}"
    return Decision("end", done if step == most else stopped)


def _keep_the_best(trainer: UnlearningTrainer, step: int, sound: bool) -> int:
    """Restore the best weights where the last are not the best; return the step whose weights are kept."""
    run = trainer.run
    stopping = run.stopping
    assert stopping is not None
    best = 0 if stopping.best is None else stopping.best.step
    if not sound:
        return best  # they are back already
    if not stopping.checks_needed or not stopping.checks or stopping.checks[-1].best:
        return step
    run.best.restore()
    return best


def _note_slower_ways(trainer: UnlearningTrainer) -> None:
    """Note where a fast or memory-saving path could not be taken."""
    kernels = fused.refused.get(str(trainer.args.device))
    if kernels is not None:
        trainer.record.note(f"{kernels}: the Gramian was computed tensor by tensor, which takes longer")
    head = refused.get(output_head(trainer.model))
    if head is not None:
        trainer.record.note(f"{head}: all logits of a micro-batch were held in memory at once")
    padded = packing.refused.get(trainer.accelerator.unwrap_model(trainer.model))
    if padded is not None:
        trainer.record.note(f"{padded}: batches were padded")


def _go_back_if_broken(trainer: UnlearningTrainer) -> bool:
    """Restore the best weights where the current ones are not finite; return whether they were restored."""
    if trainer.weights_are_finite():
        return True
    trainer.run.best.restore()
    if not trainer.weights_are_finite():
        raise RunError(
            f"a weight is not finite after step {trainer.state.global_step}, and no good weights were kept "
            "to go back to, so no model was saved; a smaller --lr, or the automatic one, may help"
        )
    trainer.record.note(
        f"step {trainer.state.global_step}: a weight was not finite, so the best weights were restored"
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
