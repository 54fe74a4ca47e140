"""Whether a long run needs more and more memory.

    python -m benchmarks.memory_growth [--steps 1000]

Trains a tiny model with NGDiff and the automatic rate, with probes, checks and checkpoints as in a real run,
and prints resident memory and the number of live tensors as it goes, then the growth from the first tenth of
the steps, by when all buffers exist, to the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PrinterCallback, TrainerCallback

from benchmarks.tiny_model import save_questions, save_tiny_model
from ngdiff.training.config import UnlearningConfig
from ngdiff.training.trainer import UnlearningTrainer

MIB = 2**20


class Watch(TrainerCallback):
    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[tuple[int, float, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every:
            return
        gc.collect()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        resident = psutil.Process().memory_info().rss / MIB
        self.seen.append((state.global_step, resident, tensors))
        print(f"step {state.global_step:5}: {resident:8.1f} MiB resident, {tensors} tensors", flush=True)


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    watch = Watch(max(1, steps // 10))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tiny_model(folder / "model", hidden=128)
        settings = UnlearningConfig(
            output_dir=str(folder / "run"),
            method="ngdiff",
            max_steps=steps,
            num_train_epochs=10.0 * steps,
            stop_at="nll=999",
            keep_utility=0.0,
            save_strategy="steps",
            save_steps=max(1, steps // 5),
            per_device_train_batch_size=4,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = UnlearningTrainer(
            LlamaForCausalLM.from_pretrained(folder / "model"),
            settings,
            forget_dataset=rows(save_questions(folder / "forget.jsonl", 0, 20)),
            retain_dataset=rows(save_questions(folder / "retain.jsonl", 100, 60)),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        print(f"ended after step {trainer.record.stop['step']}: {trainer.record.stop['reason']}")
    (first, before, few), (last, after, many) = watch.seen[0], watch.seen[-1]
    growth = f"{after - before:+.1f} MiB, {many - few:+} tensors"
    print(f"from step {first} to {last}: {growth}")


if __name__ == "__main__":
    main()
