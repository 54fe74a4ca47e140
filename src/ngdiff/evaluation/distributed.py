"""several processes that evaluate one model -> each its share of the rows, and all results everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def process_count() -> int:
    """Return how many processes share the work; 1 where none were started together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """Say whether this process writes and prints."""
    return process_rank() == 0


def is_first_process() -> bool:
    """Say whether this is the first of the processes that ``torchrun`` started, joined or not."""
    return int(os.environ.get("RANK", "0")) == 0


def my_share(order: Sequence[int]) -> list[int]:
    """Return every n-th of the rows, so that each process has long and short ones alike."""
    return list(order[process_rank() :: process_count()])


def gathered(work: Callable[[], dict[int, T]]) -> dict[int, T]:
    """Do this process's work, and return the results of all.

    An error in one process is raised in every one: otherwise the others would wait for it for ever.
    """
    if process_count() == 1:
        return work()
    outcome: tuple[dict[int, T] | None, Exception | None]
    try:
        outcome = (work(), None)
    except Exception as error:
        outcome = (None, error)
    outcomes: list[Any] = [None] * process_count()
    dist.all_gather_object(outcomes, outcome)
    if outcome[1] is not None:
        raise outcome[1]
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return {row: value for results, _ in outcomes for row, value in results.items()}
