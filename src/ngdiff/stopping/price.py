"""checks of a run that ended before its target -> what each further step would bring and cost."""

from __future__ import annotations

from ngdiff.stopping.rule import StoppingRule, floor_title

STEPS = 10
"""The price is named for so many further steps."""


def further_cost(stopping: StoppingRule) -> str | None:
    """Return in words what further steps would bring and cost, going by the last stretch of checks.

    None without a forget target, and where fewer than two checks say anything.
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
    brought = f"bring about {down:.1f} items down" if down > 0 else "bring no item down"
    if worst is None:
        return f"each further {STEPS} steps would {brought}"
    dear = f"cost about {100 * lost[worst]:.1f}% of {floor_title(worst)}"
    cost = dear if lost[worst] > 0 else "cost nothing that is watched"
    return f"each further {STEPS} steps would {brought} and {cost}"
