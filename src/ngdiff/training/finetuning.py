"""examples -> a model that learned them: the loop of ``ngdiff finetune``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import TrainingArguments

from ngdiff.data.batching import ABSENT, Batch, collate, permutation
from ngdiff.data.encoding import EncodedExample
from ngdiff.data.sharing import loader
from ngdiff.losses import nll
from ngdiff.models.logprobs import count_labelled, labelled_tokens
from ngdiff.runs.checkpoints import step_of
from ngdiff.runs.resumable import ResumableTrainer
from ngdiff.system.output import write_json
from ngdiff.system.processes import summed
from ngdiff.training.launch import check_sharding, share_steps

STATE_FILE = "finetuning_state.json"


class _Examples(Dataset[EncodedExample]):
    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.examples[index]


class LengthGroupedOrder(Sampler[int]):
    """A new random order each epoch in which neighbours have similar lengths, to keep padding low."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, span: int = 16) -> None:
        self.lengths, self.batch_size, self.seed, self.span = lengths, batch_size, seed, span
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = permutation(len(self), self.seed, self.epoch)
        window = self.batch_size * self.span
        for start in range(0, len(order), window):
            mine = sorted(order[start : start + window], key=lambda i: self.lengths[i])
            batches = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
            # a short batch stays last: moved inside, it would shift every batch behind it
            full = len(batches) - (len(batches[-1]) < self.batch_size)
            shuffled = permutation(full, self.seed + 1, self.epoch * 7919 + start)
            for index in [*shuffled, *range(full, len(batches))]:
                yield from batches[index]


class FinetuneTrainer(ResumableTrainer):
    """Minimises the mean NLL of the labelled tokens over the whole accumulated batch."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, model: nn.Module, args: TrainingArguments, examples: Sequence[EncodedExample], **kwargs: Any
    ) -> None:
        self.notes: list[str] = []
        self._started = time.monotonic()
        pad_id = kwargs["processing_class"].pad_token_id
        args.remove_unused_columns = False
        self._shares = shares = share_steps(args)

        def collate_share(rows: Sequence[EncodedExample]) -> Batch:
            if rows:
                return collate(rows, pad_id)
            return {**collate(examples[:1], pad_id), ABSENT: torch.ones(1)}

        super().__init__(
            model=model, args=args, train_dataset=_Examples(examples), data_collator=collate_share, **kwargs
        )
        check_sharding(self)
        self._order = LengthGroupedOrder([len(e.input_ids) for e in examples], shares.examples, args.seed)

    def get_train_dataloader(self) -> Any:
        """Return this process's share of every step's examples."""
        return loader(self, self.train_dataset, self._order, self._shares)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], int]:
        """Take the micro-batches of one step and count their labelled tokens over all processes."""
        if self.no_more_steps:
            return [], 0
        batches = list(islice(epoch_iterator, num_batches))
        mine = sum(count_labelled(batch) for batch in batches if ABSENT not in batch)
        return batches, int(summed(torch.tensor(mine, device=device)))

    def note(self, text: str) -> None:
        """Note a fallback for the record."""
        self.notes.append(text)

    def save_more(self, folder: Path) -> None:
        """Add notes and time to a checkpoint; transformers saves the rest, or it follows from the step."""
        if self.args.should_save:
            write_json({"notes": self.notes, "seconds": self.seconds}, folder / STATE_FILE)

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, in s, including the time before it was resumed."""
        return time.monotonic() - self._started

    def find_checkpoint(self, asked: Any) -> Any:
        """Return the folder to resume from, and restore its notes."""
        found = super().find_checkpoint(asked)
        if isinstance(found, str):
            earlier = json.loads((Path(found) / STATE_FILE).read_text(encoding="utf-8"))
            self._started -= earlier["seconds"]
            self.notes = [*earlier["notes"], *self.notes, f"resumed at step {step_of(Path(found))}"]
        return found

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's share of the step's mean NLL."""
        factor = 0 if ABSENT in inputs else self.accelerator.num_processes
        # DDP's reducer follows the graph of the logits that the forward pass returns
        in_parts = not isinstance(model, nn.parallel.DistributedDataParallel)
        loss: Any = nll(labelled_tokens(model, inputs, in_parts=in_parts)) / num_items_in_batch * factor
        self.state.progress_note = f"loss {float(loss.detach()):.3f}"
        return loss
