"""What keeping the starting model's words on disk saves, against a second model in memory.

    python -m benchmarks.starting_model

NPO (a number an answer), UNDIAL and KL (a whole prediction a token) on SmolLM2-135M: the same steps once with
a frozen copy of the model that is asked at every step, as is usual, and once with what it said worked out
beforehand. Each in a process of its own, in float32; the losses of all steps must agree.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ngdiff.data.batching import collate, collate_for_loss
from ngdiff.data.datasets import as_encoded
from ngdiff.invented.people import invent_people, question_rows
from ngdiff.losses import LOSSES
from ngdiff.losses.loss import look
from ngdiff.models.loading import load_model, load_tokenizer, resolve_model
from ngdiff.models.logprobs import labelled_tokens
from ngdiff.preparation.starting_predictions import starting_states, with_reference
from ngdiff.system.cache import Cache
from ngdiff.system.environment import keep_freed_memory, peak_memory_gib

PASSES = 3


def run(name: str, how: str, examples: int, batch: int) -> dict[str, Any]:
    """Take PASSES passes over the examples; return seconds, peak memory and the losses."""
    source = resolve_model("smollm2")
    model, tokenizer = load_model(source), load_tokenizer(source)
    row = LOSSES[name].complete({}, {"never-seen NLL": 3.0})
    data = as_encoded(question_rows(invent_people(12, 3))[:examples], tokenizer, 512, "benchmark")
    pad_id = int(tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    started, frozen, head = time.perf_counter(), None, None
    if how == "second-model":
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
    else:
        common: dict[str, Any] = {
            "tokenizer": tokenizer,
            "pad_id": pad_id,
            "batch_size": 2 * batch,
            "precision": "fp32",
        }
        folder = Path(tempfile.mkdtemp())
        if row.compares == "answers":
            data = with_reference(model, data, cache=Cache(folder), **common)
        else:
            states = starting_states(model, data, range(len(data)), layer=None, folder=folder, **common)
            data, head = states.attach(data), states.head(torch.device("cpu"))
    asked = time.perf_counter() - started
    model.train()
    losses = []
    started = time.perf_counter()
    for step in range(PASSES * len(data) // batch):
        start = step * batch % len(data)
        part = data[start : start + batch]
        if frozen is None:
            seen = look(row, model, collate_for_loss(part, pad_id), head)
        else:
            inputs = collate(part, pad_id)
            with torch.no_grad():
                before = labelled_tokens(frozen, inputs)
            zeros = torch.zeros(before.row_count)
            seen = replace(
                labelled_tokens(model, inputs),
                reference=zeros.index_add(0, before.rows, before.log_probs()),
                reference_logits=before.logits,
            )
        loss = row.function(seen) / len(part)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - started
    return {"asking_s": asked, "steps_s": seconds, "gib": peak_memory_gib()["process"], "losses": losses}


def in_a_process(name: str, how: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one side by itself, so that its peak is its own."""
    words = ["--loss", name, "--how", how, "--examples", str(args.examples), "--batch", str(args.batch)]
    command = [sys.executable, "-m", "benchmarks.starting_model", *words]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", choices=("npo", "undial", "kl"))
    parser.add_argument("--how", choices=("second-model", "on-disk"))
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    keep_freed_memory()
    if args.how:
        print(json.dumps(run(args.loss, args.how, args.examples, args.batch)))
        return
    print("| loss | s a step: second model | on disk | asking once, s | GiB: second model | on disk |")
    print("|---|---|---|---|---|---|")
    steps = PASSES * args.examples // args.batch
    for name in ("npo", "undial", "kl"):
        second, disk = (in_a_process(name, how, args) for how in ("second-model", "on-disk"))
        torch.testing.assert_close(
            torch.tensor(disk["losses"]), torch.tensor(second["losses"]), rtol=1e-2, atol=1e-3
        )
        print(
            f"| {name} | {second['steps_s'] / steps:.2f} | {disk['steps_s'] / steps:.2f} "
            f"| {disk['asking_s']:.1f} | {second['gib']:.2f} | {disk['gib']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
