"""Gramian -> weights of the rules made for any number of tasks, in closed form for two.

Each is exact whatever the two norms. Solvers for many tasks add a regularisation or a tolerance relative to
the longer gradient, and lose the shorter one beside it. TorchJD's solvers serve as oracles in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

from ngdiff.steps.gradients import FORGET, RETAIN, Gramian, Weights

Entries = Callable[..., tuple[float, float]]
"""|g_R|², g_R·g_f and |g_f|², all divided by the largest, and a rule's settings -> the two weights."""


def _of_two(rule: Entries) -> Callable[..., Weights]:
    """Give a task whose gradient is zero weight 0, and the other one weight 1."""

    @wraps(rule)
    def weigh(gramian: Gramian, losses: object = None, **settings: float) -> Weights:
        retain, forget = float(gramian[RETAIN, RETAIN]), float(gramian[FORGET, FORGET])
        if retain <= 0 or forget <= 0:
            return Weights(float(retain > 0), float(forget > 0))
        largest = max(retain, forget)
        cross = float(gramian[RETAIN, FORGET]) / largest
        return Weights(*rule(retain / largest, cross, forget / largest, **settings))

    return weigh


@_of_two
def pcgrad(retain: float, cross: float, forget: float) -> tuple[float, float]:
    """Add up both gradients, each without what conflicts with the other.

    Source: Yu et al. 2020, "Gradient surgery for multi-task learning", arXiv 2001.06782.
    """
    conflict = max(0.0, -cross)
    return 1 + conflict / retain, 1 + conflict / forget


@_of_two
def upgrad(retain: float, cross: float, forget: float) -> tuple[float, float]:
    """Project each gradient onto the cone that harms neither task; take the mean.

    Of two gradients each can harm only the other, so the projection is PCGrad's, and the mean half its sum.
    Source: Quinton & Rey 2024, "Jacobian descent for multi-objective optimization", arXiv 2406.16232.
    """
    conflict = max(0.0, -cross)
    return (1 + conflict / retain) / 2, (1 + conflict / forget) / 2


@_of_two
def dualproj(retain: float, cross: float, forget: float) -> tuple[float, float]:
    """Project the mean gradient onto the cone that harms neither task.

    The mean harms at most one of two tasks, so that one's gradient is all there is to project off.
    Source: Lopez-Paz & Ranzato 2017, "Gradient episodic memory", arXiv 1706.08840.
    """
    if retain + cross < 0:
        return -cross / retain / 2, 0.5
    if forget + cross < 0:
        return 0.5, -cross / forget / 2
    return 0.5, 0.5


@_of_two
def mgda(retain: float, cross: float, forget: float) -> tuple[float, float]:
    """Take the shortest convex combination of the two gradients.

    Source: Sener & Koltun 2018, "Multi-task learning as multi-objective optimization", arXiv 1810.04650.
    """
    apart = retain - 2 * cross + forget  # |g_R - g_f|²
    if apart <= 0:
        return 0.5, 0.5
    return _share((forget - cross) / apart), _share((retain - cross) / apart)


@_of_two
def imtlg(retain: float, cross: float, forget: float) -> tuple[float, float]:
    """Make the projections on both gradients equal, with weights that add up to 1.

    For two tasks these are NGDiff's weights over their sum.
    Source: Liu et al. 2021, "Towards impartial multi-task learning", ICLR.
    """
    lengths = math.sqrt(retain), math.sqrt(forget)
    return lengths[1] / sum(lengths), lengths[0] / sum(lengths)


@_of_two
def cagrad(retain: float, cross: float, forget: float, c: float = 0.5) -> tuple[float, float]:
    """Go where the worse-off task gains most, within c |g_0| of the mean gradient g_0.

    That is d = g_0 + c |g_0| g_w / |g_w|, where g_w = w g_R + (1 - w) g_f minimises
    F(w) = g_w·g_0 + c |g_0| |g_w| over w in [0, 1]. F is convex. With t the part of g_w along D = g_R - g_f
    and h the part across it, which is the same for all w, F' = 0 says
    t / sqrt(t² + h²) = -(D·g_0) / (c |g_0| |D|). With c below 1 a loss may still rise.
    Source: Liu et al. 2021, "Conflict-averse gradient descent for multi-task learning", arXiv 2110.14048.
    """
    total, apart = retain + 2 * cross + forget, retain - 2 * cross + forget  # 4 |g_0|² and |D|²
    if c == 0 or total <= 0:
        return 0.5, 0.5
    if apart <= 0:  # one and the same gradient
        return (1 + c) / 2, (1 + c) / 2
    across = max(0.0, retain * forget - cross * cross) / apart  # h²
    lean = (forget - retain) / (c * math.sqrt(total * apart))  # t / |g_w| at the minimum
    if abs(lean) < 1:
        along = math.sqrt(across * apart / (1 - lean * lean)) * lean  # t |D|
        first, second = _share((along + forget - cross) / apart), _share((retain - cross - along) / apart)
    else:
        first, second = float(lean > 0), float(lean < 0)
    end = forget if first == 0 else retain if second == 0 else None
    square = across / (1 - lean * lean) if end is None else end  # |g_w|²
    if square <= 0:  # opposed gradients, and c of 1 or more: to stand still is best
        return first, second
    reach = c * math.sqrt(total / square) / 2
    return 0.5 + reach * first, 0.5 + reach * second


def blur(gramian: Gramian, losses: object = None, gamma: float = 1.0) -> Weights:
    """Take out of g_R what lies along g_f, and add gamma g_f.

    That is ``d = g_R - (g_R·g_f / |g_f|²) g_f + gamma g_f``, so ``g_f·d = gamma |g_f|²`` whatever the angle:
    to forget comes first, and the retain loss falls as far as that leaves room. It may rise.
    Source: Reisizadeh et al. 2025, "BLUR: A bi-level optimization approach for LLM unlearning", arXiv
    2506.08164, as in the authors' public code for MUSE, where gamma is 1.
    A forget gradient of zero leaves g_R.
    """
    square, cross = float(gramian[FORGET, FORGET]), float(gramian[RETAIN, FORGET])
    return Weights(1.0, gamma - cross / square if square > 0 else 0.0)


_ALONG = 1e-12
"""1 - cosine² below which no direction across the forget gradient is left of the retain gradient."""


@_of_two
def hamu(retain: float, cross: float, forget: float, cosine: float = 0.5) -> tuple[float, float]:
    """Take the best d for the retain task of all that are as long as g_R and near enough to g_f.

    Near enough is a cosine with g_f of at least ``cosine``. Where g_R itself is, d is g_R. Elsewhere d lies
    on the edge of that cone, on g_R's side: with h what of g_R lies across g_f,
    ``d = |g_R| (cosine g_f / |g_f| + sqrt(1 - cosine²) h / |h|)``.
    Source: Chen et al. 2026, "How hard can it be? Hardness-aware multi-objective unlearning", arXiv
    2606.02119 (HAMU-Q), with the radius of the authors' public code, |g_R| times the learning rate. They ask
    for a fixed progress of the forget loss at each step, and weigh each tensor by itself unless told
    otherwise. Here the progress is in proportion to both lengths, cosine |g_R| |g_f|, so that it can always
    be met and the scale of a loss plays no part, and the gradient is the whole one. Where g_R is zero theirs
    stands still; here g_f is followed, or a divergence would never leave its minimum.
    """
    angle = cross / math.sqrt(retain * forget)
    if angle >= cosine:
        return 1.0, 0.0
    toward = cosine * math.sqrt(retain / forget)
    across = 1 - angle * angle
    if across <= _ALONG:
        return 0.0, toward
    reach = math.sqrt((1 - cosine * cosine) / across)
    return reach, toward - reach * cross / forget


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
