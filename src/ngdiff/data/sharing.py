"""an order of examples -> this process's micro-batches, so that each optimizer step sees the same examples.

A step takes so many examples whatever the number of processes; they are cut into equal parts. Where the
examples of a step, or the last ones of an epoch, do not go round, a process gets an empty micro-batch: it
takes part in the exchange with nothing to add. (The usual way, examples of the epoch's beginning a second
time, would make a run on two processes another run than on one.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, Sampler

T = TypeVar("T")


@dataclass(frozen=True)
class StepShares:
    """How the examples of one optimizer step are cut up.

    Args:
        examples: of a step, over all processes.
        micro_batch: most examples of one forward pass of one process.
        accumulation: micro-batches a step.
        processes: how many share the step.
    """

    examples: int
    micro_batch: int
    accumulation: int
    processes: int

    @classmethod
    def of(cls, examples: int, largest: int, processes: int) -> StepShares:
        """Cut a step so that no process runs more than ``largest`` examples at a time."""
        each = -(-examples // processes)
        accumulation = -(-each // largest)
        return cls(examples, -(-each // accumulation), accumulation, processes)

    @property
    def idle(self) -> int:
        """Processes that get no example in a whole step's last micro-batch."""
        last = self.examples - (self.accumulation - 1) * self.micro_batch * self.processes
        return self.processes - min(self.processes, -(-last // self.micro_batch))


class ShareOfSteps(Sampler[list[T]]):
    """Yields one process's micro-batches; all processes get as many, some of which may be empty.

    Args:
        order: of the examples; the same on every process.
        shares: how steps are cut.
        rank: this process's number.
    """

    def __init__(self, order: Any, shares: StepShares, rank: int) -> None:
        self.order, self.shares, self.rank = order, shares, rank

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        whole, left = divmod(len(self.order), self.shares.examples)
        wide = self.shares.micro_batch * self.shares.processes
        return whole * self.shares.accumulation - (-left // wide)

    def __iter__(self) -> Iterator[list[T]]:
        examples, shares = list(self.order), self.shares
        wide = shares.micro_batch * shares.processes
        for start in range(0, len(examples), shares.examples):
            step = examples[start : start + shares.examples]
            for first in range(0, len(step), wide):
                mine = first + self.rank * shares.micro_batch
                yield step[mine : mine + shares.micro_batch]


def loader(trainer: Any, dataset: Dataset[Any], order: Any, shares: StepShares) -> Any:
    """Make a Trainer's training data loader that yields this process's shares."""
    args = trainer.args
    plain: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=ShareOfSteps(order, shares, args.process_index),
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    return prepare_data_loader(plain, args.device, num_processes=1, process_index=0, put_on_device=True)
