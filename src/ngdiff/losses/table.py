"""loss name -> its function, settings and needs; the table of losses."""

from __future__ import annotations

from collections.abc import Mapping

from ngdiff.errors import Fault, RequestError, unknown_name
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
from ngdiff.losses.hidden_states import embedding_difference, steer_away, steer_away_in_proportion
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
from ngdiff.losses.loss import Loss, Task

LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("nll", "retain", "token", nll, "negative log-likelihood of the answers", "maximum likelihood"),
        Loss(
            "negated-nll",
            "forget",
            "token",
            negated_nll,
            "minus the negative log-likelihood (gradient ascent)",
            "Jang et al. 2023, arXiv 2210.01504",
        ),
        Loss(
            "bounded-nll",
            "forget",
            "token",
            bounded_nll,
            "minus the NLL, each token only up to the level of never-seen text",
            "NGDiff's own; see docs/decisions.md",
            settings={"ceiling": "never-seen NLL"},
        ),
        Loss(
            "unlikelihood",
            "forget",
            "token",
            unlikelihood,
            "-log(1 - p) of each token: pushes what is known, leaves what is forgotten",
            "Welleck et al. 2020, arXiv 1908.04319",
        ),
        Loss(
            "selective-unlikelihood",
            "forget",
            "token",
            selective_unlikelihood,
            "unlikelihood of each token down to what it would be without the answer's knowledge",
            "NGDiff's own, after Wan et al. 2025, arXiv 2506.00876; see docs/decisions.md",
            levels=True,
        ),
        Loss(
            "counterfactual",
            "forget",
            "token",
            counterfactual,
            "divergence from what the model would say, had it never met the subject",
            "NGDiff's own, after Liu et al. 2024, arXiv 2407.16997; see docs/decisions.md",
            levels=True,
            expected=True,
        ),
        Loss(
            "npo",
            "forget",
            "sequence",
            npo,
            "negative preference optimisation against the starting model",
            "Zhang et al. 2024, arXiv 2404.05868",
            settings={"beta": 0.1},
            compares="answers",
        ),
        Loss(
            "simnpo",
            "forget",
            "sequence",
            simnpo,
            "negative preference optimisation by mean NLL and a margin, without reference model",
            "Fan et al. 2024, arXiv 2410.07163",
            settings={"beta": 4.5, "delta": 0.0},
        ),
        Loss(
            "wga",
            "forget",
            "token",
            weighted_ascent,
            "gradient ascent weighted by p^beta",
            "Wang et al. 2025, arXiv 2502.19301",
            settings={"beta": 1.0},
        ),
        Loss(
            "satimp",
            "forget",
            "token",
            saturation_importance,
            "gradient ascent weighted by p^beta1 (1 - p)^beta2",
            "Yang et al. 2025, arXiv 2505.11953",
            settings={"beta1": 5.0, "beta2": 1.0},
        ),
        Loss(
            "ceu",
            "forget",
            "token",
            cross_entropy_unlearning,
            "cross-entropy to the model's own prediction without the true token",
            "Yang 2025, arXiv 2503.01224",
        ),
        Loss(
            "logit-margin",
            "forget",
            "token",
            logit_margin,
            "squared distance of the largest logit from the mean",
            "Entesari et al. 2025, arXiv 2506.05314",
        ),
        Loss(
            "dpo",
            "forget",
            "sequence",
            dpo,
            "preference of the answers in a column over the true ones, against the starting model",
            "Rafailov et al. 2023, arXiv 2305.18290",
            settings={"beta": 0.1},
            compares="answers",
            other_answers="preferred",
        ),
        Loss(
            "idkdpo",
            "forget",
            "sequence",
            dpo,
            "preference of refusals over the true answers, against the starting model",
            "Maini et al. 2024, arXiv 2401.06121; Zhang et al. 2024, arXiv 2404.05868",
            settings={"beta": 0.1},
            compares="answers",
            other_answers="refusals",
        ),
        Loss(
            "altpo",
            "forget",
            "sequence",
            dpo,
            "preference of answers that the model makes up over the true ones",
            "Mekala et al. 2024, arXiv 2409.13474",
            settings={"beta": 0.1},
            compares="answers",
            other_answers="invented",
        ),
        Loss(
            "idknll",
            "forget",
            "token",
            nll,
            "negative log-likelihood of refusals, such as 'I do not know.'",
            "Maini et al. 2024, arXiv 2401.06121",
            other_answers="refusals",
            own_answers=False,
        ),
        Loss(
            "undial",
            "forget",
            "token",
            self_distillation,
            "cross-entropy to the starting model's prediction with the true token pushed down",
            "Dong et al. 2024, arXiv 2402.10052",
            settings={"beta": 10.0},
            compares="predictions",
        ),
        Loss(
            "rmu",
            "forget",
            "token",
            steer_away,
            "squared distance of one layer's activations from a random direction",
            "Li et al. 2024, arXiv 2403.03218",
            settings={"layer": "layer at 7/32 of the depth", "coefficient": 2.0, "seed": 0},
            looks_at="activations",
        ),
        Loss(
            "adaptive-rmu",
            "forget",
            "token",
            steer_away_in_proportion,
            "squared distance of one layer's activations from a random direction as long as they were",
            "Dang et al. 2024, arXiv 2408.06223",
            settings={"layer": "layer at 7/32 of the depth", "scale": 5.0, "seed": 0},
            compares="activations",
            looks_at="activations",
        ),
        Loss(
            "jensun",
            "forget",
            "token",
            jensen_shannon_to_answer,
            "Jensen-Shannon divergence from refusals, such as 'I do not know.'",
            "Singh et al. 2025, arXiv 2509.02820",
            other_answers="refusals",
            own_answers=False,
        ),
        Loss(
            "flat",
            "forget",
            "sequence",
            answer_divergence,
            "divergence between a refusal and the true answer, by mean token probability",
            "Wang et al. 2024, arXiv 2410.11143",
            other_answers="refusals",
        ),
        Loss(
            "jsd",
            "retain",
            "token",
            jensen_shannon_to_start,
            "Jensen-Shannon divergence from the starting model's predictions",
            "Singh et al. 2025, arXiv 2509.02820",
            compares="predictions",
        ),
        Loss(
            "kl",
            "retain",
            "token",
            kl_to_start,
            "Kullback-Leibler divergence from the starting model's predictions",
            "Maini et al. 2024, arXiv 2401.06121",
            compares="predictions",
        ),
        Loss(
            "embedding-difference",
            "retain",
            "token",
            embedding_difference,
            "squared distance of one layer's activations from the starting model's",
            "Li et al. 2024, arXiv 2403.03218",
            settings={"layer": "layer at 7/32 of the depth"},
            compares="activations",
            looks_at="activations",
        ),
    )
}


def find_loss(name: str, task: Task, settings: Mapping[str, float] | None = None) -> Loss:
    """Look a loss up by name, and check settings meant for it.

    Raises:
        RequestError: no loss of that name serves this task (the nearest names are given), or it has no such
            setting.
    """
    known = [loss.name for loss in LOSSES.values() if loss.task == task]
    if name not in known:
        raise RequestError(unknown_name(f"--{task}-loss", f"{task} loss", name, known))
    loss = LOSSES[name]
    unknown = sorted(set(settings or {}) - set(loss.settings))
    if unknown:
        what = f"the loss {name!r} has no setting called {', '.join(unknown)}"
        raise RequestError(
            Fault(f"--{task}-loss", what, f"Its settings: {', '.join(loss.settings) or 'none'}")
        )
    return loss
