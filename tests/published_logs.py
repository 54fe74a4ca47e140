"""A seed -> logs in the layouts of OpenUnlearning and of TOFU's first code, aggregated by plain loops."""

from __future__ import annotations

import math
import random
from typing import Any

Json = dict[str, Any]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def indexed(rows: list[Json], agg_value: float | None) -> Json:
    return {"agg_value": agg_value, "value_by_index": {str(i): row for i, row in enumerate(rows)}}


def probability_rows(rng: random.Random, count: int, answers: int = 0) -> list[Json]:
    """Rows of the metric ``probability``: one answer an item, or lists of several."""
    if not answers:
        losses = [rng.uniform(0.1, 6) for _ in range(count)]
        return [{"prob": math.exp(-loss), "avg_loss": loss} for loss in losses]
    many = [[rng.uniform(0.1, 8) for _ in range(answers)] for _ in range(count)]
    return [{"prob": [math.exp(-x) for x in losses], "avg_loss": losses} for losses in many]


def probability_mean(rows: list[Json]) -> float:
    return mean([mean(r["prob"]) if isinstance(r["prob"], list) else r["prob"] for r in rows])


def ratio_rows(right: list[Json], wrong: list[Json], guard: float = 1e-10) -> list[Json]:
    return [
        {"score": math.exp(-mean(w["avg_loss"])) / (math.exp(-r["avg_loss"]) + guard)}
        for r, w in zip(right, wrong, strict=True)
    ]


def rouge_rows(rng: random.Random, count: int) -> list[Json]:
    return [
        {
            "rouge1_recall": rng.random(),
            "rougeL_f1": rng.random(),
            "rougeL_recall": rng.random(),
            "input": "a question",
            "ground_truth": "an answer",
            "generation": "another",
        }
        for _ in range(count)
    ]


def pairs_auc(members: list[float], others: list[float]) -> float:
    """The share of pairs in which the member has the lower loss; ties count half."""
    won = [(m < o) + (m == o) / 2 for m in members for o in others]
    return mean(won)


def attack(rng: random.Random, forget: int, holdout: int, gap: float) -> Json:
    members = [rng.gauss(2 - gap, 1) for _ in range(forget)]
    others = [rng.gauss(2, 1) for _ in range(holdout)]
    value = pairs_auc(members, others)
    return {
        "forget": indexed([{"score": s} for s in members], mean(members)),
        "holdout": indexed([{"score": s} for s in others], mean(others)),
        "auc": value,
        "agg_value": value,
    }


def ks_statistic(left: list[float], right: list[float]) -> float:
    """The largest gap between two empirical distribution functions, by its definition."""
    return max(
        abs(sum(x <= t for x in left) / len(left) - sum(x <= t for x in right) / len(right))
        for t in left + right
    )


def harmonic(values: list[float]) -> float:
    return len(values) / sum(1 / v for v in values)


def tofu_log(seed: int, forget: int = 40, gap: float = 0.5) -> Json:
    """A TOFU_EVAL.json, without what needs a reference (forget quality and PrivLeak are stated as null)."""
    rng = random.Random(seed)
    log: Json = {"forget_quality": {"agg_value": None}}
    for short, count, answers in (("forget", forget, 5), ("retain", 30, 5), ("ra", 10, 3), ("wf", 12, 3)):
        right, wrong = probability_rows(rng, count), probability_rows(rng, count, answers)
        log[f"{short}_Q_A_Prob"] = indexed(right, probability_mean(right))
        log[f"{short}_Q_A_PERT_Prob"] = indexed(wrong, probability_mean(wrong))
        if answers == 5:
            right = probability_rows(rng, count)
            log[f"{short}_Q_A_PARA_Prob"] = indexed(right, probability_mean(right))
        else:
            shares = [
                r["prob"] / (r["prob"] + sum(w["prob"]) + 1e-10) for r, w in zip(right, wrong, strict=True)
            ]
            log[f"{short}_Q_A_Prob_normalised"] = indexed([{"prob": s} for s in shares], mean(shares))
        ratios = ratio_rows(right, wrong)
        scores = [row["score"] for row in ratios]
        if short == "forget":
            log["forget_truth_ratio"] = indexed(ratios, mean([min(t, 1 / (t + 1e-10)) for t in scores]))
        else:
            log[f"{short}_Truth_Ratio"] = indexed(ratios, mean([max(0.0, 1 - t) for t in scores]))
        rouge = rouge_rows(rng, count)
        log[f"{short}_Q_A_ROUGE"] = indexed(rouge, mean([r["rougeL_recall"] for r in rouge]))
    for name in ("extraction_strength", "exact_memorization"):
        scores = [rng.random() for _ in range(forget)]
        log[name] = indexed([{"score": s} for s in scores], mean(scores))
    for name in ("mia_min_k", "mia_loss"):
        log[name] = attack(rng, forget, forget, gap)
    parts = [log[f"retain_{end}"] for end in ("Q_A_Prob", "Q_A_ROUGE", "Truth_Ratio")]
    ends = ("Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio")
    parts += [log[f"{short}_{end}"] for short in ("ra", "wf") for end in ends]
    log["model_utility"] = {"agg_value": harmonic([part["agg_value"] for part in parts])}
    log["privleak"] = {"agg_value": None}
    return dict(sorted(log.items()))


def muse_log(seed: int, gap: float = 0.5) -> Json:
    """A MUSE_EVAL.json."""
    rng = random.Random(seed)
    log: Json = {"mia_min_k": attack(rng, 20, 20, gap), "privleak": {"agg_value": None}}
    for name in ("forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "retain_knowmem_ROUGE"):
        rows = rouge_rows(rng, 20)
        log[name] = indexed(rows, mean([r["rougeL_f1"] for r in rows]))
    return dict(sorted(log.items()))


def summary(log: Json) -> Json:
    return {name: part["agg_value"] for name, part in log.items() if part.get("agg_value") is not None}


def first_code_log(log: Json) -> Json:
    """The same items as TOFU's first code writes them, in an eval_log_aggregated.json."""
    files = {
        "eval_log.json": "retain",
        "eval_real_author_wo_options.json": "ra",
        "eval_real_world_wo_options.json": "wf",
        "eval_log_forget.json": "forget",
    }
    old: Json = {}
    for file, short in files.items():
        right = "PARA_Prob" if short in ("forget", "retain") else "Prob"
        columns = {
            "avg_gt_loss": (f"{short}_Q_A_Prob", "avg_loss"),
            "avg_paraphrased_loss": (f"{short}_Q_A_{right}", "avg_loss"),
            "average_perturb_loss": (f"{short}_Q_A_PERT_Prob", "avg_loss"),
            "rougeL_recall": (f"{short}_Q_A_ROUGE", "rougeL_recall"),
            "generated_text": (f"{short}_Q_A_ROUGE", "generation"),
        }
        old[file] = {
            name: {i: row[statistic] for i, row in log[metric]["value_by_index"].items()}
            for name, (metric, statistic) in columns.items()
        }
    return old
