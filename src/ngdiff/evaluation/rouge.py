"""truths and answers -> ROUGE, by rouge-score with its stemmer on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


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
