"""What evaluating all of TOFU costs, beside running its metrics one after another.

    python -m benchmarks.evaluation [--model smollm2] [--forget forget10] [--items N] [--no-gradients]

Runs both ways in one process on the same model and rows: the suite (one teacher-forced pass feeds all
metrics, tokens that several answers share run once, rows sorted by length, only labelled positions go through
the output head, rows leave a batch when they end and others take their place), then metric by metric in file
order at batch 8 (:mod:`benchmarks.metric_by_metric`). Prints seconds a pass and a metric, by the clock and of
processor time (which other programs disturb less), their ratios, the largest difference between the figures,
and the peak memory of each way in a process of its own. :mod:`benchmarks.evaluation_work` counts the
operations of both. TOFU's files come from NGDIFF_TOFU_DIR or the hub. The holdout is a stand-in: rows of the
largest retain set, which cost the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.metric_by_metric import MetricByMetric
from benchmarks.metric_by_metric import run as run_metric_by_metric
from ngdiff.data.examples import Example, to_examples
from ngdiff.data.sources import read_rows
from ngdiff.evaluation.result import Bootstrap, Figure
from ngdiff.evaluation.suites import SuiteData
from ngdiff.evaluation.suites.tofu import run_tofu
from ngdiff.inference.evaluator import Evaluator
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.system.environment import keep_freed_memory, machine, peak_memory_gib

PARTS = {
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
Values = dict[str, list[float]]


def spread(examples: list[Example], count: int) -> list[Example]:
    """Take ``count`` rows at even distances, so that a part of a file is like the whole."""
    if count >= len(examples):
        return examples
    return [examples[row * len(examples) // count] for row in range(count)]


def read_data(forget: str, items: int | None) -> tuple[dict[str, list[Example]], list[Example]]:
    """Read the four parts of the suite, and the holdout's stand-in of the forget set's size.

    ``items`` of the forget set, and as large a share of every other file, so that a part costs its share of
    the whole suite.
    """
    data: dict[str, list[Example]] = {}
    share = 1.0
    for part, name in {"forget": f"{forget}_perturbed", **PARTS}.items():
        where = f"tofu:{name}"
        examples = to_examples(read_rows(where, where=where), where)
        if part == "forget" and items is not None:
            share = min(1.0, items / len(examples))
        data[part] = spread(examples, max(1, round(share * len(examples))))
    source = f"tofu:{RETAIN[forget]}"
    holdout = to_examples(read_rows(source, where=source), source)
    return data, spread(holdout, len(data["forget"]))


def differences(fast: Values, slow: Values) -> dict[str, float]:
    """Largest absolute difference of each figure that both ways have, over items."""
    return {
        name: max(abs(a - b) for a, b in zip(fast[name], slow[name], strict=True))
        for name in slow
        if name in fast
    }


def items_of(figures: dict[str, Figure]) -> Values:
    """Return the suite's per-item values under the names, and with the signs, of the other way."""
    found: Values = {}
    for key, figure in figures.items():
        values = [item for item in figure.items if item is not None]
        reverse = figure.metric == "auc" and not key.endswith(("min_k", "min_k_plus_plus"))
        found[key] = [-value for value in values] if reverse else values
    for part in ("real_authors", "world_facts"):
        found[f"{part}.probability"] = found[f"{part}.raw_probability"]  # not yet among the options
    return found


class Bench:
    """The model and the rows, and the two ways."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        source = resolve_model(args.model)
        self.model = load_model(source).eval()
        self.tokenizer = load_tokenizer(source)
        self.data, self.holdout = read_data(args.forget, args.items)

    def slow(self) -> tuple[Values, dict[str, float]]:
        runner = MetricByMetric(self.model, self.tokenizer, max_new_tokens=self.args.max_new_tokens)
        found = run_metric_by_metric(runner, self.data, self.holdout, not self.args.no_gradients)
        return found, runner.seconds

    def fast(self) -> tuple[Values, dict[str, float]]:
        evaluator = Evaluator(
            self.model, self.tokenizer, batch_size=8, max_new_tokens=self.args.max_new_tokens, quiet=True
        )
        settings = {"paraphrases": False, "gradient_norms": not self.args.no_gradients}
        data = SuiteData(self.data | {"holdout": self.holdout}, self.args.forget, settings=settings)
        figures = run_tofu(evaluator, data, None, Bootstrap())
        return items_of(figures), evaluator.seconds


def timed(work: Any) -> tuple[Any, float, float]:
    """Return what ``work`` returns, its seconds, and its seconds of processor time over all threads."""
    started, busy = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - started, time.process_time() - busy


def peak_of(way: str, args: argparse.Namespace) -> float:
    """Peak resident memory of one way, in a process of its own, in GiB."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "--only", way, "--model", args.model]
    command += ["--forget", args.forget, "--max-new-tokens", str(args.max_new_tokens)]
    command += ["--items", str(args.peak_items)] + (["--no-gradients"] if args.no_gradients else [])
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(output)["peak_gib"])


def by_group(seconds: dict[str, float]) -> dict[str, float]:
    """Add up the metric-by-metric way's seconds over the parts of the data."""
    groups: dict[str, float] = {}
    for name, value in seconds.items():
        kind = name.split(".", 1)[1].rstrip(" 0123456789")
        groups[kind] = groups.get(kind, 0.0) + value
    return groups


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--forget", default="forget10", choices=list(RETAIN))
    parser.add_argument(
        "--items",
        type=int,
        help="rows of the forget set, and as large a share of the other files (default: all)",
    )
    parser.add_argument("--peak-items", type=int, default=32, help="likewise, to measure memory on")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--no-gradients", action="store_true", help="leave out the attack by gradient norm")
    parser.add_argument("--no-peak", action="store_true", help="leave out the memory")
    parser.add_argument("--only", choices=("fast", "slow"), help="run one way and print its peak memory")
    return parser.parse_args()


def main() -> None:
    args = parse()
    keep_freed_memory()
    torch.manual_seed(0)
    bench = Bench(args)
    if args.only:
        (_, seconds), total, _ = timed(getattr(bench, args.only))
        print(json.dumps({"seconds": total, "parts": seconds, "peak_gib": peak_memory_gib()["process"]}))
        return
    (fast, passes), fast_total, fast_cpu = timed(bench.fast)
    (slow, metrics), slow_total, slow_cpu = timed(bench.slow)
    result = {
        "machine": machine(),
        "items": {part: len(rows) for part, rows in bench.data.items()} | {"holdout": len(bench.holdout)},
        "suite_s": fast_total,
        "suite_passes_s": passes,
        "metric_by_metric_s": slow_total,
        "metric_by_metric_kinds_s": by_group(metrics),
        "times_faster": slow_total / fast_total,
        "processor_s": {"fast": fast_cpu, "slow": slow_cpu},
        "times_less_processor_time": slow_cpu / fast_cpu,
        "largest_differences": differences(fast, slow),
    }
    if not args.no_peak:
        result["peak_gib"] = {way: peak_of(way, args) for way in ("fast", "slow")}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
