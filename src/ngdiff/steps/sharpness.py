"""forget gradient -> the forget gradient nearby, where its loss is highest: sharpness-aware minimisation.

What was forgotten at the bottom of a narrow valley comes back with little relearning. The step is taken with
the gradient found a short way uphill instead, so that the loss stays low all around.
Source: Fan et al. 2025, "Towards LLM unlearning resilient to relearning attacks: a sharpness-aware
minimization perspective and beyond", arXiv 2502.05374; Foret et al. 2021, arXiv 2010.01412, eq. 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ngdiff.steps.gradients import FORGET, GradientPair


def sharpen(pair: GradientPair, radius: float, forget_again: Callable[[], None]) -> None:
    """Put in place of g_f the forget gradient at ``w + radius g_f / |g_f|``; the weights stay w.

    The retain gradient stays that of w, as in the authors' public code. A forget gradient that is zero or not
    finite has no direction, and stays, too.

    Args:
        pair: both gradients of the step, complete over its micro-batches and all processes.
        radius: length of the way uphill, over all trainable parameters.
        forget_again: adds the forget gradients of the step's micro-batches to the pair once more, complete
            over the processes.
    """
    length = math.sqrt(float(pair.gramian()[FORGET, FORGET]))
    if not 0 < length < math.inf:
        return
    with pair.uphill(radius / length):
        pair.clear("forget")
        forget_again()
