"""What an NGDiff step costs, beside a GradDiff step on the same batches.

    python -m benchmarks.steps [--model smollm2] [--batch 8] [--rounds 7]
    python -m benchmarks.steps --device cuda

Prints, as medians over paired rounds: seconds of a GradDiff step (constant weights, one gradient buffer), of
an NGDiff step (two buffers, Gramian, combination), of such a step with the default method's losses (held by
the divergence from the starting model, which was asked beforehand), and their ratios; the automatic rate's
share of ten steps; peak memory of each kind of step, each in a process of its own, in gradient buffers;
tokens per second against the floor that the matrix products alone set on this machine. Batches are made
as the trainer makes them: examples in random order, probes with little padding. On a GPU
:mod:`benchmarks.gpu_steps` measures instead.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ngdiff.data.batching import Batch, collate, collate_for_loss, little_padding, permutation
from ngdiff.data.datasets import as_encoded
from ngdiff.data.encoding import EncodedExample
from ngdiff.invented.people import invent_people, question_rows
from ngdiff.losses import LOSSES, negated_nll, nll
from ngdiff.losses.loss import look
from ngdiff.methods import METHODS
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.models.logprobs import count_labelled, labelled_tokens
from ngdiff.preparation.starting_predictions import starting_states
from ngdiff.settings import DEFAULT_METHOD
from ngdiff.steps.gradients import GradientPair, Weights
from ngdiff.steps.stepsize import AutomaticRate
from ngdiff.steps.weighting import make_rule
from ngdiff.system.environment import keep_freed_memory, peak_memory_gib
from ngdiff.training.trainer import PROBE_SHARE

STEPS = ("graddiff", "ngdiff", "default")
KINDS = (*STEPS, "ngdiff-automatic")


class Bench:
    """One model with its batches and an optimizer, and the steps that can be taken with them."""

    def __init__(self, model_name: str, batch: int) -> None:
        source = resolve_model(model_name)
        self.model = load_model(source)
        tokenizer = load_tokenizer(source)
        rows = as_encoded(question_rows(invent_people(12, 3)), tokenizer, 512, "benchmark")
        shuffled = [rows[place] for place in permutation(len(rows), 0, 0)]
        shuffled = self._as_the_default_needs(shuffled, tokenizer)
        parts = [shuffled[i : i + batch] for i in range(0, len(rows) - batch + 1, batch)]
        pad_id = tokenizer.pad_token_id
        self.batches = [collate_for_loss(part, pad_id) for part in parts]
        probed = [part[: math.ceil(PROBE_SHARE * batch)] for part in parts]
        self.probes = [[collate(p, pad_id) for p in little_padding(part, batch)] for part in probed]
        self.pair = GradientPair(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
        self.rule = make_rule("ngdiff")
        self.model.train()

    def _as_the_default_needs(self, examples: list[EncodedExample], tokenizer: Any) -> list[EncodedExample]:
        """Return the examples with what the starting model says, and with levels; other steps ignore both."""
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            states = starting_states(
                self.model.eval(),
                examples,
                range(len(examples)),
                layer=None,
                tokenizer=tokenizer,
                pad_id=tokenizer.pad_token_id,
                batch_size=8,
                folder=Path(folder),
                precision="fp32",
                autocast=nullcontext,
            )
            self.head = states.head(torch.device("cpu"))
            return [
                replace(
                    example,
                    reference_states=example.reference_states.clone(),  # the file will be gone
                    predictable=(0.5,) * len(example.reference_states),
                )
                for example in states.attach(examples)
                if example.reference_states is not None
            ]

    def triples(self) -> Iterator[tuple[Batch, Batch, list[Batch]]]:
        """Forget batch, retain batch and the batches of a probe, round and round."""
        count, turn = len(self.batches), 0
        while True:
            forget, retain, probe = ((turn + i) % count for i in range(3))
            yield self.batches[forget], self.batches[retain], self.probes[probe]
            turn += 3

    def graddiff(self, forget: Batch, retain: Batch) -> None:
        """Both losses into one buffer, then the optimizer."""
        self.pair.clear()
        with self.pair.task("retain"):
            (negated_nll(labelled_tokens(self.model, forget)) / count_labelled(forget)).backward()
        with self.pair.task("retain"):
            (nll(labelled_tokens(self.model, retain)) / count_labelled(retain)).backward()
        self.pair.combine(Weights(1.0, 0.0))
        self.optimizer.step()

    def backward(self, forget: Batch, retain: Batch) -> None:
        self.pair.clear()
        with self.pair.task("forget"):
            (negated_nll(labelled_tokens(self.model, forget)) / count_labelled(forget)).backward()
        with self.pair.task("retain"):
            (nll(labelled_tokens(self.model, retain)) / count_labelled(retain)).backward()
        self.pair.combine(self.rule(self.pair.gramian()))

    def ngdiff(self, forget: Batch, retain: Batch) -> None:
        """Two buffers, Gramian, combination, then the optimizer."""
        self.backward(forget, retain)
        self.optimizer.step()

    def default(self, forget: Batch, retain: Batch) -> None:
        """The same with the default method's losses."""
        method = METHODS[DEFAULT_METHOD]
        self.pair.clear()
        for task, name, batch in (
            ("forget", method.forget_loss, forget),
            ("retain", method.retain_loss, retain),
        ):
            loss = LOSSES[name].complete({}, {})
            with self.pair.task(task):
                tokens = look(loss, self.model, batch, self.head if task == "retain" else None)
                (loss.function(tokens) / count_labelled(batch)).backward()
        self.pair.combine(self.rule(self.pair.gramian()))
        self.optimizer.step()

    @torch.no_grad()
    def probe_loss(self, batches: list[Batch]) -> float:
        self.model.eval()
        total = sum(float(nll(labelled_tokens(self.model, batch))) for batch in batches)
        self.model.train()
        return total / sum(map(count_labelled, batches))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def probe_seconds(bench: Bench, forget: Batch, retain: Batch, probe: list[Batch]) -> float:
    """Seconds that a probe of a running rate (that of step 10, 20, ...) adds to a step."""
    rate = AutomaticRate(bench.optimizer, every=1)
    rate.rate, rate.MOST_WIDENINGS = 1e-6, 0
    bench.backward(forget, retain)
    before = seconds(partial(rate.before_step, bench.pair))
    bench.optimizer.step()
    return before + seconds(partial(rate.after_step, partial(bench.probe_loss, probe)))


def time_steps(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Paired rounds: the same batches through all kinds of step, in turning order, then one probe."""
    times: dict[str, list[float]] = {"graddiff": [], "ngdiff": [], "default": [], "probe": []}
    for turn, (forget, retain, probe) in zip(range(rounds + 1), bench.triples(), strict=False):
        first = turn % 3
        kinds = (*STEPS[first:], *STEPS[:first])
        measured = {kind: seconds(partial(getattr(bench, kind), forget, retain)) for kind in kinds}
        measured["probe"] = probe_seconds(bench, forget, retain, probe)
        if turn:  # the first round warms up
            for kind, value in measured.items():
                times[kind].append(value)
    return times


def linear_flops(model: nn.Module, batches: tuple[Batch, Batch]) -> tuple[float, int]:
    """Operations of the matrix products of one step, forward and backward, and the tokens it reads."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2) - head
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    labelled = sum(count_labelled(batch) for batch in batches)
    return 6.0 * (body * tokens + head * labelled), tokens


def matmul_speed(rounds: int = 20) -> float:
    """Fastest float32 operations per second of the model's own product shapes."""
    left, right = torch.randn(512, 576), torch.randn(576, 1536)
    torch.mm(left, right)
    best = min(seconds(lambda: [torch.mm(left, right) for _ in range(20)]) for _ in range(rounds))
    return 20 * 2 * 512 * 576 * 1536 / best


def peak_of(kind: str, model: str, batch: int) -> float:
    """Peak memory of three steps of one kind, in a process of its own, in GiB."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.steps",
        "--peak-of",
        kind,
        "--model",
        model,
        "--batch",
        str(batch),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def run_peak(kind: str, bench: Bench) -> None:
    rate = AutomaticRate(bench.optimizer, every=1)
    for _, (forget, retain, probe) in zip(range(3), bench.triples(), strict=False):
        if kind in STEPS:
            getattr(bench, kind)(forget, retain)
        else:
            bench.backward(forget, retain)
            rate.step(bench.pair, lambda b=probe: bench.probe_loss(b))  # type: ignore[misc]
    print(peak_memory_gib()["process"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak-of", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda":
        from benchmarks import gpu_steps

        found = gpu_steps.report(torch.device("cuda"), args.rounds, ("smollm2", "llama-1b"), 30)
        print(json.dumps(found, indent=1))
        return
    if not args.peak_of:
        keep_freed_memory()
    bench = Bench(args.model, args.batch)
    if args.peak_of:
        run_peak(args.peak_of, bench)
        return
    times = time_steps(bench, args.rounds)
    graddiff, ngdiff = statistics.median(times["graddiff"]), statistics.median(times["ngdiff"])
    ratios = {
        kind: statistics.median(n / g for n, g in zip(times[kind], times["graddiff"], strict=True))
        for kind in ("ngdiff", "default")
    }
    share = statistics.median(p / (10 * n) for p, n in zip(times["probe"], times["ngdiff"], strict=True))
    flops, tokens = linear_flops(bench.model, (bench.batches[0], bench.batches[1]))
    floor = tokens / (flops / matmul_speed())
    buffer = sum(p.numel() * p.element_size() for p in bench.pair.parameters) / 2**30
    peaks = {kind: peak_of(kind, args.model, args.batch) for kind in KINDS}
    result = {
        "rounds": args.rounds,
        "batch": f"{args.batch} forget + {args.batch} retain",
        "graddiff_step_s": graddiff,
        "ngdiff_step_s": ngdiff,
        "default_step_s": statistics.median(times["default"]),
        "ngdiff_over_graddiff": ratios["ngdiff"],
        "default_over_graddiff": ratios["default"],
        "probe_share_at_every_10": share,
        "tokens_per_s": tokens / ngdiff,
        "floor_tokens_per_s": floor,
        "share_of_floor": tokens / ngdiff / floor,
        "gradient_buffer_gib": buffer,
        "peak_gib": peaks,
        "ngdiff_over_graddiff_in_buffers": (peaks["ngdiff"] - peaks["graddiff"]) / buffer,
        "automatic_over_graddiff_in_buffers": (peaks["ngdiff-automatic"] - peaks["graddiff"]) / buffer,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
