"""TOFU's metrics the way they are usually run: one after another, in file order, each with its own passes.

The slow path of :mod:`benchmarks.evaluation`. Every metric pads each eight rows of the file to
the longest of them, sends all positions through the output head, and shares nothing with the other metrics,
except that truth ratios reuse the losses of paraphrased and perturbed answers. These are the passes that
OpenUnlearning makes for the same figures (its ``src/evals`` as of 2025): one for probability, extraction
strength, exact memorisation, loss, zlib and min-k each, two for min-k++ (one for the tokens' likelihoods, one
for those of the whole vocabulary), one backward pass an item, and ``generate`` on left-padded batches. One
thing is left out: it gives the model the labels, too, so that each pass works out a loss that nobody reads.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rouge_score import rouge_scorer

from ngdiff.data.batching import collate
from ngdiff.data.encoding import encode_all, encode_prompt
from ngdiff.data.examples import Example
from ngdiff.inference.teacher_forced import but_last

Values = list[float]


@dataclass
class MetricByMetric:
    """A model with what it takes to run metrics on it.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_size: rows a pass.
        max_new_tokens: longest answer.
        max_length: longest sequence.
        seconds: of each metric that has run.
    """

    model: Any
    tokenizer: Any
    batch_size: int = 8
    max_new_tokens: int = 200
    max_length: int = 512
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = work()
        self.seconds[name] = time.perf_counter() - started
        return found

    def token_scores(self, examples: Sequence[Example], read: Callable[[Any, Any], float]) -> Values:
        """Run a pass of its own and read one figure from each answer's log-probabilities and labels."""
        return [read(log_probs, labels) for log_probs, labels in self.token_passes(examples)]

    def token_passes(self, examples: Sequence[Example]) -> Iterator[tuple[Any, Any]]:
        """Yield each answer's log-probabilities over the vocabulary, and its labels."""
        encoded = encode_all(examples, self.tokenizer, self.max_length, "benchmark")
        for start in range(0, len(encoded), self.batch_size):
            batch = collate(encoded[start : start + self.batch_size], self.tokenizer.pad_token_id)
            with torch.no_grad():
                output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            log_probs = output.logits[:, :-1].float().log_softmax(-1)
            for row, labels in enumerate(batch["labels"][:, 1:]):
                kept = labels >= 0
                yield log_probs[row][kept], labels[kept]

    def losses(self, examples: Sequence[Example]) -> Values:
        return self.token_scores(examples, lambda lp, y: -float(chosen(lp, y).mean()))

    def strengths(self, examples: Sequence[Example]) -> Values:
        return self.token_scores(examples, strength)

    def exactness(self, examples: Sequence[Example]) -> Values:
        return self.token_scores(examples, lambda lp, y: float(but_last(lp.argmax(-1) == y).float().mean()))

    def min_k(self, examples: Sequence[Example]) -> Values:
        return self.token_scores(examples, lambda lp, y: lowest(but_last(chosen(lp, y))))

    def min_k_plus_plus(self, examples: Sequence[Example]) -> Values:
        """One pass for the whole vocabulary's likelihoods, another for the tokens'."""
        moments = [spread_of(lp) for lp, _ in self.token_passes(examples)]
        tokens = [chosen(lp, y) for lp, y in self.token_passes(examples)]
        return [
            lowest(but_last((mine - mean) / sigma))
            for mine, (mean, sigma) in zip(tokens, moments, strict=True)
        ]

    def zlib(self, examples: Sequence[Example]) -> Values:
        losses = self.losses(examples)
        sizes = [len(zlib.compress(example.answer.encode())) for example in examples]
        return [loss / size for loss, size in zip(losses, sizes, strict=True)]

    def gradient_norms(self, examples: Sequence[Example]) -> Values:
        """One backward pass an item, its last token left out; the mean of the parameters' norms."""
        norms: Values = []
        for encoded in encode_all(examples, self.tokenizer, self.max_length, "benchmark"):
            batch = collate([encoded], self.tokenizer.pad_token_id)
            labelled = (batch["labels"][0] >= 0).nonzero().squeeze(1)
            batch["labels"][0, labelled[1:][-1:]] = -100
            self.model.zero_grad(set_to_none=True)
            self.model(**batch).loss.backward()
            found = [float(p.grad.norm()) for p in self.model.parameters() if p.grad is not None]
            norms.append(sum(found) / len(found))
        self.model.zero_grad(set_to_none=True)
        return norms

    def rouge_recalls(self, examples: Sequence[Example]) -> Values:
        scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
        recalls: Values = []
        for start in range(0, len(examples), self.batch_size):
            chunk = examples[start : start + self.batch_size]
            for example, answer in zip(chunk, self.generate(chunk), strict=True):
                recalls.append(scorer.score(example.answer, answer)["rougeL"].recall)
        return recalls

    def generate(self, examples: Sequence[Example]) -> list[str]:
        prompts = [encode_prompt(example, self.tokenizer, self.max_length) for example in examples]
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        with torch.no_grad():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        texts = self.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        return [text.strip() for text in texts]


def chosen(log_probs: Any, labels: Any) -> Any:
    """Log-probability of each label."""
    return log_probs.gather(-1, labels[:, None]).squeeze(-1)


def spread_of(log_probs: Any) -> tuple[Any, Any]:
    """Mean and deviation of log p under p, at each token."""
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    variance = (probs * log_probs.square()).sum(-1) - mean.square()
    return mean, variance.clamp(min=1e-12).sqrt()


def lowest(values: Any, share: float = 0.4) -> float:
    """Mean of the lowest share of the tokens."""
    return float(values.sort().values[: max(1, int(len(values) * share))].mean())


def strength(log_probs: Any, labels: Any) -> float:
    """Extraction strength by trying every prefix."""
    right = but_last(log_probs.argmax(-1) == labels).tolist()
    return next((1 - k / len(right) for k in range(len(right)) if all(right[k:])), 0.0)


def answered(examples: Sequence[Example], column: str) -> list[list[Example]]:
    """Return the examples with their answer replaced from an extra column: one list for each variant."""
    from dataclasses import replace

    variants: list[list[Example]] = []
    for example in examples:
        texts = example.extra[column]
        for place, text in enumerate(texts if isinstance(texts, list) else [texts]):
            if place == len(variants):
                variants.append([])
            last = replace(example.messages[-1], content=str(text))
            variants[place].append(replace(example, messages=(*example.messages[:-1], last)))
    return variants


def run(
    runner: MetricByMetric, data: dict[str, list[Example]], holdout: Sequence[Example], gradients: bool
) -> dict[str, Values]:
    """Run every metric of the TOFU suite; returns its per-item values.

    Args:
        runner: model and settings; its ``seconds`` are filled.
        data: ``forget``, ``retain``, ``real_authors``, ``world_facts`` to the rows of the perturbed files.
        holdout: what the model never saw.
        gradients: whether to run the attack by gradient norm.
    """
    found: dict[str, Values] = {}

    def metric(name: str, work: Callable[[], Values]) -> None:
        found[name] = runner.timed(name, work)

    for part, rows in data.items():
        if part in ("forget", "retain"):
            (paraphrased,) = answered(rows, "paraphrased_answer")
            metric(f"{part}.paraphrased loss", lambda r=paraphrased: runner.losses(r))
        for number, wrong in enumerate(answered(rows, "perturbed_answer"), 1):
            metric(f"{part}.perturbed loss {number}", lambda r=wrong: runner.losses(r))
        metric(f"{part}.probability", lambda r=rows: [math.exp(-loss) for loss in runner.losses(r)])
        metric(f"{part}.rouge", lambda r=rows: runner.rouge_recalls(r))
    forget = data["forget"]
    metric("forget.extraction_strength", lambda: runner.strengths(forget))
    metric("forget.exact_memorisation", lambda: runner.exactness(forget))
    attacks: dict[str, Callable[[Sequence[Example]], Values]] = {
        "loss": runner.losses,
        "zlib": runner.zlib,
        "min_k": runner.min_k,
        "min_k_plus_plus": runner.min_k_plus_plus,
    }
    if gradients:
        attacks["gradient_norm"] = runner.gradient_norms
    for name, score in attacks.items():
        metric(f"forget.membership.{name}", lambda s=score: [*s(forget), *s(holdout)])
    return found
