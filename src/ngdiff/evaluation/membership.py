"""areas under the ROC of a model and of a retrained one -> PrivLeak."""

from __future__ import annotations


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
