"""What a corpus of real size takes before the first step: time and memory of each stage.

    python -m benchmarks.corpus_size [--forget muse:news/forget] [--retain SOURCE] [--items 200]

Without sources, running text about invented people of the same size is taken (0.8 million tokens each). The
tokenizer is that of smollm2; the model has its vocabulary and two small layers, so that what is measured is
this software's own work. The stages that ask the model look at ``--items`` pieces alone. Memory is what the
process holds for itself (RssAnon), sampled; files that are mapped into memory are not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ngdiff.data.encoding import EncodedExample
from ngdiff.data.examples import Example, data_hash, overlap_fault, to_examples
from ngdiff.data.long_text import encode_pieces
from ngdiff.data.overlaps import answer_fault
from ngdiff.data.secrets import kept_texts, with_secrets
from ngdiff.data.sources import Row, read_rows
from ngdiff.inference.teacher_forced import score_answers
from ngdiff.invented.kinds import invented_rows
from ngdiff.models.loading import load_tokenizer, resolve_model
from ngdiff.preparation.counterfactual import Expectations
from ngdiff.preparation.predictable import with_predictable
from ngdiff.preparation.starting_predictions import starting_states
from ngdiff.stopping import never_seen

TEXTS, WORDS = 889, 700


def held() -> float:
    """Return the memory that this process holds for itself, in MiB."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("RssAnon"))


class Peak:
    """Samples memory in the background."""

    def __init__(self) -> None:
        self.most = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, held())
            time.sleep(0.02)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print what a block takes."""
        self.most, began, cpu = held(), time.perf_counter(), time.process_time()
        yield
        seconds, busy = time.perf_counter() - began, time.process_time() - cpu
        print(f"{name:44} {seconds:7.1f} s ({busy:6.1f} s of CPU), peak {self.most:6.0f} MiB", flush=True)


def texts(source: str | None, seed: int) -> list[Example]:
    """Read a source, or invent a corpus."""
    if source is not None:
        return to_examples(read_rows(source, where=source), source)
    rows = invented_rows("text", TEXTS, WORDS, seed)
    return to_examples([Row({"text": row["answer"]}, f"text {n}") for n, row in enumerate(rows, 1)], "text")


def small_model(vocabulary: int, hidden: int) -> Any:
    """Return a model with a whole vocabulary and next to no layers."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
        )
    ).eval()


def before_the_model(peak: Peak, forget: list[Example], retain: list[Example], tokenizer: Any) -> Any:
    """Do all that needs no model."""
    with peak.stage("overlaps"):
        overlap_fault(forget, retain), answer_fault(forget, retain)
    with peak.stage("hashes"):
        data_hash(forget), data_hash(retain)
    sets = []
    for name, part in (("forget", forget), ("retain", retain)):
        with peak.stage(f"{name}: split and encode"):
            encoded, notes = encode_pieces(part, tokenizer, 512, name)
        print(f"  {sum(len(e.input_ids) for e in encoded)} tokens, {len(encoded)} pieces; {'; '.join(notes)}")
        sets.append(encoded)
    with peak.stage("secrets"):
        sets[0] = with_secrets(sets[0], kept_texts(sets[1]), tokenizer)
    return sets


def with_the_model(
    peak: Peak, forget: list[EncodedExample], retain: list[EncodedExample], tokenizer: Any, items: int
) -> None:
    """Do what asks the model, on some pieces; and count n-grams, on all."""
    model = small_model(len(tokenizer), 64)
    unseen = never_seen.invented(forget, tokenizer, 512).examples
    some = forget[:items]
    with peak.stage(f"score {len(some)} pieces"):
        score_answers(model, some, pad_id=0)
    probs = [0.01] * sum(label >= 0 for e in unseen for label in e.labels[1:])
    with peak.stage("n-grams and levels"):
        levelled = with_predictable(forget, retain, unseen, probs)[:items]
    with peak.stage(f"expectations of {len(some)} pieces"):
        levels = [e.predictable or () for e in levelled]
        Expectations(some, retain, levels, tokenizer, 0, 512, 0, 16).work_out(model)
    with tempfile.TemporaryDirectory() as folder, peak.stage("starting model's predictions, on disk"):
        states = starting_states(
            small_model(len(tokenizer), 576),
            retain,
            range(len(retain)),
            layer=None,
            tokenizer=tokenizer,
            pad_id=0,
            batch_size=16,
            folder=Path(folder),
            precision="fp32",
        )
        print(f"  {states.path.stat().st_size / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--forget")
    parser.add_argument("--retain")
    parser.add_argument("--items", type=int, default=200)
    args = parser.parse_args()
    peak = Peak()
    tokenizer = load_tokenizer(resolve_model("smollm2"))
    with peak.stage("read"):
        forget, retain = texts(args.forget, 1), texts(args.retain, 2)
    sets = before_the_model(peak, forget, retain, tokenizer)
    with_the_model(peak, *sets, tokenizer, args.items)


if __name__ == "__main__":
    main()
