"""an order of examples -> this process's micro-batches, so that each optimizer step sees the same examples.

A step takes the same number of examples for any number of processes; they are divided into equal parts. Where
the examples of a step, or the last ones of an epoch, cannot be divided evenly, a process gets an empty
micro-batch: it takes part in the exchange with nothing to add. (The usual way, repeating examples from the
epoch's beginning, would make a run on two processes differ from a run on one.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, Sampler

T = TypeVar("T")

LEAST_EXAMPLES, MOST_EXAMPLES = 8, 32
STEPS_OF_A_PASS = 13
"""Most optimizer steps of one pass over the forget set, up to the largest step."""


def examples_of_a_step(forget: int) -> int:
    """Return the default number of pairs of a forget and a retain example in a step.

    Args:
        forget: examples of the forget set.

    Returns:
        8, 16, 24 or 32: the least multiple of 8 that goes through the forget set in 13 steps. The larger
        the forget set, the longer the run, and the more damage its steps accumulate, since the retain
        gradient of a few examples is only an estimate; a larger step estimates it better.
    """
    wanted = -(-forget // STEPS_OF_A_PASS)
    return min(MOST_EXAMPLES, max(LEAST_EXAMPLES, LEAST_EXAMPLES * -(-wanted // LEAST_EXAMPLES)))


@dataclass(frozen=True)
class StepShares:
    """How the examples of one optimizer step are divided.

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
        """Divide a step so that no process runs more than ``largest`` examples at a time."""
        each = -(-examples // processes)
        accumulation = -(-each // largest)
        return cls(examples, -(-each // accumulation), accumulation, processes)

    @property
    def idle(self) -> int:
        """Processes that get no example in the last micro-batch of a full step."""
        last = self.examples - (self.accumulation - 1) * self.micro_batch * self.processes
        return self.processes - min(self.processes, -(-last // self.micro_batch))


class ShareOfSteps(Sampler[list[T]]):
    """Yields one process's micro-batches; all processes get the same number, some of which may be empty.

    Args:
        sampler: the order of the examples; the same on every process. (It needs this name: the loader of a
            resumed epoch wraps this object, and accelerate's ``set_epoch`` looks for a ``sampler`` inside the
            wrapper. Not every version of transformers looks for this class's own ``set_epoch`` there.)
        shares: how steps are divided.
        rank: this process's number.
        arrange: reorders the examples of a step, for example by length; the same on every process and for
            any number of micro-batches. The step keeps its examples.
    """

    def __init__(
        self,
        sampler: Any,
        shares: StepShares,
        rank: int,
        arrange: Callable[[list[T]], list[T]] | None = None,
    ) -> None:
        self.sampler, self.shares, self.rank, self.arrange = sampler, shares, rank, arrange

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        whole, left = divmod(len(self.sampler), self.shares.examples)
        wide = self.shares.micro_batch * self.shares.processes
        return whole * self.shares.accumulation - (-left // wide)

    def __iter__(self) -> Iterator[list[T]]:
        examples, shares = list(self.sampler), self.shares
        wide = shares.micro_batch * shares.processes
        for start in range(0, len(examples), shares.examples):
            step = examples[start : start + shares.examples]
            if self.arrange is not None:
                step = self.arrange(step)
            for first in range(0, len(step), wide):
                mine = first + self.rank * shares.micro_batch
                yield step[mine : mine + shares.micro_batch]


def loader(trainer: Any, dataset: Dataset[Any], order: Any, shares: StepShares) -> Any:
    """Make a Trainer's training data loader that yields this process's shares.

    Args:
        trainer: whose loader it is.
        dataset: addressed by what ``order`` yields; its method ``arranged``, if any, orders the examples of a
            step.
        order: of the examples; the same on every process.
        shares: how steps are divided.
    """
    args = trainer.args
    plain: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=ShareOfSteps(order, shares, args.process_index, getattr(dataset, "arranged", None)),
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    return prepare_data_loader(plain, args.device, num_processes=1, process_index=0, put_on_device=True)
