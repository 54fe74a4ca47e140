"""A model and TOFU's files -> every per-item value the slow way: one sequence at a time.

Shares nothing with the evaluation but the encoding of examples, which has tests of its own.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rouge_score import rouge_scorer

from ngdiff.data.encoding import encode
from ngdiff.data.examples import Example, Message


def asked(question: str, answer: str) -> Example:
    return Example((Message("user", question), Message("assistant", answer)), None, "qa", "here")


@dataclass(frozen=True)
class Slow:
    """One answer's figures."""

    loss: float
    strength: float
    exact: float
    log_probs: list[float]
    z_scores: list[float]
    gradient_norm: float

    @property
    def p(self) -> float:
        return math.exp(-self.loss)


def look(model: Any, tokenizer: Any, question: str, answer: str) -> Slow:
    encoded = encode(asked(question, answer), tokenizer, 512)
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=torch.tensor([encoded.input_ids])).logits[0].double()
    chosen, z_scores, right = [], [], []
    for place, label in enumerate(encoded.labels):
        if label < 0 or place == 0:
            continue
        row = logits[place - 1].log_softmax(-1)
        p = row.exp()
        mean = (p * row).sum()
        deviation = (p * (row - mean) ** 2).sum().sqrt()
        chosen.append(row[label])
        z_scores.append(float(((row[label] - mean) / deviation).detach()))
        right.append(int(row.argmax()) == label)
    loss = -torch.stack(chosen).mean()
    right = right[:-1]  # the end of the turn counts for losses only
    (-torch.stack(chosen[:-1]).mean()).backward()
    norms = [math.sqrt(float(q.grad.double().square().sum())) for q in model.parameters()]
    model.zero_grad(set_to_none=True)
    strength = next((1 - k / len(right) for k in range(len(right)) if all(right[k:])), 0.0)
    exact = sum(right) / len(right)
    return Slow(
        float(loss.detach()),
        strength,
        exact,
        [float(v.detach()) for v in chosen[:-1]],
        z_scores[:-1],
        sum(norms) / len(norms),
    )


def say(model: Any, tokenizer: Any, question: str, most: int) -> str:
    """Decode greedily without cache or batch."""
    encoded = encode(asked(question, "x"), tokenizer, 512)
    ids = [i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label < 0]
    said: list[int] = []
    while len(said) < most:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + said])).logits[0, -1]
        best = int(logits.argmax())
        if best == tokenizer.eos_token_id:
            break
        said.append(best)
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip()


def lowest(values: list[float], share: float = 0.4) -> float:
    kept = sorted(values)[: max(1, int(len(values) * share))]
    return sum(kept) / len(kept)


def auc(members: list[float], others: list[float]) -> float:
    won = sum((m > o) + 0.5 * (m == o) for m in members for o in others)
    return won / (len(members) * len(others))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def recall(truth: str, answer: str) -> float:
    return float(rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(truth, answer)["rougeL"].recall)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.json").read_text().splitlines()]


def membership(forget: list[tuple[str, Slow]], holdout: list[tuple[str, Slow]]) -> dict[str, float]:
    """AUC of each attack, from (answer, figures) of both sides."""
    attacks = {
        "loss": lambda answer, s: -s.loss,
        "zlib": lambda answer, s: -s.loss / len(zlib.compress(answer.encode())),
        "min_k": lambda answer, s: lowest(s.log_probs),
        "min_k_plus_plus": lambda answer, s: lowest(s.z_scores),
        "gradient_norm": lambda answer, s: -s.gradient_norm,
    }
    return {
        f"forget.membership.{name}": auc([score(*one) for one in forget], [score(*one) for one in holdout])
        for name, score in attacks.items()
    }


def truth_ratios(model: Any, tokenizer: Any, data: list[dict[str, Any]]) -> list[float]:
    """p(wrong)/p(right), p(wrong) the geometric mean of the wrong answers' probabilities."""
    found = []
    for one in data:
        right = look(model, tokenizer, one["question"], one.get("paraphrased_answer", one["answer"])).p
        wrong = [look(model, tokenizer, one["question"], text).p for text in one["perturbed_answer"]]
        found.append(math.prod(wrong) ** (1 / len(wrong)) / right)
    return found


def guarded(model: Any, tokenizer: Any, data: list[dict[str, Any]]) -> list[float]:
    """OpenUnlearning's ratios: the same with 1e-10 added to p(right)."""
    right = [look(model, tokenizer, e["question"], e.get("paraphrased_answer", e["answer"])).p for e in data]
    exact = truth_ratios(model, tokenizer, data)
    return [t * p / (p + 1e-10) for t, p in zip(exact, right, strict=True)]


def evaluate_slowly(model: Any, tokenizer: Any, folder: Path, most: int) -> dict[str, float]:
    """Every aggregate of the suite that needs no reference."""
    model.eval()
    found: dict[str, float] = {}
    scores: dict[str, list[tuple[str, Slow]]] = {}
    for name, file in (
        ("forget", "forget01_perturbed"),
        ("retain", "retain_perturbed"),
        ("real_authors", "real_authors_perturbed"),
        ("world_facts", "world_facts_perturbed"),
        ("holdout", "holdout01"),
    ):
        data = rows(folder, file)
        scores[name] = [
            (one["answer"], look(model, tokenizer, one["question"], one["answer"])) for one in data
        ]
        own = [s for _, s in scores[name]]
        found[f"{name}.probability"] = mean([s.p for s in own])
        found[f"{name}.nll"] = mean([s.loss for s in own])
        found[f"{name}.extraction_strength"] = mean([s.strength for s in own])
        found[f"{name}.exact_memorisation"] = mean([s.exact for s in own])
        if name == "holdout":
            continue
        found[f"{name}.rouge"] = mean(
            [recall(one["answer"], say(model, tokenizer, one["question"], most)) for one in data]
        )
        ratios = truth_ratios(model, tokenizer, data)
        useful = [max(0.0, 1 - t) for t in ratios]
        found[f"{name}.truth_ratio"] = mean([min(t, 1 / t) for t in ratios] if name == "forget" else useful)
        found[f"{name}.truth_ratio_share"] = mean([1 / (1 + t) for t in ratios])
        if name == "forget":
            ours = [min(t, 1 / (t + 1e-10)) for t in guarded(model, tokenizer, data)]
            found["forget.truth_ratio_openunlearning"] = mean(ours)
        if name in ("real_authors", "world_facts"):
            found[f"{name}.raw_probability"] = found[f"{name}.probability"]
            shares = []
            for one, score in zip(data, own, strict=True):
                wrong = [look(model, tokenizer, one["question"], w).p for w in one["perturbed_answer"]]
                shares.append(score.p / (score.p + sum(wrong)))
            found[f"{name}.probability"] = mean(shares)
        else:
            label = f"{name}_paraphrased"
            other = [look(model, tokenizer, one["paraphrased_question"], one["answer"]) for one in data]
            found[f"{label}.probability"] = mean([s.p for s in other])
            said = [say(model, tokenizer, one["paraphrased_question"], most) for one in data]
            found[f"{label}.rouge"] = mean(
                [recall(one["answer"], text) for one, text in zip(data, said, strict=True)]
            )
    parts = [
        found[f"{name}.{measure}"]
        for name in ("retain", "real_authors", "world_facts")
        for measure in ("probability", "rouge", "truth_ratio")
    ]
    found["model_utility"] = 0.0 if 0 in parts else 9 / sum(1 / part for part in parts)
    return found | membership(scores["forget"], scores["holdout"])
