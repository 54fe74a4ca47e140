"""micro-batches of a step -> the same gradients in smaller ones, where the device's memory is too small.

The memory of a micro-batch is known only when it runs. One that does not fit is halved, as are all later
ones, and the step starts over: its loss is a sum over examples, so the gradients are the same.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ngdiff.data.batching import ABSENT, Batch
from ngdiff.errors import RunError
from ngdiff.steps.gradients import GradientPair
from ngdiff.system.processes import local
from ngdiff.training.run_state import StepState

if TYPE_CHECKING:
    from ngdiff.training.trainer import UnlearningTrainer

PairBatch = Mapping[str, Any]
"""``forget`` and ``retain``, a batch each, as :class:`ngdiff.data.batching.PairCollator` makes them."""

_PER_TOKEN = ("predictable", "reference_states", "expected_ids", "expected_probs")
_PLACES = ("real", "labelled")


def rows_between(batch: Mapping[str, Tensor], first: int, last: int) -> Batch:
    """Return some rows of a batch, with everything that belongs to them.

    Args:
        batch: as :func:`ngdiff.data.batching.collate_for_loss` makes it.
        first: row, counted from 0.
        last: the row after the last one.
    """
    length = batch["input_ids"].shape[1]
    device = batch["labelled"].device
    ends = torch.tensor([first * length, last * length], device=device)
    tokens = slice(*torch.searchsorted(batch["labelled"], ends).tolist())
    found: Batch = {}
    for name, value in batch.items():
        if name == "other":
            found[name] = rows_between(value, first, last)  # type: ignore[assignment, arg-type]
        elif name in _PLACES:
            start, stop = torch.searchsorted(value, ends).tolist()
            found[name] = value[start:stop] - first * length
        else:
            found[name] = value[tokens] if name in _PER_TOKEN else value[first:last]
    return found


def parts_of(pairs: PairBatch, most: int | None) -> Iterator[PairBatch]:
    """Cut a micro-batch into parts of at most so many examples of each task; None leaves it whole."""
    count = len(pairs["retain"]["input_ids"])
    if most is None or count <= most:
        yield pairs
        return
    pieces = -(-count // most)
    for piece in range(pieces):
        first, last = count * piece // pieces, count * (piece + 1) // pieces
        part = {task: rows_between(pairs[task], first, last) for task in ("forget", "retain")}
        yield {**part, **({ABSENT: pairs[ABSENT]} if ABSENT in pairs else {})}


class MicroBatches:
    """How many examples go through the model at once, and how a step keeps to that number.

    Args:
        note: writes a fallback to the record of the run.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.most: int | None = None
        self._note = note
        self._taken: list[PairBatch] = []

    def begin_step(self) -> None:
        """Forget the micro-batches of the step before."""
        self._taken = []

    def take(
        self, pairs: PairBatch, run: Callable[[PairBatch], None], begin_anew: Callable[[], None]
    ) -> None:
        """Run one more micro-batch of a step; where it does not fit, repeat the step so far in smaller ones.

        Args:
            pairs: the micro-batch.
            run: adds the gradients of a part to those of the step.
            begin_anew: drops the gradients of the step.

        Raises:
            RunError: a single example of each task does not fit.
        """
        self._taken.append(pairs)
        waiting = [pairs]
        while True:
            asked = self._lacking(waiting, run)
            if asked is None:
                return
            self._halve(pairs, asked)
            begin_anew()
            _free()
            waiting = self._taken

    def _lacking(self, waiting: Sequence[PairBatch], run: Callable[[PairBatch], None]) -> str | None:
        """Run micro-batches in parts; return how much memory could not be allocated, if any.

        The error is dropped here, because it holds on to the memory that was missing.
        """
        try:
            for pairs in waiting:
                for part in parts_of(pairs, self.most):
                    run(part)
        except torch.OutOfMemoryError as error:
            found = re.search(r"[Tt]ried to allocate ([0-9.]+ [KMG]iB)", str(error))
            return found[1] if found else "some memory"
        return None

    def _halve(self, pairs: PairBatch, asked: str) -> None:
        tried = min(len(pairs["retain"]["input_ids"]), self.most or 2**62)
        if tried == 1:
            length = max(pairs[task]["input_ids"].shape[1] for task in ("forget", "retain"))
            raise RunError(too_large(1, length, asked))
        self.most = tried // 2
        self._note(
            f"{asked} more did not fit with {tried} examples of each task at once: {self.most} from then on"
        )


def too_large(examples: int, length: int, asked: str) -> str:
    """Return what did not fit, and what helps."""
    return (
        f"a micro-batch of {examples} example of each task, up to {length} tokens long, does not fit on the "
        f"device, which lacks {asked}: give --gradient-checkpointing, --set forget_buffer=cpu, a smaller "
        "--max-length, or --lora, or more GPUs with FSDP; a run with checkpoints resumes with --resume"
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def try_largest(trainer: UnlearningTrainer) -> None:
    """Find out, on the largest micro-batch, how many examples fit through the model at once.

    Only for devices that report a lack of memory: a CPU's system swaps, or kills the process. The memory that
    the optimizer will need is reserved meanwhile.
    """
    size = min(trainer.args.train_batch_size, len(trainer.forget_set), len(trainer.retain_set))
    longest = (
        sorted(data, key=lambda one: len(one.input_ids) + sum(len(o.input_ids) for o in one.alternatives))
        for data in (trainer.forget_set, trainer.retain_set)
    )
    forget, retain = (data[-size:] for data in longest)
    pairs = trainer.data_collator(list(zip(forget, retain, [0] * size, strict=True)))
    kept, trainer.run.step = trainer.run.step, StepState({"forget": size, "retain": size}, set())
    model, trained = trainer.model_wrapped, [p for p in trainer.model.parameters() if p.requires_grad]
    pair = trainer.pair = trainer.pair or GradientPair(model.parameters(), trainer.args.forget_buffer)
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        copies = (
            3 if trainer.args.sam_radius > 0 else 2
        )  # the optimizer's moments, and weights to come back to
        moments = [torch.empty_like(local(p), dtype=torch.float32) for p in trained for _ in range(copies)]
        model.train()
        trainer.micro_batches.begin_step()
        trainer.micro_batches.take(pairs, lambda part: trainer.add_micro_batch(model, part, None), pair.clear)
        del moments
    pair.clear()
    trainer.run.step = kept
    _free()
    most = min(size, trainer.micro_batches.most or size)
    trainer.record.note(f"{most} examples of each task go through the model at once")
