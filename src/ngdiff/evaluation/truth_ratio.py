"""scores of right and wrong answers -> truth ratios, and what they aggregate to.

Two conventions are in use. The *ratio* t = p(wrong) / p(right) is TOFU's and OpenUnlearning's; the *share*
p(right) / (p(right) + p(wrong)) = 1 / (1 + t) is bounded and rises with knowledge. Reports name theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ngdiff.inference.teacher_forced import AnswerScore


def truth_ratio(right: AnswerScore, wrong: Sequence[AnswerScore]) -> float:
    """Return p(wrong) / p(right) of one item, with p(wrong) the geometric mean over the wrong answers.

    Each p is exp(-mean NLL): p(wrong) = exp(-mean over wrong answers of their mean NLLs). It overflows to
    infinity where the right answer is more than e^709 times less probable.
    Source: Maini et al. 2024, arXiv 2401.06121, eq. 1, with OpenUnlearning's geometric mean (design of its
    commit d3d7cf9).

    Args:
        right: of the paraphrased answer (the original one for real authors and world facts).
        wrong: of the perturbed answers, at least one.
    """
    if not wrong:
        raise ValueError("a truth ratio needs at least one wrong answer")
    exponent = right.mean_nll - math.fsum(score.mean_nll for score in wrong) / len(wrong)
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


def forget_truth_ratio(ratio: float) -> float:
    """Return min(t, 1/t), in [0, 1]: 1 where right and wrong answers are as likely. For the forget set."""
    if ratio <= 0:
        return 0.0
    return min(ratio, 1 / ratio)


GUARD = 1e-10
"""What OpenUnlearning adds to denominators."""


def guarded_log_ratio(right: float, wrong: float) -> float:
    """Return log(p(wrong) / (p(right) + 1e-10)): OpenUnlearning's truth ratio, in logarithms.

    Where p(right) is far above 1e-10 it is the truth ratio. Where a model is destroyed, both probabilities
    vanish and it tends to minus infinity, whatever the quotient of the two.

    Args:
        right: mean NLL of the right answer.
        wrong: mean over the wrong answers of their mean NLLs.
    """
    top = max(-right, math.log(GUARD))
    return -wrong - top - math.log(math.exp(-right - top) + math.exp(math.log(GUARD) - top))


def guarded_forget_truth_ratio(ratio: float) -> float:
    """Return min(t, 1 / (t + 1e-10)), OpenUnlearning's figure for the forget set."""
    return min(ratio, 1 / (ratio + GUARD))


def utility_truth_ratio(ratio: float) -> float:
    """Return max(0, 1 - t), in [0, 1]: 1 where wrong answers are out of the question. For what is kept."""
    return max(0.0, 1 - ratio)


def truth_share(ratio: float) -> float:
    """Return p(right) / (p(right) + p(wrong)) = 1 / (1 + t), in [0, 1]: the second convention."""
    return 1 / (1 + ratio)


def option_probability(right: AnswerScore, wrong: Sequence[AnswerScore]) -> float:
    """Return p(right) / (p(right) + sum of p(wrong)), in [0, 1]: for real authors and world facts.

    Worked out in logarithms, so that answers of vanishing probability still have a share.
    """
    logs = [-score.mean_nll for score in (right, *wrong)]
    top = max(logs)
    return math.exp(logs[0] - top) / math.fsum(math.exp(value - top) for value in logs)
