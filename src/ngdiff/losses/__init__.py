"""what the model says of a micro-batch -> a loss; one function a loss, and the table of them.

A loss is a sum over items (tokens or sequences) divided by their number *in the whole accumulated batch*, so
that 8 sequences at once and 8 times one sequence give the same gradient. The functions here return the sum;
whoever accumulates divides. Both tasks' losses are written so that they are minimised.
"""

from ngdiff.losses.comparative import (
    answer_divergence,
    dpo,
    jensen_shannon_to_answer,
    jensen_shannon_to_start,
    kl_to_start,
    npo,
    self_distillation,
    simnpo,
)
from ngdiff.losses.hidden_states import (
    control_vector,
    embedding_difference,
    steer_away,
    steer_away_in_proportion,
)
from ngdiff.losses.likelihood import (
    bounded_nll,
    counterfactual,
    cross_entropy_unlearning,
    logit_margin,
    negated_nll,
    nll,
    saturation_importance,
    selective_unlikelihood,
    unlikelihood,
    weighted_ascent,
)
from ngdiff.losses.loss import Answers, Compared, Loss, LossFunction, Measured, Task
from ngdiff.losses.table import LOSSES, find_loss

__all__ = [
    "LOSSES",
    "Answers",
    "Compared",
    "Loss",
    "LossFunction",
    "Measured",
    "Task",
    "answer_divergence",
    "bounded_nll",
    "control_vector",
    "counterfactual",
    "cross_entropy_unlearning",
    "dpo",
    "embedding_difference",
    "find_loss",
    "jensen_shannon_to_answer",
    "jensen_shannon_to_start",
    "kl_to_start",
    "logit_margin",
    "negated_nll",
    "nll",
    "npo",
    "saturation_importance",
    "selective_unlikelihood",
    "self_distillation",
    "simnpo",
    "steer_away",
    "steer_away_in_proportion",
    "unlikelihood",
    "weighted_ascent",
]
