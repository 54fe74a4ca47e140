"""How many operations evaluating TOFU takes in matrix products, beside running its metrics one after another.

    python -m benchmarks.evaluation_work [--model smollm2] [--forget forget10]

Counts, without running the model, the positions that each way of :mod:`benchmarks.evaluation` sends through
the layers and through the output head: two operations a weight and position; a backward pass that only passes
gradients on costs as much again, one that also forms the weights' gradients twice as much. Left out are
attention and what per-example norms need besides, each less than a tenth, and generation, which depends on
what the model writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from torch import nn

from benchmarks.evaluation import RETAIN, read_data
from benchmarks.metric_by_metric import answered
from ngdiff.data.encoding import EncodedExample, encode_all
from ngdiff.data.examples import Example
from ngdiff.inference.prefix_trees import PrefixTree, common_prefix
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.models.logprobs import output_head

BATCH = 8
Work = tuple[float, float]
"""Positions through the layers, and through the output head."""


def padded(rows: Sequence[EncodedExample], passes: int = 1) -> Work:
    """File order, every eight padded to the longest, everything through the head."""
    lengths = [len(row.input_ids) for row in rows]
    chunks = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]
    positions = passes * sum(len(chunk) * max(chunk) for chunk in chunks)
    return positions, positions


def backward(rows: Sequence[EncodedExample], times: int, whole_head: bool) -> Work:
    """One row a pass."""
    positions = sum(len(row.input_ids) for row in rows)
    labelled = sum(label >= 0 for row in rows for label in row.labels)
    return times * positions, times * (positions if whole_head else labelled)


def trees(variants: Sequence[Sequence[EncodedExample]]) -> Work:
    """All answers to a question as one tree, below what all prompts begin with."""
    skip = len(common_prefix([row for rows in variants for row in rows]))
    found = [PrefixTree(range(len(rows)), rows, skip) for rows in zip(*variants, strict=True)]
    heads = [len({node for labels in tree.labels for node, _ in labels}) for tree in found]
    return sum(map(len, found)), sum(heads)


def added(*parts: Work) -> Work:
    return sum(part[0] for part in parts), sum(part[1] for part in parts)


def count(forget: str, source: str) -> dict[str, dict[str, Work]]:
    """Return positions by way and stage."""
    tokenizer = load_tokenizer(resolve_model(source))
    data, rest = read_data(forget, None)

    def encoded(examples: Sequence[Example]) -> list[EncodedExample]:
        return encode_all(examples, tokenizer, 512, "benchmark")

    holdout, true = encoded(rest), encoded(data["forget"])
    slow, fast = [], []
    for part, rows in data.items():
        texts = answered(rows, "paraphrased_answer") if part in ("forget", "retain") else []
        others = [encoded(variant) for variant in [*texts, *answered(rows, "perturbed_answer")]]
        own = encoded(rows)
        slow += [padded(variant) for variant in [own, *others]]
        fast.append(trees(others if part == "forget" else [own, *others]))
    audits = [padded(true, 2), padded(true, 5), padded(holdout, 5)]
    both = [*true, *holdout]
    return {
        "metric by metric": {
            "answers": added(*slow, *audits),
            "gradient norms": backward(both, 3, whole_head=True),
        },
        "the suite": {
            "answers": added(*fast),
            "gradient norms": backward(both, 2, whole_head=False),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--forget", default="forget10", choices=list(RETAIN))
    args = parser.parse_args()
    model = load_model(resolve_model(args.model))
    head = output_head(model)
    layers = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    result = {
        way: {
            stage: {
                "positions": body,
                "through_the_head": top,
                "tera_operations": 2 * (body * layers + top * head.weight.numel()) / 1e12,  # type: ignore
            }
            for stage, (body, top) in stages.items()
        }
        for way, stages in count(args.forget, args.model).items()
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
