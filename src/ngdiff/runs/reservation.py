"""request and loaded model -> the run's own folder, kept from other processes, and the request's hash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import nn

from ngdiff.runs.signals import StopWish, wish_to_stop
from ngdiff.runs.workplace import Asked, Workplace
from ngdiff.system.environment import weights_hash
from ngdiff.system.output import check_output
from ngdiff.system.processes import by_main, from_main, is_main, on_all, raise_faults


class Writes(Protocol):
    """What a request says of its output."""

    @property
    def output(self) -> Path:
        """The folder of the result."""

    @property
    def overwrite(self) -> bool:
        """Whether an earlier result may be replaced, and another request's unfinished run dropped."""

    @property
    def resume(self) -> bool | None:
        """True: go on or fail; False: start afresh; None: go on where that is possible."""


@dataclass(frozen=True)
class Reservation:
    """A run that may begin.

    Args:
        asked: the request, with the hash of the model's weights.
        going_on: whether there is a checkpoint to go on from.
        wish: tells the trainer when somebody wants it to stop.
    """

    asked: Asked
    going_on: bool
    wish: StopWish


def may_replace(request: Writes) -> bool:
    """Say whether an earlier result may go: now, or when the run that is gone on with was begun."""
    return request.overwrite or (request.resume is not False and Workplace(request.output).may_replace)


@contextmanager
def reserved(
    place: Workplace, request: Writes, asked: Asked, model: nn.Module, needed: int
) -> Iterator[Reservation]:
    """Look once more whether the result can be written, and keep the run's folder while the block runs.

    Args:
        place: where the run works.
        request: what it says of its output.
        asked: the request, its model not hashed yet.
        model: as loaded, without adapters.
        needed: bytes that the run writes at the most.

    Raises:
        RequestError: there is no room; another process is at work; or see :meth:`Workplace.goes_on`.
    """
    on_all(lambda: raise_faults(check_output(request.output, may_replace(request), needed)))
    # with FSDP2 the first process alone may have read the weights
    hashed = replace(asked, model=from_main(weights_hash(model) if is_main() else ""))
    reserve = partial(place.reserved, hashed, resume=request.resume, overwrite=request.overwrite)
    with by_main(reserve) as going_on, wish_to_stop() as wish:
        yield Reservation(hashed, going_on, wish)
