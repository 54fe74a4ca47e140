"""answers and their scores -> ROUGE, truth ratios, membership attacks and PrivLeak.

An attack gives each text a score that is higher the likelier the model has seen it; its AUC compares the
forget set with text of the same kind that the model never saw. Two attacks are not here, since they need
more than one pass over the text: by gradient norm (:mod:`ngdiff.inference.gradient_norm`) and by a
reference model's loss. As in OpenUnlearning, the attacks that look at single tokens leave out the last, the
end of the turn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

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
    it still shows that the forget set was seen; positive: that it was unlearned.
    Source: Shi et al. 2024 (MUSE), arXiv 2407.06460, section 3.2.

    Args:
        auc: of forget against holdout under the model, in [0, 1]; higher scores mean members.
        retrained_auc: the same under the retrained model, below 1.

    Raises:
        ValueError: an AUC is out of range, or the retrained model's is 1, which leaves nothing to divide by.
    """
    for value in (auc, retrained_auc):
        if not 0 <= value <= 1:
            raise ValueError(f"{value} is not an area under a ROC curve: it must lie in [0, 1]")
    if retrained_auc == 1:
        raise ValueError("PrivLeak is undefined where the retrained model's AUC is 1")
    return 100 * ((1 - auc) - (1 - retrained_auc)) / (1 - retrained_auc)


# ---- truths and answers -> ROUGE, by rouge-score with its stemmer on ----


@dataclass(frozen=True)
class Rouge:
    """ROUGE of one answer, each in [0, 1].

    Args:
        rouge1_recall: share of the truth's words that are in the answer.
        rougeL_recall: share of the truth's words in the longest common subsequence.
        rougeL_f1: harmonic mean of that recall and of the same share of the answer's words.
    """

    rouge1_recall: float
    rougeL_recall: float
    rougeL_f1: float


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge(truth: str, answer: str) -> Rouge:
    """Compare an answer with the truth; an empty answer, or one without a word in it, scores 0.

    Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries".
    """
    found = _scorer().score(truth, answer)
    return Rouge(found["rouge1"].recall, found["rougeL"].recall, found["rougeL"].fmeasure)


# ---- scores of right and wrong answers -> truth ratios, and what they aggregate to ----


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

    Computed in logarithms, so that answers of vanishing probability still have a share.
    """
    logs = [-score.mean_nll for score in (right, *wrong)]
    top = max(logs)
    return math.exp(logs[0] - top) / math.fsum(math.exp(value - top) for value in logs)
