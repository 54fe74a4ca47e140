"""scores of answers -> membership attacks and, with a retrained model's, PrivLeak.

An attack gives each text a score that is higher the likelier the model has seen it; its AUC compares the
forget set with text of the same kind that the model never saw. Two attacks are not here, since they need
more than one pass over the text: by gradient norm (:mod:`ngdiff.inference.gradient_norm`) and by a
reference model's loss. As in OpenUnlearning, the attacks that look at single tokens leave out the last, the
end of the turn.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from ngdiff.inference.teacher_forced import AnswerScore, but_last

Attack = Callable[[AnswerScore, str], float]

MIN_K = 0.4
"""Share of the tokens, the least likely, that min-k and min-k++ average (as MUSE and OpenUnlearning do)."""


def lowest_mean(values: Sequence[float], share: float = MIN_K) -> float:
    """Return the mean of the lowest ``share`` of the values, of one of them at least.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("min-k needs the log-probability of at least one token")
    kept = sorted(values)[: max(1, int(len(values) * share))]
    return sum(kept) / len(kept)


def loss_attack(score: AnswerScore, text: str) -> float:
    """Return minus the mean NLL. Source: Yeom et al. 2018, arXiv 1709.01604."""
    return -score.mean_nll


def zlib_attack(score: AnswerScore, text: str) -> float:
    """Return minus the mean NLL over the bytes that zlib needs for the text.

    Source: Carlini et al. 2021, arXiv 2012.07805, section 5.2.
    """
    return -score.mean_nll / len(zlib.compress(text.encode("utf-8", errors="surrogatepass")))


def min_k_attack(score: AnswerScore, text: str) -> float:
    """Return the mean log-probability of the least likely tokens (Shi et al. 2023, arXiv 2310.16789)."""
    return lowest_mean(but_last(score.log_probs))


def min_k_plus_plus_attack(score: AnswerScore, text: str) -> float:
    """Return the mean of the lowest z-scores. Source: Zhang et al. 2024, arXiv 2404.02936, eq. 4."""
    return lowest_mean(but_last(score.z_scores))


ATTACKS: dict[str, Attack] = {
    "loss": loss_attack,
    "zlib": zlib_attack,
    "min_k": min_k_attack,
    "min_k_plus_plus": min_k_plus_plus_attack,
}
"""The attacks that one teacher-forced pass feeds, by name."""


def privleak(auc: float, retrained_auc: float) -> float:
    """Return 100 (s - r) / r, with s = 1 - AUC of the model and r = 1 - AUC of the retrained model.

    Near 0: membership inference tells as much of the model as of one that never saw the forget set. Negative:
    it still tells that the forget set was seen; positive: the forget set stands out by being unlearned.
    Source: Shi et al. 2024 (MUSE), arXiv 2407.06460, section 3.2.

    Args:
        auc: of forget against holdout under the model, in [0, 1]; higher scores mean members.
        retrained_auc: the same under the retrained model, below 1.

    Raises:
        ValueError: an AUC is out of range, or the retrained model's is 1, which leaves nothing to divide by.
    """
    for value in (auc, retrained_auc):
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is no area under a ROC curve: it must lie in [0, 1]")
    if retrained_auc == 1:
        raise ValueError("PrivLeak is undefined where the retrained model's AUC is 1")
    return 100 * ((1 - auc) - (1 - retrained_auc)) / (1 - retrained_auc)
