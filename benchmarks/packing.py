"""batches of the default method -> tokens that are not padding, and time with and without padding.

    python -m benchmarks.packing [--model smollm2] [--retain tofu:retain99[:400]] [--rounds 15]

A batch is what a step of the default method holds: eight rows to keep, half of them general text. Each is run
forward and backward padded and packed in turn, in one process, so that other load hits both alike. Prints the
share of real tokens of each way, median seconds, and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

import torch

from ngdiff.data.batching import Batch, RetainStream, collate
from ngdiff.data.datasets import as_encoded
from ngdiff.data.sources import general_split, read_rows
from ngdiff.invented.people import invent_people, question_rows
from ngdiff.losses import nll
from ngdiff.models.loading import autocast_bf16, load_model, load_tokenizer, resolve_model
from ngdiff.models.logprobs import labelled_tokens
from ngdiff.models.packing import takes_packed
from ngdiff.system.environment import keep_freed_memory

ROWS = 8


def batches(tokenizer: object, retain: str | None, count: int) -> list[Batch]:
    """Return the retain batches of a run's first steps."""
    invented = [dict(row) for row in question_rows(invent_people(20, seed=1), seed=1)]
    rows = (
        invented
        if retain is None
        else [
            {name: row.values[name] for name in ("question", "answer")}
            for row in read_rows(retain, where="--retain")
        ]
    )
    own, general = (as_encoded(part, tokenizer, 512, "rows") for part in (rows, general_split()[0]))
    stream, every = RetainStream(len(own), len(general), seed=0), [*own, *general]
    steps = (range(step * ROWS, (step + 1) * ROWS) for step in range(count))
    return [collate([every[stream[place]] for place in places], pad_id=0) for places in steps]


def seconds(model: torch.nn.Module, batch: Batch, bf16: bool) -> float:
    """Return how long a pass forward and backward takes."""
    model.zero_grad()
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
        loss = nll(labelled_tokens(model, batch))
    loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def main() -> None:
    """Print shares, seconds and ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--retain", help="source of the rows to keep; by default invented people")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    keep_freed_memory()
    source = resolve_model(args.model)
    model = load_model(source).train()
    if not takes_packed(model):
        raise SystemExit(f"{args.model} does not read packed rows as it reads padded ones")
    bf16, _ = autocast_bf16("auto")
    packed = batches(load_tokenizer(source), args.retain, args.rounds + 1)
    plain = [{name: value for name, value in batch.items() if name != "real"} for batch in packed]
    times = [
        (seconds(model, one, bf16), seconds(model, other, bf16))
        for one, other in zip(packed, plain, strict=True)
    ][1:]
    real = sum(len(batch["real"]) for batch in packed)
    shares = real / sum(batch["labels"].numel() for batch in plain)
    print(f"real tokens: {shares:.2f} of those that padded rows run over; packed rows run over no others")
    for name, column in zip(("packed", "padded"), zip(*times, strict=True), strict=True):
        print(f"{name}: {statistics.median(column):.2f} s a batch of {ROWS} rows (median of {len(column)})")
    print(f"padded / packed: {statistics.median(slow / fast for fast, slow in times):.2f} (median of pairs)")


if __name__ == "__main__":
    main()
